"""SeparableSelfAttention and SeparableSigmoid: the paper's formula by loops, and what their maps show."""

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
    sigmoid,
    softmax,
    warmed,
)
from torch import nn
from with_timm import timm_module

from edgeattn.nn.attention import attend
from edgeattn.nn.attention.separable import SeparableSelfAttention, SeparableSigmoid

BOTH = pytest.mark.parametrize("form", [SeparableSelfAttention, SeparableSigmoid])


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    channels, height, width = x.shape
    places = [x[:, i, j] for i in range(height) for j in range(width)]
    scores = np.array([conv1x1(module.query, place)[0] for place in places])
    context = np.zeros(channels)
    if isinstance(module, SeparableSigmoid):
        a = np.array([sigmoid(v) for v in scores])
        for weight, place in zip(a, places, strict=True):
            context += weight * place / len(places)
        context = conv1x1(module.key, context)
    else:  # a key a place, as in the paper
        a = softmax(scores)
        for weight, place in zip(a, places, strict=True):
            context += weight * conv1x1(module.key, place)
    values = [normed(module.value[1], conv1x1(module.value[0], place)) for place in places]
    out = [normed(module.out[1], conv1x1(module.out[0], context * np.maximum(v, 0))) for v in values]
    return x + np.array(out).T.reshape(x.shape), a.reshape(height, width)


@BOTH
@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(form: type[nn.Module], size: tuple[int, int]) -> None:
    check_equals_naive(form(C), naive, size=size)


@BOTH
def test_shapes_and_gradient(form: type[nn.Module]) -> None:
    check_shapes_and_gradient(form(48), channels=48, size=(7, 3))


@BOTH
def test_export(form: type[nn.Module], tmp_path: Path) -> None:
    for names in check_export(form(C), tmp_path):
        assert ("Softmax" in names) == ("MatMul" in names) == (form is SeparableSelfAttention)


@BOTH
def test_map_is_the_weight_of_each_place(form: type[nn.Module]) -> None:
    module = form(C).eval()
    nn.init.constant_(module.query.weight, 1 / C)  # the score is the brightness
    if module.query.bias is not None:
        nn.init.zeros_(module.query.bias)
    _, map_BHW = attend(module, planted())
    gate, total = map_BHW[0].detach(), math.exp(6) + 63 * math.exp(0.01)
    bright, dark = (sigmoid(6), sigmoid(0.01)) if form is SeparableSigmoid else (math.exp(6) / total, 1.0101 / total)
    assert float(gate[2, 5]) == pytest.approx(bright, rel=1e-4)
    assert torch.allclose(gate[7], torch.full((8,), dark), rtol=1e-4)


def test_equals_timm() -> None:
    timm = timm_module("timm.models.mobilevit")
    module, theirs = warmed(SeparableSelfAttention(C)), timm.LinearSelfAttention(C).eval()
    value, x = module.value.folded(), torch.randn(2, C, 7, 5)
    with torch.no_grad():
        theirs.qkv_proj.weight.copy_(torch.cat([module.query.weight, module.key.weight, value.weight]))
        theirs.qkv_proj.bias.copy_(torch.cat([torch.zeros(1), module.key.bias, value.bias]))
    theirs.out_proj.load_state_dict(module.out.folded().state_dict())
    expected = x + theirs(x.flatten(2).unsqueeze(2)).reshape(x.shape)  # one pixel a patch, N patches
    assert (expected - x).abs().max() > 0.01
    assert torch.allclose(module(x), expected, atol=1e-5)
