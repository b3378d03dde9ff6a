"""The spatial half of CBAM: one gate for each place, from its surroundings.

Paper: CBAM: Convolutional Block Attention Module (Woo et al. 2018, arXiv:1807.06521).
    y = x * s(f7x7([mean_c(x); max_c(x)]))
`CBAMSpatialLite` squeezes the channels by a learned 1 x 1 convolution instead, another function that engines run faster:
    y = x * s(f7x7(W x)), W: 2 x C
Deviations: the gate starts open, from a bias in the place of the authors' BatchNorm.
Map: the gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.nn.attention._parts import gate, need_odd, start_open


class CBAMSpatial(nn.Module):
    """Spatial gate of CBAM: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, kernel_size: int = 7) -> None:
        super().__init__()
        need_odd(f"cbam_spatial: kernel_size={kernel_size}", kernel_size)
        self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)
        start_open(self.spatial)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh the places."""
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        gate_B1HW = gate(self.spatial(self._squeezed(x_BCHW)))
        return x_BCHW * gate_B1HW, gate_B1HW.squeeze(1)

    def _squeezed(self, x_BCHW: Tensor) -> Tensor:
        return torch.cat([x_BCHW.mean(1, keepdim=True), x_BCHW.amax(1, keepdim=True)], dim=1)


class CBAMSpatialLite(CBAMSpatial):
    """The same with a learned squeeze to two channels."""

    def __init__(self, channels: int, *, kernel_size: int = 7) -> None:
        super().__init__(channels, kernel_size=kernel_size)
        self.squeeze = nn.Conv2d(channels, 2, 1)

    def _squeezed(self, x_BCHW: Tensor) -> Tensor:
        return self.squeeze(x_BCHW)  # type: ignore[no-any-return]
