"""Exact rewrites of an exported ONNX graph, for the engines' sake."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def rewrite(model: onnx.ModelProto) -> None:
    """Apply every rewrite to `model`, in place.

    * Constant, and Identity of a constant -> initializers, as the TorchScript exporter does not write them: quantizers look there.
    * ReduceMean / ReduceMax over (2, 3) with kept dimensions -> GlobalAveragePool / GlobalMaxPool: ONNX Runtime runs a
      squeeze-and-excitation gate in int8 slower than in float when it finds ReduceMean there.
    * Max(Min(x, high), low) -> Clip: a quantizer that does not know the first pair adds nodes around it, and OpenVINO broadcasts.
    * ReduceL1 -> Abs, ReduceSum: Qualcomm's compiler knows only these.
    """
    _initializers(model.graph)
    _pools(model)
    _clips(model)
    _lengths(model)
    _drop_unused(model)


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _initializers(graph: onnx.GraphProto) -> None:
    """Equal weights are shared by the TorchScript exporter through Identity; each name gets its own again."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        value = held.get(node.input[0]) if node.op_type == "Identity" else None
        if node.op_type == "Constant":
            value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if value is None:
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        held[tensor.name] = tensor
    del graph.node[:]
    graph.node.extend(kept)


def _pools(model: onnx.ModelProto) -> None:
    constants = _constants(model.graph)
    pooled = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
    for node in model.graph.node:
        if node.op_type not in pooled or len(node.input) != 2:
            continue
        kept = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        axes = constants.get(node.input[1])
        if kept and axes is not None and sorted(int(a) % 4 for a in axes) == [2, 3]:
            node.op_type = pooled[node.op_type]
            del node.input[1:]
            del node.attribute[:]


def _clips(model: onnx.ModelProto) -> None:
    constants = _constants(model.graph)
    users: dict[str, list[onnx.NodeProto]] = {}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for outer in model.graph.node:
        if outer.op_type not in ("Min", "Max") or len(outer.input) != 2 or outer.input[1] not in constants:
            continue
        inner = makers.get(outer.input[0])
        if inner is None or {inner.op_type, outer.op_type} != {"Min", "Max"} or len(inner.input) != 2:
            continue
        if inner.input[1] not in constants or len(users[inner.output[0]]) != 1:
            continue
        bounds = {inner.op_type: constants[inner.input[1]], outer.op_type: constants[outer.input[1]]}
        if any(bound.size != 1 for bound in bounds.values()):
            continue
        names = []
        for op in ("Max", "Min"):  # Clip takes the lower bound first
            scalar = numpy_helper.from_array(bounds[op].reshape(()), f"{outer.output[0]}_{op.lower()}")
            model.graph.initializer.append(scalar)
            names.append(scalar.name)
        clip = helper.make_node("Clip", [inner.input[0], *names], list(outer.output), name=outer.name)
        outer.CopyFrom(clip)
        inner.ClearField("output")  # marked for removal: nothing reads it any more
    kept = [node for node in model.graph.node if node.output]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _lengths(model: onnx.ModelProto) -> None:
    nodes = []
    for node in model.graph.node:
        if node.op_type == "ReduceL1":
            positive = helper.make_node("Abs", node.input[:1], [f"{node.output[0]}_abs"], name=f"{node.name}_abs")
            positive.metadata_props.extend(node.metadata_props)
            nodes.append(positive)
            node.op_type, node.input[0] = "ReduceSum", positive.output[0]
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]
