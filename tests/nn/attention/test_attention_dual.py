"""ChannelSpatial and ChannelThenSpatial: the formulas by loops, and what their maps show."""

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
from edgeattn.nn.attention.dual import ChannelSpatial, ChannelThenSpatial

BOTH = pytest.mark.parametrize("kind", [ChannelSpatial, ChannelThenSpatial])


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    def perceptron(layers: nn.Module, v: Array) -> Array:
        return conv1x1(layers[2], np.maximum(conv1x1(layers[0], v), 0))

    excited = perceptron(module.channel, np.array([channel.mean() for channel in x]))
    weighed = np.stack([x[c] * sigmoid(excited[c]) for c in range(len(x))])
    seen = weighed if isinstance(module, ChannelThenSpatial) else x
    gate = np.empty(x.shape[1:])
    for i, j in np.ndindex(gate.shape):
        gate[i, j] = sigmoid(perceptron(module.spatial, seen[:, i, j])[0])
    return weighed * gate, gate


@BOTH
@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(kind: type[nn.Module], size: tuple[int, int]) -> None:
    check_equals_naive(kind(C), naive, size=size)


@BOTH
def test_shapes_and_gradient(kind: type[nn.Module]) -> None:
    check_shapes_and_gradient(kind(C))


@BOTH
def test_export(kind: type[nn.Module], tmp_path: Path) -> None:
    check_export(kind(C), tmp_path)


@BOTH
def test_map_stands_out_at_one_place_only(kind: type[nn.Module]) -> None:
    _, map_BHW = attend(warmed(kind(C)), planted())
    gate = map_BHW[0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2, 5] = False
    assert (gate[2, 5] - gate[7, 0]).abs() > 1e-4
    assert torch.allclose(gate[outside], gate[7, 0].expand(63), atol=1e-6)


def test_the_order_matters() -> None:
    parallel, x = warmed(ChannelSpatial(C)), torch.randn(2, C, 6, 5)
    sequence = ChannelThenSpatial(C)
    sequence.load_state_dict(parallel.state_dict())
    assert (parallel(x) - sequence(x)).abs().max() > 1e-3


@BOTH
def test_gates_start_open(kind: type[nn.Module]) -> None:
    module = kind(C).eval()
    for layers in (module.channel, module.spatial):
        nn.init.zeros_(layers[2].weight)
    assert torch.allclose(module(torch.ones(1, C, 4, 4)), torch.tensor(sigmoid(3) ** 2))


@BOTH
def test_bad_arguments(kind: type[nn.Module]) -> None:
    with pytest.raises(SpecError, match="1 at least"):
        kind(C, reduction=0)
