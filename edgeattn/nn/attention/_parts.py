"""What several mechanisms share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from edgeattn.errors import SpecError


def energy(y_BCHW: Tensor) -> Tensor:
    """Mean over channels of |y|, (B, C, H, W) to (B, H, W): what a channel gate lets through at each place."""
    return y_BCHW.abs().mean(dim=1)


OPEN = 3.0
"""Bias that a gate's last layer starts from: sigmoid(3) = 0.95.

A gate in every block stands on the shortcut itself; at the usual 0.5 twelve of them shrink the signal, and its gradient, by
4,096, and a small net hardly learns.
"""


def start_open(layer: nn.Module, bias: float = OPEN) -> None:
    """Let the gate behind `layer` start open: its bias is set, its weights stay."""
    assert isinstance(layer.bias, Tensor)
    torch.nn.init.constant_(layer.bias, bias)


def gate(logits: Tensor) -> Tensor:
    """Sigmoid of a gate that is smaller than the map it weighs, in a shape of its own.

    Without the detour OpenVINO fuses the sigmoid with the product behind it and computes it anew for every element of the
    map: SE in nano at 224 then costs 1.29 of the net without attention (int8, AVX2) in place of 1.11.
    """
    return logits.flatten(1).sigmoid().reshape(logits.shape)


def row_and_column_means(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Means over each row (B, C, H, 1) and over each column (B, C, 1, W), as pooling, which engines do faster than `mean`."""
    height, width = x_BCHW.shape[2:]
    return avg_pool2d(x_BCHW, (1, width)), avg_pool2d(x_BCHW, (height, 1))


def squeezed_width(channels: int, reduction: int) -> int:
    """Width of a squeeze: channels / reduction rounded to a multiple of 8, 8 at least.

    Raises:
        SpecError: `channels` or `reduction` is below 1.
    """
    if channels < 1 or reduction < 1:
        raise SpecError(f"channels={channels} and reduction={reduction} must be 1 at least")
    return max(8, round(channels / reduction / 8) * 8)


def need_odd(what: str, size: int) -> None:
    """Refuse a kernel that has no middle; `what` names it with its value.

    Raises:
        SpecError: `size` is even or below 1.
    """
    if size < 1 or size % 2 == 0:
        low = max(size - 1, 1)
        raise SpecError(f"{what} must be odd; the nearest are {low} and {low + 2}")
