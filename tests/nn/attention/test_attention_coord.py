"""CoordinateAttention: the paper's formula by loops, and what its map shows."""

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
from edgeattn.nn.attention.coord import CoordinateAttention


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    conv, norm = module.reduce[0], module.reduce[1]
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()
    mean, shift = norm.running_mean.double().numpy(), norm.bias.detach().double().numpy()

    def gates(strip_CL: Array, layer: nn.Module) -> Array:
        columns = []
        for place in range(strip_CL.shape[1]):
            f = (conv1x1(conv, strip_CL[:, place]) - mean) * scale + shift
            f = f * np.clip(f + 3, 0, 6) / 6
            columns.append([sigmoid(v) for v in conv1x1(layer, f)])
        return np.array(columns).T

    g_h, g_w = gates(x.mean(2), module.gate_h), gates(x.mean(1), module.gate_w)
    gate = np.einsum("ch,cw->chw", g_h, g_w)
    return x * gate, gate.mean(0)


def test_equals_the_formula() -> None:
    check_equals_naive(CoordinateAttention(C), naive)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(CoordinateAttention(C))


def test_export(tmp_path: Path) -> None:
    check_export(CoordinateAttention(C), tmp_path)


def test_map_lights_up_where_something_stands() -> None:
    _, map_BHW = attend(warmed(CoordinateAttention(C)), planted())
    gate = map_BHW[0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2, :], outside[:, 5] = False, False  # it sees rows and columns
    assert (gate[2, 5] - gate[7, 0]).abs() > 1e-4
    assert torch.allclose(gate[outside], gate[outside][0].expand_as(gate[outside]), atol=1e-5)
