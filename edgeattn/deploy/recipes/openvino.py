"""`int8.xml` for OpenVINO: its IR with NNCF's fake-quantizers."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeattn.deploy import heads
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

    from edgeattn.engines.openvino import openvino_core

    logging.getLogger("nncf").setLevel(logging.ERROR)  # importing it has set its own level
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
        QuantizationParameters,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    from openvino.passes import ConstantFolding, Manager

    model = openvino_core().read_model(source)
    # The reader of ONNX puts a reshape between a convolution and its bias. NNCF then sees no bias and corrects none, and
    # OpenVINO computes every depthwise convolution in float.
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    kept = float_operations(model, plan)
    advanced = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.DISABLE if plan.weight_bits == 8 else OverflowFix.ENABLE,
        # NNCF's own choices fit the calibration pictures too well: a range for each channel of a depthwise layer's input, and
        # the mean of the pictures' extremes, cut off what other pictures bring. Signal to error on those, in dB:
        # EfficientNet-Lite0's answers 17.3, so 19.9; multi-query attention's maps in pico 11.9, so 22.7. And Intel's NPU computes
        # a depthwise layer with a range a channel in software, at half the speed.
        activations_quantization_params=QuantizationParameters(per_channel=False),
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
    )
    if plan.smooth is not None:
        advanced.smooth_quant_alphas = AdvancedSmoothQuantParameters(convolution=plan.smooth, matmul=plan.smooth)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(inputs)),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(inputs),
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
        "smooth_quant": plan.smooth,
        "activations": "per tensor",
        "ranges": "min-max",
        **plan.told(),
        "float_nodes": len(kept),
        "float_types": list(ATTENTION_OV),
        "pictures": len(inputs),
    }


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
