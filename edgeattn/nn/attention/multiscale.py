"""Multi-scale spatial gate: 3 x 3 convolutions of several dilations look at two learned mixtures of the channels.

Paper: none of its own; CBAM's spatial gate (Woo et al. 2018, arXiv:1807.06521) at several scales.
    q = S x, S: 2 x C
    y = x * s(sum_d f3x3_d(q)), d the dilation: 1, 2, 3
`deployed` adds the dilated kernels up in one kernel of 2 max(d) + 1: the same numbers from one convolution.
Deviations: the gate starts open.
Map: the gate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention._parts import OPEN, gate, start_open


class MultiScaleSpatial(nn.Module):
    """Multi-scale spatial gate: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, dilations: Sequence[int] = (1, 2, 3)) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise SpecError(
                f"multiscale: dilations={tuple(dilations)} must be one or more, each 1 at least; 1, 2, 3 is usual"
            )
        self.squeeze = nn.Conv2d(channels, 2, 1)
        self.scales = nn.ModuleList(nn.Conv2d(2, 1, 3, padding=d, dilation=d) for d in dilations)
        for scale in self.scales:
            start_open(scale, OPEN / len(dilations))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh the places."""
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        q_B2HW = self.squeeze(x_BCHW)
        gate_B1HW = gate(torch.stack([scale(q_B2HW) for scale in self.scales]).sum(0))
        return x_BCHW * gate_B1HW, gate_B1HW.squeeze(1)

    def deployed(self, channels: int) -> nn.Module:
        """The same gate with one convolution in the place of several."""
        return _Merged(self, channels)


class _Merged(nn.Module):
    def __init__(self, source: MultiScaleSpatial, channels: int) -> None:
        super().__init__()
        scales = [scale for scale in source.scales if isinstance(scale, nn.Conv2d)]
        reach = max(scale.dilation[0] for scale in scales)
        self.squeeze = nn.Conv2d(channels, 2, 1)
        self.squeeze.load_state_dict(source.squeeze.state_dict())
        self.spatial = nn.Conv2d(2, 1, 2 * reach + 1, padding=reach)
        with torch.no_grad():
            self.spatial.weight.zero_()
            start_open(self.spatial, sum(float(scale.bias) for scale in scales if scale.bias is not None))
            for scale in scales:
                d = scale.dilation[0]
                taps = slice(reach - d, reach + d + 1, d)
                self.spatial.weight[:, :, taps, taps] += scale.weight

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        gate_B1HW = gate(self.spatial(self.squeeze(x_BCHW)))
        return x_BCHW * gate_B1HW, gate_B1HW.squeeze(1)
