"""CBAMLite: the formula by loops, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mechanisms import (
    Array,
    C,
    check_equals_naive,
    check_export,
    check_shapes_and_gradient,
    conv1x1,
    convolve,
    planted,
    sigmoid,
    warmed,
)
from torch import nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.cbam_lite import CBAMLite


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    pooled = np.array([channel.mean() for channel in x])
    excited = conv1x1(module.expand, np.maximum(conv1x1(module.reduce, pooled), 0))
    u = np.stack([x[c] * sigmoid(excited[c]) for c in range(len(x))])
    gate = np.vectorize(sigmoid)(convolve(module.spatial, convolve(module.squeeze, u))[0])
    return u * gate, gate


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(CBAMLite(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(CBAMLite(C))


def test_export(tmp_path: Path) -> None:
    for operators in check_export(CBAMLite(C), tmp_path):
        assert not {"ReduceMax", "GlobalMaxPool"} & set(operators)


def test_map_feels_three_places_around_and_no_further() -> None:
    _, map_BHW = attend(warmed(CBAMLite(C)), planted(side=16))
    gate = map_BHW[0].detach()
    away = gate[6:13, 9:13]  # (2, 5) is out of reach there, and so is the border
    assert (gate[2, 5] - gate[8, 10]).abs() > 1e-4
    assert (gate[5, 8] - gate[8, 10]).abs() > 1e-5
    assert torch.allclose(away, away[0, 0].expand_as(away), atol=1e-6)


def test_gates_start_open() -> None:
    x = torch.zeros(1, C, 8, 8)
    x[0, 0, 0, 0] = 1e-6
    y, map_BHW = attend(CBAMLite(C).eval(), x)
    assert float(y[0, 0, 0, 0].detach()) == pytest.approx(
        1e-6 * sigmoid(3) * float(map_BHW[0, 0, 0].detach()), rel=1e-3
    )


@pytest.mark.parametrize(("kernel_size", "nearest"), [(4, "3 and 5"), (0, "are 1 and 3")])
def test_an_even_kernel_names_the_nearest(kernel_size: int, nearest: str) -> None:
    with pytest.raises(SpecError, match=nearest):
        CBAMLite(C, kernel_size=kernel_size)
