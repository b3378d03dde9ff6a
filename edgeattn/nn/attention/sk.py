"""Selective kernel: two depthwise kernels, and for every channel how much of each.

Paper: Selective Kernel Networks (Li et al. 2019, arXiv:1903.06586).
    U_3 = BN(DW3x3(x)), U_5 = BN(DW5x5(x)), z = relu(BN(W GAP(U_3 + U_5))), W: R x C, R = C / reduction
    [a_3, a_5] = softmax([A_3 z, A_5 z]), y = x + a_3 * U_3 + a_5 * U_5
Deviations: the softmax of two is the sigmoid of their difference, so one layer holds A_3 - A_5 (with a bias), exactly, and
y = x + U_5 + a_3 * (U_3 - U_5). The shortcut is inside and spans this mixing only, so the branches are linear (the paper's ReLU
would let the shortcut only grow) and their BN starts small. The 5 x 5 kernel is a true one, not a dilated 3 x 3; the
squeeze is a multiple of 8 and at least 8, not 32.
Map: mean over channels of |y|.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn.attention._parts import energy, gate, need_odd, squeezed_width
from edgeattn.nn.layers import BRANCH, ConvNorm, global_mean


class SelectiveKernel(nn.Module):
    """SK: (B, C, H, W) -> (B, C, H, W), the shortcut inside."""

    first_stage: int = 2

    def __init__(self, channels: int, *, kernels: tuple[int, int] = (3, 5), reduction: int = 16) -> None:
        super().__init__()
        for kernel in kernels:
            need_odd(f"sk: kernels={kernels}: {kernel}", kernel)
        small, large = (ConvNorm(channels, channels, kernel, groups=channels) for kernel in kernels)
        for branch in (small, large):
            nn.init.constant_(branch[1].weight, BRANCH)  # type: ignore[arg-type]
        width = squeezed_width(channels, reduction)
        self.small: nn.Module = small
        self.large: nn.Module = large
        self.reduce: nn.Module = ConvNorm(channels, width, 1)
        self.select = nn.Conv2d(width, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mix each channel locally, with its own share of the two kernels."""
        small_BCHW, large_BCHW = self.small(x_BCHW), self.large(x_BCHW)
        z_BR11 = self.reduce(global_mean(small_BCHW + large_BCHW)).relu()
        share_BC11 = gate(self.select(z_BR11))
        return x_BCHW + large_BCHW + share_BC11 * (small_BCHW - large_BCHW)  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW = self(x_BCHW)
        return y_BCHW, energy(y_BCHW)
