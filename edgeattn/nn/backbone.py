"""EdgeMeta: a MetaFormer of depthwise and pointwise convolutions with one slot for attention in every block.

Block (RepViT's order, Wang et al. 2023, arXiv:2307.09283; MetaFormer, Yu et al. 2022, arXiv:2111.11418):
    x = x + BN(DW3x3(x));   x = A(x);   x = x + BN(PW(relu(BN(PW_2C(x)))))
The slot stands where the map is C channels wide, the cheapest place for a gate. ReLU and BatchNorm only, static shapes, no
reshape outside the slot: what int8 engines run best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from edgeattn.errors import NameNotFoundError, SpecError
from edgeattn.nn.attention import ATTENTIONS, attend, build_attention
from edgeattn.nn.layers import BRANCH, ConvNorm, fold


@dataclass(frozen=True)
class Size:
    """Widths and depths of the four stages."""

    widths: tuple[int, int, int, int]
    """Channels of each stage."""
    depths: tuple[int, int, int, int]
    """Blocks of each stage."""

    def hidden(self, ratio: float = 2.0) -> tuple[int, ...]:
        """Hidden width of each stage's perceptrons, in channels: a multiple of 8."""
        return tuple(round(ratio * width / 8) * 8 for width in self.widths)


SIZES = {
    "nano": Size((32, 64, 128, 256), (2, 2, 6, 2)),
    "pico": Size((16, 32, 64, 128), (2, 2, 6, 2)),
    "small": Size((64, 128, 256, 512), (2, 3, 14, 2)),
    "tiny": Size((48, 96, 192, 384), (2, 2, 10, 2)),
}


WIDE = 2.5
"""Ratio of the perceptrons of `wide`, a control: what the cost of an attention buys without one."""
SMALL_INPUT = 48
"""Pictures with a shorter side than this keep their size through the stem."""


class Slot(nn.Module):
    """A place for attention and nothing else: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.channels = channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Attend."""
        return self.attention(x_BCHW)  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, with the attention's map (B, H, W)."""
        return attend(self.attention, x_BCHW)

    def deploy(self) -> None:
        """Take the attention's fastest exact form."""
        if hasattr(self.attention, "deployed"):
            self.attention = self.attention.deployed(self.channels)  # type: ignore[operator]


class Block(Slot):
    """One EdgeMeta block: (B, C, H, W) -> (B, C, H, W); `attention` keeps that shape, the perceptron is `hidden` wide."""

    def __init__(self, channels: int, attention: nn.Module, hidden: int) -> None:
        super().__init__(channels, attention)
        local, project = ConvNorm(channels, channels, 3, groups=channels), ConvNorm(hidden, channels, 1)
        self.local: nn.Module = local
        self.expand: nn.Module = ConvNorm(channels, hidden, 1)
        self.project: nn.Module = project
        for branch in (local, project):
            nn.init.constant_(branch[1].weight, BRANCH)  # type: ignore[arg-type]
        self.is_deployed = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mix locally, attend, mix channels."""
        return self._mix_channels(self.attention(self._mix_locally(x_BCHW)))

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, with the attention's map (B, H, W)."""
        y_BCHW, map_BHW = super().attend(self._mix_locally(x_BCHW))
        return self._mix_channels(y_BCHW), map_BHW

    def _mix_locally(self, x_BCHW: Tensor) -> Tensor:
        return self.local(x_BCHW) if self.is_deployed else x_BCHW + self.local(x_BCHW)  # type: ignore[no-any-return]

    def _mix_channels(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.project(self.expand(x_BCHW).relu())  # type: ignore[no-any-return]

    def deploy(self) -> None:
        """Fold BatchNorm, and the first shortcut into its depthwise kernel; take the attention's fastest exact form."""
        if self.is_deployed:
            return
        assert isinstance(self.local, ConvNorm)
        local = self.local.folded()
        with torch.no_grad():
            local.weight[:, 0, 1, 1] += 1.0
        self.local = local
        super().deploy()
        self.is_deployed = True


def _check_shape(name: str, attention: nn.Module, channels: int, side: int) -> None:
    """Try a class of the user's own once.

    Raises:
        SpecError: it fails, or does not keep the shape.
    """
    x_BCHW = torch.zeros(1, channels, side, side)
    attention.eval()
    try:
        with torch.no_grad():
            y_BCHW = attention(x_BCHW)
    except RuntimeError as error:
        raise SpecError(f"attention '{name}' fails on {tuple(x_BCHW.shape)}: {str(error).splitlines()[0]}") from error
    if not isinstance(y_BCHW, Tensor) or y_BCHW.shape != x_BCHW.shape:
        given = tuple(y_BCHW.shape) if isinstance(y_BCHW, Tensor) else type(y_BCHW).__name__
        raise SpecError(
            f"attention '{name}' makes {given} of {tuple(x_BCHW.shape)}; it must keep the shape (B, C, H, W)"
        )
    attention.train()


def slot_attention(name: str, stage: int, channels: int, side: int) -> nn.Module:
    """The attention of a stage whose map is `side` wide; mechanisms that cost N^2 leave the first stages empty.

    Raises:
        SpecError: it cannot work on such a map.
    """
    attention = build_attention(name, channels)
    if stage < getattr(attention, "first_stage", 0):
        return nn.Identity()
    if hasattr(attention, "check_map"):
        attention.check_map(side, side)  # type: ignore[operator]
    if name not in ATTENTIONS:
        _check_shape(name, attention, channels, side)
    return attention


class Backbone(nn.Module):
    """Stages of blocks with slots for attention, each after its way down: (B, 3, H, W) -> (B, `channels`, h, w)."""

    stem: nn.Module
    downs: nn.ModuleList
    """What comes before the blocks of each stage, and makes the map smaller."""
    stages: nn.ModuleList
    """Lists of `Slot`s."""
    widths: tuple[int, ...]
    """Channels of each stage."""
    strides: tuple[int, ...]
    """Pixels of the input to one place of each stage's map."""

    @property
    def channels(self) -> int:
        """Channels of the last stage."""
        return self.widths[-1]

    @property
    def has_maps(self) -> bool:
        """Whether any slot is filled."""
        return any(not isinstance(block.attention, nn.Identity) for _, block in self.blocks())

    def blocks(self) -> Iterator[tuple[str, Slot]]:
        """Path and block of every attention slot, from the first to the last."""
        for s, stage in enumerate(self.stages):
            for b, block in enumerate(cast("list[Slot]", stage)):
                yield f"stages.{s}.{b}", block

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features of the last stage."""
        return self.pyramid(x_BCHW)[-1]

    def pyramid(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Features of every stage, from the finest to the coarsest."""
        found = []
        x_BCHW = self.stem(x_BCHW)
        for down, stage in zip(self.downs, self.stages, strict=True):
            x_BCHW = down(x_BCHW)
            for block in stage:  # type: ignore[attr-defined]
                x_BCHW = block(x_BCHW)
            found.append(x_BCHW)
        return tuple(found)

    def attend(self, x_BCHW: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """As `pyramid`, with the map (B, h, w) of every filled slot by its block's path."""
        found, maps = [], {}
        x_BCHW = self.stem(x_BCHW)
        for s, (down, stage) in enumerate(zip(self.downs, self.stages, strict=True)):
            x_BCHW = down(x_BCHW)
            for b, block in enumerate(cast("list[Slot]", stage)):
                if isinstance(block.attention, nn.Identity):
                    x_BCHW = block(x_BCHW)
                else:
                    x_BCHW, maps[f"stages.{s}.{b}"] = block.attend(x_BCHW)
            found.append(x_BCHW)
        return tuple(found), maps

    def deploy(self) -> None:
        """Fold every BatchNorm and shortcut that can be folded exactly, in place; the model must be in eval mode."""
        for _, block in self.blocks():
            block.deploy()
        fold(self)


class EdgeMeta(Backbone):
    """The backbone: (B, 3, H, W) -> (B, C4, H/32, W/32); on 32 x 32 pictures the stem keeps the size and it is H/8."""

    def __init__(self, size: str, attention: str, *, imgsz: int = 96, hidden: Sequence[int] | None = None) -> None:
        """Build it.

        Args:
            size: a name of `SIZES`.
            attention: what fills the slots; `wide` leaves them empty and widens the perceptrons by a quarter.
            imgsz: side of the square input, in pixels.
            hidden: hidden width of each stage's perceptrons; None: twice the stage's width.
        """
        super().__init__()
        if size not in SIZES:
            raise NameNotFoundError("model", size, SIZES)
        widths, depths = SIZES[size].widths, SIZES[size].depths
        hidden = hidden or SIZES[size].hidden(WIDE if attention == "wide" else 2.0)
        small_input = imgsz < SMALL_INPUT
        stride = 1 if small_input else 4
        if small_input:
            self.stem = nn.Sequential(ConvNorm(3, widths[0], 3), nn.ReLU())
        else:
            half = widths[0] // 2
            self.stem = nn.Sequential(
                ConvNorm(3, half, 3, stride=2), nn.ReLU(), ConvNorm(half, widths[0], 3, stride=2), nn.ReLU()
            )
        self.downs = nn.ModuleList(
            nn.Identity()
            if stage == 0
            else nn.Sequential(
                ConvNorm(widths[stage - 1], widths[stage - 1], 3, stride=2, groups=widths[stage - 1]),
                ConvNorm(widths[stage - 1], widths[stage], 1),
            )
            for stage in range(4)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Block(
                    width, slot_attention(attention, stage, width, math.ceil(imgsz / (stride << stage))), hidden[stage]
                )
                for _ in range(depth)
            )
            for stage, (width, depth) in enumerate(zip(widths, depths, strict=True))
        )
        self.widths = widths
        self.strides = tuple(stride << stage for stage in range(4))
