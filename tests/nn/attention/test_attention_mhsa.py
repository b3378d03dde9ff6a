"""MultiHeadSelfAttention and its ReLU form: the papers' formulas by loops, timm's layer, and what their maps show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mechanisms import Array, C, check_equals_naive, check_export, check_shapes_and_gradient, planted, warmed
from tokens import attended, folded, identity, in_heads, projected, share_of_the_planted
from torch import nn
from with_timm import timm_module

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.mhsa import MultiHeadReLUAttention, MultiHeadSelfAttention

HEADS, D = 2, C // 2


def relu_attended(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, Array]:
    n = q.shape[1]
    weights = np.array([[max(scale * float(q[:, i] @ k[:, j]), 0.0) / n for j in range(n)] for i in range(n)])
    mixed = [sum(weights[i, j] * v[:, j] for j in range(n)) for i in range(n)]
    return np.stack(mixed, axis=1), weights.mean(0)


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    attention = relu_attended if isinstance(module, MultiHeadReLUAttention) else attended
    q, k, v = (in_heads(projected(layer, x), HEADS) for layer in (module.query, module.key, module.value))
    heads = [attention(q[i], k[i], v[i], D**-0.5) for i in range(HEADS)]
    joined = np.concatenate([mixed for mixed, _ in heads]).reshape(x.shape)
    return x + projected(module.project, joined), np.mean([r for _, r in heads], axis=0).reshape(x.shape[1:])


both = pytest.mark.parametrize("form", [MultiHeadSelfAttention, MultiHeadReLUAttention])


@both
@pytest.mark.parametrize("size", [(6, 5), (3, 7), (1, 1)])
def test_equals_the_formula(form: type[MultiHeadSelfAttention], size: tuple[int, int]) -> None:
    check_equals_naive(form(C, num_heads=HEADS), naive, size=size)


def test_equals_timm() -> None:
    layers, ours, x = (
        timm_module("timm.layers"),
        warmed(MultiHeadSelfAttention(C, num_heads=HEADS)),
        torch.randn(2, C, 6, 5),
    )
    theirs = layers.Attention(C, num_heads=HEADS, qkv_bias=True).eval()
    weights, biases = zip(*(folded(layer) for layer in (ours.query, ours.key, ours.value)), strict=True)
    theirs.qkv.load_state_dict({"weight": torch.cat(weights), "bias": torch.cat(biases)})
    theirs.proj.load_state_dict(dict(zip(("weight", "bias"), folded(ours.project), strict=True)))
    expected = theirs(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    assert expected.abs().max() > 0.1
    assert torch.allclose(ours(x), x + expected, atol=1e-5)


@both
def test_shapes_and_gradient(form: type[MultiHeadSelfAttention]) -> None:
    check_shapes_and_gradient(form(C, num_heads=HEADS))


@both
def test_starts_near_the_identity(form: type[MultiHeadSelfAttention]) -> None:
    module, x = form(C, num_heads=HEADS), torch.randn(4, C, 6, 5)
    assert 0.1 < (module(x) - x).std() / x.std() < 0.3


@both
def test_export(form: type[MultiHeadSelfAttention], tmp_path: Path) -> None:
    for operators in check_export(form(C, num_heads=HEADS), tmp_path):
        assert operators.count("MatMul") == 2
        assert operators.count("Softmax") == (0 if form is MultiHeadReLUAttention else 1)


def test_heads() -> None:
    assert [MultiHeadSelfAttention(c).num_heads for c in (8, 16, 32, 48, 64, 96, 384)] == [1, 1, 1, 1, 2, 3, 12]
    for wrong, nearest in {5: 4, 0: 1, -2: 1, 40: 16}.items():
        with pytest.raises(
            SpecError, match=rf"num_heads={wrong} must divide the 16 channels; the nearest is {nearest}$"
        ):
            MultiHeadSelfAttention(C, num_heads=wrong)


def test_map_lights_up_where_something_stands() -> None:
    module = MultiHeadSelfAttention(C, num_heads=HEADS).eval()
    identity(module.query)
    identity(module.key)
    map_HW = attend(module, planted())[1][0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2, 5] = False
    share = share_of_the_planted(D * D**-0.5)
    assert float(map_HW[2, 5]) == pytest.approx(share, rel=1e-4)
    assert share > 1.8 / 64
    assert map_HW[outside].numpy() == pytest.approx((1 - share) / 63, rel=1e-4)


def test_relu_map_lights_up_where_something_stands() -> None:
    module = MultiHeadReLUAttention(C, num_heads=HEADS).eval()
    identity(module.query)
    identity(module.key)
    map_HW = attend(module, planted())[1][0].detach()
    mean = (6.0 + 63 * 0.01) / 64
    assert float(map_HW[2, 5]) == pytest.approx(D**0.5 * mean * 6.0 / 64, rel=1e-4)
    assert float(map_HW[7, 0]) == pytest.approx(D**0.5 * mean * 0.01 / 64, rel=1e-4)
