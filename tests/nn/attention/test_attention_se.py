"""SqueezeExcitation: the paper's formula by loops, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mechanisms import (
    Array,
    C,
    check_equals_naive,
    check_export,
    check_shapes_and_gradient,
    conv1x1,
    planted,
    sigmoid,
    warmed,
)
from torch import nn

from edgeattn.nn.attention import attend
from edgeattn.nn.attention.se import SqueezeExcitation


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    pooled = np.array([x[c].mean() for c in range(C)])
    gate = [sigmoid(v) for v in conv1x1(module.expand, np.maximum(conv1x1(module.reduce, pooled), 0))]
    y = np.stack([x[c] * gate[c] for c in range(C)])
    return y, np.mean([abs(y[c]) for c in range(C)], axis=0)


def test_equals_the_formula() -> None:
    check_equals_naive(SqueezeExcitation(C), naive)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(SqueezeExcitation(C))


def test_export(tmp_path: Path) -> None:
    check_export(SqueezeExcitation(C), tmp_path)


def test_map_lights_up_where_something_stands() -> None:
    _, map_BHW = attend(warmed(SqueezeExcitation(C)), planted())
    gate = map_BHW[0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    assert divmod(int(gate.argmax()), 8) == (2, 5)
    outside[2, 5] = False
    assert (gate[2, 5] - gate[7, 0]).abs() > 1e-4
    assert torch.allclose(gate[outside], gate[outside][0].expand_as(gate[outside]), atol=1e-5)
