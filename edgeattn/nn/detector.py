"""A small detector without anchors and without suppression: a light neck, and heads that propose a box at every place.

neck     features of three strides at one width, mixed from coarse to fine and back (PAN, Liu et al. 2018,
         arXiv:1803.01534), by sums, with EdgeMeta's block and its slot for attention
heads    class logits and the distances from a place to the four edges of a box (FCOS, Tian et al. 2019, arXiv:1904.01355)

Two heads learn from the same features (YOLOv10, Wang et al. 2024, arXiv:2405.14458). One-to-many: several places a thing, its
distances as distributions (Li et al. 2020, arXiv:2006.04388); the features learn from it, and it is thrown away at export.
One-to-one: one place a thing, so that nothing need be suppressed; it alone answers. Deviation: its distances are plain
numbers, e^z strides, where YOLOv10 has distributions there too: no softmax over thousands of places is left in the graph.

Legend of shapes: A places of all levels, K classes, D the neck's channels, R bins of a distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from edgeattn.nn.backbone import Backbone, Block, Slot, slot_attention
from edgeattn.nn.layers import ConvNorm, fold
from edgeattn.nn.model import Net, build_backbone
from edgeattn.spec import Thresholds

LEVELS = 3
"""Strides at which boxes are proposed."""
BINS = 16
"""Distances of the one-to-many head are means over 0, 1, ... 15 strides."""
CLASS_DEPTH, EDGE_DEPTH = 2, 1
"""Separable convolutions before the last layer of a head's branch: what a thing is wants more of them than where it ends."""
WIDTH = 0.75
"""D over the width of the backbone's last stage but one: neck and head then take no longer than the backbone."""
LEAST = 48
"""Least D."""
PRIOR = 0.01
"""Score that every place begins with: most are background (Lin et al. 2017, arXiv:1708.02002)."""
REACH = 2.0
"""Distances in strides that every place begins with."""


class Proposals(NamedTuple):
    """What a head says at every place."""

    logits: Tensor
    """Class logits, (B, K, A)."""
    edges: Tensor
    """Distances to left, top, right and bottom edge, (B, N, A): logits of their bins, N = 4 R; or their logarithms, in strides,
    N = 4."""


class Answer(NamedTuple):
    """What a detector gives in training."""

    one: Proposals
    """Of the one-to-one head."""
    many: Proposals | None
    """Of the one-to-many head; None in a net that is folded already."""
    places: Tensor
    """(2, A): middles of the places, x and y in pixels of the input, from the finest level to the coarsest."""
    strides: Tensor
    """(A,): stride of each place's level, in pixels."""


class Neck(nn.Module):
    """Features of all stages but the finest, to `LEVELS` maps of D channels; where stages are missing, by going on downwards."""

    def __init__(self, backbone: Backbone, channels: int, attention: str, *, imgsz: int) -> None:
        super().__init__()
        used, self.strides = backbone.widths[1:][-LEVELS:], list(backbone.strides[1:][-LEVELS:])
        while len(self.strides) < LEVELS:
            self.strides.append(2 * self.strides[-1])
        self.narrow = nn.ModuleList(ConvNorm(width, channels, 1) for width in used)
        self.further = nn.ModuleList(_down(channels) for _ in range(LEVELS - len(used)))
        self.downs = nn.ModuleList(_down(channels) for _ in range(LEVELS - 1))

        def block(level: int) -> Block:
            side = math.ceil(imgsz / self.strides[level])
            return Block(channels, slot_attention(attention, level + 1, channels, side), channels)

        self.up_blocks = nn.ModuleList(block(level) for level in range(LEVELS - 1))
        self.down_blocks = nn.ModuleList(block(level + 1) for level in range(LEVELS - 1))

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """The maps (B, D, h, w), from the finest to the coarsest."""
        return self._mixed(stages, None)

    def attend(self, stages: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """As `forward`, with the map (B, h, w) of every filled slot by its block's path in the net."""
        maps: dict[str, Tensor] = {}
        return self._mixed(stages, maps), maps

    def _mixed(self, stages: Sequence[Tensor], maps: dict[str, Tensor] | None) -> list[Tensor]:
        levels = [narrow(stage) for narrow, stage in zip(self.narrow, stages[-len(self.narrow) :], strict=True)]
        for down in self.further:
            levels.append(down(levels[-1]))
        for i in reversed(range(LEVELS - 1)):
            finer = levels[i]
            coarse = interpolate(levels[i + 1], size=(finer.shape[2], finer.shape[3]), mode="nearest")
            levels[i] = _run(self.up_blocks, "head.neck.up_blocks", i, finer + coarse, maps)
        for i, down in enumerate(self.downs):
            levels[i + 1] = _run(self.down_blocks, "head.neck.down_blocks", i, levels[i + 1] + down(levels[i]), maps)
        return levels


def _run(blocks: nn.ModuleList, name: str, i: int, x_BCHW: Tensor, maps: dict[str, Tensor] | None) -> Tensor:
    """Run a block, and keep its map where maps are wanted."""
    block = blocks[i]
    assert isinstance(block, Slot)
    if maps is None or isinstance(block.attention, nn.Identity):
        return block(x_BCHW)  # type: ignore[no-any-return]
    y_BCHW, maps[f"{name}.{i}"] = block.attend(x_BCHW)
    return y_BCHW


def _down(channels: int) -> ConvNorm:
    return ConvNorm(channels, channels, 3, stride=2, groups=channels)


class Branch(nn.Sequential):
    """(B, D, h, w) -> (B, out, h, w): separable convolutions, then a linear layer at every place."""

    def __init__(self, channels: int, out: int, depth: int, start: float) -> None:
        """Build it with `depth` of them; it begins with the answer `start` at every place."""
        parts: list[nn.Module] = []
        for _ in range(depth):
            parts += [ConvNorm(channels, channels, 3, groups=channels), ConvNorm(channels, channels, 1), nn.ReLU()]
        last = nn.Conv2d(channels, out, 1)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.constant_(last.bias, start)  # type: ignore[arg-type]
        super().__init__(*parts, last)


class Proposer(nn.Module):
    """One head: a branch of classes and one of edges at every level."""

    def __init__(self, channels: int, classes: int, edges: int, start: float) -> None:
        super().__init__()
        prior = -math.log((1.0 - PRIOR) / PRIOR)
        self.classes = nn.ModuleList(Branch(channels, classes, CLASS_DEPTH, prior) for _ in range(LEVELS))
        self.edges = nn.ModuleList(Branch(channels, edges, EDGE_DEPTH, start) for _ in range(LEVELS))

    def forward(self, levels: Sequence[Tensor]) -> Proposals:
        """What it says at every place."""
        return Proposals(_in_a_row(self.classes, levels), _in_a_row(self.edges, levels))


def _in_a_row(branches: nn.ModuleList, levels: Sequence[Tensor]) -> Tensor:
    # With the channels last OpenVINO would take a tenth less (int8, 80 classes), by a transpose too large for Rockchip's NPU.
    return torch.cat([branch(level).flatten(2) for branch, level in zip(branches, levels, strict=True)], dim=2)


class Decode(nn.Module):
    """From the one-to-one head's proposals to (B, 4 + K, A): boxes by centre and size in pixels, scores of 0 to 1.

    Boxes and scores share a tensor, so nothing here is to be quantized: one scale for both would leave no steps to the scores.
    """

    def forward(self, given: Proposals, places_2A: Tensor, strides_A: Tensor) -> Tensor:
        """As `tasks.detect` reads it."""
        reach_B4A = given.edges.exp() * strides_A
        before_B2A, after_B2A = reach_B4A[:, :2], reach_B4A[:, 2:]
        centre_B2A = places_2A + (after_B2A - before_B2A) * 0.5
        return torch.cat([centre_B2A, before_B2A + after_B2A, given.logits.sigmoid()], dim=1)


class DetectionHead(nn.Module):
    """Neck and heads: features of every stage -> `Answer` in training, else (B, 4 + K, A), see `Decode`."""

    def __init__(self, backbone: Backbone, classes: int, attention: str, *, imgsz: int, channels: int) -> None:
        super().__init__()
        self.neck = Neck(backbone, channels, attention, imgsz=imgsz)
        self.one = Proposer(channels, classes, 4, math.log(REACH))
        self.many: Proposer | None = Proposer(channels, classes, 4 * BINS, 0.0)
        self.decode = Decode()

    def forward(self, stages: Sequence[Tensor]) -> Tensor | Answer:
        """The answer."""
        return self.propose(self.neck(stages))

    def attend(self, stages: Sequence[Tensor]) -> tuple[Tensor | Answer, dict[str, Tensor]]:
        """The answer, and the maps of the neck's slots."""
        levels, maps = self.neck.attend(stages)
        return self.propose(levels), maps

    def propose(self, levels: Sequence[Tensor]) -> Tensor | Answer:
        """The answer to the neck's maps."""
        places_2A, strides_A = places([(level.shape[2], level.shape[3]) for level in levels], self.neck.strides)
        places_2A, strides_A = places_2A.to(levels[0].device), strides_A.to(levels[0].device)
        if not self.training:
            return self.decode(self.one(levels), places_2A, strides_A)  # type: ignore[no-any-return]
        # The features learn from many places a thing; of the one that is to be singled out they would learn contradictions.
        one = self.one([level.detach() for level in levels] if self.many is not None else levels)
        return Answer(one, self.many(levels) if self.many is not None else None, places_2A, strides_A)

    def deploy(self) -> None:
        """Fold, and drop the head that only training needs; in place, in eval mode."""
        self.many = None
        for block in (*self.neck.up_blocks, *self.neck.down_blocks):
            block.deploy()
        fold(self)


def places(sizes: Sequence[tuple[int, int]], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Middles (2, A) of the places of maps of these heights and widths, x and y in pixels of the input, and their strides (A,)."""
    middles, steps = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y_hw, x_hw = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        middles.append((torch.stack([x_hw, y_hw]).flatten(1) + 0.5) * stride)
        steps.append(torch.full((height * width,), float(stride)))
    return torch.cat(middles, dim=1), torch.cat(steps)


class Detector(Net):
    """Boxes and scores (B, 4 + K, A), many places for nothing and one for each thing; see `tasks.detect`."""

    head: DetectionHead
    thresholds = Thresholds(iou=1.0)
    """Which boxes are told: nothing is suppressed, since there is one for each thing."""

    def __init__(self, classes: int, *, size: str = "pico", attention: str = "none", imgsz: int = 416) -> None:
        """Build it on a backbone named as `build_backbone` takes it; `imgsz` is the longer side of the input, in pixels."""
        backbone = build_backbone(size, attention, imgsz=imgsz)
        channels = max(LEAST, 8 * round(WIDTH * backbone.widths[-2] / 8))
        super().__init__(
            backbone, DetectionHead(backbone, classes, attention, imgsz=imgsz, channels=channels), attention
        )

    def watch(self, x_BCHW: Tensor, *, maps: bool = True) -> tuple[Tensor | Answer, dict[str, Tensor], Tensor]:
        """As `Net.watch`; the features are the neck's three maps side by side, (B, 3 D, h, w) at the size of the middle one."""
        found: dict[str, Tensor] = {}
        if maps:
            stages, found = self.backbone.attend(x_BCHW)
            levels, more = self.head.neck.attend(stages)
            found |= more
        else:
            levels = self.head.neck(self.backbone.pyramid(x_BCHW))
        size = (levels[1].shape[2], levels[1].shape[3])
        fine, middle, coarse = levels
        features = torch.cat(
            [adaptive_avg_pool2d(fine, size), middle, interpolate(coarse, size=size, mode="nearest")], dim=1
        )
        return self.head.propose(levels), found, features
