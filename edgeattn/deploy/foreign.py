"""The graph of an ONNX classifier from elsewhere: what it says of itself, what it takes and gives, made as engines need it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgeattn.errors import DataError
from edgeattn.spec import InputSpec, Spec

OPSET = 13
"""Least opset: int8 with a scale a channel needs it."""


@dataclass(frozen=True)
class Metadata:
    """What a file says of itself; empty where it is silent."""

    labels: tuple[str, ...] = ()
    """Names of the classes."""
    normalisation: str = ""
    """How pictures are normalised."""
    channels: str = ""
    """Their order."""
    imgsz: int | None = None
    """Side of its input."""


def metadata(model: onnx.ModelProto) -> Metadata:
    """Read what ultralytics and OpenVINO Model API write into `metadata_props`.

    Raises:
        DataError: it is a model for another task.
    """
    held = {entry.key: entry.value for entry in model.metadata_props}
    if {"task", "names", "imgsz"} <= held.keys():
        if held["task"] != "classify":
            raise DataError(f"this is a model of ultralytics to {held['task']}; this version imports classifiers")
        names = ast.literal_eval(held["names"])
        return Metadata(tuple(names[i] for i in sorted(names)), "0..1", "rgb", ast.literal_eval(held["imgsz"])[0])
    api = {key.removeprefix("model_info "): value for key, value in held.items() if key.startswith("model_info ")}
    if api.get("model_type", "Classification") != "Classification":
        raise DataError(f"this is a model for {api['model_type']}; this version imports classifiers")
    return Metadata(tuple(api.get("labels", "").split()))


def read_graph(file: Path) -> onnx.ModelProto:
    """Read a file, its opset raised to `OPSET` where it is older.

    Raises:
        DataError: it is no ONNX file.
    """
    try:
        model = onnx.load(file)
        held = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        if held < OPSET:
            model = onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise DataError(f"{file} cannot be read as ONNX ({reason[0] if reason else type(error).__name__})") from error
    return model


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """Sizes, 0 where they are left open."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _given(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def input_of(model: onnx.ModelProto, file: Path, imgsz: int | None) -> tuple[InputSpec, bool]:
    """The input, its sizes filled in, and whether its channels come last."""
    given = _given(model)
    shapes = ", ".join(f"{value.name} {_shape(value)}" for value in given)
    if len(given) != 1 or len(_shape(given[0])) != 4:
        raise DataError(f"{file} takes {shapes}; a classifier of pictures takes one input of four dimensions")
    kind = onnx.TensorProto.DataType.Name(given[0].type.tensor_type.elem_type)
    if kind != "FLOAT":
        raise DataError(f"{file} takes numbers of type {kind}; export it with float32 inputs")
    shape = _shape(given[0])
    nhwc = shape[3] == 3 and shape[1] != 3
    if not nhwc and shape[1] not in (0, 3):
        raise DataError(f"{file} takes {shapes}; pictures have three channels")
    if shape[0] > 1:
        raise DataError(f"{file} takes {shape[0]} pictures at once; export it for a batch of one, or a dynamic one")
    sides = [1, 2] if nhwc else [2, 3]
    if not all(shape[side] for side in sides):
        if imgsz is None:
            raise DataError(f"{file} leaves the size of its pictures open ({shapes}); choose it with --imgsz")
        for side in sides:
            shape[side] = shape[side] or imgsz
    full = [1, *((shape[1], shape[2], 3) if nhwc else (3, shape[2], shape[3]))]
    for dim, size in zip(given[0].type.tensor_type.shape.dim, full, strict=True):
        dim.dim_value = size
    return InputSpec(shape[sides[0]], shape[sides[1]], "nchw_f32", name=given[0].name), nhwc


def output_of(model: onnx.ModelProto, file: Path, classes: int) -> str:
    """Name of the output that holds the logits; a softmax before it is cut off."""
    found = [value for value in model.graph.output if np.prod(_shape(value)[1:] or [0]) == classes]
    if not found and len(model.graph.output) == 1 and 0 in _shape(model.graph.output[0])[1:]:
        found = [model.graph.output[0]]  # checked when it is run
    if len(found) != 1:
        held = ", ".join(f"{value.name} {_shape(value)}" for value in model.graph.output)
        raise DataError(f"{file} gives {held}: {'none' if not found else 'more than one'} fits {classes} labels")
    name: str = found[0].name
    for value in [value for value in model.graph.output if value.name != name]:
        model.graph.output.remove(value)
    last = next((node for node in model.graph.node if name in node.output), None)
    if last is not None and last.op_type in ("Softmax", "LogSoftmax"):
        model.graph.node.remove(last)
        source = last.input[0]
        for node in model.graph.node:
            node.input[:] = [name if held == source else held for held in node.input]
            node.output[:] = [name if held == source else held for held in node.output]
    return name


def make_static(model: onnx.ModelProto, file: Path) -> None:
    """Work out all sizes from the input's.

    Raises:
        DataError: they hang on more than the input's size.
    """
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:
        raise DataError(f"{file}: its shapes cannot be worked out ({str(error).splitlines()[0]})") from error
    model.graph.CopyFrom(inferred.graph)


def channels_first(model: onnx.ModelProto) -> None:
    """Let it take (1, 3, H, W) in place of (1, H, W, 3)."""
    (given,) = _given(model)
    inner = f"{given.name}_nhwc"
    for node in model.graph.node:
        node.input[:] = [inner if name == given.name else name for name in node.input]
    turned = onnx.helper.make_node("Transpose", [given.name], [inner], name="-/Transpose_input", perm=[0, 2, 3, 1])
    model.graph.node.insert(0, turned)
    _, height, width, channels = _shape(given)
    for dim, size in zip(given.type.tensor_type.shape.dim, (1, channels, height, width), strict=True):
        dim.dim_value = size


def swap_channels(model: onnx.ModelProto, spec: Spec) -> None:
    """Let it take RGB where it was made for BGR: the first convolution's weights are turned, else the input is."""
    readers = [node for node in model.graph.node if spec.input.name in node.input]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    if [node.op_type for node in readers] == ["Conv"] and readers[0].input[1] in weights:
        tensor = weights[readers[0].input[1]]
        turned = onnx.numpy_helper.to_array(tensor)[:, ::-1].copy()
        tensor.CopyFrom(onnx.numpy_helper.from_array(turned, tensor.name))
        return
    inner = f"{spec.input.name}_bgr"
    for node in readers:
        node.input[:] = [inner if name == spec.input.name else name for name in node.input]
    order = onnx.numpy_helper.from_array(np.array([2, 1, 0]), "channel_order")
    model.graph.initializer.append(order)
    model.graph.node.insert(
        0, onnx.helper.make_node("Gather", [spec.input.name, order.name], [inner], name="-/Gather_input", axis=1)
    )
