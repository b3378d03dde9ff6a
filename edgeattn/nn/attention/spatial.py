"""Pointwise spatial attention: one gate for each place, from the channels at that place alone.

Paper: the pixel attention of FFA-Net: Feature Fusion Attention Network for Single Image Dehazing (Qin et al. 2019,
arXiv:1911.07559).
    y = x * s(W2 relu(W1 x)), W1: R x C, W2: 1 x R, R = C / reduction, both 1 x 1 convolutions
Deviations: R is a multiple of 8 and at least 8; the gate starts open.
Map: the gate.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn.attention._parts import gate, squeezed_width, start_open


class PointwiseSpatial(nn.Module):
    """Pointwise spatial attention: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        width = squeezed_width(channels, reduction)
        self.reduce = nn.Conv2d(channels, width, 1)
        self.gate = nn.Conv2d(width, 1, 1)
        start_open(self.gate)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh the places."""
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        gate_B1HW = gate(self.gate(self.reduce(x_BCHW).relu()))
        return x_BCHW * gate_B1HW, gate_B1HW.squeeze(1)
