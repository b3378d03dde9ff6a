"""Rules that keep a graph fit for int8 engines and NPU compilers, looked for in the float graph.

A finding is a warning that names what was seen to go wrong and where; only a compiler or the box itself can say that a
model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx

from edgeattn.bundle import Bundle
from edgeattn.engines.onnxruntime import only_outputs

MOST_TOKENS = 196
"""Tokens above which N x N attention is no longer light."""
MOST_RANK = 4


@dataclass(frozen=True)
class Finding:
    """One rule that a graph breaks."""

    rule: str
    """What the graph should not do."""
    target: str
    """Whom it hurts."""
    block: str
    """The node at fault."""
    evidence: str
    """What goes wrong, and whether that was measured or reported."""
    mend: str
    """What to write instead."""


@dataclass(frozen=True)
class _Rule:
    rule: str
    target: str
    evidence: str
    mend: str
    breaks: Callable[[onnx.NodeProto, dict[str, list[int]]], bool]


def _of(*kinds: str) -> Callable[[onnx.NodeProto, dict[str, list[int]]], bool]:
    return lambda node, shapes: node.op_type in kinds


def _over_channels(kind: str) -> Callable[[onnx.NodeProto, dict[str, list[int]]], bool]:
    def breaks(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> bool:
        given, made = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
        return node.op_type == kind and len(given) == 4 and given[1] > 1 and len(made) == 4 and made[1] == 1

    return breaks


def _high_rank(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> bool:
    return node.op_type == "Transpose" and len(shapes.get(node.output[0], [])) > MOST_RANK


def _many_tokens(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> bool:
    made = shapes.get(node.output[0], [])
    return node.op_type == "Softmax" and len(made) > 2 and min(made[-2:]) > MOST_TOKENS


def _dynamic(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> bool:
    return any(0 in shapes.get(name, [1]) for name in node.output)


RULES = (
    _Rule("no dynamic shapes", "Intel NPU", "not compiled (measured)", "export with a fixed size", _dynamic),
    _Rule(
        "no transpose above rank 4", "Rockchip", "answers wrongly by 49 to 64 % and says nothing (measured)",
        "split into windows along one axis at a time", _high_rank,
    ),
    _Rule(
        "no maximum over channels", "Rockchip, Ethos-U", "falls to the CPU (measured)",
        "a learned 1 x 1 convolution in its place, as cbam_lite has", _over_channels("ReduceMax"),
    ),
    _Rule(
        "no mean over channels", "Ethos-U", "unsupported depth reduction (measured)",
        "a learned 1 x 1 convolution in its place, as cbam_lite has", _over_channels("ReduceMean"),
    ),
    _Rule("no ReduceL2", "Rockchip", "the compiler crashes (measured)", "BatchNorm, or a scale", _of("ReduceL2")),
    _Rule(
        "no division or square root over maps", "NPUs", "falls to the CPU or to software units (measured)",
        "a mean in place of the quotient", _of("Div", "Sqrt", "Reciprocal"),
    ),
    _Rule("no Einsum", "Qualcomm", "not compiled (measured)", "MatMul and transposes", _of("Einsum")),
    _Rule("no raw Erf", "NPUs", "falls to the CPU (measured)", "ReLU, or GELU as one operator", _of("Erf")),
    _Rule(
        "no layer norm", "int8 engines", "stays in float, with conversions around it", "BatchNorm",
        _of("LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    ),
    _Rule(
        "no control flow or data-dependent shapes", "all NPUs", "not compiled (reported)", "unroll it",
        _of("If", "Loop", "Scan", "NonZero", "TopK", "ScatterND", "Unique"),
    ),
    _Rule(
        f"softmax over {MOST_TOKENS} tokens at most", "all", "cost grows with the square of the tokens",
        "use it in the last stages, or linear attention", _many_tokens,
    ),
)  # fmt: skip


def lint(bundle: Bundle) -> list[Finding]:
    """Look for broken rules in a bundle's float graph, without what only the attention maps need.

    Raises:
        BundleError: the bundle holds no float ONNX file.
    """
    artefact = bundle.artefact("onnxruntime", "float")
    model = onnx.load_from_string(only_outputs(bundle.file(artefact), [bundle.spec.output]))
    shapes = dict(_shapes(onnx.shape_inference.infer_shapes(model).graph))
    return [
        Finding(rule.rule, rule.target, node.name or node.op_type, rule.evidence, rule.mend)
        for rule in RULES
        for node in model.graph.node
        if rule.breaks(node, shapes)
    ]


def _shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, list[int]]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        yield value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    for tensor in graph.initializer:
        yield tensor.name, list(tensor.dims)
