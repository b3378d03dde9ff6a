"""An ONNX file from elsewhere."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from edgeattn.deploy.foreign.graph import Port
from edgeattn.deploy.rewrite import rewrite
from edgeattn.errors import DataError

SHAPING = ("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that change no number."""
OPSET = 13
"""Least opset: int8 with a scale a channel needs it."""


class OnnxGraph:
    """An ONNX model; see `graph.Graph`."""

    engines: tuple[str, ...] = ("onnxruntime", "openvino")

    def __init__(self, file: Path) -> None:
        """Read a file, its opset raised to `OPSET` where it is older.

        Raises:
            DataError: it is no ONNX file.
        """
        self._file = file
        try:
            self.model = onnx.load(file)
            held = next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)
            if held < OPSET:
                self.model = onnx.version_converter.convert_version(self.model, OPSET)
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise DataError(
                f"{file} cannot be read as ONNX ({reason[0] if reason else type(error).__name__})"
            ) from error
        for i, node in enumerate(self.model.graph.node):
            node.name = node.name or f"-/{node.op_type}_{i}"

    @property
    def told(self) -> dict[str, str]:
        """As `Graph.told`."""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    @property
    def inputs(self) -> list[Port]:
        """As `Graph.inputs`."""
        return [_port(value) for value in self._given()]

    @property
    def outputs(self) -> list[Port]:
        """As `Graph.outputs`."""
        return [_port(value) for value in self.model.graph.output]

    @property
    def integers(self) -> list[str]:
        """As `Graph.integers`."""
        kinds = [node.op_type for node in self.model.graph.node]
        return [
            kind
            for kind in kinds
            if "quantize" in kind.lower() or kind.startswith("QLinear") or kind.endswith("Integer")
        ]

    def keep(self, *outputs: str) -> None:
        """As `Graph.keep`."""
        graph = self.model.graph
        for value in [value for value in graph.output if value.name not in outputs]:
            graph.output.remove(value)
        if len(outputs) > 1:
            return
        (output,) = outputs
        makers = {name: node for node in graph.node for name in node.output}
        last, after = makers.get(output), None
        while last is not None and last.op_type in SHAPING:
            last, after = makers.get(last.input[0]), last
        if last is None or last.op_type not in ("Softmax", "LogSoftmax"):
            return
        source = last.input[0]
        if after is not None:
            after.input[0] = source
            return
        graph.node.remove(last)
        for node in graph.node:
            node.input[:] = [output if held == source else held for held in node.input]
            node.output[:] = [output if held == source else held for held in node.output]

    def fix(self, shape: Sequence[int]) -> None:
        """As `Graph.fix`."""
        self._set_shape(shape)
        for value in self.model.graph.output:
            value.type.tensor_type.ClearField("shape")
        del self.model.graph.value_info[:]
        try:
            inferred = onnx.shape_inference.infer_shapes(self.model, strict_mode=True, data_prop=True)
        except Exception as error:
            raise DataError(f"{self._file}: its shapes cannot be worked out ({str(error).splitlines()[0]})") from error
        self.model.graph.CopyFrom(inferred.graph)

    def channels_first(self) -> None:
        """As `Graph.channels_first`."""
        (given,) = self._given()
        turned = self._before("Transpose", f"{given.name}_nhwc", perm=[0, 2, 3, 1])
        self.model.graph.node.insert(0, turned)
        _, height, width, channels = _port(given).shape
        self._set_shape((1, channels, height, width))

    def swap_channels(self) -> None:
        """As `Graph.swap_channels`: the first convolution's weights are turned, else the input is."""
        (given,) = self._given()
        readers = [node for node in self.model.graph.node if given.name in node.input]
        weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        if [node.op_type for node in readers] == ["Conv"] and readers[0].input[1] in weights:
            tensor = weights[readers[0].input[1]]
            sharing = [node for node in self.model.graph.node if tensor.name in node.input]
            if len(sharing) == 1 and tensor.dims[1] == 3:  # a depthwise one sees its channel alone
                turned = onnx.numpy_helper.to_array(tensor)[:, ::-1].copy()
                tensor.CopyFrom(onnx.numpy_helper.from_array(turned, tensor.name))
                return
        order = onnx.numpy_helper.from_array(np.array([2, 1, 0]), "channel_order")
        self.model.graph.initializer.append(order)
        self.model.graph.node.insert(0, self._before("Gather", f"{given.name}_bgr", order.name, axis=1))

    def repaired(self) -> OnnxGraph | None:
        """As `Graph.repaired`."""
        repaired = copy.copy(self)
        repaired.model = onnx.ModelProto()
        repaired.model.CopyFrom(self.model)
        rewrite(repaired.model)
        before, after = ([node.op_type for node in held.model.graph.node] for held in (self, repaired))
        if before == after:
            return None
        repaired.model = onnx.shape_inference.infer_shapes(repaired.model, data_prop=True)
        return repaired

    def named_in(self, text: str) -> list[str]:
        """As `Graph.named_in`."""
        found = []
        for node in self.model.graph.node:
            if re.search(rf"(?<!\w){re.escape(node.op_type)}(?!\w)", text):
                place = f"makes '{node.output[0]}'" if node.name.startswith("-/") else node.name
                found.append(f"{node.op_type} ({place})")
        return found

    def files(self) -> dict[str, bytes]:
        """As `Graph.files`."""
        return {"float.onnx": self.model.SerializeToString()}

    def _given(self) -> list[onnx.ValueInfoProto]:
        weights = {tensor.name for tensor in self.model.graph.initializer}
        return [value for value in self.model.graph.input if value.name not in weights]

    def _set_shape(self, shape: Sequence[int]) -> None:
        (given,) = self._given()
        for dim, size in zip(given.type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size

    def _before(self, kind: str, inner: str, *others: str, **attributes: object) -> onnx.NodeProto:
        """A node between the input and all that reads it, which now reads `inner`."""
        (given,) = self._given()
        for node in self.model.graph.node:
            node.input[:] = [inner if name == given.name else name for name in node.input]
        return onnx.helper.make_node(kind, [given.name, *others], [inner], name=f"-/{kind}_input", **attributes)


def _port(value: onnx.ValueInfoProto) -> Port:
    held = value.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(held.elem_type).lower()
    return Port(value.name, tuple(dim.dim_value for dim in held.shape.dim), "float32" if kind == "float" else kind)
