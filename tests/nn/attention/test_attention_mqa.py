"""MobileMQA: the paper's formula by loops, timm's layer, and what its map shows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mechanisms import Array, C, check_equals_naive, check_export, check_shapes_and_gradient, planted, warmed
from tokens import attended, folded, identity, in_heads, places, projected
from torch import nn
from with_timm import timm_module

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.mqa import MobileMQA

HEADS, D = 2, C // 2


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    reduced = projected(module.reduce, x)
    stride = module.reduce[0].stride[0]
    k, v = places(projected(module.key, reduced)), places(projected(module.value, reduced))
    heads = [attended(q, k, v, D**-0.5) for q in in_heads(projected(module.query, x), HEADS)]
    received = np.mean([r for _, r in heads], axis=0).reshape(reduced.shape[1:])
    map_HW = np.array([[received[i // stride, j // stride] for j in range(x.shape[2])] for i in range(x.shape[1])])
    joined = np.concatenate([mixed for mixed, _ in heads]).reshape(x.shape)
    return x + projected(module.project, joined), map_HW / map_HW.sum()


@pytest.mark.parametrize("kv_stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 5), (3, 7), (1, 1)])
def test_equals_the_formula(size: tuple[int, int], kv_stride: int) -> None:
    check_equals_naive(MobileMQA(C, num_heads=HEADS, kv_stride=kv_stride), naive, size=size)


@pytest.mark.parametrize("size", [(6, 5), (7, 7)])
def test_equals_timm(size: tuple[int, int]) -> None:
    layers, ours, x = timm_module("timm.layers"), warmed(MobileMQA(C, num_heads=HEADS)), torch.randn(2, C, *size)
    theirs = layers.MultiQueryAttention2d(C, num_heads=HEADS, kv_stride=2, use_bias=True).eval()

    def copy(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
        layer.load_state_dict({"weight": weight[..., None, None], "bias": bias})

    copy(theirs.query.proj, *folded(ours.query))
    copy(theirs.output.proj, *folded(ours.project))
    for branch, projection in ((theirs.key, ours.key), (theirs.value, ours.value)):
        branch.down_conv.load_state_dict(ours.reduce[0].state_dict())
        branch.norm.load_state_dict(ours.reduce[1].state_dict())
        copy(branch.proj, projection.weight.detach()[:, :, 0, 0], torch.zeros(D))
    assert theirs(x).abs().max() > 0.1
    assert torch.allclose(ours(x), x + theirs(x), atol=1e-5)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(MobileMQA(C, num_heads=HEADS))


def test_starts_near_the_identity() -> None:
    module, x = MobileMQA(C), torch.randn(4, C, 6, 5)
    assert 0.1 < (module(x) - x).std() / x.std() < 0.3


def test_export(tmp_path: Path) -> None:
    for operators in check_export(MobileMQA(C, num_heads=HEADS), tmp_path):
        assert (operators.count("MatMul"), operators.count("Softmax")) == (2, 1)


def test_export_where_the_reduced_map_does_not_fit_twice(tmp_path: Path) -> None:
    check_export(MobileMQA(C, num_heads=HEADS), tmp_path, imgszs=(36, 44))


def test_arguments() -> None:
    with pytest.raises(SpecError, match=r"^mqa: num_heads=3 must divide the 16 channels; the nearest is 2$"):
        MobileMQA(C, num_heads=3)
    for wrong, nearest in {0: 1, 3: 2}.items():
        with pytest.raises(SpecError, match=rf"kv_stride={wrong} must be 1 or 2; the nearest is {nearest}$"):
            MobileMQA(C, kv_stride=wrong)


def test_map_lights_up_where_something_stands() -> None:
    module = MobileMQA(C, num_heads=HEADS).eval()
    identity(module.query)
    identity(module.key)
    with torch.no_grad():
        module.reduce[0].weight.fill_(1.0)
    map_HW = attend(module, planted(at=(2, 5), value=6.0))[1][0].detach()
    # the 3 x 3 windows of stride 2 that see (2, 5) stand at (2, 4) and (2, 6): two blocks of 2 x 2 places
    lit = torch.zeros(8, 8, dtype=torch.bool)
    lit[2:4, 4:8] = True
    bright = math.exp(
        D**0.5 * 0.01 * (6.0 + 8 * 0.01)
    )  # where nothing stands a query hardly prefers; the bright one does
    received = (1 / 2 + 63 * bright / (2 * bright + 14)) / 64
    assert map_HW[lit].numpy() == pytest.approx(received / 4, rel=5e-3)
    assert map_HW[~lit].numpy() == pytest.approx((1 - 2 * received) / 14 / 4, rel=5e-3)
    assert received / 4 > 1.2 / 64
    assert float(map_HW.sum()) == pytest.approx(1, abs=1e-5)
