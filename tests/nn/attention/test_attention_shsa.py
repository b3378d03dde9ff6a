"""SingleHeadSelfAttention: the paper's formula by loops, timm's layer, its deployed form, and what its map shows."""

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
    normed,
    planted,
    warmed,
)
from tokens import attended, identity, places, projected, share_of_the_planted
from torch import nn
from with_timm import timm_module

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.shsa import SingleHeadSelfAttention

QK = 16


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    part, rest = normed(module.pre_norm, x[: module.pdim]), x[module.pdim :]
    q, k, v = (places(projected(layer, part)) for layer in (module.query, module.key, module.value))
    mixed, received = attended(q, k, v, QK**-0.5)
    joined = np.maximum(np.concatenate([mixed.reshape(part.shape), rest]), 0)
    return x + projected(module.project, joined), received.reshape(x.shape[1:])


@pytest.mark.parametrize("size", [(6, 5), (3, 7), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(SingleHeadSelfAttention(C), naive, size=size)


def test_equals_timm() -> None:
    shvit, ours, x = timm_module("timm.models.shvit"), warmed(SingleHeadSelfAttention(C)), torch.randn(2, C, 6, 5)
    theirs = shvit.SHSA(C, QK, ours.pdim, norm_layer=nn.BatchNorm2d).eval()
    theirs.pre_norm.load_state_dict(ours.pre_norm.state_dict())
    for i, name in enumerate(("c", "bn")):
        parts = [layer[i].state_dict() for layer in (ours.query, ours.key, ours.value)]
        joined = {key: torch.cat([p[key] for p in parts]) for key in parts[0] if key != "num_batches_tracked"}
        getattr(theirs.qkv, name).load_state_dict(joined, strict=False)
        getattr(theirs.proj[1], name).load_state_dict(ours.project[i].state_dict())
    assert theirs(x).abs().max() > 0.1
    assert torch.allclose(ours(x), x + theirs(x), atol=1e-5)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(SingleHeadSelfAttention(C))


def test_starts_as_the_identity() -> None:
    x = torch.randn(4, C, 6, 5)
    assert torch.equal(SingleHeadSelfAttention(C)(x), x)


def test_deployed() -> None:
    module, x = warmed(SingleHeadSelfAttention(C)), torch.randn(2, C, 6, 5)
    y, map_BHW = attend(module, x)
    twin = module.deployed(C)
    for got, expected in zip(attend(twin, x), (y, map_BHW), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)
    assert (
        sum(isinstance(m, nn.BatchNorm2d) for m in twin.modules()) == 1
    )  # behind the last projection: `fold` takes it
    assert torch.equal(module(x), y)  # the module itself is left as it was


def test_export(tmp_path: Path) -> None:
    for operators in check_export(SingleHeadSelfAttention(C), tmp_path):
        assert (operators.count("MatMul"), operators.count("Softmax")) == (2, 1)


def test_widths() -> None:
    assert [SingleHeadSelfAttention(c).pdim for c in (16, 48, 64, 128, 256, 384, 512)] == [8, 8, 16, 24, 56, 80, 112]
    assert SingleHeadSelfAttention(C, pdim=5)(torch.randn(2, C, 3, 3)).shape == (2, C, 3, 3)
    for wrong, nearest in {0: 1, 16: 15, 40: 15}.items():
        with pytest.raises(
            SpecError, match=rf"pdim={wrong} must leave some of the 16 channels; the nearest is {nearest}$"
        ):
            SingleHeadSelfAttention(C, pdim=wrong)
    with pytest.raises(SpecError, match=r"qk_dim=0 must be 1 at least"):
        SingleHeadSelfAttention(C, qk_dim=0)


def test_map_lights_up_where_something_stands() -> None:
    module = SingleHeadSelfAttention(C).eval()
    module.pre_norm.eps = 0.0
    identity(module.query)  # 8 of the 16 queries are those of the 8 channels, the others 0
    identity(module.key)
    map_HW = attend(module, planted())[1][0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2, 5] = False
    share = share_of_the_planted(module.pdim * QK**-0.5)
    assert float(map_HW[2, 5]) == pytest.approx(share, rel=1e-4)
    assert share > 1.8 / 64
    assert map_HW[outside].numpy() == pytest.approx((1 - share) / 63, rel=1e-4)
