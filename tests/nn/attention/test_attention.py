"""Checks that hold for every mechanism of the registry, a class of one's own, and names that nothing goes by."""

from __future__ import annotations

import pytest
import torch
from mechanisms import C, H, W, check_shapes_and_gradient
from torch import Tensor, nn

from edgeattn.errors import NameNotFoundError, SpecError
from edgeattn.nn.attention import ATTENTIONS, EMPTY, attend, build_attention


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name not in EMPTY])
def test_shapes_and_gradient(name: str) -> None:
    check_shapes_and_gradient(build_attention(name, 32), channels=32, size=(8, 12))


class Foreign(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x).sigmoid()


def not_a_module(channels: int) -> int:
    return channels


def test_a_class_of_ones_own() -> None:
    module = build_attention(f"{__name__}:Foreign", C)
    x = torch.randn(1, C, H, W)
    y, map_BHW = attend(module, x)
    assert torch.equal(y, module(x))
    assert torch.allclose(map_BHW, y.abs().mean(1))


def test_names_that_nothing_goes_by() -> None:
    with pytest.raises(
        NameNotFoundError, match=r"'coordd'.*mean 'coord'.*additive, additive_normed, area, .*, triplet, wide, xca"
    ):
        build_attention("coordd", C)
    with pytest.raises(NameNotFoundError, match=r"no_such_module"):
        build_attention("no_such_module:Class", C)
    with pytest.raises(SpecError, match=r"int; it must be a torch"):
        build_attention(f"{__name__}:not_a_module", C)
