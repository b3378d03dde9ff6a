"""SimAM: the paper's formula by loops, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mechanisms import Array, C, check_equals_naive, check_export, planted, sigmoid
from torch import nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.simam import SimAM


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    gate = np.empty_like(x)
    for c, channel in enumerate(x):
        n, mean = channel.size, channel.sum() / channel.size
        variance = sum((value - mean) ** 2 for value in channel.flat) / (n - 1 if n > 1 else 1)
        for place in np.ndindex(channel.shape):
            gate[(c, *place)] = sigmoid((channel[place] - mean) ** 2 / (4 * (variance + module.e_lambda)) + 0.5)
    return x * gate, gate.mean(0)


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 2), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(SimAM(C), naive, size=size)


def test_equals_the_formula_far_from_zero() -> None:
    x = torch.randn(1, C, 6, 5) + 300
    expected, _ = naive(SimAM(C), x[0].double().numpy())
    assert np.abs(SimAM(C)(x)[0].double().numpy() - expected).max() <= 300 * 1e-5


def test_shapes_and_gradient() -> None:
    module, x = SimAM(C), torch.randn(2, C, 6, 5, requires_grad=True)
    y, map_BHW = attend(module, x)
    assert torch.equal(module(x), y)
    assert y.shape == x.shape
    assert map_BHW.shape == (2, 6, 5)
    assert (map_BHW >= 0).all()
    assert list(module.parameters()) == []
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


def test_export(tmp_path: Path) -> None:
    check_export(SimAM(C), tmp_path)


def test_map_is_one_where_something_stands_and_the_rest_is_computed_by_hand() -> None:
    _, map_BHW = attend(SimAM(C), planted())
    gate = map_BHW[0]
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2, 5] = False
    # one of N = 64 values D away from the others: v = D^2 / N; at its place e = (D 63/64)^2, elsewhere (D / 64)^2
    assert float(gate[2, 5]) == pytest.approx(sigmoid(64 / 4 * (63 / 64) ** 2 + 0.5), abs=1e-5)
    assert torch.allclose(gate[outside], torch.tensor(sigmoid(1 / 64 / 4 + 0.5)), atol=1e-5)


def test_a_flat_channel_has_no_energy() -> None:
    y, _ = attend(SimAM(C), torch.full((1, C, 4, 4), 2.0))
    assert torch.allclose(y, torch.tensor(2 * sigmoid(0.5)))


@pytest.mark.parametrize("e_lambda", [0.0, -1.0, float("nan")])
def test_a_lambda_that_divides_by_zero_is_refused(e_lambda: float) -> None:
    with pytest.raises(SpecError, match="above 0"):
        SimAM(C, e_lambda=e_lambda)
