"""Lite: the first eight blocks of EfficientNet-Lite0 with their ImageNet weights, and a slot for attention after each stage.

A small set of photos does not teach a net to see; this one sees already, and is as small as pico (0.25 M parameters) at
three times its MACs. Inverted residuals with ReLU6 and no squeeze-and-excitation were made for int8 (Liu 2020, "Higher
accuracy on vision models with EfficientNet-Lite"; Tan and Le 2019, arXiv:1905.11946).

Deviation: strided convolutions are padded on both sides alike, where TensorFlow pads the far side only; training makes up for
the shift of a pixel, and engines need no padding of their own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu6

from edgeattn.errors import SpecError
from edgeattn.nn.backbone import Backbone, Slot, slot_attention
from edgeattn.nn.layers import ConvNorm
from edgeattn.nn.pretrained import efficientnet_lite0

STEM = 32
"""Channels of the stem."""
STAGES = (
    ((16, 3, 1, 1), (24, 3, 2, 6), (24, 3, 1, 6)),
    ((40, 5, 2, 6), (40, 5, 1, 6)),
    ((80, 3, 2, 6), (80, 3, 1, 6), (80, 3, 1, 6)),
)
"""Channels, kernel, stride and expansion of each block of each stage; the maps are a 4th, an 8th and a 16th of the input."""
EPS = 1e-3
"""Of its BatchNorm."""


class InvertedResidual(nn.Module):
    """(B, C, H, W) -> (B, C', H / stride, W / stride): widen, mix locally, narrow; a shortcut where the shape stays."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand = ConvNorm(channels, hidden, 1) if expansion > 1 else None
        self.local = ConvNorm(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = ConvNorm(hidden, out, 1)
        self.has_shortcut = stride == 1 and channels == out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The block."""
        y_BCHW = relu6(self.expand(x_BCHW)) if self.expand is not None else x_BCHW
        y_BCHW = self.project(relu6(self.local(y_BCHW)))
        return x_BCHW + y_BCHW if self.has_shortcut else y_BCHW  # type: ignore[no-any-return]


class Lite(Backbone):
    """The backbone: (B, 3, H, W) -> (B, 80, H/16, W/16)."""

    def __init__(self, attention: str, *, imgsz: int = 96) -> None:
        """Build it with its ImageNet weights.

        Raises:
            ExtraMissingError: the package that brings the weights is not installed.
            SpecError: the attention is `wide`, which widens perceptrons that this net does not have.
        """
        super().__init__()
        if attention == "wide":
            raise SpecError("'wide' widens EdgeMeta's perceptrons, of which lite has none; take --model pico or nano")
        self.stem = nn.Sequential(ConvNorm(3, STEM, 3, stride=2), nn.ReLU6())
        self.downs, self.stages = nn.ModuleList(), nn.ModuleList()
        channels = STEM
        for stage, blocks in enumerate(STAGES):
            down = nn.Sequential()
            for out, kernel, stride, expansion in blocks:
                down.append(InvertedResidual(channels, out, kernel, stride, expansion))
                channels = out
            side = math.ceil(imgsz / (4 << stage))
            self.downs.append(down)
            self.stages.append(nn.ModuleList([Slot(channels, slot_attention(attention, stage, channels, side))]))
        self.widths = tuple(stage[-1][0] for stage in STAGES)
        self.strides = tuple(4 << stage for stage in range(len(STAGES)))
        self._load()

    def _load(self) -> None:
        """Take the published weights over, layer by layer: both nets run through theirs in the same order."""
        kinds = (nn.Conv2d, nn.BatchNorm2d)
        own = [m for part in (self.stem, *self.downs) for m in part.modules() if isinstance(m, kinds)]
        published = [m for m in efficientnet_lite0().modules() if isinstance(m, kinds)]
        for mine, theirs in zip(own, published, strict=False):
            mine.load_state_dict(theirs.state_dict())
            if isinstance(mine, nn.BatchNorm2d):
                mine.eps = EPS
        with torch.no_grad():  # it was trained on (x - 127) / 128, edgeattn gives (x - 128) / 128
            norm, conv = own[1], own[0]
            norm.running_mean -= conv.weight.sum((1, 2, 3)) / 128.0  # type: ignore[operator]
