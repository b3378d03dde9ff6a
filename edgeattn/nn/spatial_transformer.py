"""A spatial transformer in front of any model: it looks where to look, then shows the model that part of the picture.

Paper: Spatial Transformer Networks (Jaderberg et al. 2015, arXiv:1506.02025).
    theta = loc(x), 2 x 3;   every place o = (u, v, 1) of the output takes the picture's value at theta o, bilinearly
    y = model(x sampled there), zero outside the picture
Places run from -1 to 1 over the outer edges of the picture (`align_corners=False`).
Deviations: the paper leaves the localisation net open; here it is three strided convolutions, then one that also sees the
coordinates of its places, since the mean over all places would know only from the padding where something stands.
Map: how densely each place of the picture is sampled, 1 / |det A| within the sampled region and nothing outside, where
theta = [A t]. A place p comes from o = A^-1 (p - t) and is within while |o_u| and |o_v| are 1 at most, with an edge about as soft
as a cell of the map is wide.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from edgeattn.errors import SpecError
from edgeattn.nn.layers import ConvNorm, fold, global_mean

STRIDE = 8
"""Of the localisation net."""
SMALLEST = 1e-3
"""Area that the sampled region is taken to have at least, as a fraction of the picture, where the map divides by it."""


class SpatialTransformer(nn.Module):
    """`model` behind a spatial transformer: (B, 3, imgsz, imgsz) -> what the model answers to the part it is shown.

    It starts at the identity, as the model alone.
    """

    base: Tensor
    coordinates: Tensor
    cells: Tensor

    def __init__(self, model: nn.Module, *, imgsz: int, width: int = 16, region: int = 14) -> None:
        super().__init__()
        if imgsz < 1 or width < 1 or region < 1:
            raise SpecError(f"spatial transformer: imgsz={imgsz}, width={width} and region={region} must be 1 at least")
        self.model = model
        self.look = nn.Sequential(
            ConvNorm(3, width, 3, stride=2), nn.ReLU(),
            ConvNorm(width, 2 * width, 3, stride=2), nn.ReLU(),
            ConvNorm(2 * width, 2 * width, 3, stride=2), nn.ReLU(),
        )  # fmt: skip
        self.locate = nn.Sequential(ConvNorm(2 * width + 2, 2 * width, 1), nn.ReLU())
        self.theta = nn.Linear(2 * width, 6)
        with torch.no_grad():
            self.theta.weight.zero_()
            self.theta.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
        places_2N = _places(imgsz)
        side = -(-imgsz // STRIDE)
        self.register_buffer(
            "base", torch.cat([places_2N, torch.ones(1, imgsz * imgsz)]).T.contiguous(), persistent=False
        )
        self.register_buffer("coordinates", _places(side).reshape(1, 2, side, side), persistent=False)
        self.register_buffer("cells", _places(region), persistent=False)
        self.imgsz = imgsz
        self.region = region

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """What the model answers."""
        return self.model(self._sample(x_B3HW, self.transform(x_B3HW)))  # type: ignore[no-any-return]

    def attend(self, x_B3HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the model answers, and the maps: `transformer` (B, region, region), then the model's own."""
        theta_B6 = self.transform(x_B3HW)
        shown_B3HW, maps = self._sample(x_B3HW, theta_B6), {"transformer": self.density(theta_B6)}
        if not hasattr(self.model, "attend"):
            return self.model(shown_B3HW), maps
        y, own = self.model.attend(shown_B3HW)  # type: ignore[operator]
        return y, {**maps, **own}

    def transform(self, x_B3HW: Tensor) -> Tensor:
        """theta (B, 6), row by row."""
        seen_BCHW = self.look(x_B3HW)
        where_B2HW = self.coordinates.expand(x_B3HW.shape[0], -1, -1, -1)
        return self.theta(global_mean(self.locate(torch.cat([seen_BCHW, where_B2HW], dim=1))).flatten(1))  # type: ignore[no-any-return]

    def density(self, theta_B6: Tensor) -> Tensor:
        """How densely each cell of the picture is sampled, (B, region, region); 1 everywhere is the identity."""
        a_B1, b_B1, tx_B1, c_B1, d_B1, ty_B1 = theta_B6.chunk(6, dim=1)
        x_BN, y_BN = self.cells[:1] - tx_B1, self.cells[1:] - ty_B1
        area_B1 = (a_B1 * d_B1 - b_B1 * c_B1).abs().clamp_min(SMALLEST)
        u_BN = (d_B1 * x_BN - b_B1 * y_BN).abs() / area_B1
        v_BN = (a_B1 * y_BN - c_B1 * x_BN).abs() / area_B1
        sharpness = 2.0 * self.region  # half a cell within the edge of the identity: sigmoid(2)
        within_BN: Tensor = (sharpness * (1 - u_BN)).sigmoid() * (sharpness * (1 - v_BN)).sigmoid()
        return (within_BN / area_B1).reshape(-1, self.region, self.region)

    def _sample(self, x_B3HW: Tensor, theta_B6: Tensor) -> Tensor:
        grid_BN2 = self.base @ theta_B6.reshape(-1, 2, 3).transpose(1, 2)
        return grid_sample(x_B3HW, grid_BN2.reshape(-1, self.imgsz, self.imgsz, 2), align_corners=False)

    def deployed(self) -> SpatialTransformer:
        """A copy in eval mode with everything folded that folds exactly, the model's own deployed form inside."""
        twin = copy.deepcopy(self).cpu().eval()
        if hasattr(twin.model, "deployed"):
            twin.model = twin.model.deployed()  # type: ignore[operator]
        fold(twin)
        return twin


def _places(side: int) -> Tensor:
    """Centres of side x side cells between -1 and 1, row by row, (2, N): x, then y."""
    centres_S = (2 * torch.arange(side) + 1) / side - 1
    return torch.stack([centres_S.repeat(side), centres_S.repeat_interleave(side)])
