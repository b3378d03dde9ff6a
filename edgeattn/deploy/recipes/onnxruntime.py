"""`int8.onnx` for ONNX Runtime: QuantizeLinear and DequantizeLinear around what is computed on integers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeattn.deploy import heads
from edgeattn.deploy.calibration import Reader
from edgeattn.deploy.layers import Values, needed_onnxruntime, outputs_onnxruntime
from edgeattn.deploy.recipes.bias import correct_biases
from edgeattn.deploy.recipes.plan import DEFAULT_PLAN, Plan, stays_float
from edgeattn.deploy.rewrite import constants_of, free_answers, users_of
from edgeattn.engines.base import Array
from edgeattn.spec import path_of

ATTENTION_ORT = (
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Mul",
    "ReduceMean",
    "ReduceMax",
    "AveragePool",
    "GlobalMaxPool",
    "Abs",
    "Div",
    "Sub",
    "MatMul",
    "Concat",
    "Squeeze",
    "Transpose",
    "LayerNormalization",
    "Softmax",
)
"""ONNX operators that stay in float: elementwise and reducing ones, as they occur in attention branches."""
STEM_CHANNELS = 32
"""A first layer that makes fewer channels of a picture's three stays in float for ONNX Runtime, which is slow at it on integers.

int8 over float at 224, one thread, with and without it on integers: nano 0.71 and 0.63, with se 0.73 and 0.66, with eca 0.72
and 0.68; EfficientNet-Lite0, which makes 32, 0.50 and 0.51. OpenVINO's is quicker on integers: nano 0.44 and 0.47.
"""


def quantize_onnxruntime(
    source: Path, target: Path, inputs: Sequence[Array], plan: Plan = DEFAULT_PLAN
) -> dict[str, Any]:
    """Write a QDQ model as ONNX Runtime likes it: u8 activations, s8 weights per channel; return the recipe."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(prepared)
    excluded = float_nodes(model, plan)
    quantize_static(
        str(prepared), str(target), Reader(inputs, model.graph.input[0].name),
        quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        per_channel=True, reduce_range=plan.weight_bits < 8, calibrate_method=CalibrationMethod.MinMax, nodes_to_exclude=excluded,
    )  # fmt: skip
    prepared.unlink()
    quantized = onnx.load(target)
    free_answers(quantized)
    if plan.bias == "full":
        correct_biases(OnnxNet(quantized), OnnxNet(model), inputs)
    onnx.save(quantized, target)
    return {
        "activations": "u8",
        **plan.told(),
        "float_nodes": len(excluded),
        "float_types": list(ATTENTION_ORT),
        "pictures": len(inputs),
    }


def float_nodes(model: onnx.ModelProto, plan: Plan = DEFAULT_PLAN) -> list[str]:
    """Names of the nodes that stay in float.

    What decodes the answer (see `heads`); those of `ATTENTION_ORT`, among them the input's normalisation and products of two
    activations; added constants, since a step of u8 is larger than the small number that keeps a sum from zero before it
    divides; a transformer's sums that are normalised next, whose few large channels leave one range for all no steps for the
    others; small layers of an attention branch; a narrow first layer (`STEM_CHANNELS`); and what `plan` keeps.
    """
    constants = {tensor.name for tensor in model.graph.initializer if math.prod(tensor.dims) == 1}
    normed = {node.input[0] for node in model.graph.node if node.op_type == "LayerNormalization"}
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in model.graph.value_info
    }

    def macs(node: onnx.NodeProto) -> float | None:
        """Multiplications of a layer with weights; None: it is none."""
        name = node.input[1] if len(node.input) > 1 else ""
        if node.op_type not in ("Conv", "Gemm", "MatMul") or name not in weights or node.output[0] not in shapes:
            return None
        # Conv: out x in x kernel; Gemm: either way round, the same product over the outputs.
        places = math.prod(shapes[node.output[0]]) / (
            weights[name][0] if node.op_type == "Conv" else shapes[node.output[0]][-1]
        )
        return float(places * math.prod(weights[name]))

    kept_whole = heads.decoding(heads.of_onnx(model)) | {
        node.name for node, out in _first_layers(model.graph) if out < STEM_CHANNELS
    }

    def stays(node: onnx.NodeProto) -> bool:
        path = path_of(node.name)
        if node.name in plan.layers or node.name in kept_whole:
            return True
        if plan.keeps(path) or plan.keeps_nothing(path):
            return plan.keeps(path)
        work = macs(node)
        if work is not None:
            return stays_float(node.op_type, node.input[1], path, work)
        kept = bool(constants & set(node.input)) or node.output[0] in normed
        return node.op_type in ATTENTION_ORT or (node.op_type == "Add" and kept)

    return [node.name for node in model.graph.node if stays(node)]


def _convolutions_of(values: set[str], graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, tuple[int, ...]]]:
    """The convolutions of some values and of nothing else, each with its weight's shape; other operators may come between."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    seen, constants = set(values), {"", *weights}
    for node in graph.node:  # in their order
        if constants.issuperset(node.input):
            constants.update(node.output)
        elif not constants.union(seen).issuperset(node.input):
            continue
        elif node.op_type not in heads.LAYERS:
            seen.update(node.output)
        elif node.op_type == "Conv" and node.input[1] in weights:
            yield node, weights[node.input[1]]


def _first_layers(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, int]]:
    """Those that make channels of the picture's three, each with how many."""
    found = _convolutions_of({graph.input[0].name}, graph)
    return [(node, out) for node, (out, channels, *_) in found if channels <= 3]


def entrance(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the layers whose float ONNX Runtime may be quicker with: a first one that the default recipe puts on integers,
    and the depthwise ones right behind it.

    EfficientNet-Lite0, int8 over float, with and without them on integers: 0.480 and 0.467 (AVX-512 VNNI).
    """
    firsts = _first_layers(model.graph)
    behind = _convolutions_of({node.output[0] for node, _ in firsts}, model.graph)
    depthwise = [node.name for node, (out, channels, *_) in behind if channels == 1 < out]
    return (*(node.name for node, out in firsts if out >= STEM_CHANNELS), *depthwise)


class OnnxNet:
    """An ONNX model as `bias.Net`; int8 with QuantizeLinear and DequantizeLinear."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        made_constants = {
            n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"
        }
        self._model, self._users = model, users_of(graph)
        self._constants = constants_of(graph) | made_constants
        self._nodes = {node.name: node for node in graph.node}
        self._biases: dict[str, tuple[onnx.TensorProto, Array | None]] = {}
        held = {tensor.name: tensor for tensor in graph.initializer}
        makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
                maker = makers.get(node.input[2])  # integers and their scale, or the bias itself
                bias, scale = maker.input[:2] if maker is not None else (node.input[2], "")
                if bias in held and len(self._users[node.input[2]]) == len(self._users[bias]) == 1:
                    self._biases[node.name] = held[bias], self._constants.get(scale)

    def biased(self) -> list[str]:
        """As `bias.Net.biased`."""
        return list(self._biases)

    def bounds(self, name: str) -> tuple[float, float]:
        """As `bias.Net.bounds`."""
        after = self._users.get(self._nodes[name].output[0], [])
        kind = after[0].op_type if len(after) == 1 else ""
        if kind == "Relu":
            return 0.0, math.inf
        lowest, highest = [*after[0].input, "", ""][1:3] if kind == "Clip" else ("", "")
        return float(self._constants.get(lowest, -math.inf)), float(self._constants.get(highest, math.inf))

    def outputs(self, names: Sequence[str], known: Sequence[Values]) -> Iterator[dict[str, Array]]:
        """As `bias.Net.outputs`."""
        return outputs_onnxruntime(self._model, names, known)

    def needed(self, names: Sequence[str], known: Collection[str]) -> list[str]:
        """As `bias.Net.needed`."""
        return needed_onnxruntime(self._model, names, known)

    def move(self, name: str, by: NDArray[np.float64]) -> Array:
        """As `bias.Net.move`; integers by whole steps."""
        bias, scale = self._biases[name]
        now = numpy_helper.to_array(bias)
        step = 1.0 if scale is None else scale.astype(np.float64)
        steps = by if scale is None else np.round(by / step)
        bias.CopyFrom(numpy_helper.from_array((now + steps).astype(now.dtype), bias.name))
        return (steps * step).astype(np.float32)
