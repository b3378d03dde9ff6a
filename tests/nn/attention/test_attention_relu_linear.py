"""ReLULinearAttention and ReLULinearMean: the paper's weights by loops, and what their maps show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mechanisms import Array, C, check_equals_naive, check_export, check_shapes_and_gradient, conv1x1, normed, planted
from torch import nn
from with_timm import timm_module

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.relu_linear import ReLULinearAttention, ReLULinearMean

BOTH = pytest.mark.parametrize("form", [ReLULinearAttention, ReLULinearMean])


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    channels, height, width = x.shape
    n, heads = height * width, channels // module.dim
    places = [x[:, i, j] for i in range(height) for j in range(width)]
    qkv = [conv1x1(module.qkv, place) for place in places]
    o, received = np.zeros((n, channels)), np.zeros(n)
    for head in range(heads):
        at = [v[head * 3 * module.dim : (head + 1) * 3 * module.dim] for v in qkv]
        q = [np.maximum(v[: module.dim], 0) for v in at]
        k = [np.maximum(v[module.dim : 2 * module.dim], 0) for v in at]
        for i in range(n):
            weights = np.array([float(q[i] @ k[j]) for j in range(n)])
            weights /= n if isinstance(module, ReLULinearMean) else weights.sum() + module.eps
            received += weights / (n * heads)
            for j in range(n):
                o[i, head * module.dim : (head + 1) * module.dim] += weights[j] * at[j][2 * module.dim :]
    mixed = np.array([conv1x1(module.project[0], o[i]) for i in range(n)]).T
    return x + normed(module.project[1], mixed).reshape(x.shape), received.reshape(height, width)


@BOTH
@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(form: type[nn.Module], size: tuple[int, int]) -> None:
    check_equals_naive(form(32, dim=8), naive, channels=32, size=size)


@BOTH
def test_shapes_and_gradient(form: type[nn.Module]) -> None:
    check_shapes_and_gradient(form(48), channels=48, size=(7, 3))


@BOTH
def test_export(form: type[nn.Module], tmp_path: Path) -> None:
    operators = check_export(form(C, dim=8), tmp_path)
    assert all(("Div" in names) == (form is ReLULinearAttention) for names in operators)


@BOTH
def test_map_is_what_the_bright_place_receives(form: type[nn.Module]) -> None:
    """Keys and queries add up the channels, so a place weighs as it is bright."""
    module = form(C).eval()
    nn.init.ones_(module.qkv.weight)
    _, map_BHW = attend(module, planted())
    gate = map_BHW[0].detach()
    total = 6 + 63 * 0.01
    each = 1 / total if form is ReLULinearAttention else C**3 * total / 64**2
    assert float(gate[2, 5]) == pytest.approx(6 * each, rel=1e-4)
    assert torch.allclose(gate[7], torch.full((8,), 0.01 * each), rtol=1e-4)


def test_bad_arguments() -> None:
    with pytest.raises(SpecError, match=r"dim=10 must divide channels=16; the nearest is 8"):
        ReLULinearAttention(16, dim=10)
    with pytest.raises(SpecError, match=r"dim=64 must divide channels=48; the nearest is 48"):
        ReLULinearMean(48, dim=64)


def test_equals_timm() -> None:
    timm = timm_module("timm.models.efficientvit_mit")
    module, theirs = ReLULinearAttention(48).eval(), timm.LiteMLA(48, 48, dim=16, scales=()).eval()
    theirs.qkv.conv.load_state_dict(module.qkv.state_dict())
    theirs.proj.conv.load_state_dict(module.project[0].state_dict())
    theirs.proj.norm.load_state_dict(module.project[1].state_dict())
    x = torch.randn(2, 48, 7, 5)
    assert (module(x) - x).abs().max() > 0.01
    assert torch.allclose(module(x), x + theirs(x), atol=1e-5)
