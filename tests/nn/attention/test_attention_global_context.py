"""GlobalContext and GlobalContextSigmoid: the formulas by loops, timm's layer, and what their maps show."""

from __future__ import annotations

import copy
import math
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
    normed,
    planted,
    sigmoid,
    softmax,
    warmed,
)
from torch import nn
from with_timm import timm_module

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.global_context import GlobalContext, GlobalContextSigmoid
from edgeattn.nn.layers import fold

BOTH = pytest.mark.parametrize("kind", [GlobalContext, GlobalContextSigmoid])


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    places = list(np.ndindex(x.shape[1:]))
    scores = np.array([conv1x1(module.key, x[:, i, j])[0] for i, j in places])
    if isinstance(module, GlobalContext):
        weights = shown = softmax(scores)
    else:
        shown = np.array([sigmoid(score) for score in scores])
        weights = shown / len(places)
    context = sum(weight * x[:, i, j] for weight, (i, j) in zip(weights, places, strict=True))
    conv, norm = module.reduce
    added = conv1x1(module.expand, np.maximum(normed(norm, conv1x1(conv, context)), 0))
    return x + added[:, None, None], shown.reshape(x.shape[1:])


@BOTH
@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(kind: type[nn.Module], size: tuple[int, int]) -> None:
    check_equals_naive(kind(C), naive, size=size)


@BOTH
def test_shapes_and_gradient(kind: type[nn.Module]) -> None:
    check_shapes_and_gradient(kind(C))


def test_export(tmp_path: Path) -> None:
    assert all("Softmax" in operators for operators in check_export(GlobalContext(C), tmp_path))


def test_export_sigmoid(tmp_path: Path) -> None:
    for operators in check_export(GlobalContextSigmoid(C), tmp_path):
        assert not {"Softmax", "MatMul"} & set(operators)


def _reading_the_mean(kind: type[nn.Module]) -> nn.Module:
    module = warmed(kind(C))
    nn.init.constant_(module.key.weight, 1 / C)
    if module.key.bias is not None:
        nn.init.zeros_(module.key.bias)
    return module


def test_map_is_the_softmax_over_places() -> None:
    _, map_BHW = attend(_reading_the_mean(GlobalContext), planted())
    weights = map_BHW[0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2, 5] = False
    total = math.exp(6) + 63 * math.exp(0.01)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert float(weights[2, 5]) == pytest.approx(math.exp(6) / total, abs=1e-5)
    assert torch.allclose(weights[outside], torch.tensor(math.exp(0.01) / total), atol=1e-6)


def test_map_is_the_sigmoid_of_each_place() -> None:
    _, map_BHW = attend(_reading_the_mean(GlobalContextSigmoid), planted())
    weights = map_BHW[0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2, 5] = False
    assert float(weights[2, 5]) == pytest.approx(sigmoid(6), abs=1e-5)
    assert torch.allclose(weights[outside], torch.tensor(sigmoid(0.01)), atol=1e-6)


@BOTH
def test_starts_as_the_identity_and_folds(kind: type[nn.Module]) -> None:
    x = torch.randn(2, C, 6, 5)
    assert torch.equal(kind(C).eval()(x), x)
    module = warmed(kind(C))
    folded = copy.deepcopy(module)
    fold(folded)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert torch.allclose(folded(x), module(x), atol=1e-5)


@BOTH
def test_bad_arguments(kind: type[nn.Module]) -> None:
    with pytest.raises(SpecError, match="1 at least"):
        kind(C, reduction=0)


def test_equals_timm() -> None:
    timm = timm_module("timm.layers.global_context")
    ours = warmed(GlobalContext(C))
    theirs = timm.GlobalContext(C, fuse_add=True, fuse_scale=False, rd_channels=ours.expand.in_channels).eval()
    with torch.no_grad():
        theirs.conv_attn.weight.copy_(ours.key.weight)
        theirs.mlp_add.fc1.weight.copy_(ours.reduce[0].weight)
        theirs.mlp_add.fc1.bias.zero_()
        theirs.mlp_add.norm = ours.reduce[1]
        theirs.mlp_add.fc2.load_state_dict(ours.expand.state_dict())
    x = torch.randn(2, C, 6, 5)
    assert (ours(x) - x).abs().max() > 1e-2
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
