"""Efficient channel attention, a channel gate without a squeeze.

Paper: ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks (Wang et al. 2020, arXiv:1910.03151).
    y = x * s(conv1d_k(GAP(x))), the kernel k sliding over channels, k = odd(|log2(C) / gamma + b / gamma|)
Deviations: k is at least 3; the convolution has a bias, from which the gate starts open. `deployed` writes the 1-d convolution
as a linear layer with a banded C x C matrix: the same numbers, and both engines run it without reshapes before it.
Map: mean over channels of |gate * x|.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgeattn.nn.attention._parts import energy, start_open
from edgeattn.nn.layers import global_mean


class EfficientChannelAttention(nn.Module):
    """ECA: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, gamma: float = 2.0, b: float = 1.0) -> None:
        super().__init__()
        nearest = int(abs(math.log2(channels) + b) / gamma)
        kernel = max(3, nearest if nearest % 2 else nearest + 1)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2)
        start_open(self.conv)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh the channels."""
        pooled_B1C = global_mean(x_BCHW).flatten(1).unsqueeze(1)
        gate_BC11 = self.conv(pooled_B1C).sigmoid().squeeze(1)[..., None, None]
        return x_BCHW * gate_BC11  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW = self(x_BCHW)
        return y_BCHW, energy(y_BCHW)

    def deployed(self, channels: int) -> nn.Module:
        """The same gate with a banded linear layer in the place of the convolution."""
        assert self.conv.bias is not None
        return _Banded(self.conv.weight.detach()[0, 0], float(self.conv.bias.detach()), channels)


class _Banded(nn.Module):
    def __init__(self, kernel_k: Tensor, bias: float, channels: int) -> None:
        super().__init__()
        half = len(kernel_k) // 2
        band_CC = torch.zeros(channels, channels)
        for row in range(channels):
            for tap, weight in enumerate(kernel_k):
                column = row + tap - half
                if 0 <= column < channels:
                    band_CC[row, column] = weight
        self.mix = nn.Linear(channels, channels)
        with torch.no_grad():
            self.mix.weight.copy_(band_CC)
            self.mix.bias.fill_(bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * self.mix(global_mean(x_BCHW).flatten(1)).sigmoid()[..., None, None]  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        y_BCHW = self(x_BCHW)
        return y_BCHW, energy(y_BCHW)
