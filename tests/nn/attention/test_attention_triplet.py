"""TripletAttention: the paper's formula by loops, turning the tensor as the paper does, and what its map shows."""

from __future__ import annotations

import copy
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
    convolve,
    normed,
    planted,
    sigmoid,
    warmed,
)
from torch import nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.triplet import TripletAttention
from edgeattn.nn.layers import fold


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    branches, gates = [], []
    for layer, turn in ((module.hw, (0, 1, 2)), (module.ch, (2, 0, 1)), (module.cw, (1, 0, 2))):
        turned = x.transpose(turn)
        gate = normed(layer[1], convolve(layer[0], np.stack([turned.max(0), turned.mean(0)])))
        gate = np.vectorize(sigmoid)(gate)
        back = np.argsort(turn)
        branches.append((turned * gate).transpose(back))
        gates.append(np.broadcast_to(gate, turned.shape).transpose(back))
    return sum(branches) / 3, (sum(gates) / 3).mean(0)


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(TripletAttention(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(TripletAttention(C))


def test_export_moves_no_tensor(tmp_path: Path) -> None:
    for operators in check_export(TripletAttention(C), tmp_path):
        assert operators.count("Transpose") <= 1  # the picture itself


def test_map_feels_rows_columns_and_places_near() -> None:
    _, map_BHW = attend(warmed(TripletAttention(C)), planted(side=16))
    gate = map_BHW[0].detach()
    away = gate[6:13, 9:13]  # rows, columns and border are all out of reach
    assert torch.allclose(away, away[0, 0].expand_as(away), atol=1e-6)
    for near in ((4, 7), (4, 11), (8, 7)):  # reached by all three gates, by that over rows, by that over columns
        assert (gate[near] - gate[8, 11]).abs() > 1e-5
    # alone in its reach, the gates over rows and columns leave the same difference at any such place
    assert torch.allclose(gate[4, 9:13], gate[4, 9].expand(4), atol=1e-6)
    assert torch.allclose(gate[6:13, 7], gate[6, 7].expand(7), atol=1e-6)


def test_folds() -> None:
    module, x = warmed(TripletAttention(C)), torch.randn(2, C, 6, 5)
    folded = copy.deepcopy(module)
    fold(folded)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert torch.allclose(folded(x), module(x), atol=1e-5)


def test_gates_start_open() -> None:
    x = torch.full((1, C, 4, 4), 1e-6)
    assert torch.allclose(TripletAttention(C).eval()(x) / x, torch.tensor(sigmoid(3)), atol=1e-4)


@pytest.mark.parametrize(("kernel_size", "nearest"), [(4, "3 and 5"), (0, "are 1 and 3")])
def test_an_even_kernel_names_the_nearest(kernel_size: int, nearest: str) -> None:
    with pytest.raises(SpecError, match=nearest):
        TripletAttention(C, kernel_size=kernel_size)
