"""Gather-excite: every channel is gated, place by place, from a wide neighbourhood of its own.

Paper: Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks (Hu et al. 2018, arXiv:1810.12348), the
form with parameters.
    g = BN(DW3x3(... relu(BN(DW3x3(x))))), each of stride 2, together of stride `extent`
    y = x * up(s(g)), up: nearest neighbour, to H x W
Deviations: the sigmoid stands before the resize, which for nearest neighbours gives the same numbers on a smaller map; the gate
starts open. Any map works: one that `extent` does not divide is padded with zeros, down to a single place.
Map: mean over channels of the gate.
"""

from __future__ import annotations

import math
from itertools import chain

from torch import Tensor, nn
from torch.nn.functional import interpolate

from edgeattn.errors import SpecError
from edgeattn.nn.attention._parts import start_open
from edgeattn.nn.layers import ConvNorm


class GatherExcite(nn.Module):
    """Gather-excite: (B, C, H, W) -> (B, C, H, W)."""

    first_stage: int = 2

    def __init__(self, channels: int, *, extent: int = 4) -> None:
        super().__init__()
        steps = max(1, round(math.log2(max(extent, 1))))
        if extent != 1 << steps:
            raise SpecError(
                f"gather_excite: extent={extent} must be a power of two, 2 at least; the nearest is {1 << steps}"
            )
        convs = [ConvNorm(channels, channels, 3, stride=2, groups=channels) for _ in range(steps)]
        start_open(convs[-1][1])
        self.gather = nn.Sequential(*chain.from_iterable((conv, nn.ReLU()) for conv in convs[:-1]), convs[-1])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh every channel by neighbourhood."""
        return x_BCHW * self._gate(x_BCHW)

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        gate_BCHW = self._gate(x_BCHW)
        return x_BCHW * gate_BCHW, gate_BCHW.mean(1)

    def _gate(self, x_BCHW: Tensor) -> Tensor:
        return interpolate(self.gather(x_BCHW).sigmoid(), x_BCHW.shape[2:], mode="nearest")
