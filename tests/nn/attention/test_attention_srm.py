"""StyleRecalibration: the paper's formula by loops, its deployed form, and what its map shows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mechanisms import (
    Array,
    C,
    array,
    check_equals_naive,
    check_export,
    check_shapes_and_gradient,
    normed,
    planted,
    sigmoid,
    warmed,
)
from torch import nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.srm import StyleRecalibration


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    w_mean, w_std = array(module.weight_mean).ravel(), array(module.weight_std).ravel()
    z = np.empty(C)
    for c in range(C):
        mean = sum(x[c].flat) / x[c].size
        variance = sum((v - mean) ** 2 for v in x[c].flat) / x[c].size
        z[c] = w_mean[c] * mean + w_std[c] * math.sqrt(variance + 1e-5)
    gate = [sigmoid(v) for v in normed(module.norm, z)]
    y = np.stack([x[c] * gate[c] for c in range(C)])
    return y, np.mean([abs(y[c]) for c in range(C)], axis=0)


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(StyleRecalibration(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(StyleRecalibration(C))


def test_a_flat_channel_has_a_finite_gradient() -> None:
    x = torch.ones(2, C, 4, 4, requires_grad=True)
    StyleRecalibration(C)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_starts_open() -> None:
    y, x = StyleRecalibration(C).eval()(torch.ones(1, C, 1, 1)), torch.ones(1, C, 1, 1)
    assert (y > 0.8 * x).all()


def test_deployed_form_is_the_same_without_a_norm() -> None:
    module, x = warmed(StyleRecalibration(C)), torch.randn(2, C, 6, 5)
    deployed = module.deployed(C)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in deployed.modules())
    for got, wanted in zip(attend(deployed, x), attend(module, x), strict=True):
        assert torch.allclose(got, wanted, atol=1e-6)


def test_export(tmp_path: Path) -> None:
    for operators in check_export(StyleRecalibration(C), tmp_path):
        assert "Sqrt" in operators
        assert "BatchNormalization" not in operators


def test_bad_arguments() -> None:
    with pytest.raises(SpecError, match=r"srm: eps=0.0 must be above 0; 1e-5"):
        StyleRecalibration(C, eps=0.0)


def test_map_lights_up_where_something_stands() -> None:
    _, map_BHW = attend(warmed(StyleRecalibration(C)), planted())
    gate = map_BHW[0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    assert divmod(int(gate.argmax()), 8) == (2, 5)
    outside[2, 5] = False
    assert (gate[2, 5] - gate[7, 0]).abs() > 1e-4
    assert torch.allclose(gate[outside], gate[outside][0].expand_as(gate[outside]), atol=1e-5)
