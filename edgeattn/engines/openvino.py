"""OpenVINO, compiled for the latency of one stream."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeattn.engines.base import (
    Array,
    Counted,
    Grouping,
    Layer,
    cache_dir,
    check_image,
    check_outputs,
    checked_threads,
    counted,
    executed,
    wanted_outputs,
)
from edgeattn.errors import EngineError
from edgeattn.spec import InputSpec, Spec

COMPUTING = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention", "MHA"})
"""Layer types of a compiled model that hold its multiplications."""
MOVING = frozenset(
    {"Const", "Input", "Output", "Reorder", "Reshape", "Transpose", "Concatenation", "Split", "StridedSlice"}
)
"""Layer types that only move numbers."""


SETTINGS: Mapping[str, Any] = {"streams": 1, "pinning": False, "spinning": "OpenVINO's own"}
"""How a processor's threads run: pinned ones fight with capture and drawing for the same cores."""


COPIES, TURNS, HALF_TICK_MS = 3, 40, 0.0005


class _Counting(NamedTuple):
    """A copy of the model that counts."""

    compiled: Any
    """The copy."""
    counters: dict[str, float]
    """By node, milliseconds in the mean of all its inferences."""
    counting_ms: list[float]
    """These inferences."""
    whole_ms: list[float]
    """Inferences of the engine itself, in turns with them."""


class OpenVinoEngine:
    """Runs an ONNX file or an OpenVINO IR with OpenVINO."""

    name = "openvino"

    def __init__(
        self,
        file: Path,
        spec: Spec,
        *,
        precision: str = "float",
        threads: int | None = None,
        maps: bool = False,
        device: str = "CPU",
        hint: str = "f32",
    ) -> None:
        """Compile `file`.

        Args:
            file: `.onnx`, or `.xml` with its `.bin` beside it.
            spec: the model's contract.
            precision: the file's precision, for the record.
            threads: threads that compute one inference; None: `base.default_threads`.
            maps: give the attention maps too; otherwise they are cut off the graph before it is compiled.
            device: OpenVINO's name of the device.
            hint: precision of what is not int8: `f32`, `bf16` or `f16`; never left to OpenVINO, which takes bf16
                unasked where the processor has it.

        Raises:
            EngineError: OpenVINO is not installed, the device is not there, the file cannot be compiled or does not fit
                the spec.
        """
        try:
            core, version = openvino_core(), _version()
        except ImportError as error:
            raise EngineError(f"openvino cannot be imported ({error}); pip install openvino") from error
        self.precision, self.threads = precision, checked_threads(threads)
        self._file, self._input = file, spec.input
        self._outputs = wanted_outputs(spec, maps=maps)
        _check_device(core, device)
        if hint == "bf16" and not computes_bf16():
            raise EngineError(f"{file}: this processor does not compute in bf16; take --precision float or int8")
        self._device, self._options = device, self._properties(device, hint)
        try:
            model = self._read(core)
            began = time.monotonic()
            self._compiled: Any = _compile(core, model, device, self._options)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{file}: openvino {version} cannot compile it ({telling_line(error)})") from error
        compile_ms = 1000.0 * (time.monotonic() - began)
        if [given.any_name for given in self._compiled.inputs] != [spec.input.name]:
            raise EngineError(f"{file} does not take '{spec.input.name}' as its one input; export the bundle again")
        self._request: Any = self._compiled.create_infer_request()
        # Given once: handing the picture over with each call takes ten times as long as to copy it.
        self._image = _shared_input(self._request, spec.input)
        # A tensor may bear several names, of which `any_name` is any.
        self._places = {
            name: place
            for place, given in enumerate(self._compiled.outputs)
            for name in self._outputs
            if name in given.names
        }
        self._executed = ""
        self.details: Mapping[str, Any] = {
            "version": version,
            "device": device,
            "precision_hint": hint,
            "file": file.name,
            "device_name": _property(core, device, "FULL_DEVICE_NAME"),
            "driver": "" if device == "CPU" else _property(core, device, "NPU_DRIVER_VERSION"),
            "compile_ms": compile_ms,
            **(SETTINGS if device == "CPU" else {}),
            "from_cache": bool(self._compiled.get_property("LOADED_FROM_CACHE")),
        }

    def infer(self, image: Array) -> dict[str, Array]:
        """Run one batch; see `base.Engine.infer`."""
        check_image(image, self._input)
        if self._request is None:
            raise EngineError(f"{self._file}: the engine was closed; open it again")
        try:
            np.copyto(self._image, image)
            given = list(self._request.infer().values())
            return {name: given[place] for name, place in self._places.items()}
        except Exception as error:
            raise EngineError(f"{self._file}: openvino failed to run it ({telling_line(error)})") from error

    def count(self, image: Array, grouping: Grouping) -> Counted:
        """As `base.Engine.count`, by OpenVINO's own performance counters.

        They are means over all inferences since the model was compiled, in whole microseconds cut off: half of one is added.
        What these same inferences took beyond them, between the nodes, is spread evenly over the nodes. Of three copies the
        least disturbed one is taken.
        """
        core = openvino_core()
        copies: list[_Counting] = []
        for _ in range(COPIES):
            try:
                copies.append(self._count_copy(core, image))
            except RuntimeError as error:
                raise EngineError(
                    f"{self._file}: {self._device} does not tell the times of its nodes ({telling_line(error)})"
                ) from error
        copy = min(copies, key=lambda copy: float(np.mean(copy.counting_ms)))
        mean_ms, counters = float(np.mean(copy.counting_ms)), copy.counters
        typical = float(np.median(copy.counting_ms)) / mean_ms
        between_ms = max(0.0, mean_ms - sum(counters.values())) / len(counters)
        ops = copy.compiled.get_runtime_model().get_ordered_ops()
        names = [op.get_friendly_name() for op in ops]
        place = {name: i for i, name in enumerate(names)}
        reads = [[place[given.get_node().get_friendly_name()] for given in op.input_values()] for op in ops]
        nodes = tuple(map(_layer, ops))
        groups = tuple(grouping(nodes, reads))
        ms = dict.fromkeys(groups, 0.0)
        for name, group in zip(names, groups, strict=True):
            if name in counters:
                ms[group] += (counters[name] + between_ms) * typical
        whole_ms, counting_ms = float(np.median(copy.whole_ms)), float(np.median(copy.counting_ms))
        return Counted(nodes, groups, ms, whole_ms, counting_ms, between_ms * len(counters) * typical)

    def _count_copy(self, core: Any, image: Array) -> _Counting:
        compiled = core.compile_model(self._read(core), self._device, self._options | {"PERF_COUNT": True})
        request = compiled.create_infer_request()
        np.copyto(_shared_input(request, self._input), image)
        counting_ms = [_took_ms(request.infer)]
        whole_ms: list[float] = []
        for _ in range(TURNS):
            counting_ms += [_took_ms(request.infer) for _ in range(4)]
            self.infer(image)  # the caches are the other's
            whole_ms += [_took_ms(lambda: self.infer(image)) for _ in range(3)]
        counters = {
            each.node_name: each.real_time.total_seconds() * 1000.0 + HALF_TICK_MS
            for each in request.get_profiling_info()
            if each.status == each.Status.EXECUTED
        }
        if not counters:
            raise RuntimeError("none was executed")
        return _Counting(compiled, counters, counting_ms, whole_ms)

    def _read(self, core: Any) -> Any:
        """The model, with the wanted outputs alone."""
        model = core.read_model(self._file)
        check_outputs(self._file, self._outputs, [name for output in model.outputs for name in output.names])
        for result, output in zip(model.get_results(), model.outputs, strict=True):
            if not output.names.intersection(self._outputs):
                model.remove_result(result)
        return model

    def close(self) -> None:
        """Free the compiled model."""
        if self._compiled is not None:
            self._executed = self.executed_precision  # so that it can be told afterwards
        self._request = self._compiled = None

    @property
    def inside_ms(self) -> float | None:
        """As `base.Engine.inside_ms`: the request's latency, which benchmark_app counts."""
        return float(self._request.latency) if self._request is not None else None

    @property
    def executed_precision(self) -> str:
        """As in `int8`, `f32`, `bf16`, `int8+f32`, by the computing layers of the compiled model."""
        if not self._executed:
            nodes = self.nodes
            self._executed = executed(
                {name: sum(n for kind, n in kinds.items() if kind in COMPUTING) for name, kinds in nodes.items()}
            )
            if not nodes:
                self._executed = f"not told by {self.details['device']}"
        return self._executed

    @property
    def layers(self) -> tuple[Layer, ...]:
        """As `base.Engine.layers`; out of the cache a graph has lost the names of what was fused: it is compiled again."""
        layers = _layers(self._compiled)
        if layers and self.details["from_cache"]:
            core = openvino_core()
            return _layers(core.compile_model(self._read(core), self._device, self._options))
        return layers

    @property
    def nodes(self) -> dict[str, dict[str, int]]:
        """As `base.Engine.nodes`."""
        return counted(_layers(self._compiled), MOVING)

    @property
    def integer_layers(self) -> frozenset[str]:
        """As `base.Engine.integer_layers`."""
        return frozenset(
            layer_name(layer.names[0])
            for layer in self.layers
            if layer.kind in COMPUTING and layer.precision == "int8" and layer.names
        )

    def _properties(self, device: str, hint: str) -> dict[str, Any]:
        properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if device == "CPU":
            properties |= {
                "NUM_STREAMS": SETTINGS["streams"],
                "INFERENCE_NUM_THREADS": self.threads,
                "ENABLE_CPU_PINNING": SETTINGS["pinning"],
            }
        return properties


@functools.cache
def openvino_core() -> Any:
    """The one OpenVINO of this process, never closed.

    Its CPU plugin puts the stack that signals are handled on into memory of its own. Of two that end in the order of their
    beginning, the second gives back the stack that the first has freed, and the next signal, Ctrl-C say, kills the process.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    import openvino

    return openvino.Core()


@functools.cache
def computes_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor; False where it is not installed."""
    try:
        return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (ImportError, RuntimeError):
        return False


def _check_device(core: Any, device: str) -> None:
    if device == "CPU":  # to ask for the devices loads the libraries of all of them
        return
    held = list(core.available_devices)
    if not any(device == name or name.startswith(f"{device}.") for name in held):
        seen = ", ".join(held) or "none"
        raise EngineError(f"device '{device}' is not on this machine; OpenVINO sees: {seen} (is its driver installed?)")


def _property(core: Any, device: str, name: str) -> str:
    """What a device tells of itself; empty where it does not."""
    try:
        return str(core.get_property(device, name))
    except RuntimeError:
        return ""


def _compile(core: Any, model: Any, device: str, properties: dict[str, Any]) -> Any:
    folder = cache_dir()
    if folder:
        try:
            return core.compile_model(model, device, properties | {"CACHE_DIR": str(folder / "openvino")})
        except RuntimeError:  # a full disk or a spoilt cache is no reason not to run
            pass
    return core.compile_model(model, device, properties)


def _shared_input(request: Any, spec: InputSpec) -> Array:
    """An array that the request reads its input from."""
    import openvino

    image = np.zeros(spec.shape, np.uint8 if spec.layout == "nhwc_u8" else np.float32)
    request.set_input_tensor(openvino.Tensor(image, shared_memory=True))
    return image


def _took_ms(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return 1000.0 * (time.perf_counter() - began)


def _layers(compiled: Any) -> tuple[Layer, ...]:
    with contextlib.suppress(RuntimeError):  # not every device shows what it made of the graph
        return tuple(map(_layer, compiled.get_runtime_model().get_ordered_ops()))
    return ()


def _layer(op: Any) -> Layer:
    info = {name: value.astype(str) for name, value in op.get_rt_info().items()}
    precision = info["runtimePrecision"]
    names = tuple(name for name in info.get("originalLayersNames", "").split(",") if name)
    return Layer(names, info.get("layerType", "Const"), "int8" if precision in ("u8", "i8") else precision)


def layer_name(name: str) -> str:
    """A layer's name without what OpenVINO adds where it takes the bias, or the scale of integers, apart."""
    return name.removesuffix("/DequantizationMultiply").removesuffix("/WithoutBiases")


def _version() -> str:
    import openvino

    return str(openvino.__version__).partition("-")[0]


def telling_line(error: Exception) -> str:
    """The telling line of OpenVINO's message, which begins with the places in its source and may end with a summary (`--`)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    summary = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (summary or telling or lines or [type(error).__name__])[0]
