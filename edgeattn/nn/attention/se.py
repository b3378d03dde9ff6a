"""Squeeze-and-excitation, a channel gate.

Paper: Squeeze-and-Excitation Networks (Hu et al. 2018, arXiv:1709.01507).
    y = x * s(W2 relu(W1 GAP(x))), W1: R x C, W2: C x R, R = C / reduction
Deviations: R is a multiple of 8 and at least 8, so that thin stages keep a gate worth its name; both layers keep their
bias (quantizers recognise the gate by it); the gate starts open.
Map: mean over channels of |gate * x|.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn.attention._parts import energy, squeezed_width, start_open
from edgeattn.nn.layers import global_mean


class SqueezeExcitation(nn.Module):
    """SE: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        width = squeezed_width(channels, reduction)
        self.reduce = nn.Linear(channels, width)
        self.expand = nn.Linear(width, channels)
        start_open(self.expand)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh the channels."""
        gate_BC = self.expand(self.reduce(global_mean(x_BCHW).flatten(1)).relu()).sigmoid()
        return x_BCHW * gate_BC[..., None, None]  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW = self(x_BCHW)
        return y_BCHW, energy(y_BCHW)
