"""ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.bundle import sha256
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
from edgeattn.engines.kept import keep, recall
from edgeattn.errors import EngineError
from edgeattn.spec import Spec
from edgeattn.timing.environment import processor_key

if TYPE_CHECKING:
    import onnx

INTEGER = frozenset({
    "QLinearConv", "QLinearConvTranspose", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention",
})  # fmt: skip
"""Computing nodes of an optimized graph that multiply integers."""
FLOAT = frozenset({
    "Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul",
    "TransposeMatMul", "Attention", "MultiHeadAttention",
})  # fmt: skip
"""Computing nodes of an optimized graph that multiply floats."""

CONVERTING = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Nodes that go from float to integers and back."""
MOVING = frozenset(
    {"Cast", "Concat", "Gather", "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Nodes that only move numbers."""

SETTINGS: Mapping[str, Any] = {"streams": 1, "pinning": False, "spinning": False}
"""How the threads of every session run."""

NUMBERED = re.compile(r"_token_\d+$")
"""What ONNX Runtime puts behind the name of a node that it has fused."""
UNWANTED_OPTIMIZERS = ["WeightBiasQuantization"]
"""It quantizes, unasked and per tensor, what the quantizer left in float."""
TURNS = 40
"""In which the parts of a graph are timed."""
KEPT = "onnxruntime"
"""Folder in the cache: models that were cut, and what was made of graphs."""


@dataclass(frozen=True)
class _Graph:
    """Layers, as they are kept."""

    names: tuple[tuple[str, ...], ...]
    kinds: tuple[str, ...]
    precisions: tuple[str, ...]


class OnnxRuntimeEngine:
    """Runs an ONNX file with ONNX Runtime's CPU provider."""

    name = "onnxruntime"

    def __init__(
        self, file: Path, spec: Spec, *, precision: str = "float", threads: int | None = None, maps: bool = False
    ) -> None:
        """Load `file`.

        Args:
            file: the ONNX file.
            spec: the model's contract.
            precision: the file's precision, for the record.
            threads: threads that compute one inference; None: `base.default_threads`.
            maps: give the attention maps too; otherwise they are cut off the graph before it is loaded.

        Raises:
            EngineError: ONNX Runtime is not installed, cannot load the file, or the file does not fit the spec.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(f"onnxruntime cannot be imported ({error}); pip install onnxruntime") from error
        self.precision, self.threads = precision, checked_threads(threads)
        self.inside_ms: float | None = None  # a session has no clock of its own
        self._file, self._input = file, spec.input
        self._outputs = wanted_outputs(spec, maps=maps)
        self._model: str | bytes = str(file)
        try:
            self._session: Any = self._open_cut() if spec.maps and not maps else self._open(self._model)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"{file}: onnxruntime {onnxruntime.__version__} cannot load it ({_line(error)})"
            ) from error
        check_outputs(file, self._outputs, [output.name for output in self._session.get_outputs()])
        if [given.name for given in self._session.get_inputs()] != [spec.input.name]:
            raise EngineError(f"{file} does not take '{spec.input.name}' as its one input; export the bundle again")
        self._layers: tuple[Layer, ...] | None = None
        self.details: Mapping[str, Any] = {
            "version": onnxruntime.__version__,
            "device": "CPU",
            "file": file.name,
            **SETTINGS,
        }

    def infer(self, image: Array) -> dict[str, Array]:
        """Run one batch; see `base.Engine.infer`."""
        check_image(image, self._input)
        if self._session is None:
            raise EngineError(f"{self._file}: the engine was closed; open it again")
        try:
            values = self._session.run(self._outputs, {self._input.name: image})
        except Exception as error:
            raise EngineError(f"{self._file}: onnxruntime failed to run it ({_line(error)})") from error
        return dict(zip(self._outputs, values, strict=True))

    def count(self, image: Array, grouping: Grouping) -> Counted:
        """As `base.Engine.count`: the optimized graph is run to the end of each group, all in turns.

        A group's time is what the graph takes longer with it, in the median turn. ONNX Runtime's own profiler takes several
        microseconds a node, more than a small net's nodes themselves.
        """
        optimized = self._optimized()
        nodes = self._named(optimized)
        makes = {output: i for i, node in enumerate(optimized.graph.node) for output in node.output if output}
        reads = [[makes[name] for name in _reads(node) if name in makes] for node in optimized.graph.node]
        groups = tuple(grouping(nodes, reads))
        order = in_groups(reads, groups)
        ends = [i + 1 for i, at in enumerate(order) if i + 1 == len(order) or groups[at] != groups[order[i + 1]]]
        sessions = [self._session_of(optimized, order[:end]) for end in ends]
        runs = [partial(session.run, None, {self._input.name: image}) for session in sessions]
        runs.append(partial(self.infer, image))
        took = np.zeros((TURNS, len(runs)))
        for turn in range(TURNS):
            for i in range(len(runs)) if turn % 2 else reversed(range(len(runs))):
                runs[i]()  # the caches are another's
                began = time.perf_counter()
                runs[i]()
                took[turn, i] = 1000.0 * (time.perf_counter() - began)
        # Within a turn the machine is as fast for one as for the next; over all turns it is not.
        shares = np.median(np.diff(took[:, :-1], prepend=0.0) / took[:, -2:-1], axis=0)
        whole_ms = float(np.median(took[:, -1]))
        counting_ms = whole_ms * float(np.median(took[:, -2] / took[:, -1]))
        ms = dict.fromkeys(groups, 0.0)
        for end, share in zip(ends, shares / shares.sum(), strict=True):
            ms[groups[order[end - 1]]] += counting_ms * float(share)
        return Counted(nodes, groups, ms, whole_ms, counting_ms)

    def _optimized(self) -> onnx.ModelProto:
        """The model as ONNX Runtime optimized it for this machine."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "optimized.onnx")
            self._open(self._model, save_as=file)
            return onnx.load(file)

    def _named(self, optimized: onnx.ModelProto) -> tuple[Layer, ...]:
        """Its nodes, named as in the file: one that was laid out anew bears the name of its tensor."""
        import onnx

        model = onnx.load(self._file, load_external_data=False)
        made = {output: node.name for node in model.graph.node for output in node.output}
        return tuple(_layer(node, made) for node in optimized.graph.node)

    def _session_of(self, optimized: onnx.ModelProto, places: Sequence[int]) -> Any:
        """A session over these nodes of a graph that is optimized already; it gives what the last one makes."""
        import onnx
        import onnxruntime

        part = onnx.ModelProto()
        part.CopyFrom(optimized)
        kept = [optimized.graph.node[place] for place in places]
        del part.graph.node[:], part.graph.output[:]
        part.graph.node.extend(kept)
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in kept[-1].output if name)
        options = self._session_options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def close(self) -> None:
        """Free the session."""
        self._session = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """As `base.Engine.layers`, of the graph as ONNX Runtime optimized it."""
        if self._layers is None:
            key = {
                "model": sha256(self._file), "outputs": self._outputs, "version": self.details["version"],
                "processor": processor_key(), "without": UNWANTED_OPTIMIZERS,
            }  # fmt: skip
            known = recall(KEPT, key, _Graph)
            if known is None:
                found = self._named(self._optimized())
                known = _Graph(*(tuple(each) for each in zip(*found, strict=True)))
                keep(KEPT, key, known)
            self._layers = tuple(map(Layer, known.names, known.kinds, known.precisions))
        return self._layers

    @property
    def nodes(self) -> dict[str, dict[str, int]]:
        """As `base.Engine.nodes`."""
        return counted(self.layers, MOVING)

    @property
    def integer_layers(self) -> frozenset[str]:
        """As `base.Engine.integer_layers`."""
        return frozenset(layer.names[0] for layer in self.layers if layer.kind in INTEGER)

    @property
    def executed_precision(self) -> str:
        """`int8`, `f32` or `int8+f32`, by the computing nodes of the optimized graph."""
        computing = INTEGER | FLOAT
        try:
            nodes = self.nodes
        except Exception:  # ONNX Runtime shows its graph as a file only: a full disk is no reason not to run
            return "unknown"
        return executed(
            {name: sum(n for kind, n in kinds.items() if kind in computing) for name, kinds in nodes.items()}
        )

    def _open(self, model: str | bytes, save_as: Path | None = None) -> Any:
        import onnxruntime

        options = self._session_options()
        if save_as:
            options.optimized_model_filepath = str(save_as)
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=UNWANTED_OPTIMIZERS
        )

    def _open_cut(self) -> Any:
        """A session without the attention maps; what the cache holds is made anew where it is spoilt."""
        self._model = _cut(self._file, self._outputs)
        if isinstance(self._model, str):
            with contextlib.suppress(Exception):
                return self._open(self._model)
            self._model = only_outputs(self._file, self._outputs)
        return self._open(self._model)

    def _session_options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, and said by us
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Spinning threads win some microseconds a call and take a third of a core from a loop that waits for a camera.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


def in_groups(reads: Sequence[Sequence[int]], groups: Sequence[str]) -> list[int]:
    """An order in which nodes can run and a group's are together as far as they can be.

    Args:
        reads: for each node the places of those that must run before it.
        groups: of the nodes.
    """
    waits = [set(each) for each in reads]
    order: list[int] = []
    ready = [place for place, each in enumerate(waits) if not each]
    while ready:
        same = [place for place in ready if order and groups[place] == groups[order[-1]]]
        chosen = min(same or ready)
        ready.remove(chosen)
        order.append(chosen)
        for place, each in enumerate(waits):
            if chosen in each:
                each.discard(chosen)
                if not each:
                    ready.append(place)
    return order


def _layer(node: onnx.NodeProto, made: Mapping[str, str]) -> Layer:
    """`made`: by tensor of the file, the node that makes it."""
    kind, name = node.op_type, NUMBERED.sub("", node.name)
    quantized = kind in INTEGER or kind.startswith("QLinear")
    precision = "int8" if quantized else "convert" if kind in CONVERTING else "f32"
    return Layer((made.get(name.removesuffix("_nchwc"), name),), kind, precision)


def _cut(file: Path, outputs: Sequence[str]) -> str | bytes:
    """The model with these outputs alone, out of the cache where it can be: then `onnx`, 13 MB of memory, is not needed."""
    root = cache_dir()
    if root is None:
        return only_outputs(file, outputs)
    name = hashlib.sha256(json.dumps([sha256(file), list(outputs)]).encode()).hexdigest()[:24]
    kept = root / KEPT / f"{name}.onnx"
    if not kept.is_file():
        model = only_outputs(file, outputs)
        partial = kept.with_name(f".{kept.name}.{os.getpid()}")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(model)
            partial.replace(kept)
        except OSError:  # a full disk is no reason not to run
            partial.unlink(missing_ok=True)
            return model
    return str(kept)


def only_outputs(file: Path, outputs: Sequence[str]) -> bytes:
    """An ONNX file's bytes with these outputs alone, and without the nodes that only the others need.

    Raises:
        EngineError: the file does not give one of them.
    """
    import onnx

    model = onnx.load(file)
    check_outputs(file, outputs, [output.name for output in model.graph.output])
    kept = [output for output in model.graph.output if output.name in outputs]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    _drop_unused(model.graph)
    return bytes(model.SerializeToString())


def _drop_unused(graph: onnx.GraphProto) -> None:
    needed, nodes = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_reads(node))
    weights = [weight for weight in graph.initializer if weight.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, its subgraphs (If, Loop) included."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= _reads(inner)
        names.update(output.name for output in attribute.g.output)
    return names


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
