"""RegionAttention: the formula by loops, and what its map shows."""

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
    planted,
    sigmoid,
    warmed,
)
from torch import nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.region import RegionAttention


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    _, height, width = x.shape
    rows, columns = min(module.grid, height), min(module.grid, width)
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i in range(height):
        for j in range(width):
            members.setdefault((i * rows // height, j * columns // width), []).append((i, j))
    assert len(members) == rows * columns
    gate = np.empty((height, width))
    for places in members.values():
        mean = sum(x[:, i, j] for i, j in places) / len(places)
        weight = sigmoid(conv1x1(module.expand, np.maximum(conv1x1(module.reduce, mean), 0))[0])
        for i, j in places:
            gate[i, j] = weight
    return x * gate, gate


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (6, 5), (3, 12), (3, 3), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(RegionAttention(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(RegionAttention(C))


def test_export(tmp_path: Path) -> None:
    even, uneven = check_export(RegionAttention(C), tmp_path, imgszs=(32, 40))  # maps 8 and 10 wide
    assert "AveragePool" in even
    assert "AveragePool" not in uneven


def test_map_lights_up_by_region() -> None:
    _, map_BHW = attend(warmed(RegionAttention(C)), planted())
    gate = map_BHW[0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:4, 4:6] = False  # (2, 5) shares its weight with its region
    assert torch.equal(gate[~outside], gate[2, 5].expand(4))
    assert (gate[2, 5] - gate[7, 0]).abs() > 1e-4
    assert torch.allclose(gate[outside], gate[7, 0].expand(60), atol=1e-6)


def test_uneven_regions_keep_their_borders() -> None:
    module = warmed(RegionAttention(C))
    x = torch.zeros(1, C, 5, 5)
    x[:, :, :, 1] = 6.0  # columns 0 and 1 of five are the first of four regions
    gate = attend(module, x)[1][0].detach()
    assert torch.equal(gate[:, 0], gate[:, 1])
    assert (gate[:, 1] - gate[:, 2]).abs().min() > 1e-4
    assert torch.allclose(gate[:, 2:], gate[0, 2].expand(5, 3), atol=1e-6)


def test_a_grid_of_one_is_one_weight() -> None:
    gate = attend(warmed(RegionAttention(C, grid=1)), torch.randn(1, C, 6, 5))[1].detach()
    assert torch.equal(gate, gate[0, 0, 0].expand(1, 6, 5))


@pytest.mark.parametrize("arguments", [{"grid": 0}, {"reduction": 0}])
def test_bad_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="1 at least"):
        RegionAttention(C, **arguments)
