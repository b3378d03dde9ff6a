"""GatherExcite: the paper's formula by loops on any size, timm's layer, folding, and what its map shows."""

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
from edgeattn.nn.attention.gather_excite import GatherExcite
from edgeattn.nn.layers import fold


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    gathered = x
    for layer in module.gather:
        gathered = (
            np.maximum(gathered, 0) if isinstance(layer, nn.ReLU) else normed(layer[1], convolve(layer[0], gathered))
        )
    _, height, width = x.shape
    _, h, w = gathered.shape
    gate = np.empty_like(x)
    for c, i, j in np.ndindex(*x.shape):  # the sigmoid after the resize, as the paper has it
        gate[c, i, j] = sigmoid(gathered[c, i * h // height, j * w // width])
    return x * gate, gate.mean(0)


@pytest.mark.parametrize("size", [(6, 5), (3, 7), (1, 1)])
@pytest.mark.parametrize("extent", [2, 4])
def test_equals_the_formula(extent: int, size: tuple[int, int]) -> None:
    check_equals_naive(GatherExcite(C, extent=extent), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(GatherExcite(C))
    check_shapes_and_gradient(GatherExcite(C, extent=8), size=(3, 2))


def test_folds_to_convolutions_alone() -> None:
    module, x = warmed(GatherExcite(C)), torch.randn(2, C, 6, 5)
    folded = copy.deepcopy(module)
    fold(folded)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert torch.allclose(folded(x), module(x), atol=1e-5)


def test_export_on_maps_of_two_and_of_nine(tmp_path: Path) -> None:
    for operators in check_export(GatherExcite(C), tmp_path, imgszs=(8, 36)):
        assert operators.count("Resize") == 1


def test_equals_timm() -> None:
    ours, x = warmed(GatherExcite(C)), torch.randn(2, C, 7, 6)
    theirs = timm_module("timm.layers").GatherExcite(C, extent=4, use_mlp=False).eval()
    down = [nn.Sequential(nn.Conv2d(C, C, 3, 2, 1, groups=C, bias=False), nn.BatchNorm2d(C)) for _ in range(2)]
    theirs.gather = nn.Sequential(down[0], nn.ReLU(), down[1]).eval()  # its own gather with parameters cannot be built
    theirs.gather.load_state_dict(ours.gather.state_dict())
    assert (ours(x) - theirs(x)).abs().max() <= 1e-5


@pytest.mark.parametrize(("extent", "nearest"), [(0, 2), (1, 2), (3, 4), (6, 8), (-4, 2)])
def test_bad_arguments(extent: int, nearest: int) -> None:
    with pytest.raises(SpecError, match=rf"gather_excite: extent={extent} .* power of two.*the nearest is {nearest}$"):
        GatherExcite(C, extent=extent)


def test_map_changes_in_the_cells_that_gather_the_place() -> None:
    module = warmed(GatherExcite(C))
    gate, flat = (attend(module, planted(value=value))[1][0].detach() for value in (6.0, 0.01))
    within = torch.zeros(8, 8, dtype=torch.bool)
    # (2, 5) lies in row 1 and columns 2 and 3 of the map of 4, these in rows 0 and 1 and column 1 of the map of 2
    within[:, 4:] = True
    assert torch.equal((gate - flat).abs() > 1e-6, within)
    cells = gate.reshape(2, 4, 2, 4)
    assert torch.equal(cells, cells[:, :1, :, :1].expand_as(cells))
