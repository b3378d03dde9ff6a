"""Convolutional block attention module: a channel gate, then a spatial gate.

Paper: CBAM: Convolutional Block Attention Module (Woo et al. 2018, arXiv:1807.06521).
    u = x * s(MLP(GAP(x)) + MLP(GMP(x))), MLP = W2 relu(W1 .)
    y = u * s(f7x7([mean_c(u); max_c(u)]))
Deviations: the squeeze is a multiple of 8 and at least 8, and keeps its biases; both gates start open.
Map: the spatial gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.nn.attention._parts import OPEN, gate, need_odd, squeezed_width, start_open
from edgeattn.nn.layers import global_max, global_mean


class CBAM(nn.Module):
    """CBAM: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        need_odd(f"cbam: kernel_size={kernel_size}", kernel_size)
        width = squeezed_width(channels, reduction)
        self.mlp = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, channels, 1))
        self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)
        start_open(self.mlp[2], OPEN / 2)  # the perceptron is added to itself
        start_open(self.spatial)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh channels, then places."""
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        gate_BC11 = gate(self.mlp(global_mean(x_BCHW)) + self.mlp(global_max(x_BCHW)))
        u_BCHW = x_BCHW * gate_BC11
        squeezed_B2HW = torch.cat([u_BCHW.mean(1, keepdim=True), u_BCHW.amax(1, keepdim=True)], dim=1)
        gate_B1HW = gate(self.spatial(squeezed_B2HW))
        return u_BCHW * gate_B1HW, gate_B1HW.squeeze(1)
