"""CrossCovarianceAttention: the paper's formula by loops, timm's layers, and what its map shows."""

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
    planted,
    softmax,
    warmed,
)
from tokens import folded, in_heads, projected
from torch import nn
from with_timm import timm_module

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.xca import CrossCovarianceAttention

HEADS = 2


def unit(row: Array) -> Array:
    return row / math.sqrt(sum(v * v for v in row))


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    q, k, v = (in_heads(projected(layer, x), HEADS) for layer in (module.query, module.key, module.value))
    rows = []
    for head in range(HEADS):
        tau = float(array(module.temperature)[head, 0, 0])
        for q_N in q[head]:
            weights = softmax(np.array([tau * float(unit(q_N) @ unit(k_N)) for k_N in k[head]]))
            rows.append(sum(weight * v_N for weight, v_N in zip(weights, v[head], strict=True)))
    y = x + projected(module.project, np.stack(rows).reshape(x.shape))
    return y, np.mean([abs(y[c]) for c in range(C)], axis=0)


@pytest.mark.parametrize("size", [(6, 5), (3, 7), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(CrossCovarianceAttention(C, num_heads=HEADS), naive, size=size)


@pytest.mark.parametrize(
    ("module", "name"), [("timm.models.xcit", "XCA"), ("timm.models.edgenext", "CrossCovarianceAttn")]
)
def test_equals_timm(module: str, name: str) -> None:
    timm = timm_module(module)
    ours, x = warmed(CrossCovarianceAttention(C, num_heads=HEADS)), torch.randn(2, C, 6, 5)
    theirs = getattr(timm, name)(C, num_heads=HEADS, qkv_bias=True).eval()
    weights, biases = zip(*(folded(layer) for layer in (ours.query, ours.key, ours.value)), strict=True)
    theirs.qkv.load_state_dict({"weight": torch.cat(weights), "bias": torch.cat(biases)})
    theirs.proj.load_state_dict(dict(zip(("weight", "bias"), folded(ours.project), strict=True)))
    theirs.temperature.data.copy_(ours.temperature.data)
    expected = theirs(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    assert expected.abs().max() > 0.1
    assert torch.allclose(ours(x), x + expected, atol=1e-5)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(CrossCovarianceAttention(C, num_heads=HEADS))


def test_starts_near_the_identity() -> None:
    module, x = CrossCovarianceAttention(C), torch.randn(4, C, 6, 5)
    assert 0.1 < (module(x) - x).std() / x.std() < 0.3


def test_a_dead_channel_has_a_finite_gradient() -> None:
    module = CrossCovarianceAttention(C, num_heads=HEADS).eval()
    x = torch.zeros(1, C, 4, 4, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_export(tmp_path: Path) -> None:
    for operators in check_export(CrossCovarianceAttention(C, num_heads=HEADS), tmp_path):
        assert (operators.count("MatMul"), operators.count("Softmax")) == (2, 1)


def test_heads() -> None:
    with pytest.raises(SpecError, match=r"^xca: num_heads=9 must divide the 16 channels; the nearest is 8$"):
        CrossCovarianceAttention(C, num_heads=9)


def test_map_lights_up_where_something_stands() -> None:
    module = warmed(CrossCovarianceAttention(C))
    y, map_BHW = attend(module, planted())
    gate = map_BHW[0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2, 5] = False
    assert torch.allclose(gate[2, 5], y[0, :, 2, 5].abs().mean())
    assert divmod(int(gate.argmax()), 8) == (2, 5)
    assert gate[2, 5] > 2 * gate[7, 0]
    assert torch.allclose(gate[outside], gate[7, 0].expand(63), atol=1e-5)
