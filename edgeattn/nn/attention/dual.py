"""A channel gate and a spatial gate, both perceptrons: side by side, or one after the other.

Paper: none of its own; the channel gate is that of squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507), the order channels,
then places that of CBAM (Woo et al. 2018, arXiv:1807.06521).
    A_c(x) = s(W2 relu(W1 GAP(x))), C x 1 x 1
    A_s(x) = s(V2 relu(V1 x)), 1 x H x W, V1: R x C, V2: 1 x R
    `ChannelSpatial`:      y = A_s(x) * x * A_c(x)
    `ChannelThenSpatial`:  u = x * A_c(x), y = A_s(u) * u
Deviations: the squeeze R is a multiple of 8 and at least 8; all layers keep their biases; both gates start open.
Map: the spatial gate.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn.attention._parts import gate, squeezed_width, start_open
from edgeattn.nn.layers import global_mean


class ChannelSpatial(nn.Module):
    """Channel and spatial gate side by side: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        width = squeezed_width(channels, reduction)
        self.channel = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, channels, 1))
        self.spatial = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))
        start_open(self.channel[2])
        start_open(self.spatial[2])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh channels and places."""
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        gate_B1HW = gate(self.spatial(x_BCHW))
        return x_BCHW * self._channel_gate(x_BCHW) * gate_B1HW, gate_B1HW.squeeze(1)

    def _channel_gate(self, x_BCHW: Tensor) -> Tensor:
        return gate(self.channel(global_mean(x_BCHW)))


class ChannelThenSpatial(ChannelSpatial):
    """Channel gate, then spatial gate: (B, C, H, W) -> (B, C, H, W)."""

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        u_BCHW = x_BCHW * self._channel_gate(x_BCHW)
        gate_B1HW = gate(self.spatial(u_BCHW))
        return u_BCHW * gate_B1HW, gate_B1HW.squeeze(1)
