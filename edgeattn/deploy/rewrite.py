"""Exact rewrites of an exported ONNX graph, for the engines' sake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper


def rewrite(model: onnx.ModelProto) -> None:
    """Apply every rewrite to `model`, in place.

    * Constant, and Identity of a constant -> initializers, as the TorchScript exporter does not write them: quantizers look there.
    * ReduceMean / ReduceMax of a map over (2, 3) -> GlobalAveragePool / GlobalMaxPool, and Flatten where the dimensions are not
      kept: ONNX Runtime runs a squeeze-and-excitation gate in int8 slower than in float when it finds ReduceMean there.
    * Max(Min(x, high), low) -> Clip: a quantizer that does not know the first pair adds nodes around it, and OpenVINO broadcasts.
    * Reshape (.., k, h, ..), Transpose that puts k first, k times Slice and Squeeze, as `unbind` is written -> Reshape, Split, k
      times Transpose: nothing has five dimensions, which NPU compilers do not take.
    * ReduceL1 -> Abs, ReduceSum: Qualcomm's compiler knows only these.

    A graph with branches of its own (If, Loop), which may read any name, is left as it is.
    """
    if any(attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute):
        return
    _initializers(model)
    _pools(model)
    _clips(model)
    _lengths(model)
    _unbinds(model)
    _drop_unused(model)


def free_answers(model: onnx.ModelProto) -> None:
    """Take the rounding from what linear layers answer, in place: nothing computes with it, and near answers became equal.

    EfficientNet-Lite0's 1,000 classes, answers as float: 97.8 % with it, 98.0 % without. A convolution's answers keep it: without
    rounding behind it, it would be computed in float.
    """
    graph, users = model.graph, users_of(model.graph)
    answers = {output.name for output in graph.output}
    for layer in [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]:
        rounded = users.get(layer.output[0], [])
        restored = [node for quantizer in rounded for node in users.get(quantizer.output[0], [])]
        if [node.op_type for node in (*rounded, *restored)] != ["QuantizeLinear", "DequantizeLinear"]:
            continue
        if restored[0].output[0] in answers and layer.output[0] not in answers:
            layer.output[0] = restored[0].output[0]
            graph.node.remove(rounded[0])
            graph.node.remove(restored[0])
    _drop_unused(model)


def constants_of(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """The stored values, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _initializers(model: onnx.ModelProto) -> None:
    """Equal weights are shared by the TorchScript exporter through Identity; each name gets its own again."""
    graph = model.graph
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
    _replace(model, kept)


def _pools(model: onnx.ModelProto) -> None:
    constants, ranks = constants_of(model.graph), _ranks(model)
    pooled = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type not in pooled or ranks.get(node.input[0]) != 4 or _axes(node, constants) != [2, 3]:
            continue
        kept = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        node.op_type = pooled[node.op_type]
        del node.input[1:]
        del node.attribute[:]
        if not kept:
            pool = onnx.NodeProto()
            pool.CopyFrom(node)
            pool.name, pool.output[0] = f"{node.name}_pool", f"{node.output[0]}_pool"
            nodes.insert(-1, pool)
            node.op_type, node.input[0] = "Flatten", pool.output[0]
    _replace(model, nodes)


def _axes(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> list[int] | None:
    """Axes of a map (B, C, H, W) that a node reduces, sorted; None where they are not constant, or all that there are."""
    told = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)  # before opset 18
    if told is None and len(node.input) > 1 and node.input[1] in constants:
        told = constants[node.input[1]].tolist()
    return None if told is None else sorted(int(axis) % 4 for axis in told)


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Numbers of dimensions of the values that have a shape."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    held = [
        value for value in (*graph.value_info, *graph.input, *graph.output) if value.type.tensor_type.HasField("shape")
    ]
    return {value.name: len(value.type.tensor_type.shape.dim) for value in held}


def _clips(model: onnx.ModelProto) -> None:
    constants = constants_of(model.graph)
    users, outputs = users_of(model.graph), {output.name for output in model.graph.output}
    makers = {name: node for node in model.graph.node for name in node.output}
    for outer in model.graph.node:
        if outer.op_type not in ("Min", "Max") or len(outer.input) != 2 or outer.input[1] not in constants:
            continue
        inner = makers.get(outer.input[0])
        if inner is None or {inner.op_type, outer.op_type} != {"Min", "Max"} or len(inner.input) != 2:
            continue
        if inner.input[1] not in constants or len(users[inner.output[0]]) != 1 or inner.output[0] in outputs:
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
    _replace(model, [node for node in model.graph.node if node.output])


def _lengths(model: onnx.ModelProto) -> None:
    nodes = []
    for node in model.graph.node:
        if node.op_type == "ReduceL1" and len(node.input) > 1:  # else its axes are where ReduceSum has none
            positive = helper.make_node("Abs", node.input[:1], [f"{node.output[0]}_abs"], name=f"{node.name}_abs")
            positive.metadata_props.extend(node.metadata_props)
            nodes.append(positive)
            node.op_type, node.input[0] = "ReduceSum", positive.output[0]
        nodes.append(node)
    _replace(model, nodes)


def _unbinds(model: onnx.ModelProto) -> None:
    graph, constants = model.graph, constants_of(model.graph)
    makers = {name: node for node in graph.node for name in node.output}
    users, outputs = users_of(graph), {output.name for output in graph.output}
    made: dict[str, list[onnx.NodeProto]] = {}
    gone: set[str] = set()
    for turned in graph.node:
        shaped = makers.get(turned.input[0]) if turned.op_type == "Transpose" else None
        if shaped is None or shaped.op_type != "Reshape" or shaped.input[1] not in constants:
            continue
        shape = constants[shaped.input[1]].tolist()
        first, *others = next((list(a.ints) for a in turned.attribute if a.name == "perm"), [0])
        slices = users.get(turned.output[0], [])
        parts = _parts(slices, users, constants)
        inner = {shaped.output[0], turned.output[0], *(node.output[0] for node in slices)}
        is_whole = len(parts) == shape[first] and len(users[shaped.output[0]]) == 1 and not inner & outputs
        if not is_whole or not 0 < first < len(shape) - 1 or shape[first + 1] < 1:
            continue
        own, width = turned.output[0], shape[first + 1]
        joined = [*shape[:first], len(parts) * width, *shape[first + 2 :]]
        for name, value in ((f"{own}_shape", joined), (f"{own}_widths", [width] * len(parts))):
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        pieces, order = [f"{own}_{i}" for i in range(len(parts))], [axis - (axis > first) for axis in others]
        made[own] = [
            helper.make_node("Reshape", [shaped.input[0], f"{own}_shape"], [f"{own}_joined"], name=shaped.name),
            helper.make_node("Split", [f"{own}_joined", f"{own}_widths"], pieces, name=turned.name, axis=first),
            *(
                helper.make_node("Transpose", [piece], part.output, name=part.name, perm=order)
                for piece, part in zip(pieces, parts, strict=True)
            ),
        ]
        for node, source in zip(made[own], (shaped, turned, *parts), strict=True):
            node.metadata_props.extend(source.metadata_props)
        gone |= inner.union(part.output[0] for part in parts) - {own}
    nodes = []
    for node in graph.node:
        if node.output[0] not in gone:
            nodes += made.get(node.output[0], [node])
    _replace(model, nodes)


def _parts(
    slices: Sequence[onnx.NodeProto],
    users: Mapping[str, Sequence[onnx.NodeProto]],
    constants: Mapping[str, np.ndarray],
) -> list[onnx.NodeProto]:
    """The nodes that squeeze the first axis of slices of one, in the slices' order; empty where one is anything else."""
    found: dict[int, onnx.NodeProto] = {}
    for node in slices:
        told = [constants[name].tolist() for name in node.input[1:] if name in constants]
        after = users.get(node.output[0], [])
        if node.op_type != "Slice" or [one.op_type for one in after] != ["Squeeze"] or len(told) < len(node.input) - 1:
            return []
        start, _, axes, *steps = told
        squeezed = constants.get(after[0].input[1]) if len(after[0].input) > 1 else None
        if axes != [0] or steps not in ([], [[1]]) or squeezed is None or squeezed.tolist() != [0]:
            return []
        found[start[0]] = after[0]
    return [found[i] for i in sorted(found)] if sorted(found) == list(range(len(slices))) else []


def users_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read a value, by its name."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def _replace(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Put nodes in the place of those that there are."""
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]
