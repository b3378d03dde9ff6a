"""LayerScale: the formula by loops, timm's layer, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mechanisms import Array, C, check_equals_naive, check_export, check_shapes_and_gradient, planted, warmed
from torch import nn
from with_timm import timm_module

from edgeattn.nn.attention import attend
from edgeattn.nn.attention.layerscale import LayerScale


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    gamma = module.gamma.detach().double().numpy().ravel()
    y = np.stack([x[c] * gamma[c] for c in range(len(x))])
    return y, np.mean([abs(channel) for channel in y], axis=0)


@pytest.mark.parametrize("size", [(6, 5), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(LayerScale(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(LayerScale(C))


def test_export(tmp_path: Path) -> None:
    check_export(LayerScale(C), tmp_path)


def test_starts_as_the_identity_unless_told_otherwise() -> None:
    x = torch.randn(2, C, 6, 5)
    assert torch.equal(LayerScale(C)(x), x)
    assert torch.equal(LayerScale(C, init_values=0.5)(x), x / 2)


def test_map_is_the_scaled_picture() -> None:
    module = warmed(LayerScale(C))
    gate = attend(module, planted())[1][0].detach()
    mean = float(module.gamma.detach().abs().mean())
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2, 5] = False
    assert float(gate[2, 5]) == pytest.approx(6 * mean, rel=1e-5)
    assert torch.allclose(gate[outside], torch.tensor(0.01 * mean))


def test_equals_timm() -> None:
    timm = timm_module("timm.layers.layer_scale")
    ours, theirs = warmed(LayerScale(C)), timm.LayerScale2d(C)
    with torch.no_grad():
        theirs.gamma.copy_(ours.gamma.flatten())
    x = torch.randn(2, C, 6, 5)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
