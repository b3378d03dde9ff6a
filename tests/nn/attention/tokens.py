"""What the tests of the mechanisms in which places look at other places share."""

from __future__ import annotations

import math

import numpy as np
import torch
from mechanisms import Array, convolve, normed, softmax
from torch import Tensor, nn


def projected(layer: nn.Module, x: Array) -> Array:
    """A convolution, or a convolution and its norm, of (C, H, W) by loops."""
    return normed(layer[1], convolve(layer[0], x)) if isinstance(layer, nn.Sequential) else convolve(layer, x)


def attended(q_DN: Array, k_DM: Array, v_EM: Array, scale: float) -> tuple[Array, Array]:
    """softmax(scale q' k) v query by query: the means (E, N), and what each key receives on average (M)."""
    mixed, weights = np.zeros((len(v_EM), q_DN.shape[1])), []
    for n in range(q_DN.shape[1]):
        logits = [scale * sum(q_DN[d, n] * k_DM[d, m] for d in range(len(q_DN))) for m in range(k_DM.shape[1])]
        weights.append(softmax(np.array(logits)))
        for m, weight in enumerate(weights[-1]):
            mixed[:, n] += weight * v_EM[:, m]
    return mixed, np.mean(weights, axis=0)


def in_heads(x: Array, heads: int) -> list[Array]:
    """(C, H, W) to one (D, N) for each head."""
    return list(x.reshape(heads, len(x) // heads, -1))


def places(x: Array) -> Array:
    """(C, H, W) to (C, N)."""
    return x.reshape(len(x), -1)


def folded(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel (O, C) and bias of a pointwise convolution with its norm."""
    conv = layer.folded()
    return conv.weight.detach()[:, :, 0, 0], conv.bias.detach()


def identity(layer: nn.Module) -> None:
    """Let a pointwise convolution (with its norm) pass its input on: the first channels, if it gives fewer."""
    conv = layer
    if isinstance(layer, nn.Sequential):
        conv, norm = layer[0], layer[1]
        norm.reset_parameters()
        norm.eps = 0.0
    with torch.no_grad():
        conv.weight.copy_(torch.eye(*conv.weight.shape[:2])[..., None, None])
        if conv.bias is not None:
            conv.bias.zero_()


def share_of_the_planted(scale: float, value: float = 6.0, rest: float = 0.01, places: int = 64) -> float:
    """What the one bright place receives when q = k = x, constants over channels; `scale` counts the channels in."""

    def to_the_bright(query: float) -> float:
        bright, other = math.exp(scale * query * (value - value)), math.exp(scale * query * (rest - value))
        return bright / (bright + (places - 1) * other)

    return (to_the_bright(value) + (places - 1) * to_the_bright(rest)) / places
