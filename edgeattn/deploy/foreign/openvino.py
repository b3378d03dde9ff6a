"""An OpenVINO IR from elsewhere. Nothing turns it into ONNX, so that OpenVINO alone runs it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from edgeattn.deploy.foreign.graph import Port
from edgeattn.engines.openvino import openvino_core, telling_line
from edgeattn.errors import DataError

ULTRALYTICS = "metadata.yaml"
"""What ultralytics writes beside the IR."""
SHAPING = ("Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operations that change no number."""
INTEGERS = frozenset({"i4", "u4", "i8", "u8", "nf4"})
"""Types of weights that are quantized."""


class IrGraph:
    """An `.xml` with its `.bin` beside it; see `graph.Graph`."""

    engines: tuple[str, ...] = ("openvino",)

    def __init__(self, file: Path) -> None:
        """Read a file.

        Raises:
            DataError: it is no IR.
        """
        self._file = file
        try:
            self.model: Any = openvino_core().read_model(file)
        except RuntimeError as error:
            raise DataError(f"{file} cannot be read as OpenVINO IR ({telling_line(error)})") from error
        for kind, ports in (("input", self.model.inputs), ("output", self.model.outputs)):
            for i, port in enumerate(ports):  # one name each: of several, which one is told is chance
                port.get_tensor().set_names({min(port.get_names(), default=f"{kind}{i}")})

    @property
    def told(self) -> dict[str, str]:
        """As `Graph.told`; of ultralytics, the file beside it."""
        info = dict(self.model.get_rt_info().items()).get("model_info", {})
        told = {f"model_info {key}": value.astype(str) for key, value in info.items() if hasattr(value, "astype")}
        beside = self._file.with_name(ULTRALYTICS)
        if beside.is_file():
            try:
                held = yaml.safe_load(beside.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise DataError(f"{beside} cannot be read ({telling_line(error)}); restore it, or remove it") from error
            told |= {key: str(value) for key, value in held.items()} if isinstance(held, dict) else {}
        return told

    @property
    def inputs(self) -> list[Port]:
        """As `Graph.inputs`."""
        return [_port(port) for port in self.model.inputs]

    @property
    def outputs(self) -> list[Port]:
        """As `Graph.outputs`."""
        return [_port(port) for port in self.model.outputs]

    @property
    def integers(self) -> list[str]:
        """As `Graph.integers`."""
        ops = self.model.get_ops()
        quantizers = [op.get_type_name() for op in ops if op.get_type_name() == "FakeQuantize"]
        weights = [op for op in ops if op.get_type_name() == "Constant" and len(op.get_output_shape(0)) > 1]
        kinds = [op.get_element_type().get_type_name() for op in weights]
        return quantizers + [f"{kind} weights" for kind in kinds if kind in INTEGERS]

    def keep(self, *outputs: str) -> None:
        """As `Graph.keep`."""
        for port, result in zip(self.model.outputs, self.model.get_results(), strict=True):
            if port.any_name not in outputs:
                self.model.remove_result(result)
        if len(outputs) > 1:
            return
        (output,) = outputs
        (result,) = self.model.get_results()
        last, after = result.input_value(0).get_node(), result
        while last.get_type_name() in SHAPING:
            last, after = last.input_value(0).get_node(), last
        if last.get_type_name() in ("Softmax", "LogSoftmax"):
            if after is result:
                last.output(0).get_tensor().set_names(set())
            after.input(0).replace_source_output(last.input_value(0))
            self.model.validate_nodes_and_infer_types()
            self.model.output(0).get_tensor().set_names({output})

    def fix(self, shape: Sequence[int]) -> None:
        """As `Graph.fix`."""
        try:
            self.model.reshape(list(shape))
        except RuntimeError as error:
            raise DataError(f"{self._file}: its shapes cannot be worked out ({telling_line(error)})") from error

    def channels_first(self) -> None:
        """As `Graph.channels_first`."""
        self._prepare("NCHW", "NHWC")

    def swap_channels(self) -> None:
        """As `Graph.swap_channels`; OpenVINO turns the first convolution's weights where it can."""
        self._prepare("NCHW", "NCHW", swap=True)

    def repaired(self) -> None:
        """As `Graph.repaired`: OpenVINO mends these forms when it reads the model they come from."""
        return

    def named_in(self, text: str) -> list[str]:
        """As `Graph.named_in`."""
        named = [op for op in self.model.get_ops() if re.search(rf"(?<!\w){op.get_type_name()}(?!\w)", text)]
        return [f"{op.get_type_name()} ({op.get_friendly_name()})" for op in named]

    def files(self) -> dict[str, bytes]:
        """As `Graph.files`."""
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "float.xml")
            openvino.save_model(self.model, target, compress_to_fp16=False)
            return {file.name: file.read_bytes() for file in (target, target.with_suffix(".bin"))}

    def _prepare(self, outside: str, inside: str, *, swap: bool = False) -> None:
        """Put before the model what turns one layout into the other."""
        from openvino import Layout
        from openvino.preprocess import PrePostProcessor

        steps = PrePostProcessor(self.model)
        steps.input().tensor().set_layout(Layout(outside))
        steps.input().model().set_layout(Layout(inside))
        if swap:
            steps.input().preprocess().reverse_channels()
        self.model = steps.build()


def _port(port: Any) -> Port:
    shape = port.get_partial_shape()
    sizes = () if shape.rank.is_dynamic else tuple(dim.get_length() if dim.is_static else 0 for dim in shape)
    kind = port.get_element_type().get_type_name()
    return Port(port.any_name, sizes, "float32" if kind == "f32" else kind)
