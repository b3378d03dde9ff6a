"""Decoupled fully connected attention: every channel is gated, place by place, from the rows and columns around it.

Paper: GhostNetV2: Enhance Cheap Operation with Long-Range Attention (Tang et al. 2022, arXiv:2211.12905).
    z = BN(W mean2x2(x)), W: C x C, on half the map
    g = BN(DW_Kx1(BN(DW_1xK(z)))), K = 5
    y = x * up(s(g)), up: nearest neighbour (as in the authors' code), to H x W
Deviations: the gate acts on the slot's own input, not on a Ghost module beside it, and starts open. On odd maps the last
window averages the places that there are, so any map works, down to a single place.
Map: mean over channels of the gate.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from edgeattn.nn.attention._parts import need_odd, start_open
from edgeattn.nn.layers import ConvNorm


class DecoupledFullyConnected(nn.Module):
    """DFC attention: (B, C, H, W) -> (B, C, H, W)."""

    first_stage: int = 2

    def __init__(self, channels: int, *, kernel_size: int = 5) -> None:
        super().__init__()
        need_odd(f"dfc: kernel_size={kernel_size}", kernel_size)
        self.mix: nn.Module = ConvNorm(channels, channels, 1)
        self.along_rows: nn.Module = _Strip(channels, 1, kernel_size)
        last = _Strip(channels, kernel_size, 1)
        start_open(last[1])
        self.along_columns: nn.Module = last

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh every channel by place."""
        return x_BCHW * self._gate(x_BCHW)

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        gate_BCHW = self._gate(x_BCHW)
        return x_BCHW * gate_BCHW, gate_BCHW.mean(1)

    def _gate(self, x_BCHW: Tensor) -> Tensor:
        half_BChw = avg_pool2d(x_BCHW, 2, ceil_mode=True, count_include_pad=False)
        gate_BChw = self.along_columns(self.along_rows(self.mix(half_BChw))).sigmoid()
        return interpolate(gate_BChw, x_BCHW.shape[2:], mode="nearest")


class _Strip(ConvNorm):
    """A depthwise convolution one place wide, then BatchNorm."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__(channels, channels, 1, groups=channels)
        padding = (height // 2, width // 2)
        self[0] = nn.Conv2d(channels, channels, (height, width), padding=padding, groups=channels, bias=False)
