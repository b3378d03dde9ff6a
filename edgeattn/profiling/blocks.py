"""What each attention block costs in an engine: the times of the executed graph's parts, by the modules they came from.

The exporter names every operator by its module (`backbone.stages.2.0.attention/Conv_3`), and engines keep the names of what
they fuse. What an engine adds (a change of layout, a conversion between float and integers) belongs to the attention where it
stands at its border: without the attention it would not be there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edgeattn.bundle import Bundle
from edgeattn.engines.base import Array, Engine, Layer
from edgeattn.engines.onnxruntime import FLOAT, INTEGER
from edgeattn.engines.openvino import COMPUTING
from edgeattn.errors import BundleError
from edgeattn.spec import block_of, path_of

ATTENTION = "attention"
"""All attention blocks together."""
OTHER = "other"
"""What comes from no module: input, layout, conversions."""
_ADDED = (
    "Input",
    "Output",
    "Reorder",
    "ReorderInput",
    "ReorderOutput",
    "Transpose",
    "QuantizeLinear",
    "DequantizeLinear",
    "Convert",
    "Const",
)
_COMPUTES = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Block:
    """One part of a net."""

    name: str
    """An attention block as bundle.json names it; a stage of the backbone; `other`."""
    is_attention: bool
    """Whether it is an attention block."""
    ms: float
    """Its time in one inference; a block that costs next to nothing may come out below zero."""
    share: float
    """Of the sum of all."""
    executed_precision: str
    """Of what it multiplies; of all its nodes where it multiplies nothing."""
    nodes: int
    """Executed nodes."""
    fused: int
    """Nodes of it that the engine computes within another block's."""


@dataclass(frozen=True)
class Blocks:
    """A net's parts in one engine."""

    blocks: tuple[Block, ...]
    """In the order of the net."""
    whole_ms: float
    """One inference without any counting, measured in turns with it."""
    counting_ms: float
    """One that is counted."""
    between_ms: float = 0.0
    """Of the sum of all blocks, time between nodes that the engine does not tell, spread evenly over its nodes."""

    @property
    def parts(self) -> dict[str, tuple[float, float]]:
        """Milliseconds and share of each part, the attention blocks as one."""
        found: dict[str, tuple[float, float]] = {}
        for block in self.blocks:
            name = ATTENTION if block.is_attention else block.name
            ms, share = found.get(name, (0.0, 0.0))
            found[name] = (ms + block.ms, share + block.share)
        return found

    @property
    def accounted(self) -> float:
        """Sum of the parts over the whole; what is missing is the call itself, what is too much the counting's own."""
        return sum(block.ms for block in self.blocks) / self.whole_ms

    @property
    def counting_over_whole(self) -> float:
        """What the counting itself costs: how much longer an inference takes with it."""
        return self.counting_ms / self.whole_ms


def measure_blocks(bundle: Bundle, engine: Engine, image: Array) -> Blocks:
    """Time the parts of an open engine's model.

    Raises:
        BundleError: no operator bears the name of an attention block.
        EngineError: the engine does not tell the times of parts.
    """
    names = [each.block for each in bundle.spec.maps]
    counted = engine.count(image, lambda nodes, reads: group(nodes, reads, names))
    if not set(names).intersection(counted.groups):
        raise BundleError(
            "no operator bears the name of an attention block (exported by an older edgeattn? export it again)"
        )
    total = sum(counted.ms.values())
    fused = _fused(counted.nodes, counted.groups, names)
    blocks = [
        Block(
            name, name in names, ms, ms / total,
            _precision([node for node, of in zip(counted.nodes, counted.groups, strict=True) if of == name]),
            counted.groups.count(name), fused.get(name, 0),
        )
        for name, ms in counted.ms.items()
    ]  # fmt: skip
    return Blocks(tuple(blocks), counted.whole_ms, counted.counting_ms, counted.between_ms)


def group(nodes: Sequence[Layer], reads: Sequence[Sequence[int]], attention: Collection[str]) -> list[str]:
    """The part that each node belongs to: an attention block (one of `attention`), a stage, or `other`."""
    found = [None if node.kind in _ADDED else _part(node.names, attention) for node in nodes]
    borders: list[set[int]] = [set(each) for each in reads]
    for place, each in enumerate(reads):
        for producer in each:
            borders[producer].add(place)
    for wanted in (set(attention), set(found) - {None}):  # an attention takes all that stands at its border
        changed = True
        while changed:  # several of them may stand in a row
            changed = False
            for place, part in enumerate(found):
                near = [found[at] for at in sorted(borders[place]) if found[at] in wanted] if part is None else []
                if near:
                    found[place], changed = near[0], True
    return [part or OTHER for part in found]


def _part(names: Sequence[str], attention: Collection[str]) -> str | None:
    """Of a node by the names of all that was fused into it: what multiplies says it, else the first."""
    parts = [(name, part) for name in names if (part := part_of(name, attention)) is not None]
    for name, part in parts:
        if name.partition("/")[2].startswith(_COMPUTES):
            return part
    return parts[0][1] if parts else None


def part_of(name: str, attention: Collection[str]) -> str | None:
    """The part that an operator of this name belongs to; None: its name does not tell."""
    path = path_of(name)
    if path in (name, "-"):
        return None
    head = block_of(path)
    if head is not None:
        return next((block for block in attention if f".{head}".endswith(f".{block}")), head)
    stage = re.match(r"(?:backbone\.)?((?:stages|downs)\.\d+|[A-Za-z_]+)", path)
    return stage.group(1) if stage else OTHER


def _fused(nodes: Sequence[Layer], groups: Sequence[str], attention: Collection[str]) -> dict[str, int]:
    """By attention block: operators of it that another part's node computes."""
    counts: dict[str, int] = {}
    for node, of in zip(nodes, groups, strict=True):
        for name in node.names:
            part = part_of(name, attention)
            if part in attention and part != of:
                counts[part or ""] = counts.get(part or "", 0) + 1
    return counts


def _precision(nodes: Sequence[Layer]) -> str:
    computing = [node for node in nodes if node.kind in COMPUTING | INTEGER | FLOAT]
    kinds = {node.precision for node in computing or nodes if node.precision != "convert"}
    return "+".join(sorted(kinds, key=lambda name: (name != "int8", name))) or "convert"
