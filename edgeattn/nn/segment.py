"""Segmenters: a backbone, and a light decoder with slots for attention, to a class for every place.

Decoder: LR-ASPP's gate (Howard et al. 2019, arXiv:1905.02244, section 6.4) on the coarsest features, then level by level up a
pyramid (Lin et al. 2017, arXiv:1612.03144), with an EdgeMeta block, and so a slot, on each level:
    y4 = BN(W4 x4) * s(V mean(x4));   ys = Block(up2(y{s+1}) + BN(Ws xs)), s = 3, 2, 1;   logits = W y1
Deviations of LR-ASPP: the gate is the mean over the whole map, so that no size of a window is tied to the input's; the finest
level is a 4th of the input, not an 8th, for thin things. up2 is bilinear and always doubles, whatever is one row too many is
cut off: sides need not be multiples of 32, and engines know the scale.

Legend of shapes: B batch, K classes, H W the input, h w the finest level, a `stride`-th of the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import interpolate

from edgeattn.errors import SpecError
from edgeattn.nn.attention._parts import gate, start_open
from edgeattn.nn.backbone import SIZES, Backbone, Block, slot_attention
from edgeattn.nn.layers import ConvNorm, fold, global_mean
from edgeattn.nn.model import OTHERS, Net, build_backbone
from edgeattn.nn.named import resolve


class SegmentationHead(nn.Module):
    """The decoder: features of every stage -> logits (B, K, h, w)."""

    def __init__(self, backbone: Backbone, classes: int, attention: str, *, imgsz: int, dropout: float = 0.0) -> None:
        """Build it, three quarters as wide as the second stage; slots of mechanisms that cost N^2 stay empty on fine levels."""
        super().__init__()
        widths, width = backbone.widths, max(24, round(0.75 * backbone.widths[1] / 8) * 8)
        self.laterals = nn.ModuleList(ConvNorm(channels, width, 1) for channels in widths)
        self.gate = nn.Conv2d(widths[-1], width, 1)
        start_open(self.gate)
        self.levels = nn.ModuleList(
            Block(width, slot_attention(attention, stage, width, math.ceil(imgsz / backbone.strides[stage])), width)
            for stage in range(len(widths) - 1)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Logits."""
        y_BDhw = self._context(stages[-1])
        for stage in self._upwards():
            y_BDhw = self.levels[stage](self._merged(y_BDhw, stages[stage], stage))
        return self.classify(self.dropout(y_BDhw))  # type: ignore[no-any-return]

    def attend(self, stages: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, with the map (B, h, w) of every filled slot by its path."""
        maps = {}
        y_BDhw = self._context(stages[-1])
        for stage in self._upwards():
            block = cast("Block", self.levels[stage])
            y_BDhw = self._merged(y_BDhw, stages[stage], stage)
            if isinstance(block.attention, nn.Identity):
                y_BDhw = block(y_BDhw)
            else:
                y_BDhw, maps[f"head.levels.{stage}"] = block.attend(y_BDhw)
        return self.classify(self.dropout(y_BDhw)), maps

    def deploy(self) -> None:
        """Fold what folds exactly, in place; the head must be in eval mode."""
        for block in self.levels:
            cast("Block", block).deploy()
        fold(self)

    def _upwards(self) -> range:
        return range(len(self.levels) - 1, -1, -1)

    def _context(self, x_BChw: Tensor) -> Tensor:
        """The coarsest features in the decoder's width, gated by what is in the whole picture."""
        return self.laterals[-1](x_BChw) * gate(self.gate(global_mean(x_BChw)))  # type: ignore[no-any-return]

    def _merged(self, coarse_BDhw: Tensor, x_BChw: Tensor, stage: int) -> Tensor:
        """What the coarser level says, and the features of this one."""
        fine_BDhw = self.laterals[stage](x_BChw)
        up_BDhw = interpolate(coarse_BDhw, scale_factor=2.0, mode="bilinear", align_corners=False)
        height, width = fine_BDhw.shape[2:]
        if up_BDhw.shape[2:] != fine_BDhw.shape[2:]:
            up_BDhw = up_BDhw[:, :, :height, :width]
        return fine_BDhw + up_BDhw  # type: ignore[no-any-return]


class Segmenter(Net):
    """Logits (B, K, h, w), a `stride`-th of the input, rounded up."""

    def __init__(
        self, classes: int, *, size: str = "pico", attention: str = "none", imgsz: int = 96, dropout: float = 0.0
    ) -> None:
        """Build it; `size` is one of EdgeMeta or of `model.OTHERS`, `imgsz` the longer side of the input, in pixels."""
        backbone = build_backbone(size, attention, imgsz=imgsz)
        super().__init__(
            backbone, SegmentationHead(backbone, classes, attention, imgsz=imgsz, dropout=dropout), attention
        )
        self.stride = backbone.strides[0]


def build_segmenter(
    name: str, classes: int, *, attention: str = "none", imgsz: int = 96, dropout: float = 0.0
) -> nn.Module:
    """Build a segmenter by name: a size of EdgeMeta, `lite`, `resnet20`, or a factory `package.module:function`.

    A factory is called as `f(classes)`; what it builds gives logits (B, K, h, w) of any size.

    Raises:
        NameNotFoundError: no such model.
        SpecError: the factory builds no `nn.Module`.
    """
    if name in SIZES or name in OTHERS:
        return Segmenter(classes, size=name, attention=attention, imgsz=imgsz, dropout=dropout)
    model = resolve("model", name, dict.fromkeys((*SIZES, *OTHERS), Segmenter))(classes)
    if not isinstance(model, nn.Module):
        raise SpecError(f"model '{name}' builds a {type(model).__name__}; it must be a torch.nn.Module")
    return model
