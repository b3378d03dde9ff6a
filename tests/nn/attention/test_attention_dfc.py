"""DecoupledFullyConnected: the paper's formula by loops on any size, timm's module, folding, and what its map shows."""

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
from with_timm import timm_module

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.dfc import DecoupledFullyConnected
from edgeattn.nn.layers import fold


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    _, height, width = x.shape
    h, w = -(-height // 2), -(-width // 2)
    g = np.array(
        [[[x[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(w)] for i in range(h)] for c in range(C)]
    )
    for layer in (module.mix, module.along_rows, module.along_columns):
        g = normed(layer[1], convolve(layer[0], g))
    gate = np.empty_like(x)
    for c, i, j in np.ndindex(*x.shape):
        gate[c, i, j] = sigmoid(g[c, i * h // height, j * w // width])
    return x * gate, gate.mean(0)


@pytest.mark.parametrize("size", [(6, 5), (3, 7), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(DecoupledFullyConnected(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(DecoupledFullyConnected(C))
    check_shapes_and_gradient(DecoupledFullyConnected(C, kernel_size=3), size=(3, 2))


def test_folds_to_convolutions_alone() -> None:
    module, x = warmed(DecoupledFullyConnected(C)), torch.randn(2, C, 6, 5)
    folded = copy.deepcopy(module)
    fold(folded)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert torch.allclose(folded(x), module(x), atol=1e-5)


def test_export_on_maps_of_two_and_of_nine(tmp_path: Path) -> None:
    for operators in check_export(DecoupledFullyConnected(C), tmp_path, imgszs=(8, 36)):
        assert operators.count("AveragePool") == 1
        assert operators.count("Resize") == 1


def test_equals_timm() -> None:
    ours, x = warmed(DecoupledFullyConnected(C)), torch.randn(2, C, 8, 6)
    theirs = timm_module("timm.models.ghostnet").GhostModuleV2(C, C).eval()
    theirs.primary_conv, theirs.cheap_operation = nn.Identity(), nn.Identity()  # its gate then acts on x
    for place, part in enumerate((*ours.mix, *ours.along_rows, *ours.along_columns)):
        theirs.short_conv[place].load_state_dict(part.state_dict())
    assert (ours(x) - theirs(x)).abs().max() <= 1e-5


@pytest.mark.parametrize(("kernel_size", "nearest"), [(4, "3 and 5"), (-1, "1 and 3")])
def test_bad_arguments(kernel_size: int, nearest: str) -> None:
    with pytest.raises(SpecError, match=rf"dfc: kernel_size={kernel_size} must be odd; the nearest are {nearest}"):
        DecoupledFullyConnected(C, kernel_size=kernel_size)


def test_map_changes_along_rows_and_columns() -> None:
    module = warmed(DecoupledFullyConnected(C))
    gate, flat = (attend(module, planted(side=16, value=value))[1][0].detach() for value in (6.0, 0.01))
    within = torch.zeros(16, 16, dtype=torch.bool)
    within[:8, :10] = True  # (2, 5) lies in cell (1, 2) of the map of 8, which cells (0..3, 0..4) see
    assert torch.equal((gate - flat).abs() > 1e-6, within)
