"""Rules that keep a graph fit for NPU compilers and int8 engines, looked for in the float graph and in the int8 ones.

Every rule was measured with the toolchain named (compiled or simulated on a PC, never on the device), or is reported by its
documentation or issue tracker. A finding is a warning that names what goes wrong and where; only a compiler or the box itself
can say that a model runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import TensorProto, numpy_helper

from edgeattn.bundle import Bundle
from edgeattn.deploy.structure import depthwise_quantizers
from edgeattn.engines.certify import artefact_for
from edgeattn.engines.onnxruntime import only_outputs
from edgeattn.errors import NameNotFoundError
from edgeattn.spec import path_of, to_json

Level = Literal["refused", "wrong", "falls back", "slow"]
"""What happens: it does not compile; it answers wrongly; a part runs on the CPU or in software; it runs, slower or larger."""
TARGETS = {
    "intel": "Intel NPU (openvino)",
    "qualcomm": "Qualcomm HTP (onnxruntime-qnn)",
    "rockchip": "Rockchip NPU (rknn-toolkit2)",
    "ethos-u": "Arm Ethos-U (vela)",
    "cpu": "int8 engines on the CPU",
}
"""Whom a rule is about."""
ALL = tuple(TARGETS)
NPUS = tuple(name for name in TARGETS if name != "cpu")
MOST_TOKENS = 196
"""Tokens above which N x N attention is no longer light."""
MOST_RANK = 4
MOST_TRANSPOSED = 8192
"""Places of a map above which Rockchip transposes on the CPU."""
MOST_OPSET = {"rockchip": 19, "qualcomm": 20}
"""Highest opset that a toolchain reads."""
OPSET = 20
"""Highest opset that the engines read, and what we export where no toolchain asks for less: GELU is one operator from here on."""


@dataclass(frozen=True)
class Finding:
    """One rule that a graph breaks."""

    rule: str
    """What the graph should not do."""
    targets: tuple[str, ...]
    """Whom it hurts, by `TARGETS`."""
    level: Level
    """What happens there."""
    reason: str
    """The same in words."""
    evidence: str
    """`measured`, or `reported` (where)."""
    mend: str
    """What to write instead."""
    file: str
    """The graph's file."""
    blocks: tuple[str, ...]
    """Paths of the modules at fault, in order; empty: the graph as a whole."""

    @property
    def is_fatal(self) -> bool:
        """Whether nothing useful runs there."""
        return self.level in ("refused", "wrong")

    @property
    def is_advice(self) -> bool:
        """Whether all of it runs there, slower."""
        return self.level == "slow"

    def json(self) -> list[dict[str, Any]]:
        """As other programs read it: an object for each target and block; `block` is null for the graph as a whole."""
        told = to_json(self)
        del told["targets"], told["blocks"]
        return [
            {"rule": told["rule"], "target": target, "block": block} | told
            for target in self.targets
            for block in self.blocks or (None,)
        ]


@dataclass(frozen=True)
class _Graph:
    """What rules look at."""

    nodes: Sequence[onnx.NodeProto]
    shapes: dict[str, list[int]]
    types: dict[str, int]
    inputs: tuple[str, ...]
    constants: Mapping[str, TensorProto]
    opset: int
    is_int8: bool

    def shape(self, name: str) -> list[int]:
        """Of a tensor; empty where it is not known."""
        return self.shapes.get(name, [])

    def reduced(self, node: onnx.NodeProto) -> set[int]:
        """Axes that a reduction of a feature map, (B, C, H, W), takes together; empty where that is not known."""
        rank = len(self.shape(node.input[0])) if node.input else 0
        if rank != 4:
            return set()
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), [])  # below opset 18
        if any(node.input[1:]):
            if node.input[1] not in self.constants:
                return set()
            axes = numpy_helper.to_array(self.constants[node.input[1]]).tolist()
        return {axis % rank for axis in axes} or set(range(rank))


Look = Callable[[_Graph], Iterable[str]]
"""Gives the names of the nodes at fault; the empty name for the graph as a whole."""


@dataclass(frozen=True)
class _Rule:
    rule: str
    targets: tuple[str, ...]
    level: Level
    reason: str
    evidence: str
    mend: str
    look: Look
    in_int8: bool = False
    """Whether it is about the int8 graph."""


def _each(breaks: Callable[[onnx.NodeProto, _Graph], bool]) -> Look:
    return lambda graph: (node.name or node.op_type for node in graph.nodes if breaks(node, graph))


def _of(*kinds: str) -> Look:
    return _each(lambda node, graph: node.op_type in kinds)


def _over_channels(kind: str) -> Look:
    def breaks(node: onnx.NodeProto, graph: _Graph) -> bool:
        return node.op_type == kind and 1 in graph.reduced(node) and graph.shape(node.input[0])[1] > 1

    return _each(breaks)


def _pooled_by_reducing(node: onnx.NodeProto, graph: _Graph) -> bool:
    pools = node.op_type in ("ReduceMean", "ReduceMax") and graph.reduced(node) == {2, 3}
    return pools and math.prod(graph.shape(node.input[0])[2:]) > 1


def _dynamic(node: onnx.NodeProto, graph: _Graph) -> bool:
    return any(0 in graph.shapes.get(name, [1]) for name in node.output)


def _batch(graph: _Graph) -> Iterator[str]:
    if any(graph.shape(name)[:1] not in ([1], []) for name in graph.inputs):
        yield ""


def _opset(target: str) -> Look:
    return lambda graph: [""] if graph.opset > MOST_OPSET[target] else []


def _high_rank(node: onnx.NodeProto, graph: _Graph) -> bool:
    return node.op_type == "Transpose" and len(graph.shape(node.output[0])) > MOST_RANK


def _large_transpose(node: onnx.NodeProto, graph: _Graph) -> bool:
    # The first one only turns the picture's bytes, which a toolchain takes in either order.
    made = graph.shape(node.output[0])
    moved = [a.ints for a in node.attribute if a.name == "perm"]
    return (
        node.op_type == "Transpose"
        and node.input[0] not in graph.inputs
        and any(list(order) != sorted(order) for order in moved)
        and math.prod(sorted(made)[-2:]) > MOST_TRANSPOSED
    )


def _many_tokens(node: onnx.NodeProto, graph: _Graph) -> bool:
    made = graph.shape(node.output[0])
    return node.op_type == "Softmax" and len(made) > 2 and min(made[-2:]) > MOST_TOKENS


def _divided_maps(node: onnx.NodeProto, graph: _Graph) -> bool:
    return node.op_type in ("Div", "Sqrt", "Reciprocal") and math.prod(graph.shape(node.output[0]) or [2]) > 1


def _smooth(node: onnx.NodeProto, graph: _Graph) -> bool:
    """A smooth activation on a whole feature map, (1, C, H, W); a gate over places or over channels is small."""
    made = graph.shape(node.output[0])
    if node.op_type not in ("Sigmoid", "Gelu", "HardSwish", "Tanh", "Softplus", "Mish", "Swish"):
        return False
    return len(made) == 4 and min(made[1:]) > 1


def _integer_maps(node: onnx.NodeProto, graph: _Graph) -> bool:
    name = node.output[0]
    return graph.types.get(name) == TensorProto.INT64 and len(graph.shape(name)) >= 3


def _softmax_8_bit(node: onnx.NodeProto, graph: _Graph) -> bool:
    readers = [n for n in graph.nodes if node.output[0] in n.input] if node.op_type == "Softmax" else []
    eight = (TensorProto.UINT8, TensorProto.INT8)
    return any(n.op_type == "QuantizeLinear" and graph.types.get(n.output[0]) in eight for n in readers)


def _sixteen_bits(node: onnx.NodeProto, graph: _Graph) -> bool:
    wide = (TensorProto.UINT16, TensorProto.INT16)
    return node.op_type == "QuantizeLinear" and graph.types.get(node.output[0]) in wide


def _per_channel_activations(node: onnx.NodeProto, graph: _Graph) -> bool:
    if node.op_type not in ("QuantizeLinear", "FakeQuantize") or node.input[0] in graph.constants:
        return False
    return math.prod(graph.shape(node.input[1]) or [1]) > 1


LEARNED = "a learned 1 x 1 convolution in its place, as cbam_lite has"
RULES = (
    _Rule(
        "no dynamic shapes", NPUS, "refused", "not compiled", "measured (intel), reported (openvino#32466)",
        "export with a fixed size", _each(_dynamic),
    ),
    _Rule("batch of one", ("ethos-u",), "refused", "not compiled", "reported (vela)", "export with a batch of one", _batch),
    _Rule(
        "opset 19 at most", ("rockchip",), "refused", "the toolchain does not read it", "measured",
        "edgeattn export RUN --target rockchip", _opset("rockchip"),
    ),
    _Rule(
        "opset 20 at most", ("qualcomm",), "refused", "the toolchain does not read it", "measured", "export with opset 20",
        _opset("qualcomm"),
    ),
    _Rule(
        "no transpose above rank 4", ("rockchip",), "wrong", "answers wrongly by 49 to 64 % and says nothing", "measured",
        "split into windows along one axis at a time", _each(_high_rank),
    ),
    _Rule(
        "no ReduceL2", ("rockchip",), "refused", "the compiler crashes", "measured", "BatchNorm, or a scale",
        _of("ReduceL2"),
    ),
    _Rule(
        "no ReduceL1", ("qualcomm",), "refused", "not compiled", "measured", "the sum of the absolute values",
        _of("ReduceL1"),
    ),
    _Rule("no Einsum", ("qualcomm",), "refused", "not compiled", "measured", "MatMul and transposes", _of("Einsum")),
    _Rule(
        "no control flow or data-dependent shapes", NPUS, "refused", "not compiled", "reported (all)", "unroll it",
        _of("If", "Loop", "Scan", "NonZero", "TopK", "ScatterND", "Unique"),
    ),
    _Rule(
        "no softmax in 8 bits", ("qualcomm",), "wrong", "over about 200 tokens it is wrong by 24 %, in 16 bits by 2 %",
        "measured", "leave it in float, or 16 bits for its output", _each(_softmax_8_bit), in_int8=True,
    ),
    _Rule(
        "no activations in 16 bits", ("ethos-u",), "refused", "not portable", "measured", "8 bits, or float",
        _each(_sixteen_bits), in_int8=True,
    ),
    _Rule(
        "one scale for a map's channels", ("intel",), "falls back",
        "depthwise convolutions run in software: int8 1053 us in place of 500", "measured",
        "one scale for all channels of an activation: edgeattn compile BUNDLE --target intel",
        _each(_per_channel_activations), in_int8=True,
    ),
    _Rule(
        "no maximum over channels", ("rockchip", "ethos-u"), "falls back", "runs on the CPU", "measured", LEARNED,
        _over_channels("ReduceMax"),
    ),
    _Rule(
        "no mean over channels", ("ethos-u",), "falls back", "unsupported depth reduction", "measured", LEARNED,
        _over_channels("ReduceMean"),
    ),
    _Rule(
        "no division or square root over maps", ("intel", "rockchip", "ethos-u"), "falls back",
        "runs on the CPU or in software units", "measured", "a mean in place of the quotient", _each(_divided_maps),
    ),
    _Rule(
        "no raw Erf", NPUS, "falls back", "runs on the CPU", "measured", "ReLU, or GELU as one operator (opset 20)",
        _of("Erf"),
    ),
    _Rule(
        "no large transpose", ("rockchip",), "falls back", f"above {MOST_TRANSPOSED} places it runs on the CPU",
        "reported (rknn-toolkit2#490)", "attend in later stages, where maps are small", _each(_large_transpose),
    ),
    _Rule(
        "no int64 maps", ("ethos-u",), "falls back", "runs on the CPU", "reported (vela)", "int32, or float",
        _each(_integer_maps),
    ),
    _Rule(
        "no smooth activation on whole maps", ("intel",), "slow", "SHAVE software units compute it", "measured",
        "ReLU where the choice is free, a gate over places or channels where it is not", _each(_smooth),
    ),
    _Rule(
        "no layer norm", ("cpu",), "slow", "stays in float, with conversions around it", "measured", "BatchNorm",
        _of("LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    ),
    _Rule(
        "global pooling as one operator", ("cpu",), "slow",
        "ONNX Runtime runs a squeeze-and-excitation gate in int8 slower than in float behind ReduceMean (1.14 in place of 0.78)",
        "measured", "GlobalAveragePool and GlobalMaxPool, as our export writes them", _each(_pooled_by_reducing),
    ),
    _Rule(
        f"softmax over {MOST_TOKENS} tokens at most", ALL, "slow", "cost grows with the square of the tokens", "measured",
        "use it in the last stages, or linear attention", _each(_many_tokens),
    ),
)  # fmt: skip


def opset_for(target: str) -> int:
    """The opset to export with for a target, or for `all`."""
    return min(OPSET, MOST_OPSET.get(target, OPSET))


def lint(bundle: Bundle, target: str = "all") -> list[Finding]:
    """Look for broken rules in a bundle's graphs, in the ONNX ones without what only the attention maps need.

    Args:
        bundle: holds `float.onnx`, and `int8.onnx` when it is quantized; where Intel's NPU would be given int8 as OpenVINO's
            IR, that is looked at too.
        target: one of `TARGETS`, or all.

    Raises:
        BundleError: the bundle holds no float ONNX file.
        NameNotFoundError: no such target.
    """
    if target not in (*TARGETS, "all"):
        raise NameNotFoundError("target", target, (*TARGETS, "all"))
    asked = set(TARGETS) if target == "all" else {target}
    graphs = {"float.onnx": _open(bundle, "float")}
    if any((a.engine, a.precision) == ("onnxruntime", "int8") for a in bundle.artefacts):
        graphs["int8.onnx"] = _open(bundle, "int8")
    if any(a.engine == "openvino" for a in bundle.artefacts):
        given = artefact_for(bundle, "NPU")
        if given.precision == "int8":
            graphs[given.file] = _open_ir(bundle.file(given))
    found = []
    for rule in RULES:
        for file, graph in graphs.items():
            hurt = tuple(name for name in rule.targets if name in asked)
            if not hurt or rule.in_int8 != graph.is_int8:
                continue
            faults = list(rule.look(graph))
            if faults:
                blocks = tuple(dict.fromkeys(path_of(name) for name in faults if name))
                found.append(Finding(rule.rule, hurt, rule.level, rule.reason, rule.evidence, rule.mend, file, blocks))
    return found


def _open(bundle: Bundle, precision: str) -> _Graph:
    file = bundle.file(bundle.artefact("onnxruntime", precision))
    model = onnx.load_from_string(only_outputs(file, [bundle.spec.output]))
    graph = onnx.shape_inference.infer_shapes(model).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in values}
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    written = {
        n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    return _Graph(
        graph.node,
        shapes | {name: list(tensor.dims) for name, tensor in constants.items()},
        types | {name: tensor.data_type for name, tensor in constants.items()},
        tuple(v.name for v in graph.input if v.name not in constants),
        constants | written,
        opset,
        precision == "int8",
    )


def _open_ir(file: Path) -> _Graph:
    """The quantizers before an int8 IR's depthwise convolutions, by these' names, with the shapes of their ranges."""
    nodes, shapes = [], {}
    for name, quantizer in depthwise_quantizers(file):
        nodes.append(onnx.helper.make_node("FakeQuantize", ["", f"{name}/low"], [], name))
        shapes[f"{name}/low"] = list(quantizer.get_input_shape(1))
    return _Graph(nodes, shapes, {}, (), {}, 0, is_int8=True)
