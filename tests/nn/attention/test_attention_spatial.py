"""PointwiseSpatial: the formula by loops, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
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
from edgeattn.nn.attention.spatial import PointwiseSpatial


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    gate = np.empty(x.shape[1:])
    for i, j in np.ndindex(*gate.shape):
        gate[i, j] = sigmoid(conv1x1(module.gate, np.maximum(conv1x1(module.reduce, x[:, i, j]), 0))[0])
    return x * gate, gate


@pytest.mark.parametrize("size", [(6, 5), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(PointwiseSpatial(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(PointwiseSpatial(C))


def test_export(tmp_path: Path) -> None:
    check_export(PointwiseSpatial(C), tmp_path)


def test_bad_arguments() -> None:
    with pytest.raises(SpecError, match=r"reduction=0 must be 1 at least"):
        PointwiseSpatial(C, reduction=0)


def test_map_knows_each_place_by_itself() -> None:
    module = warmed(PointwiseSpatial(C))
    gate, flat = (attend(module, planted(value=value))[1][0].detach() for value in (6.0, 0.01))
    changed = (gate - flat).abs() > 1e-6
    assert changed.nonzero().tolist() == [[2, 5]]
    assert (gate[2, 5] - gate[7, 0]).abs() > 1e-4
