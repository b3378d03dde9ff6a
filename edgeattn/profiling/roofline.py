"""What bounds each part of a net: its multiplications and bytes against what the processor can do at best.

The roofline model (Williams, Waterman, Patterson, "Roofline", 2009), by the float file's own operators and the processor's
measured peaks. The memory's peak is the main memory's: small nets live in the caches, which are quicker.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeattn.profiling.blocks import OTHER, Block, part_of
from edgeattn.profiling.peaks import Peaks

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

BYTES = {"int8": 1, "bf16": 2, "f32": 4}
"""Of a number, by what is executed."""
NEAR = 0.25
"""Share of a roof above which a part is called bound by it; below, by neither: its nodes are too small for the engine."""


@dataclass(frozen=True)
class Work:
    """What a part has to do for one picture."""

    macs: int = 0
    """Multiplications, each with its addition."""
    numbers: int = 0
    """Numbers that its operators read and write, the weights among them."""

    def __add__(self, other: Work) -> Work:
        return Work(self.macs + other.macs, self.numbers + other.numbers)


@dataclass(frozen=True)
class Roof:
    """A part against the processor's best."""

    macs: int
    """Multiplications."""
    bytes: int
    """Bytes that its operators read and write in the precision that is executed."""
    compute_share: float | None
    """Of the arithmetic peak; None: the processor has none in this precision."""
    memory_share: float
    """Of the main memory's peak; above 1 the caches serve it."""
    bound: str
    """`compute`, `memory`, or `overhead`: it reaches neither, since its operators are too small."""


def work_of(file: Path, blocks: Collection[str]) -> dict[str, Work]:
    """The work of each part of a float ONNX file, by the names of its operators.

    Args:
        file: with static shapes.
        blocks: attention blocks, as bundle.json names them.
    """
    import onnx
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(onnx.load(file)).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    shapes |= {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    shapes |= {weight.name: list(weight.dims) for weight in graph.initializer}
    found: dict[str, Work] = {}
    for node in graph.node:
        part = part_of(node.name, blocks) or OTHER
        numbers = sum(math.prod(shapes[name]) for name in (*node.input, *node.output) if name in shapes)
        found[part] = found.get(part, Work()) + Work(_macs(node, shapes), numbers)
    return found


def roof(block: Block, work: Work, peaks: Peaks) -> Roof:
    """A measured part against the processor's peaks."""
    kind = block.executed_precision.partition("+")[0]
    moved = work.numbers * BYTES.get(kind, 4)
    peak = "float" if kind not in ("int8", "bf16") else kind
    compute = peaks.efficiency(work.macs, block.ms, peak) if block.ms > 0 else None
    memory = moved / (block.ms * 1e6) / peaks.memory_gb_s if block.ms > 0 else 0.0
    best = max(compute or 0.0, memory)
    bound = "overhead" if best < NEAR else "compute" if (compute or 0.0) >= memory else "memory"
    return Roof(work.macs, moved, compute, memory, bound)


def _macs(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    """Multiplications of a node that multiplies; 0 of all others, and where a shape is not known."""
    if not all(name in shapes for name in (*node.input[:2], node.output[0])):
        return 0
    written = math.prod(shapes[node.output[0]])
    if node.op_type in ("Conv", "ConvTranspose"):
        return written * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "MatMul":
        return written * shapes[node.input[0]][-1]
    if node.op_type == "Gemm":
        return written * math.prod(shapes[node.input[1]]) // shapes[node.output[0]][-1]
    return 0
