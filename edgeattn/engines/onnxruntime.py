"""ONNX Runtime on the CPU."""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.engines.base import Array, check_image, check_outputs, checked_threads, executed, wanted_outputs
from edgeattn.errors import EngineError
from edgeattn.spec import Spec

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

NUMBERED = re.compile(r"_token_\d+$")
"""What ONNX Runtime puts behind the name of a node that it has fused."""
UNWANTED_OPTIMIZERS = ["WeightBiasQuantization"]
"""It quantizes, unasked and per tensor, what the quantizer left in float."""


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
        self._file, self._input = file, spec.input
        self._outputs = wanted_outputs(spec, maps=maps)
        self._model: str | bytes = str(file)
        try:
            if spec.maps and not maps:
                self._model = only_outputs(file, self._outputs)
            self._session: Any = self._open(self._model)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"{file}: onnxruntime {onnxruntime.__version__} cannot load it ({_line(error)})"
            ) from error
        check_outputs(file, self._outputs, [output.name for output in self._session.get_outputs()])
        if [given.name for given in self._session.get_inputs()] != [spec.input.name]:
            raise EngineError(f"{file} does not take '{spec.input.name}' as its one input; export the bundle again")
        self._optimized_nodes: Sequence[tuple[str, str]] | None = None
        self.details: Mapping[str, Any] = {"version": onnxruntime.__version__, "device": "CPU", "file": file.name}

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

    def close(self) -> None:
        """Free the session."""
        self._session = None

    @property
    def nodes(self) -> dict[str, dict[str, int]]:
        """As `base.Engine.nodes`, by the graph as ONNX Runtime optimized it; `convert`: from and to integers."""
        counts: dict[str, collections.Counter[str]] = {}
        for kind in (kind for kind, _ in self._optimized() if kind not in MOVING):
            quantized = kind in INTEGER or kind.startswith("QLinear")
            precision = "int8" if quantized else "convert" if kind in CONVERTING else "f32"
            counts.setdefault(precision, collections.Counter())[kind] += 1
        return {precision: dict(kinds) for precision, kinds in counts.items()}

    @property
    def integer_layers(self) -> frozenset[str]:
        """As `base.Engine.integer_layers`."""
        return frozenset(NUMBERED.sub("", name) for kind, name in self._optimized() if kind in INTEGER)

    def _optimized(self) -> Sequence[tuple[str, str]]:
        """Types and names of the nodes of the graph as ONNX Runtime optimized it."""
        if self._optimized_nodes is None:
            import onnx

            with tempfile.TemporaryDirectory() as folder:
                optimized = Path(folder, "optimized.onnx")
                self._open(self._model, save_as=optimized)
                graph = onnx.load(optimized, load_external_data=False).graph
                self._optimized_nodes = [(node.op_type, node.name) for node in graph.node]
        return self._optimized_nodes

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

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, and said by us
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Spinning threads win some microseconds a call and take a third of a core from a loop that waits for a camera.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if save_as:
            options.optimized_model_filepath = str(save_as)
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=UNWANTED_OPTIMIZERS
        )


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
