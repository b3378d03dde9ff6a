"""CBAM for integer engines: a channel gate from the mean alone, then a spatial gate from two learned mixtures of the channels.

Paper: CBAM: Convolutional Block Attention Module (Woo et al. 2018, arXiv:1807.06521), of which this is another function that
has to be trained anew.
    u = x * s(W2 relu(W1 GAP(x)))
    y = u * s(f7x7(S u)), S: 2 x C
Deviations: no maxima, which engines reduce slowly: the channel gate is that of squeeze-and-excitation, and S, a 1 x 1 convolution,
stands in the place of [mean_c; max_c]. The squeeze is a multiple of 8 and at least 8, and keeps its biases; both gates start
open.
Map: the spatial gate.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn.attention._parts import gate, need_odd, squeezed_width, start_open
from edgeattn.nn.layers import global_mean


class CBAMLite(nn.Module):
    """CBAM without maxima: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        need_odd(f"cbam_lite: kernel_size={kernel_size}", kernel_size)
        width = squeezed_width(channels, reduction)
        self.reduce = nn.Conv2d(channels, width, 1)
        self.expand = nn.Conv2d(width, channels, 1)
        self.squeeze = nn.Conv2d(channels, 2, 1)
        self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)
        start_open(self.expand)
        start_open(self.spatial)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh channels, then places."""
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        gate_BC11 = gate(self.expand(self.reduce(global_mean(x_BCHW)).relu()))
        u_BCHW = x_BCHW * gate_BC11
        gate_B1HW = gate(self.spatial(self.squeeze(u_BCHW)))
        return u_BCHW * gate_B1HW, gate_B1HW.squeeze(1)
