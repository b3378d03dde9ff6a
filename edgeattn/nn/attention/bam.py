"""Bottleneck attention module: one gate, C x H x W, from a channel branch and a spatial branch side by side.

Paper: BAM: Bottleneck Attention Module (Park et al. 2018, arXiv:1807.06514).
    Mc = BN(W2 relu(W1 GAP(x))), C x 1 x 1
    Ms = BN(f1x1(f3x3(f3x3(f1x1(x))))), 1 x H x W, the 3 x 3 dilated by 4
    y = x * (1 + s(Mc + Ms))
Gates in sequence, another function that is trained for itself: u = x (1 + s(Mc(x))), y = u (1 + s(Ms(u))); neither gate is of
C x H x W.
Deviations: BatchNorm and ReLU follow each of the first three convolutions of Ms, as in the authors' code, where the formula names
none; the branches are added, as in the paper, where that code multiplies them. The squeeze is a multiple of 8 and at least
8. The gate starts at s(-3), so that y starts at 1.05 x: twelve of them would otherwise multiply the signal by 130.
Map: mean over channels of s(Mc + Ms), in sequence s(Ms). In training the channel branch needs two pictures in a batch.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention._parts import OPEN, gate, squeezed_width, start_open
from edgeattn.nn.layers import ConvNorm, global_mean


class BAM(nn.Module):
    """BAM: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 16, dilation: int = 4) -> None:
        super().__init__()
        if dilation < 1:
            raise SpecError(f"bam: dilation={dilation} must be 1 at least; the paper's is 4")
        width = squeezed_width(channels, reduction)
        channel, spatial = ConvNorm(width, channels, 1), ConvNorm(width, 1, 1)
        self.channel = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), channel)
        self.spatial = nn.Sequential(
            ConvNorm(channels, width, 1), nn.ReLU(),
            _dilated(width, dilation), nn.ReLU(),
            _dilated(width, dilation), nn.ReLU(),
            spatial,
        )  # fmt: skip
        for branch in (channel, spatial):
            start_open(branch[1], -OPEN / 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Raise what both branches favour."""
        return x_BCHW + x_BCHW * self._gate(x_BCHW)

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        gate_BCHW = self._gate(x_BCHW)
        return x_BCHW + x_BCHW * gate_BCHW, gate_BCHW.mean(1)

    def _gate(self, x_BCHW: Tensor) -> Tensor:
        return (self.channel(global_mean(x_BCHW)) + self.spatial(x_BCHW)).sigmoid()  # type: ignore[no-any-return]


class BAMSequence(BAM):
    """BAM with its gates one after the other: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 16, dilation: int = 4) -> None:
        super().__init__(channels, reduction=reduction, dilation=dilation)
        for branch in (self.channel[2], self.spatial[6]):
            assert isinstance(branch, ConvNorm)
            start_open(branch[1], -OPEN)  # each stands alone, not as a half of a sum

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Raise channels, then places."""
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        u_BCHW = x_BCHW * (1 + gate(self.channel(global_mean(x_BCHW))))
        gate_B1HW = gate(self.spatial(u_BCHW))
        return u_BCHW * (1 + gate_B1HW), gate_B1HW.squeeze(1)


def _dilated(width: int, dilation: int) -> ConvNorm:
    layer = ConvNorm(width, width, 3)
    layer[0] = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
    return layer
