"""A 5 x 5 depthwise convolution in the slot, a control: context without attention, at a gate's cost.

Paper: none; what an attention has to beat.
    y = x + BN(DW5x5(x))
BatchNorm's scale starts at 0.2, as in the backbone's branches. `deployed` folds BatchNorm and the shortcut into the kernel: one
convolution, the same numbers.
Deviations: none.
Map: mean over channels of |y|.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.nn.attention._parts import energy
from edgeattn.nn.layers import BRANCH, ConvNorm


class DepthwiseFive(nn.Module):
    """Depthwise 5 x 5 with its shortcut: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        local = ConvNorm(channels, channels, 5, groups=channels)
        nn.init.constant_(local[1].weight, BRANCH)  # type: ignore[arg-type]
        self.local = local

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mix locally."""
        return x_BCHW + self.local(x_BCHW)  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW = self(x_BCHW)
        return y_BCHW, energy(y_BCHW)

    def deployed(self, channels: int) -> nn.Module:
        """The same as one convolution, whose map is the energy that it passes on."""
        conv = self.local.folded()
        with torch.no_grad():
            conv.weight[:, 0, 2, 2] += 1.0
        return conv
