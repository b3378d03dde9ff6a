"""EffectiveSqueezeExcitation: the paper's formula by loops, timm's layer, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mechanisms import (
    Array,
    C,
    check_equals_naive,
    check_export,
    check_shapes_and_gradient,
    conv1x1,
    planted,
    warmed,
)
from torch import nn
from with_timm import timm_module

from edgeattn.nn.attention import attend
from edgeattn.nn.attention.ese import EffectiveSqueezeExcitation


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    pooled = np.array([x[c].mean() for c in range(C)])
    gate = [min(max(v / 6 + 1 / 2, 0.0), 1.0) for v in conv1x1(module.excite, pooled)]
    y = np.stack([x[c] * gate[c] for c in range(C)])
    return y, np.mean([abs(y[c]) for c in range(C)], axis=0)


def clipping() -> EffectiveSqueezeExcitation:
    """With a channel far below the ramp and one far above it."""
    module = EffectiveSqueezeExcitation(C)
    with torch.no_grad():
        module.excite.bias[0], module.excite.bias[1] = -9.0, 9.0
    return module


def test_equals_the_formula() -> None:
    check_equals_naive(EffectiveSqueezeExcitation(C), naive)
    check_equals_naive(clipping(), naive)


def test_clips_on_both_sides() -> None:
    x = torch.randn(2, C, 6, 5)
    y = warmed(clipping())(x)
    assert torch.equal(y[:, 0], torch.zeros(2, 6, 5))
    assert torch.equal(y[:, 1], x[:, 1])


def test_starts_open_on_the_ramp() -> None:
    module = EffectiveSqueezeExcitation(C)
    y = module(torch.ones(1, C, 2, 2) * 1e-6) / 1e-6
    assert torch.allclose(y, torch.full_like(y, 0.95), atol=1e-4)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(EffectiveSqueezeExcitation(C))


def test_export_has_a_clip(tmp_path: Path) -> None:
    for operators in check_export(clipping(), tmp_path):
        assert "Clip" in operators
        assert "HardSigmoid" not in operators


def test_equals_timm() -> None:
    ours, x = warmed(clipping()), torch.randn(2, C, 6, 5)
    theirs = timm_module("timm.layers").EffectiveSEModule(C).eval()
    theirs.fc.load_state_dict(ours.excite.state_dict())
    assert (ours(x) - theirs(x)).abs().max() <= 1e-5


def test_map_lights_up_where_something_stands() -> None:
    _, map_BHW = attend(warmed(EffectiveSqueezeExcitation(C)), planted())
    gate = map_BHW[0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    assert divmod(int(gate.argmax()), 8) == (2, 5)
    outside[2, 5] = False
    assert (gate[2, 5] - gate[7, 0]).abs() > 1e-4
    assert torch.allclose(gate[outside], gate[outside][0].expand_as(gate[outside]), atol=1e-5)
