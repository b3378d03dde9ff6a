"""CBAMSpatial and its lite form: the formulas by loops, timm's layer, and what their maps show."""

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
    planted,
    sigmoid,
    warmed,
)
from torch import nn
from with_timm import timm_module

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.cbam_spatial import CBAMSpatial, CBAMSpatialLite

BOTH = pytest.mark.parametrize("kind", [CBAMSpatial, CBAMSpatialLite])


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    squeezed = np.empty((2, *x.shape[1:]))
    for i, j in np.ndindex(*x.shape[1:]):
        place = x[:, i, j]
        if isinstance(module, CBAMSpatialLite):
            squeezed[:, i, j] = conv1x1(module.squeeze, place)
        else:
            squeezed[:, i, j] = sum(place) / C, max(place)
    gate = np.vectorize(sigmoid)(convolve(module.spatial, squeezed)[0])
    return x * gate, gate


@BOTH
@pytest.mark.parametrize("size", [(6, 5), (1, 1)])
def test_equals_the_formula(kind: type[CBAMSpatial], size: tuple[int, int]) -> None:
    check_equals_naive(kind(C), naive, size=size)


@BOTH
def test_shapes_and_gradient(kind: type[CBAMSpatial]) -> None:
    check_shapes_and_gradient(kind(C))
    check_shapes_and_gradient(kind(C, kernel_size=3), size=(3, 3))


def test_export(tmp_path: Path) -> None:
    for operators in check_export(CBAMSpatial(C), tmp_path):
        assert {"ReduceMax", "Concat"} <= set(operators)


def test_export_of_the_lite_form_has_only_convolutions(tmp_path: Path) -> None:
    for operators in check_export(CBAMSpatialLite(C), tmp_path):
        assert not {"ReduceMax", "Concat"} & set(operators)


def test_equals_timm() -> None:
    ours, x = warmed(CBAMSpatial(C)), torch.randn(2, C, 9, 8)
    theirs = timm_module("timm.layers.cbam").SpatialAttn().eval()
    with torch.no_grad():
        theirs.conv.conv.weight.copy_(ours.spatial.weight)
        theirs.conv.bn.running_var.fill_(1 - theirs.conv.bn.eps)  # a norm that does nothing but add our bias
        theirs.conv.bn.bias.copy_(ours.spatial.bias)
    assert (ours(x) - theirs(x)).abs().max() <= 1e-5


@BOTH
@pytest.mark.parametrize(("kernel_size", "nearest"), [(6, "5 and 7"), (0, "1 and 3")])
def test_bad_arguments(kind: type[CBAMSpatial], kernel_size: int, nearest: str) -> None:
    with pytest.raises(
        SpecError, match=rf"cbam_spatial: kernel_size={kernel_size} must be odd; the nearest are {nearest}"
    ):
        kind(C, kernel_size=kernel_size)


@BOTH
def test_map_changes_as_far_as_the_kernel_reaches(kind: type[CBAMSpatial]) -> None:
    module = warmed(kind(C))
    gate, flat = (attend(module, planted(value=value))[1][0].detach() for value in (6.0, 0.01))
    within = torch.zeros(8, 8, dtype=torch.bool)
    within[:6, 2:] = True  # 3 places around (2, 5)
    assert torch.equal((gate - flat).abs() > 1e-6, within)
