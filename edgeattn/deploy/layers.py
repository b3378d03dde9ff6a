"""What the layers of a file give, picture by picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeattn.engines.base import Array


def layer_outputs(engine: str, file: Path, names: Sequence[str], inputs: Sequence[Array]) -> Iterator[dict[str, Array]]:
    """By name, what these layers of an ONNX or OpenVINO file give for each prepared picture, on an engine."""
    if engine == "onnxruntime":
        return outputs_onnxruntime(onnx.load(file), names, inputs)
    from edgeattn.engines.openvino import openvino_core

    return outputs_openvino(openvino_core().read_model(file), names, inputs)


def outputs_onnxruntime(
    model: onnx.ModelProto, names: Sequence[str], inputs: Sequence[Array]
) -> Iterator[dict[str, Array]]:
    """The same of a model in memory, on ONNX Runtime; only what these layers need is executed."""
    import onnxruntime

    opened = _ending_in(model, names)
    session = onnxruntime.InferenceSession(opened.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in inputs:
        yield dict(zip(names, session.run(None, {opened.graph.input[0].name: x}), strict=True))


def _ending_in(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """What these layers need, with their outputs as the model's."""
    places = {node.name: node.output[0] for node in model.graph.node}
    needed, nodes = {places[name] for name in names}, list[onnx.NodeProto]()
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_reads(node))
    ends = [onnx.helper.make_tensor_value_info(places[name], onnx.TensorProto.FLOAT, None) for name in names]
    weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    graph = onnx.helper.make_graph(nodes[::-1], model.graph.name, model.graph.input, ends, weights)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, in its branches too (If, Loop)."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)


def outputs_openvino(model: Any, names: Sequence[str], inputs: Sequence[Array]) -> Iterator[dict[str, Array]]:
    """The same of an `openvino.Model`, on OpenVINO's CPU device."""
    import openvino

    from edgeattn.engines.openvino import openvino_core

    held = {op.get_friendly_name(): op for op in model.get_ordered_ops()}
    # Where the bias was taken apart, the sum bears the layer's name; the last layer's bears that of the output.
    layers = [held[name] if name in held else held[f"{name}/WithoutBiases"] for name in names]
    opened = openvino.Model([layer.output(0) for layer in layers], model.get_parameters())
    compiled = openvino_core().compile_model(opened, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for x in inputs:
        found = compiled({0: x})
        yield {name: np.array(found[place]) for place, name in enumerate(names)}
