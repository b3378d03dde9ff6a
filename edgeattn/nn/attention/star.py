"""The star operation: two projections of one neighbourhood, multiplied.

Paper: Rewrite the Stars (Ma et al. 2024, arXiv:2403.19967), StarNet.
    u = BN(DW7x7(x));   y = x + BN(W (relu6(W_1 u + b_1) * (W_2 u + b_2))), W_1, W_2: r C x C, r = mlp_ratio
Deviations: r is 1, where StarNet takes 3 or 4, since the backbone has a perceptron of its own; no second 7 x 7 depthwise
convolution behind W; the branch starts at 0.2 of its norm's scale.
Map: mean over channels of |y|.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention._parts import energy
from edgeattn.nn.layers import BRANCH, ConvNorm


class StarOperation(nn.Module):
    """The star operation: (B, C, H, W) -> (B, C, H, W)."""

    first_stage: int = 2

    def __init__(self, channels: int, *, mlp_ratio: int = 1) -> None:
        super().__init__()
        if mlp_ratio < 1:
            raise SpecError(f"star: mlp_ratio={mlp_ratio} must be 1 at least")
        g = ConvNorm(mlp_ratio * channels, channels, 1)
        nn.init.constant_(g[1].weight, BRANCH)  # type: ignore[arg-type]
        self.local: nn.Module = ConvNorm(channels, channels, 7, groups=channels)
        self.f1 = nn.Conv2d(channels, mlp_ratio * channels, 1)
        self.f2 = nn.Conv2d(channels, mlp_ratio * channels, 1)
        self.act = nn.ReLU6()
        self.g: nn.Module = g

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mix the neighbourhood of every place."""
        u_BCHW = self.local(x_BCHW)
        return x_BCHW + self.g(self.act(self.f1(u_BCHW)) * self.f2(u_BCHW))  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW = self(x_BCHW)
        return y_BCHW, energy(y_BCHW)
