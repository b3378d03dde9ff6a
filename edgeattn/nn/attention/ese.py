"""Effective squeeze-and-excitation, a channel gate of one layer.

Paper: CenterMask: Real-Time Anchor-Free Instance Segmentation (Lee and Park 2020, arXiv:1911.06667).
    y = x * hs(W GAP(x)), W: C x C, hs(v) = clip(v / 6 + 1/2, 0, 1)
Deviations: the gate starts open at 0.95, short of the corner of hs, behind which it has no gradient. hs is written as
multiply, add, clip, which engines run faster than a HardSigmoid node.
Map: mean over channels of |gate * x|.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn.attention._parts import energy, start_open
from edgeattn.nn.layers import global_mean

OPEN_HARD = 2.7
"""Bias at which the hard sigmoid is open as far as the sigmoid at 3: 0.95."""


class EffectiveSqueezeExcitation(nn.Module):
    """eSE: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.excite = nn.Conv2d(channels, channels, 1)
        start_open(self.excite, OPEN_HARD)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh the channels."""
        gate_BC = (self.excite(global_mean(x_BCHW)).flatten(1) * (1 / 6) + 0.5).clamp(
            0.0, 1.0
        )  # apart, as `gate` does it
        return x_BCHW * gate_BC[..., None, None]  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW = self(x_BCHW)
        return y_BCHW, energy(y_BCHW)
