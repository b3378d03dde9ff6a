"""AdditiveAttention: the paper's formula by loops, and what its map shows."""

from __future__ import annotations

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
    warmed,
)
from torch import nn
from with_timm import timm_module

from edgeattn.nn.attention import attend
from edgeattn.nn.attention.additive import AdditiveAttention, AdditiveNormed


def unit(v: Array) -> Array:
    return v / math.sqrt(sum(float(e) ** 2 for e in v))


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    channels, height, width = x.shape
    places = [x[:, i, j] for i in range(height) for j in range(width)]
    q = [unit(conv1x1(module.query, place)) for place in places]
    k = [unit(conv1x1(module.key, place)) for place in places]
    a = unit(np.array([conv1x1(module.weigh, v)[0] / math.sqrt(channels) for v in q]))
    g = sum(weight * v for weight, v in zip(a, q, strict=True))
    mixed = [conv1x1(module.project, k[n] * g) + q[n] for n in range(len(places))]
    out = np.array([normed(module.out[1], conv1x1(module.out[0], v)) for v in mixed])
    return x + out.T.reshape(x.shape), (abs(a) / sum(abs(a))).reshape(height, width)


def naive_normed(module: nn.Module, x: Array) -> tuple[Array, Array]:
    _, height, width = x.shape

    def normed_1x1(layer: nn.Module, place: Array) -> Array:
        return normed(layer[1], conv1x1(layer[0], place))

    places = [x[:, i, j] for i in range(height) for j in range(width)]
    q, k = ([normed_1x1(layer, place) for place in places] for layer in (module.query, module.key))
    a = np.array([normed_1x1(module.weigh, v)[0] for v in q])
    g = sum(weight * v for weight, v in zip(a, q, strict=True)) / len(places)
    mixed = [conv1x1(module.project, k[n] * g) + q[n] for n in range(len(places))]
    out = np.array([normed_1x1(module.out, v) for v in mixed])
    return x + out.T.reshape(x.shape), (abs(a) / sum(abs(a))).reshape(height, width)


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_the_normed_form_equals_its_formula(size: tuple[int, int]) -> None:
    check_equals_naive(AdditiveNormed(C), naive_normed, size=size)


def test_the_normed_form_divides_by_nothing(tmp_path: Path) -> None:
    check_shapes_and_gradient(AdditiveNormed(48), channels=48, size=(7, 3))
    for operators in check_export(AdditiveNormed(C), tmp_path):
        assert not {"MatMul", "Softmax"} & set(operators)


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(AdditiveAttention(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(AdditiveAttention(48), channels=48, size=(7, 3))


def test_export(tmp_path: Path) -> None:
    check_export(AdditiveAttention(C), tmp_path)


def test_map_is_the_share_in_the_global_query() -> None:
    """Queries are directions: channel 0 is all of the planted place's and a quarter (1 / sqrt(16)) of any other's."""
    module, x = AdditiveAttention(C).eval(), planted()
    x[:, 1:, 2, 5] = 0
    with torch.no_grad():
        module.query.weight.copy_(torch.eye(C)[..., None, None])
        module.query.bias.zero_()
        module.weigh.weight.copy_(torch.eye(C)[:1, :, None, None])
    _, map_BHW = attend(module, x)
    share = map_BHW[0].detach()
    assert float(share[2, 5]) == pytest.approx(1 / (1 + 63 / 4), rel=1e-4)
    assert torch.allclose(share[7], torch.full((8,), 0.25 / (1 + 63 / 4)), rtol=1e-4)


def test_equals_timm() -> None:
    timm = timm_module("timm.models.swiftformer")
    module, theirs = warmed(AdditiveAttention(C)), timm.EfficientAdditiveAttention(C, C).eval()
    layers = {"to_query": module.query, "to_key": module.key, "proj": module.project, "final": module.out.folded()}
    for name, conv in layers.items():
        getattr(theirs, name).load_state_dict({"weight": conv.weight[:, :, 0, 0], "bias": conv.bias})
    theirs.w_g.data.copy_(module.weigh.weight[0, :, :, 0])
    x = torch.randn(2, C, 7, 5)
    assert theirs(x).abs().max() > 0.01
    assert torch.allclose(module(x), x + theirs(x), atol=1e-5)
