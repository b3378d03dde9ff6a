"""CBAM: the paper's formula by loops, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mechanisms import (
    Array,
    C,
    H,
    W,
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
from edgeattn.nn.attention.cbam import CBAM


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    def mlp(v: Array) -> Array:
        return conv1x1(module.mlp[2], np.maximum(conv1x1(module.mlp[0], v), 0))

    total = mlp(np.array([x[c].mean() for c in range(C)])) + mlp(np.array([x[c].max() for c in range(C)]))
    u = np.stack([x[c] * sigmoid(total[c]) for c in range(C)])
    squeezed = np.stack([u.mean(0), u.max(0)])
    weight, bias = module.spatial.weight.detach().double().numpy()[0], float(module.spatial.bias.detach())
    gate = np.empty((H, W))
    for i in range(H):
        for j in range(W):
            total_ij = bias
            for p in range(2):
                for a in range(7):
                    for b in range(7):
                        row, column = i + a - 3, j + b - 3
                        if 0 <= row < H and 0 <= column < W:
                            total_ij += weight[p, a, b] * squeezed[p, row, column]
            gate[i, j] = sigmoid(total_ij)
    return u * gate, gate


def test_equals_the_formula() -> None:
    check_equals_naive(CBAM(C), naive)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(CBAM(C))


def test_export(tmp_path: Path) -> None:
    check_export(CBAM(C), tmp_path)


def test_map_lights_up_where_something_stands() -> None:
    _, map_BHW = attend(warmed(CBAM(C)), planted())
    gate = map_BHW[0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    # a 7 x 7 kernel, whose padding is felt at the border
    outside[:6], outside[:, 2:], outside[:, 0], outside[7] = False, False, False, False
    assert (gate[2, 5] - gate[7, 0]).abs() > 1e-4
    assert torch.allclose(gate[outside], gate[outside][0].expand_as(gate[outside]), atol=1e-5)
