"""What the layers of a file give, picture by picture."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeattn.engines.base import Array

PICTURE = ""
"""Names the model's input among the values of its layers."""
Values = Mapping[str, Array]
"""Of one picture, by the layer's name or `PICTURE`."""


def layer_outputs(engine: str, file: Path, names: Sequence[str], inputs: Sequence[Array]) -> Iterator[dict[str, Array]]:
    """By name, what these layers of an ONNX or OpenVINO file give for each prepared picture, on an engine."""
    known = [{PICTURE: x} for x in inputs]
    if engine == "onnxruntime":
        return outputs_onnxruntime(onnx.load(file), names, known)
    from edgeattn.engines.openvino import openvino_core

    return outputs_openvino(openvino_core().read_model(file), names, known)


def outputs_onnxruntime(
    model: onnx.ModelProto, names: Sequence[str], known: Sequence[Values]
) -> Iterator[dict[str, Array]]:
    """The same of a model in memory, on ONNX Runtime; only what leads from the known values to these layers is executed."""
    import onnxruntime

    places = _places_onnx(model)
    nodes, needed = _leading_to_onnx(model, names, known[0])
    read = {value for node in nodes for value in _reads(node)}
    type_of, value_info = onnx.helper.np_dtype_to_tensor_dtype, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        model.graph.name,
        [value_info(places[name], type_of(known[0][name].dtype), known[0][name].shape) for name in needed],
        [value_info(places[name], onnx.TensorProto.FLOAT, None) for name in names],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    opened = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = onnxruntime.InferenceSession(opened.SerializeToString(), providers=["CPUExecutionProvider"])
    for values in known:
        found = session.run(None, {places[name]: values[name] for name in needed})
        yield dict(zip(names, found, strict=True))


def needed_onnxruntime(model: onnx.ModelProto, names: Sequence[str], known: Collection[str]) -> list[str]:
    """Which of the known layers (and of the picture) these layers' values are computed from."""
    return _leading_to_onnx(model, names, known)[1]


def _places_onnx(model: onnx.ModelProto) -> dict[str, str]:
    """Each layer's value; nodes may have no name."""
    return {node.name: node.output[0] for node in model.graph.node} | {PICTURE: model.graph.input[0].name}


def _leading_to_onnx(
    model: onnx.ModelProto, names: Sequence[str], known: Collection[str]
) -> tuple[list[onnx.NodeProto], list[str]]:
    """The nodes from known layers to these, in their order, and those of the known that they read."""
    places = _places_onnx(model)
    given = {places[name]: name for name in known}
    wanted, nodes = {places[name] for name in names}, list[onnx.NodeProto]()
    for node in reversed(model.graph.node):
        if wanted.difference(given).intersection(node.output):
            nodes.append(node)
            wanted.update(_reads(node))
    return nodes[::-1], [name for place, name in given.items() if place in wanted]


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, in its branches too (If, Loop)."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)


def outputs_openvino(model: Any, names: Sequence[str], known: Sequence[Values]) -> Iterator[dict[str, Array]]:
    """The same of an `openvino.Model`, on OpenVINO's CPU device."""
    import openvino
    from openvino import opset13

    from edgeattn.engines.openvino import openvino_core

    places = _places_openvino(model)
    needed = needed_openvino(model, names, known[0])
    given = {name: opset13.parameter(known[0][name].shape, known[0][name].dtype) for name in needed}
    try:
        for name, parameter in given.items():  # a model is compiled from what its parameters and results lie between
            _hand_over(places[name], parameter.output(0))
        opened = openvino.Model([places[name] for name in names], list(given.values()))
        compiled = openvino_core().compile_model(opened, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    finally:
        for name, parameter in given.items():
            _hand_over(parameter.output(0), places[name])
    for values in known:
        found = compiled([values[name] for name in needed])
        yield {name: np.array(found[place]) for place, name in enumerate(names)}


def needed_openvino(model: Any, names: Sequence[str], known: Collection[str]) -> list[str]:
    """As `needed_onnxruntime`."""
    places = _places_openvino(model)
    given = {places[name].get_node().get_friendly_name(): name for name in known}
    found, seen, open_ends = list[str](), set[str](), [places[name].get_node() for name in names]
    while open_ends:
        op = open_ends.pop()
        name = op.get_friendly_name()
        if name not in seen:
            seen.add(name)
            if name in given:
                found.append(given[name])
            else:
                open_ends += [port.get_node() for port in op.input_values()]
    return found


def _places_openvino(model: Any) -> dict[str, Any]:
    """Each layer's value. Where the bias was taken apart, the sum bears the layer's name; the last layer's bears the output's."""
    held = {op.get_friendly_name(): op.output(0) for op in model.get_ordered_ops()}
    bare = {name.removesuffix("/WithoutBiases"): place for name, place in held.items()}
    return bare | held | {PICTURE: model.input(0)}


def _hand_over(value: Any, other: Any) -> None:
    """Let those that read a value read another."""
    for port in value.get_target_inputs():
        port.replace_source_output(other)
