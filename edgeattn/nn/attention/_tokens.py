"""What the mechanisms in which places look at other places share.

Legend: h heads, D channels of a head, N places that ask (queries), M places that are asked (keys).
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.layers import BRANCH, ConvNorm

HEAD_WIDTH = 32
"""Channels of a head unless told otherwise."""


def heads_for(name: str, channels: int, num_heads: int | None) -> int:
    """The number of heads: `num_heads`, or by default as many as give each 32 channels or more.

    Raises:
        SpecError: `num_heads` does not divide `channels`.
    """
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    if num_heads is None:
        return max((n for n in divisors if n * HEAD_WIDTH <= channels), default=1)
    if num_heads not in divisors:
        nearest = min(divisors, key=lambda n: abs(n - num_heads))
        raise SpecError(f"{name}: num_heads={num_heads} must divide the {channels} channels; the nearest is {nearest}")
    return num_heads


def residual(channels: int, out: int, start: float = BRANCH) -> ConvNorm:
    """The 1 x 1 convolution and BatchNorm that end a residual branch; the norm's scale starts at `start`."""
    project = ConvNorm(channels, out, 1)
    nn.init.constant_(project[1].weight, start)  # type: ignore[arg-type]
    return project


def in_heads(x_BCHW: Tensor, heads: int) -> Tensor:
    """The places of a map by head, (B, C, H, W) to (B, h, D, N)."""
    batch, channels, height, width = x_BCHW.shape
    return x_BCHW.reshape(batch, heads, channels // heads, height * width)


def softmax_weights(q_BhDN: Tensor, k_BhDM: Tensor) -> Tensor:
    """How much every query takes of every key, (B, h, N, M); q is scaled already."""
    return (q_BhDN.transpose(-2, -1) @ k_BhDM).softmax(-1)


def received(weights_BhNM: Tensor, height: int, width: int) -> Tensor:
    """What every key receives, the mean over heads and queries, as a map (B, height, width)."""
    return weights_BhNM.mean((1, 2)).reshape(-1, height, width)
