"""From `float.onnx` to `int8.onnx` (ONNX Runtime, QDQ) and `int8.xml` (OpenVINO, by NNCF), each gated on the saved file.

Both recipes keep the elementwise and reducing part of an attention branch in float, and weights in seven bits: processors
without VNNI add pairs of products in 16 bits and saturate with eight-bit weights, and a bundle does not know its box.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeattn.bundle import Bundle, extend
from edgeattn.deploy.calibration import Reader
from edgeattn.deploy.export import quiet, versions
from edgeattn.deploy.names import in_attention
from edgeattn.deploy.results import Report, gates
from edgeattn.deploy.verify import verify
from edgeattn.errors import DataError, EdgeAttnError
from edgeattn.imaging import Picture, prepare
from edgeattn.spec import Artefact

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
SMALL_MACS = 100_000
"""Layers of an attention branch with fewer multiplications stay in float: quantizing their input costs more than it saves.

Coordinate attention in nano at 224, OpenVINO int8 over the net without attention: 1.31 with them quantized, 1.21 without.
"""


def stays_float(weight: str, macs: float) -> bool:
    """Whether a layer is too small for integers: a branch's, by the name of its weight, with few multiplications."""
    return in_attention(weight) and macs < SMALL_MACS


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A bundle with its int8 artefacts, and what was measured on them."""

    bundle: Bundle
    """The bundle, on disk."""
    report: Report
    """Every artefact's accuracy, agreement, attention fidelity and speed on the validation pictures."""


def quantize(
    bundle: Bundle,
    calibration: Sequence[Picture],
    validation: Sequence[tuple[Picture, int]],
    *,
    source: onnx.ModelProto | None = None,
    provenance: Mapping[str, Any] | None = None,
    max_loss: float = 0.01,
) -> Quantized:
    """Quantize for both engines, measure the saved files through them, and add them to the bundle with their verdicts.

    Args:
        bundle: holds `float.onnx`.
        calibration: pictures of any size, (H, W, 3) BGR bytes.
        validation: labelled pictures outside the calibration set.
        source: the float graph to take the weights from, as `export.to_onnx` makes it; None: the bundle's own. What is
            measured is compared with the bundle's own in either case.
        provenance: what bundle.json is to say of the calibration set.
        max_loss: greatest loss of top-1 against float, as a fraction, that passes the gate.

    Raises:
        DataError: no pictures.
        EdgeAttnError: a toolchain failed; the bundle is as it was.
    """
    if not len(calibration) or not len(validation):
        raise DataError("quantize needs calibration and validation pictures; give a folder with --data")
    inputs = [prepare(picture, bundle.spec.input) for picture in calibration]
    with tempfile.TemporaryDirectory() as scratch:
        file = bundle.file(bundle.artefact("onnxruntime", "float"))
        if source is not None:
            file = Path(scratch) / "source.onnx"
            onnx.save(source, file)
        files, artefacts = _int8_files(bundle, file, inputs, Path(scratch))
        trial = extend(bundle, artefacts, files, path=Path(scratch) / "trial")
        report = verify(trial, validation, max_loss=max_loss)
        measured = {(r.engine, r.precision): gates(r) for r in report.results}
        gated = tuple(dataclasses.replace(a, gates=measured[a.engine, a.precision]) for a in artefacts)
        return Quantized(extend(bundle, gated, files, provenance=provenance), report)


def _int8_files(
    bundle: Bundle, source: Path, inputs: Sequence[Input], scratch: Path
) -> tuple[dict[str, Path | bytes], tuple[Artefact, ...]]:
    try:
        with quiet("nncf", "root", ""):
            ort_recipe = quantize_onnxruntime(source, scratch / "int8.onnx", inputs, bundle.spec.input.name)
            ov_recipe = quantize_openvino(source, scratch / "int8.xml", inputs)
    except Exception as error:
        raise EdgeAttnError(
            f"{bundle.path}: quantization failed ({type(error).__name__}: {error}); the float model still works"
        ) from error
    artefacts = (
        Artefact("int8.onnx", "onnxruntime", "int8", recipe=ort_recipe, toolchain=versions("onnxruntime", "onnx")),
        Artefact("int8.xml", "openvino", "int8", recipe=ov_recipe, toolchain=versions("openvino", "nncf")),
    )
    return {name: scratch / name for name in ("int8.onnx", "int8.xml", "int8.bin")}, artefacts


def quantize_onnxruntime(source: Path, target: Path, inputs: Sequence[Input], input_name: str) -> dict[str, Any]:
    """Write a QDQ model as ONNX Runtime likes it: u8 activations, s8 weights per channel; return the recipe."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(prepared)
    excluded = attention_nodes(model)
    quantize_static(
        str(prepared), str(target), Reader(inputs, input_name),
        quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        per_channel=True, reduce_range=True, calibrate_method=CalibrationMethod.MinMax, nodes_to_exclude=excluded,
    )  # fmt: skip
    prepared.unlink()
    return {
        "activations": "u8",
        "weights": "s7 per channel",
        "ranges": "min-max",
        "float_nodes": len(excluded),
        "float_types": list(ATTENTION_ORT),
        "pictures": len(inputs),
    }


def attention_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that stay in float.

    Those of `ATTENTION_ORT`, among them the input's normalisation; added constants, since a step of u8 is larger than the
    small number that keeps a sum from zero before it divides; small layers of an attention branch.
    """
    constants = {tensor.name for tensor in model.graph.initializer if math.prod(tensor.dims) == 1}
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in model.graph.value_info
    }

    def is_small(node: onnx.NodeProto) -> bool:
        name = node.input[1] if len(node.input) > 1 else ""
        if node.op_type not in ("Conv", "Gemm") or name not in weights or node.output[0] not in shapes:
            return False
        # Conv: out x in x kernel; Gemm: either way round, the same product over the outputs.
        places = math.prod(shapes[node.output[0]]) / (
            weights[name][0] if node.op_type == "Conv" else shapes[node.output[0]][-1]
        )
        return stays_float(name, places * math.prod(weights[name]))

    return [
        node.name
        for node in model.graph.node
        if node.op_type in ATTENTION_ORT or (node.op_type == "Add" and constants & set(node.input)) or is_small(node)
    ]


def small_attention_layers(model: Any) -> list[str]:
    """Names of the convolutions and products of an OpenVINO model that stay in float for being small."""
    found = []
    for op in model.get_ordered_ops():
        if op.get_type_name() not in ("Convolution", "MatMul"):
            continue
        source = op.input_value(1).get_node()
        while source.get_type_name() in ("Convert", "Reshape", "Transpose"):
            source = source.input_value(0).get_node()
        if source.get_type_name() != "Constant":
            continue
        out = op.get_output_shape(0)
        places = math.prod(out) / (out[1] if op.get_type_name() == "Convolution" else out[-1])
        if stays_float(source.get_friendly_name(), places * math.prod(source.get_output_shape(0))):
            found.append(op.get_friendly_name())
    return found


def quantize_openvino(source: Path, target: Path, inputs: Sequence[Input]) -> dict[str, Any]:
    """Write OpenVINO IR with NNCF's fake-quantizers; return the recipe."""
    import nncf
    import openvino

    from edgeattn.engines.openvino import openvino_core

    logging.getLogger("nncf").setLevel(logging.ERROR)  # importing it has set its own level
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    model = openvino_core().read_model(source)
    small = small_attention_layers(model)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(inputs)),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(inputs),
        fast_bias_correction=True,
        ignored_scope=nncf.IgnoredScope(types=list(ATTENTION_OV), names=small, validate=False),
        advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
    )
    openvino.save_model(quantized, target, compress_to_fp16=False)
    target.write_text(
        re.sub(r">\s+<", "><", target.read_text(encoding="utf-8")), encoding="utf-8"
    )  # a sixth of it is indentation
    return {
        "preset": "performance",
        "bias_correction": "fast",
        "overflow_fix": "enable",
        "float_types": list(ATTENTION_OV),
        "float_layers": len(small),
        "pictures": len(inputs),
    }
