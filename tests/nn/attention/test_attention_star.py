"""StarOperation: the paper's formula by loops, and what its map shows."""

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
    convolve,
    normed,
    planted,
    warmed,
)
from torch import nn
from with_timm import timm_module

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.star import StarOperation


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    u, y = normed(module.local[1], convolve(module.local[0], x)), np.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            left = [min(max(v, 0), 6) for v in conv1x1(module.f1, u[:, i, j])]
            star = np.array(left) * conv1x1(module.f2, u[:, i, j])
            y[:, i, j] = x[:, i, j] + normed(module.g[1], conv1x1(module.g[0], star))
    return y, np.mean([abs(channel) for channel in y], axis=0)


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
@pytest.mark.parametrize("mlp_ratio", [1, 3])
def test_equals_the_formula(mlp_ratio: int, size: tuple[int, int]) -> None:
    check_equals_naive(StarOperation(C, mlp_ratio=mlp_ratio), naive, size=size)


def test_the_left_factor_is_clipped_at_6() -> None:
    module, x = StarOperation(C).eval(), torch.zeros(1, C, 3, 3)
    nn.init.zeros_(module.f1.weight)
    nn.init.ones_(module.f2.bias)
    y = {}
    for bias in (3.0, 6.0, 9.0):
        nn.init.constant_(module.f1.bias, bias)
        y[bias] = module(x)
    assert torch.equal(y[6.0], y[9.0])
    assert not torch.allclose(y[3.0], y[6.0], atol=1e-3)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(StarOperation(48), channels=48, size=(7, 3))


def test_export(tmp_path: Path) -> None:
    check_export(StarOperation(C), tmp_path)


def test_map_lights_up_where_something_stands() -> None:
    _, map_BHW = attend(warmed(StarOperation(C)), planted(side=16, at=(4, 4)))
    shown = map_BHW[0].detach()
    beyond = shown[8:13, 8:13]  # a 7 x 7 kernel, whose padding is felt at the border
    assert divmod(int(shown.argmax()), 16) == (4, 4)
    assert (shown[7, 7] - shown[8, 8]).abs() > 1e-4
    assert torch.allclose(beyond, beyond[0, 0].expand_as(beyond), atol=1e-5)


def test_bad_arguments() -> None:
    with pytest.raises(SpecError, match=r"mlp_ratio=0 must be 1 at least"):
        StarOperation(C, mlp_ratio=0)


def test_equals_timm() -> None:
    timm = timm_module("timm.models.starnet")
    module, theirs = warmed(StarOperation(C, mlp_ratio=3)), timm.Block(C, mlp_ratio=3).eval()
    theirs.dwconv.bn.load_state_dict(module.local[1].state_dict())
    theirs.g.bn.load_state_dict(module.g[1].state_dict())
    with torch.no_grad():
        for conv, ours in ((theirs.dwconv.conv, module.local[0]), (theirs.g.conv, module.g[0])):
            conv.weight.copy_(ours.weight)
            conv.bias.zero_()
        theirs.dwconv2.conv.weight.zero_()[:, 0, 3, 3] = 1.0  # their second depthwise convolution left out
        theirs.dwconv2.conv.bias.zero_()
    theirs.f1.conv.load_state_dict(module.f1.state_dict())
    theirs.f2.conv.load_state_dict(module.f2.state_dict())
    x = torch.randn(2, C, 9, 7)
    assert (module(x) - x).abs().max() > 0.01
    assert torch.allclose(module(x), theirs(x), atol=1e-5)
