"""LargeKernelAttention and LargeKernelStrips: the paper's formula by loops, how far they see, how they start."""

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
    convolve,
    planted,
    warmed,
)
from torch import nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.lka import LargeKernelAttention, LargeKernelStrips

BOTH = pytest.mark.parametrize("form", [LargeKernelAttention, LargeKernelStrips])


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    gate = convolve(module.gate, convolve(module.look[1], convolve(module.look[0], x)))
    return x * gate, np.mean([abs(channel) for channel in gate], axis=0)


@BOTH
@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(form: type[nn.Module], size: tuple[int, int]) -> None:
    check_equals_naive(form(C), naive, size=size)


@pytest.mark.parametrize(("kernel_size", "dilation", "local", "long"), [(21, 3, 5, 7), (13, 3, 5, 5), (35, 5, 9, 7)])
def test_kernels_are_the_papers(kernel_size: int, dilation: int, local: int, long: int) -> None:
    module = LargeKernelAttention(C, kernel_size=kernel_size, dilation=dilation)
    assert [tuple(layer.kernel_size) for layer in module.look] == [(local, local), (long, long)]
    assert module(torch.randn(1, C, 9, 7)).shape == (1, C, 9, 7)


@BOTH
def test_shapes_and_gradient(form: type[nn.Module]) -> None:
    check_shapes_and_gradient(form(48), channels=48, size=(7, 3))


@BOTH
def test_export(form: type[nn.Module], tmp_path: Path) -> None:
    check_export(form(C), tmp_path)


@pytest.mark.parametrize(("form", "reach"), [(LargeKernelAttention, 2 + 9), (LargeKernelStrips, 5)])
def test_map_feels_a_place_as_far_as_the_kernel_reaches(form: type[nn.Module], reach: int) -> None:
    _, map_BHW = attend(warmed(form(C)), planted(side=32, at=(4, 4)))
    gate = map_BHW[0].detach()
    beyond = gate[5 + reach : 32 - reach, 5 + reach : 32 - reach]  # and away from the padding
    assert beyond.numel() >= 25
    assert torch.allclose(beyond, beyond[0, 0].expand_as(beyond), atol=1e-5)
    assert (gate[4 + reach, 4 + reach] - beyond[0, 0]).abs() > 1e-4


@BOTH
def test_a_stack_starts_open(form: type[nn.Module]) -> None:
    torch.manual_seed(0)
    stack, x = nn.Sequential(*(form(64) for _ in range(12))), torch.randn(2, 64, 14, 14, requires_grad=True)
    y = stack(x)
    y.square().mean().sqrt().backward()
    assert 0.5 < float(y.detach().std()) < 2
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in stack.parameters())
    first, last = (float(stack[i].gate.weight.grad.norm()) for i in (0, 11))
    assert 0.2 < first / last < 5


def test_bad_arguments() -> None:
    with pytest.raises(SpecError, match=r"kernel_size=22 dilated by 3 makes 8 taps.*nearest kernel_size are 21 and 25"):
        LargeKernelAttention(C, kernel_size=22)
    with pytest.raises(SpecError, match=r"dilation=0 must be 1 at least"):
        LargeKernelAttention(C, dilation=0)
    with pytest.raises(SpecError, match=r"kernel_size=10 must be odd; the nearest are 9 and 11"):
        LargeKernelStrips(C, kernel_size=10)
    with pytest.raises(SpecError, match=r"kernel_size=0 must be odd; the nearest are 1 and 3"):
        LargeKernelStrips(C, kernel_size=0)
