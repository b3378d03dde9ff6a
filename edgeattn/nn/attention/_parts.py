"""What several mechanisms share."""

from __future__ import annotations

from torch import Tensor

from edgeattn.errors import SpecError


def energy(y_BCHW: Tensor) -> Tensor:
    """Mean over channels of |y|, (B, C, H, W) to (B, H, W): what a channel gate lets through at each place."""
    return y_BCHW.abs().mean(dim=1)


def squeezed_width(channels: int, reduction: int) -> int:
    """Width of a squeeze: channels / reduction rounded to a multiple of 8, 8 at least.

    Raises:
        SpecError: `channels` or `reduction` is below 1.
    """
    if channels < 1 or reduction < 1:
        raise SpecError(f"channels={channels} and reduction={reduction} must be 1 at least")
    return max(8, round(channels / reduction / 8) * 8)
