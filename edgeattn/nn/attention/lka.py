"""Large kernel attention: a gate of C x H x W that sees far, from depthwise convolutions.

Paper: Visual Attention Network (Guo et al. 2022, arXiv:2202.09741), K = kernel_size, d = dilation.
    y = x * W(DW_long(DW_local(x))), DW_local: (2 d - 1)^2 wide, DW_long: ceil(K / d)^2 wide, dilated by d, W: 1 x 1
`LargeKernelStrips` has strips in the place of the dilated pair, as in SegNeXt (Guo et al. 2022, arXiv:2209.08575):
    y = x * W(DW_{K x 1}(DW_{1 x K}(x)))
another function, to be trained anew.
Deviations: only the gate, without the projections and the GELU around it in VAN. The gate is no sigmoid, and twelve of them
would shrink the signal to nothing: W starts from a tenth of its weights and a bias of 1, a gate of nearly 1 everywhere.
Map: mean over channels of |gate|.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention._parts import energy, need_odd, start_open


class _LargeKernelGate(nn.Module):
    first_stage: int = 2

    def __init__(self, channels: int, *look: nn.Module) -> None:
        super().__init__()
        self.look = nn.Sequential(*look)
        self.gate = nn.Conv2d(channels, channels, 1)
        start_open(self.gate, 1.0)
        with torch.no_grad():
            self.gate.weight.mul_(0.1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh every channel at every place."""
        return x_BCHW * self.gate(self.look(x_BCHW))  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        gate_BCHW = self.gate(self.look(x_BCHW))
        return x_BCHW * gate_BCHW, energy(gate_BCHW)


class LargeKernelAttention(_LargeKernelGate):
    """LKA: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, kernel_size: int = 21, dilation: int = 3) -> None:
        if kernel_size < 1 or dilation < 1:
            raise SpecError(f"lka: kernel_size={kernel_size} and dilation={dilation} must be 1 at least")
        taps = -(-kernel_size // dilation)
        if taps % 2 == 0:
            raise SpecError(
                f"lka: kernel_size={kernel_size} dilated by {dilation} makes {taps} taps, which must be odd; "
                f"the nearest kernel_size are {(taps - 1) * dilation} and {taps * dilation + 1}"
            )
        reach = dilation * (taps // 2)
        super().__init__(
            channels,
            nn.Conv2d(channels, channels, 2 * dilation - 1, padding=dilation - 1, groups=channels),
            nn.Conv2d(channels, channels, taps, padding=reach, dilation=dilation, groups=channels),
        )


class LargeKernelStrips(_LargeKernelGate):
    """LKA of two strips: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, kernel_size: int = 11) -> None:
        need_odd(f"lka strips: kernel_size={kernel_size}", kernel_size)
        half = kernel_size // 2
        super().__init__(
            channels,
            nn.Conv2d(channels, channels, (1, kernel_size), padding=(0, half), groups=channels),
            nn.Conv2d(channels, channels, (kernel_size, 1), padding=(half, 0), groups=channels),
        )
