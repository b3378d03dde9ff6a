"""`int8.xml` for OpenVINO: its IR with NNCF's fake-quantizers."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.deploy import heads
from edgeattn.deploy.layers import Values, needed_openvino, outputs_openvino
from edgeattn.deploy.recipes.bias import correct_biases
from edgeattn.deploy.recipes.plan import DEFAULT_PLAN, Plan, stays_float
from edgeattn.engines.base import Array
from edgeattn.spec import path_of

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
"""Operators that stay in float, as OpenVINO names them: elementwise and reducing ones, as they occur in attention branches."""


def quantize_openvino(source: Path, target: Path, inputs: Sequence[Array], plan: Plan = DEFAULT_PLAN) -> dict[str, Any]:
    """Write OpenVINO IR with NNCF's fake-quantizers; return the recipe."""
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)  # importing it has set its own level
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
        QuantizationParameters,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    model = read_folded(source)
    kept = float_operations(model, plan)
    advanced = AdvancedQuantizationParameters(
        disable_bias_correction=plan.bias == "full",  # ours is in its place
        overflow_fix=OverflowFix.DISABLE if plan.weight_bits == 8 else OverflowFix.ENABLE,
        # NNCF's own choices fit the calibration pictures too well: a range for each channel of a depthwise layer's input, and
        # the mean of the pictures' extremes, cut off what other pictures bring. Signal to error on those, in dB:
        # EfficientNet-Lite0's answers 17.3, so 19.9; multi-query attention's maps in pico 11.9, so 22.7. And Intel's NPU computes
        # a depthwise layer with a range a channel in software, at half the speed.
        activations_quantization_params=QuantizationParameters(per_channel=False),
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
        if plan.ranges == "min-max"
        else RangeEstimatorParametersSet.HISTOGRAM,
    )
    if plan.smooth is not None:
        advanced.smooth_quant_alphas = AdvancedSmoothQuantParameters(convolution=plan.smooth, matmul=plan.smooth)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(inputs)),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(inputs),
        model_type=None if plan.smooth is None else nncf.ModelType.TRANSFORMER,  # without it nothing is smoothed
        ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
        advanced_parameters=advanced,
    )
    if plan.bias == "full":
        correct_biases(OpenvinoNet(quantized), OpenvinoNet(model), inputs)
    openvino.save_model(quantized, target, compress_to_fp16=False)
    target.write_text(
        re.sub(r">\s+<", "><", target.read_text(encoding="utf-8")), encoding="utf-8"
    )  # a sixth of it is indentation
    return {
        "preset": "performance",
        "smooth_quant": plan.smooth,
        "activations": "per tensor",
        **plan.told(),
        "float_nodes": len(kept),
        "float_types": list(ATTENTION_OV),
        "pictures": len(inputs),
    }


def read_folded(source: Path) -> Any:
    """The `openvino.Model` of an ONNX file or an IR, each bias a constant.

    The reader of ONNX puts a reshape between a convolution and its bias. NNCF then sees no bias, and OpenVINO computes every
    depthwise convolution in float.
    """
    from openvino.passes import ConstantFolding, Manager

    from edgeattn.engines.openvino import openvino_core

    model, manager = openvino_core().read_model(source), Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    return model


def float_operations(model: Any, plan: Plan = DEFAULT_PLAN) -> list[str]:
    """Names of the operators that stay in float.

    Those of `ATTENTION_OV`, small layers of a branch, what decodes, and what `plan` keeps.
    """
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
            if stays_float(kind, weight.get_friendly_name(), path, places * math.prod(weight.get_output_shape(0))):
                found.append(name)
    return found


class OpenvinoNet:
    """An `openvino.Model` as `bias.Net`; int8 with FakeQuantize."""

    def __init__(self, model: Any) -> None:
        from edgeattn.engines.openvino import layer_name

        self._model = model
        self._sums: dict[str, Any] = {}
        for op in model.get_ordered_ops():
            if op.get_type_name() in ("Convolution", "GroupConvolution") or _is_flat(op):
                after = _readers(op)
                if len(after) == 1 and after[0].get_type_name() == "Multiply":  # Gemm's alpha
                    after = _readers(after[0])
                if len(after) == 1 and after[0].get_type_name() == "Add" and _bias_port(after[0]) is not None:
                    self._sums[layer_name(op.get_friendly_name())] = after[0]

    def biased(self) -> list[str]:
        """As `bias.Net.biased`."""
        return list(self._sums)

    def bounds(self, name: str) -> tuple[float, float]:
        """As `bias.Net.bounds`."""
        low, high = -math.inf, math.inf
        after = _readers(self._sums[name])
        while len(after) == 1:
            kind, limit = after[0].get_type_name(), _limit(after[0])
            if kind == "Relu" or (kind == "Maximum" and limit is not None):
                low = max(low, limit or 0.0)
            elif kind == "Minimum" and limit is not None:
                high = min(high, limit)
            elif kind == "Clamp":
                limits = after[0].get_attributes()
                low, high = max(low, float(limits["min"])), min(high, float(limits["max"]))
            else:
                break
            after = _readers(after[0])
        return low, high

    def outputs(self, names: Sequence[str], known: Sequence[Values]) -> Iterator[dict[str, Array]]:
        """As `bias.Net.outputs`."""
        return outputs_openvino(self._model, names, known)

    def needed(self, names: Sequence[str], known: Collection[str]) -> list[str]:
        """As `bias.Net.needed`."""
        return needed_openvino(self._model, names, known)

    def move(self, name: str, by: NDArray[np.float64]) -> Array:
        """As `bias.Net.move`."""
        from openvino import opset13

        port = _bias_port(self._sums[name])
        now = port.get_source_output().get_node().get_data()
        moved = (now + by.reshape(now.shape)).astype(now.dtype)
        port.replace_source_output(opset13.constant(moved).output(0))
        return np.asarray(by, np.float32)


def _is_flat(op: Any) -> bool:
    """Whether it is a product with weights whose last axis is its channels' alone."""
    return op.get_type_name() == "MatMul" and _weight(op) is not None and len(op.get_output_shape(0)) == 2


def _readers(op: Any) -> list[Any]:
    return [port.get_node() for port in op.output(0).get_target_inputs()]


def _limit(op: Any) -> float | None:
    """The one number that an operator compares with, as the reader of ONNX writes Clip; None: there is none."""
    told = [port.get_node() for port in op.input_values() if port.get_node().get_type_name() == "Constant"]
    return float(told[0].get_data().item()) if told and told[0].get_data().size == 1 else None


def _bias_port(add: Any) -> Any:
    """The input of a sum that a constant of its own comes in at; None: there is none."""
    for port in add.inputs():
        source = port.get_source_output()
        if source.get_node().get_type_name() == "Constant" and len(source.get_target_inputs()) == 1:
            return port
    return None


def _is_normed(op: Any) -> bool:
    """Whether it is a sum that is normalised next."""
    return op.get_type_name() == "Add" and any(reader.get_type_name() == "MVN" for reader in _readers(op))


def _weight(op: Any) -> Any:
    """The constant that a layer multiplies with; None: it is no layer with weights."""
    if op.get_type_name() not in ("Convolution", "MatMul"):
        return None
    source = op.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "Reshape", "Transpose"):
        source = source.input_value(0).get_node()
    return source if source.get_type_name() == "Constant" else None
