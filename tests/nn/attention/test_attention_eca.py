"""EfficientChannelAttention: the paper's formula by loops, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mechanisms import Array, C, check_equals_naive, check_export, check_shapes_and_gradient, planted, sigmoid, warmed
from torch import nn

from edgeattn.nn.attention import attend
from edgeattn.nn.attention.eca import EfficientChannelAttention


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    pooled = np.array([x[c].mean() for c in range(C)])
    kernel, bias = module.conv.weight.detach().double().numpy()[0, 0], float(module.conv.bias.detach())
    half = len(kernel) // 2
    y = np.empty_like(x)
    for c in range(C):
        mixed = sum(kernel[k] * pooled[c + k - half] for k in range(len(kernel)) if 0 <= c + k - half < C)
        y[c] = x[c] * sigmoid(mixed + bias)
    return y, np.mean([abs(y[c]) for c in range(C)], axis=0)


def test_equals_the_formula() -> None:
    check_equals_naive(EfficientChannelAttention(C), naive)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(EfficientChannelAttention(C))


def test_export(tmp_path: Path) -> None:
    check_export(EfficientChannelAttention(C), tmp_path)


def test_map_lights_up_where_something_stands() -> None:
    _, map_BHW = attend(warmed(EfficientChannelAttention(C)), planted())
    gate = map_BHW[0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    assert divmod(int(gate.argmax()), 8) == (2, 5)
    outside[2, 5] = False
    assert (gate[2, 5] - gate[7, 0]).abs() > 1e-4
    assert torch.allclose(gate[outside], gate[outside][0].expand_as(gate[outside]), atol=1e-5)


def test_deployed_form_is_the_same() -> None:
    module, x = warmed(EfficientChannelAttention(C)), torch.randn(2, C, 6, 5)
    for got, wanted in zip(attend(module.deployed(C), x), attend(module, x), strict=True):
        assert torch.allclose(got, wanted, atol=1e-6)
