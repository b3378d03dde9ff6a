"""SelectiveKernel: the paper's formula by loops, timm's layer, folding, and what its map shows."""

from __future__ import annotations

import copy
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
    softmax,
    warmed,
)
from torch import nn
from with_timm import timm_module

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.sk import SelectiveKernel
from edgeattn.nn.layers import fold


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    u_3, u_5 = (normed(branch[1], convolve(branch[0], x)) for branch in (module.small, module.large))
    pooled = np.array([(u_3[c] + u_5[c]).mean() for c in range(C)])
    z = np.maximum(normed(module.reduce[1], conv1x1(module.reduce[0], pooled)), 0)
    logits_3, logits_5 = conv1x1(module.select, z) + 0.7, np.full(C, 0.7)  # only their difference counts
    y = np.empty_like(x)
    for c in range(C):
        a_3, a_5 = softmax(np.array([logits_3[c], logits_5[c]]))
        y[c] = x[c] + a_3 * u_3[c] + a_5 * u_5[c]
    return y, np.mean([abs(y[c]) for c in range(C)], axis=0)


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(SelectiveKernel(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(SelectiveKernel(C))
    check_shapes_and_gradient(SelectiveKernel(C, kernels=(1, 7)), size=(3, 2))


def test_starts_near_the_identity() -> None:
    x = torch.randn(64, C, 8, 8)
    added = SelectiveKernel(C)(x) - x
    assert 0 < added.std() < 0.25


def test_folds_to_convolutions_alone() -> None:
    module, x = warmed(SelectiveKernel(C)), torch.randn(2, C, 6, 5)
    folded = copy.deepcopy(module)
    fold(folded)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert torch.allclose(folded(x), module(x), atol=1e-5)


def test_export_without_a_softmax(tmp_path: Path) -> None:
    for operators in check_export(SelectiveKernel(C), tmp_path, imgszs=(8, 36)):
        assert "Sigmoid" in operators
        assert "Softmax" not in operators


def test_equals_timm() -> None:
    ours, x = SelectiveKernel(C), torch.randn(2, C, 7, 6)
    theirs = timm_module("timm.layers").SelectiveKernel(
        C, kernel_size=[3, 5], keep_3x3=False, split_input=False, groups=C, rd_channels=8, act_layer=nn.Identity
    )
    warmed(ours)
    with torch.no_grad():
        ours.select.bias.zero_()
        for path, branch in zip(theirs.paths, (ours.small, ours.large), strict=True):
            path.conv.load_state_dict(branch[0].state_dict())
            path.bn.load_state_dict(branch[1].state_dict())
        theirs.attn.fc_reduce.load_state_dict(ours.reduce[0].state_dict())
        theirs.attn.bn.load_state_dict(ours.reduce[1].state_dict())
        a_5 = torch.randn_like(ours.select.weight)
        theirs.attn.fc_select.weight.copy_(torch.cat([ours.select.weight + a_5, a_5]))
    assert (ours(x) - x - theirs.eval()(x)).abs().max() <= 1e-5


@pytest.mark.parametrize(("kernels", "nearest"), [((3, 4), "3 and 5"), ((0, 3), "1 and 3")])
def test_bad_arguments(kernels: tuple[int, int], nearest: str) -> None:
    with pytest.raises(SpecError, match=rf"sk: kernels=.* must be odd; the nearest are {nearest}"):
        SelectiveKernel(C, kernels=kernels)


def test_map_lights_up_where_something_stands() -> None:
    torch.manual_seed(0)  # some weights of the 5 x 5 kernel are near zero
    _, map_BHW = attend(warmed(SelectiveKernel(C)), planted())
    energy = map_BHW[0].detach()
    assert divmod(int(energy.argmax()), 8) == (2, 5)
    outside = torch.zeros(8, 8, dtype=torch.bool)
    outside[5, 2:6], outside[2:6, 2] = True, True  # farther than 2 from (2, 5) and not within 2 of the border
    assert energy[2, 5] > 2 * energy[outside].max()
    assert torch.allclose(energy[outside], energy[5, 2].expand_as(energy[outside]), atol=1e-5)
    assert energy[4, 5] - energy[5, 5] > 1e-3  # the 5 x 5 kernel reaches two places, not three
