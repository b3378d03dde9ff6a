"""What of an int8 file is really executed on integers: its quantized layers against those of the graph that the engine made.

Engines fall back in silence: an unsuited type, a fused activation, a processor without the instructions; ONNX Runtime also
quantizes, unasked, what was left in float (its optimizer WeightBiasQuantization, which we switch off).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.engines.base import Engine

LAYERS_ORT = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVING_ORT = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice")
MOVING_OV = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Convert", "Pad")
STORED_OV = (*MOVING_OV, "Multiply", "Subtract")
"""Between a weight that is stored as integers and the layer."""
LAYERS_OV = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")


@dataclass(frozen=True)
class Structure:
    """An int8 file as it is executed on this machine."""

    quantized: int
    """Layers (convolutions and matrix products) that the file quantizes."""
    fell_back: tuple[str, ...] = ()
    """Of these, the ones that are executed in float, by name."""
    unasked: tuple[str, ...] = ()
    """Layers that the file leaves in float and the engine executes on integers."""
    shifted: tuple[str, ...] = ()
    """Depthwise convolutions of an IR whose activations have a zero point, as NNCF's preset MIXED gives them: OpenVINO executes
    them on integers, by a slower kernel (jit_avx512 in place of brgconv_avx512_dw, where the processor has AVX-512)."""


def structure(file: Path, engine: Engine) -> Structure:
    """Compare a file with what the engine that opened it executes."""
    quantized, executed = quantized_layers(file), engine.integer_layers
    # A product of two values that are integers already is the same number either way: no choice of ours is undone.
    is_onnx = file.suffix == ".onnx"
    free = _of_onnx(file, MOVING_ORT) if is_onnx else frozenset()
    return Structure(
        len(quantized),
        tuple(sorted(quantized - executed)),
        tuple(sorted(executed - quantized - free)),
        () if is_onnx else _shifted(file),
    )


def node_names(file: Path) -> list[str]:
    """Names of the nodes of an ONNX or OpenVINO file, in their order."""
    if file.suffix == ".onnx":
        import onnx

        return [node.name for node in onnx.load(file, load_external_data=False).graph.node]
    from edgeattn.engines.openvino import openvino_core

    return [op.get_friendly_name() for op in openvino_core().read_model(file).get_ordered_ops()]


def quantized_layers(file: Path) -> frozenset[str]:
    """Names of the layers of an ONNX or OpenVINO file whose both factors are quantized."""
    return _of_onnx(file) if file.suffix == ".onnx" else _of_openvino(file)


def _of_onnx(file: Path, through: tuple[str, ...] = ()) -> frozenset[str]:
    """Layers whose factors both come from dequantizers, through nodes of these types."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    integers: set[str] = set()
    for node in graph.node:  # in their order
        if node.op_type == "DequantizeLinear" or (node.op_type in through and node.input[0] in integers):
            integers.update(node.output)
    return frozenset(
        node.name for node in graph.node if node.op_type in LAYERS_ORT and integers.issuperset(node.input[:2])
    )


def _of_openvino(file: Path) -> frozenset[str]:
    from edgeattn.engines.openvino import layer_name, openvino_core

    found = set()
    for op in openvino_core().read_model(file).get_ordered_ops():
        if op.get_type_name() in LAYERS_OV and _is_quantized(op, 0, MOVING_OV) and _is_quantized(op, 1, STORED_OV):
            found.add(layer_name(op.get_friendly_name()))
    return frozenset(found)


def depthwise_quantizers(file: Path) -> list[tuple[str, Any]]:
    """The depthwise convolutions of an IR whose activations are quantized, by name, each with its quantizer."""
    from edgeattn.engines.openvino import openvino_core

    found = []
    for op in openvino_core().read_model(file).get_ordered_ops():
        if op.get_type_name() == "GroupConvolution":
            source = _source(op, 0, MOVING_OV)
            if source.get_type_name() == "FakeQuantize":
                found.append((op.get_friendly_name(), source))
    return found


def _shifted(file: Path) -> tuple[str, ...]:
    from edgeattn.engines.openvino import layer_name

    return tuple(layer_name(name) for name, quantizer in depthwise_quantizers(file) if _has_zero_point(quantizer))


def _has_zero_point(quantizer: Any) -> bool:
    """Whether its range neither begins at zero nor reaches as far below it as above, give or take the step that int8 has more
    of below."""
    low, high = (quantizer.input_value(place).get_node().get_data().ravel() for place in (1, 2))
    step = (high - low) / (quantizer.get_attributes()["levels"] - 1)
    return bool(((low < 0) & (abs(low + high) > 1.5 * step)).any())


def _is_quantized(op: Any, place: int, through: tuple[str, ...]) -> bool:
    """Whether a factor comes from a quantizer, or from integers that are stored, through nodes of these types."""
    node = _source(op, place, through)
    stored = node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in {"i8", "u8"}
    return stored or bool(node.get_type_name() == "FakeQuantize")


def _source(op: Any, place: int, through: tuple[str, ...]) -> Any:
    """The node that an input comes from, through nodes of these types."""
    node = op.input_value(place).get_node()
    while node.get_type_name() in through:
        node = node.input_value(0).get_node()
    return node
