"""BAM: the paper's formula by loops, and what its map shows."""

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
    sigmoid,
    warmed,
)
from torch import nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.bam import BAM, BAMSequence
from edgeattn.nn.layers import fold


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    first, _, (last, norm) = module.channel
    pooled = np.array([channel.mean() for channel in x])
    channel = normed(norm, conv1x1(last, np.maximum(conv1x1(first, pooled), 0)))
    spatial = x
    for conv, norm in (module.spatial[0], module.spatial[2], module.spatial[4]):
        spatial = np.maximum(normed(norm, convolve(conv, spatial)), 0)
    conv, norm = module.spatial[6]
    spatial = normed(norm, convolve(conv, spatial))[0]
    gate = np.vectorize(sigmoid)(channel[:, None, None] + spatial[None])
    return x * (1 + gate), gate.mean(0)


def naive_in_sequence(module: nn.Module, x: Array) -> tuple[Array, Array]:
    first, _, (last, norm) = module.channel
    pooled = np.array([channel.mean() for channel in x])
    channel = normed(norm, conv1x1(last, np.maximum(conv1x1(first, pooled), 0)))
    u = x * (1 + np.vectorize(sigmoid)(channel))[:, None, None]
    spatial = u
    for conv, norm in (module.spatial[0], module.spatial[2], module.spatial[4]):
        spatial = np.maximum(normed(norm, convolve(conv, spatial)), 0)
    conv, norm = module.spatial[6]
    gate = np.vectorize(sigmoid)(normed(norm, convolve(conv, spatial))[0])
    return u * (1 + gate), gate


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_in_sequence_equals_its_formula(size: tuple[int, int]) -> None:
    check_equals_naive(BAMSequence(C), naive_in_sequence, size=size)


def test_in_sequence(tmp_path: Path) -> None:
    check_shapes_and_gradient(BAMSequence(C))
    check_export(BAMSequence(C), tmp_path)
    x = torch.randn(4, C, 8, 8)
    ratio = (BAMSequence(C).eval()(x) / x).detach()
    assert float(ratio.mean()) == pytest.approx((1 + sigmoid(-3)) ** 2, abs=0.05)


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(BAM(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(BAM(C))


def test_export(tmp_path: Path) -> None:
    check_export(BAM(C), tmp_path)


def test_map_sees_every_fourth_row_and_column() -> None:
    _, map_BHW = attend(warmed(BAM(C)), planted())
    gate = map_BHW[0].detach()
    # the padding differs by quadrant; within one, only the place a multiple of four away from (2, 5) stands out
    corner = torch.ones(4, 4, dtype=torch.bool)
    corner[2, 1] = False
    assert (gate[2, 5] - gate[3, 6]).abs() > 1e-4
    for rows in (gate[:4], gate[4:]):
        for quadrant in (rows[:, :4], rows[:, 4:]):
            assert torch.allclose(quadrant[corner], quadrant[0, 0].expand(15), atol=1e-6)


def test_folding_keeps_the_dilation_and_the_numbers() -> None:
    module, x = warmed(BAM(C)), torch.randn(2, C, 9, 8)
    folded = copy.deepcopy(module)
    fold(folded)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert torch.allclose(folded(x), module(x), atol=1e-5)


def test_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, C, 8, 8)
    ratio = (BAM(C).eval()(x) / x).detach()
    assert float(ratio.min()) > 1
    assert float(ratio.mean()) == pytest.approx(1 + sigmoid(-3), abs=0.03)


@pytest.mark.parametrize("arguments", [{"dilation": 0}, {"reduction": 0}])
def test_bad_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="1 at least"):
        BAM(C, **arguments)
