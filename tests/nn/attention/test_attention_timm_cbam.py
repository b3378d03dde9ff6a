"""CBAM against timm's layer, the only deviations being its biases and the start."""

from __future__ import annotations

import torch
from mechanisms import C, warmed
from with_timm import timm_module

from edgeattn.nn.attention.cbam import CBAM


def test_equals_timm() -> None:
    timm = timm_module("timm.layers.cbam")
    ours = warmed(CBAM(C))
    theirs = timm.CbamModule(C, rd_channels=ours.mlp[0].out_channels, mlp_bias=True).eval()
    theirs.channel.fc1.load_state_dict(ours.mlp[0].state_dict())
    theirs.channel.fc2.load_state_dict(ours.mlp[2].state_dict())
    with torch.no_grad():
        theirs.spatial.conv.conv.weight.copy_(ours.spatial.weight)
        theirs.spatial.conv.bn.bias.copy_(ours.spatial.bias)  # its BatchNorm is fresh: 1 / sqrt(1 + eps), and a shift
        theirs.spatial.conv.bn.eps = 0.0
    x = torch.randn(2, C, 6, 5)
    assert (ours(x) - x).abs().max() > 1e-2
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
