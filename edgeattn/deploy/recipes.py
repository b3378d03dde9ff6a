"""How `float.onnx` becomes `int8.onnx` (ONNX Runtime, QDQ) and `int8.xml` (OpenVINO, by NNCF): what stays in float.

By default both recipes keep the elementwise and reducing part of an attention branch in float, and what decodes the answer of
a detector (see `heads`). Weights have seven bits, which
hold everywhere, or eight: x86 without VNNI adds pairs of products in 16 bits and saturates with them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeattn.deploy import heads
from edgeattn.deploy.calibration import Reader
from edgeattn.deploy.export import quiet, versions
from edgeattn.deploy.names import in_attention
from edgeattn.errors import EdgeAttnError
from edgeattn.spec import Artefact, block_of, path_of, weight_bits

Input = NDArray[np.generic]

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
ATTENTION_OV = (
    "Multiply",
    "Sigmoid",
    "HSigmoid",
    "HardSigmoid",
    "ReduceMean",
    "ReduceMax",
    "ReduceSum",
    "AvgPool",
    "Divide",
    "Subtract",
    "MatMul",
    "Concat",
    "HSwish",
    "MVN",
    "Abs",
)
"""The same for NNCF, which names them as OpenVINO does."""
FILES = {"onnxruntime": ("int8.onnx",), "openvino": ("int8.xml", "int8.bin")}
"""Files of each engine's int8 artefact; the first is what it opens."""
TOOLS = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "nncf")}
"""Packages that made them."""
SMALL_MACS = 100_000
"""Layers of an attention branch with fewer multiplications stay in float: quantizing their input costs more than it saves.

Coordinate attention in nano at 224, OpenVINO int8 over the net without attention: 1.31 with them quantized, 1.21 without.
"""
STEM_CHANNELS = 32
"""A first layer that makes fewer channels of a picture's three stays in float for ONNX Runtime, which is slow at it on integers.

int8 over float at 224, one thread, with and without it on integers: nano 0.71 and 0.63, with se 0.73 and 0.66, with eca 0.72
and 0.68; EfficientNet-Lite0, which makes 32, 0.50 and 0.51. OpenVINO's is quicker on integers: nano 0.44 and 0.47.
"""


RUNGS = ("int8", "branch", "attention", "block")
"""What of an attention block stays in float, from nothing on: its elementwise and reducing part and its small layers; all of
its attention; all of the block."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to quantize for one engine."""

    rungs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What stays in float, of `RUNGS`, by the path of the attention block."""
    others: str = "branch"
    """The rung of all other blocks."""
    bias: str = "fast"
    """NNCF's correction of the bias that rounding brings: `fast` (by statistics) or `full` (layer by layer, by running it)."""
    smooth: float | None = None
    """SmoothQuant's alpha at convolutions, which moves range from activations to weights; None: not done."""
    layers: tuple[str, ...] = ()
    """Single layers that stay in float, by name."""
    weight_bits: int = 7
    """Bits of the weights, 7 or 8. EfficientNet-Lite0, answers as float: ONNX Runtime 95.4 and 97.8 %, OpenVINO 97.4 and 98.0 %."""
    per_tensor: bool = False
    """NNCF's rules for Intel's NPU, with one range for all channels of every activation: by default it gives those of a
    depthwise convolution a range a channel, which that device computes in software, at half the speed."""

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Plan:
        """The plan that an artefact's recipe in bundle.json tells of."""
        return cls(
            rungs=dict(recipe.get("blocks", {})),
            others=recipe.get("other_blocks", cls.others),
            bias=recipe.get("bias_correction", cls.bias),
            smooth=recipe.get("smooth_quant", cls.smooth),
            layers=tuple(recipe.get("float_layer_names", ())),
            weight_bits=weight_bits(recipe),
        )

    def rung(self, block: str) -> int:
        """The place of a block's rung in `RUNGS`."""
        return RUNGS.index(self.rungs.get(block, self.others))

    def keeps(self, path: str) -> bool:
        """Whether what lies at a path of the graph stays in float, whatever it is."""
        block = block_of(path)
        if block is not None and self.rung(block) >= RUNGS.index("attention"):
            return True
        return any(rung == "block" and f"{path}.".startswith(f"{at}.") for at, rung in self.rungs.items())

    def keeps_nothing(self, path: str) -> bool:
        """Whether what lies at a path is quantized without exceptions."""
        block = block_of(path)
        return block is not None and self.rung(block) == RUNGS.index("int8")


DEFAULT_PLAN = Plan()


def is_small(weight: str, macs: float) -> bool:
    """Whether a layer is too small for integers: a branch's, by the name of its weight, with few multiplications."""
    return in_attention(weight) and macs < SMALL_MACS


def _stays_float(kind: str, weight: str, path: str, macs: float) -> bool:
    """Whether a layer with weights stays in float: a small one of a branch, and every MatMul of a branch or with few products.

    The other ones are the linear layers of transformers from elsewhere.
    """
    return is_small(weight, macs) or (kind == "MatMul" and (in_attention(path) or macs < SMALL_MACS))


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


def quantize_for(
    engine: str, source: Path, folder: Path, inputs: Sequence[Input], plan: Plan = DEFAULT_PLAN
) -> tuple[Artefact, dict[str, Path | bytes]]:
    """Quantize for one engine into a folder; return the artefact, without gates, and its files.

    Raises:
        EdgeAttnError: the toolchain failed.
    """
    try:
        with quiet("nncf", "root", ""):
            if engine == "onnxruntime":
                recipe = quantize_onnxruntime(source, folder / "int8.onnx", inputs, plan)
            else:
                recipe = quantize_openvino(source, folder / "int8.xml", inputs, plan)
    except Exception as error:
        raise EdgeAttnError(
            f"quantization for {engine} failed ({type(error).__name__}: {error}); the float model still works"
        ) from error
    names, tools = FILES[engine], TOOLS[engine]
    artefact = Artefact(names[0], engine, "int8", recipe=recipe, toolchain=versions(*tools))
    return artefact, {name: folder / name for name in names}


def quantize_onnxruntime(
    source: Path, target: Path, inputs: Sequence[Input], plan: Plan = DEFAULT_PLAN
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
    _free_answers(quantized.graph)
    onnx.save(quantized, target)
    return {
        "activations": "u8",
        "weights": f"s{plan.weight_bits} per channel",
        "ranges": "min-max",
        "float_nodes": len(excluded),
        "float_types": list(ATTENTION_ORT),
        "blocks": dict(plan.rungs),
        "other_blocks": plan.others,
        "float_layer_names": list(plan.layers),
        "pictures": len(inputs),
    }


def _free_answers(graph: onnx.GraphProto) -> None:
    """Take the rounding from what linear layers answer: nothing computes with it, and near answers would become equal.

    EfficientNet-Lite0's 1,000 classes, answers as float: 97.8 % with it, 98.0 % without.
    """
    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        dequantizer = makers.get(output.name)
        quantizer = (
            makers.get(dequantizer.input[0]) if dequantizer and dequantizer.op_type == "DequantizeLinear" else None
        )
        if dequantizer is None or quantizer is None or quantizer.op_type != "QuantizeLinear":
            continue
        readers = [node for node in graph.node if {*quantizer.input[:1], *quantizer.output}.intersection(node.input)]
        maker = makers.get(quantizer.input[0])
        # Something else may go on with it; and a convolution without rounding behind it would be computed in float.
        if maker is None or maker.op_type not in ("Gemm", "MatMul") or len(readers) > 2:
            continue
        maker.output[list(maker.output).index(quantizer.input[0])] = output.name
        graph.node.remove(quantizer)
        graph.node.remove(dequantizer)
    used = {name for node in graph.node for name in node.input}
    for tensor in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(tensor)


def float_nodes(model: onnx.ModelProto, plan: Plan = DEFAULT_PLAN) -> list[str]:
    """Names of the nodes that stay in float.

    What decodes the answer (see `heads`); those of `ATTENTION_ORT`, among them the input's normalisation and products of two
    activations; added constants, since a
    step of u8 is larger than the small number that keeps a sum from zero before it divides; a transformer's sums that are
    normalised next, whose few large channels leave one range for all no steps for the others; small layers of an attention
    branch; a narrow first layer (`STEM_CHANNELS`); and what `plan` keeps.
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
            return _stays_float(node.op_type, node.input[1], path, work)
        kept = bool(constants & set(node.input)) or node.output[0] in normed
        return node.op_type in ATTENTION_ORT or (node.op_type == "Add" and kept)

    return [node.name for node in model.graph.node if stays(node)]


def float_operations(model: Any, plan: Plan = DEFAULT_PLAN) -> list[str]:
    """The same for an OpenVINO model: those of `ATTENTION_OV`, small layers of a branch, what decodes, and what `plan` keeps."""
    from edgeattn.engines.openvino import layer_name

    found, decodes = [], heads.decoding(heads.of_openvino(model))
    for op in model.get_ordered_ops():
        name, kind = op.get_friendly_name(), op.get_type_name()
        path = path_of(name)
        if layer_name(name) in plan.layers or name in decodes:
            found.append(name)
            continue
        if kind in ("Constant", "Parameter", "Result") or (plan.keeps_nothing(path) and not plan.keeps(path)):
            continue
        weight = _weight(op)
        if plan.keeps(path) or (weight is None and kind in ATTENTION_OV) or _is_normed(op):
            found.append(name)
        elif weight is not None:
            out = op.get_output_shape(0)
            places = math.prod(out) / (out[1] if kind == "Convolution" else out[-1])
            if _stays_float(kind, weight.get_friendly_name(), path, places * math.prod(weight.get_output_shape(0))):
                found.append(name)
    return found


def _is_normed(op: Any) -> bool:
    """Whether it is a sum that is normalised next."""
    readers = [port.get_node().get_type_name() for port in op.output(0).get_target_inputs()]
    return op.get_type_name() == "Add" and "MVN" in readers


def _weight(op: Any) -> Any:
    """The constant that a layer multiplies with; None: it is no layer with weights."""
    if op.get_type_name() not in ("Convolution", "MatMul"):
        return None
    source = op.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "Reshape", "Transpose"):
        source = source.input_value(0).get_node()
    return source if source.get_type_name() == "Constant" else None


def quantize_openvino(source: Path, target: Path, inputs: Sequence[Input], plan: Plan = DEFAULT_PLAN) -> dict[str, Any]:
    """Write OpenVINO IR with NNCF's fake-quantizers; return the recipe."""
    import nncf
    import openvino

    from edgeattn.engines.openvino import openvino_core

    logging.getLogger("nncf").setLevel(logging.ERROR)  # importing it has set its own level
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
        QuantizationParameters,
    )
    from openvino.passes import ConstantFolding, Manager

    model = openvino_core().read_model(source)
    # The reader of ONNX puts a reshape between a convolution and its bias. NNCF then sees no bias and corrects none, and
    # OpenVINO computes every depthwise convolution in float.
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    kept = float_operations(model, plan)
    advanced = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.DISABLE if plan.weight_bits == 8 else OverflowFix.ENABLE
    )
    if plan.smooth is not None:
        advanced.smooth_quant_alphas = AdvancedSmoothQuantParameters(convolution=plan.smooth, matmul=plan.smooth)
    if plan.per_tensor:
        advanced.activations_quantization_params = QuantizationParameters(per_channel=False)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(inputs)),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(inputs),
        target_device=nncf.TargetDevice.NPU if plan.per_tensor else nncf.TargetDevice.ANY,
        fast_bias_correction=plan.bias == "fast",
        model_type=None if plan.smooth is None else nncf.ModelType.TRANSFORMER,  # without it nothing is smoothed
        ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
        advanced_parameters=advanced,
    )
    openvino.save_model(quantized, target, compress_to_fp16=False)
    target.write_text(
        re.sub(r">\s+<", "><", target.read_text(encoding="utf-8")), encoding="utf-8"
    )  # a sixth of it is indentation
    return {
        "preset": "performance",
        "bias_correction": plan.bias,
        "smooth_quant": plan.smooth,
        "activations": "per tensor" if plan.per_tensor else "per channel at depthwise convolutions",
        "weights": f"s{plan.weight_bits} per channel",
        "float_nodes": len(kept),
        "float_types": list(ATTENTION_OV),
        "blocks": dict(plan.rungs),
        "other_blocks": plan.others,
        "float_layer_names": list(plan.layers),
        "pictures": len(inputs),
    }
