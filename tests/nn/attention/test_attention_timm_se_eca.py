"""SqueezeExcitation and EfficientChannelAttention against timm's layers."""

from __future__ import annotations

import pytest
import torch
from mechanisms import warmed
from with_timm import timm_module

from edgeattn.nn.attention.eca import EfficientChannelAttention
from edgeattn.nn.attention.se import SqueezeExcitation


@pytest.mark.parametrize("channels", [16, 128, 256])
def test_se_equals_timm(channels: int) -> None:
    ours, x = warmed(SqueezeExcitation(channels), channels), torch.randn(2, channels, 6, 5)
    theirs = timm_module("timm.layers").SEModule(channels).eval()
    for conv, linear in ((theirs.fc1, ours.reduce), (theirs.fc2, ours.expand)):
        conv.load_state_dict({"weight": linear.weight[..., None, None], "bias": linear.bias})
    assert (ours(x) - theirs(x)).abs().max() <= 1e-5


@pytest.mark.parametrize("channels", [16, 64, 256])
def test_eca_equals_timm(channels: int) -> None:
    ours, x = warmed(EfficientChannelAttention(channels), channels), torch.randn(2, channels, 6, 5)
    theirs = timm_module("timm.layers").EcaModule(channels).eval()
    theirs.conv.weight.data.copy_(ours.conv.weight)
    theirs.conv.bias = ours.conv.bias  # timm's has none: the gate's start
    assert (ours(x) - theirs(x)).abs().max() <= 1e-5
