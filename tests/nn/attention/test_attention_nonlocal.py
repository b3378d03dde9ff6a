"""NonLocal: the paper's formula by loops, timm's layer, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mechanisms import Array, C, check_equals_naive, check_export, check_shapes_and_gradient, planted, warmed
from tokens import attended, identity, places, projected, share_of_the_planted
from torch import nn
from with_timm import timm_module

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.nonlocal_ import NonLocal


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    theta, phi, g = (places(projected(layer, x)) for layer in (module.theta, module.phi, module.g))
    mixed, received = attended(theta, phi, g, 1.0)
    return x + projected(module.z, mixed.reshape(C // 2, *x.shape[1:])), received.reshape(x.shape[1:])


@pytest.mark.parametrize("size", [(6, 5), (3, 7), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(NonLocal(C), naive, size=size)


def test_equals_timm() -> None:
    layers, ours, x = timm_module("timm.layers"), warmed(NonLocal(C)), torch.randn(2, C, 6, 5)
    theirs = layers.NonLocalAttn(C, use_scale=False, rd_channels=C // 2).eval()
    theirs.t.load_state_dict(ours.theta.state_dict())
    theirs.p.load_state_dict({**ours.phi.state_dict(), "bias": torch.zeros(C // 2)})
    theirs.g.load_state_dict(ours.g.state_dict())
    theirs.z.load_state_dict({**ours.z[0].state_dict(), "bias": torch.zeros(C)})
    theirs.norm.load_state_dict(ours.z[1].state_dict())
    assert (ours(x) - x).abs().max() > 0.1
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(NonLocal(C))


def test_starts_as_the_identity() -> None:
    x = torch.randn(4, C, 6, 5)
    assert torch.equal(NonLocal(C)(x), x)


def test_export(tmp_path: Path) -> None:
    for operators in check_export(NonLocal(C), tmp_path):
        assert (operators.count("MatMul"), operators.count("Softmax")) == (2, 1)


def test_maps_that_are_too_large() -> None:
    for height, width in ((14, 14), (7, 28), (1, 1), (7, 7)):
        NonLocal.check_map(height, width)
    for size, nearest in {(15, 14): "14 x 14", (28, 28): "14 x 14", (10, 30): "10 x 19", (30, 10): "19 x 10"}.items():
        with pytest.raises(
            SpecError, match=rf"a map of {size[0]} x {size[1]} .* fits is {nearest} \(imgsz=224 or less"
        ):
            NonLocal.check_map(*size)


def test_map_lights_up_where_something_stands() -> None:
    module = NonLocal(C).eval()
    identity(module.theta)
    identity(module.phi)
    map_HW = attend(module, planted(value=1.0))[1][0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2, 5] = False
    share = share_of_the_planted(C / 2, value=1.0)
    assert float(map_HW[2, 5]) == pytest.approx(share, rel=1e-4)
    assert share > 1.8 / 64
    assert map_HW[outside].numpy() == pytest.approx((1 - share) / 63, rel=1e-4)
