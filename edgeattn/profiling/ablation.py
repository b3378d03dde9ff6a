"""Nets without one of their attention blocks: the same file with the block bypassed, to be timed against the whole.

What is taken out is what the exporter's names say, and the tensor that enters takes the place of the one that leaves. The
answers are other ones; only the time is of use.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.engines import open_artefact
from edgeattn.engines.base import Array, Engine
from edgeattn.errors import BundleError
from edgeattn.profiling.blocks import part_of
from edgeattn.timing import NS_PER_MS, monotonic_ns
from edgeattn.timing.statistics import intervals

if TYPE_CHECKING:
    import onnx

    from edgeattn.bundle import Bundle
    from edgeattn.spec import Artefact

TURNS, BURST = 24, 3
"""Turns of the net and of those without a block, and inferences in a turn, of which the quickest counts."""


@dataclass(frozen=True)
class Saved:
    """What a net gains without a block."""

    ms: float
    """Of one inference: median of the differences, turn by turn."""
    interval_ms: tuple[float, float] | None
    """Interval of that median."""


def measure_without(
    bundle: Bundle, artefact: Artefact, engine: Engine, image: Array, choices: Mapping[str, Collection[str]]
) -> dict[str, Saved]:
    """Time an open engine in turns with the same net without the blocks of each choice.

    Raises:
        BundleError: a block cannot be bypassed, see `open_without`.
        EngineError: the engine does not load a file without it.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        others: dict[str, Engine] = {}
        for i, (name, blocks) in enumerate(choices.items()):
            (folder / str(i)).mkdir()
            others[name] = open_without(bundle, artefact, blocks, folder / str(i), threads=engine.threads)
            stack.callback(others[name].close)
        order, less = random.Random(0), {name: np.empty(TURNS) for name in others}
        whole_ms = _quickest(engine, image)
        for turn in range(TURNS):
            for name in order.sample(list(others), len(others)):
                without_ms = _quickest(others[name], image)
                before_ms, whole_ms = whole_ms, _quickest(engine, image)
                less[name][turn] = (before_ms + whole_ms) / 2 - without_ms
    return {name: Saved(float(np.median(ms)), intervals(ms)["p50"]) for name, ms in less.items()}


def _quickest(engine: Engine, image: Array) -> float:
    engine.infer(image)  # the caches are the other's
    took_ns = []
    for _ in range(BURST):
        began_ns = monotonic_ns()
        engine.infer(image)
        took_ns.append(monotonic_ns() - began_ns)
    return min(took_ns) / NS_PER_MS


_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")


def open_without(
    bundle: Bundle, artefact: Artefact, blocks: Collection[str], folder: Path, *, threads: int | None = None
) -> Engine:
    """Open an artefact without these attention blocks, as bundle.json names them; its files go into `folder`.

    Raises:
        BundleError: a block cannot be bypassed: the file does not name its operators, or its shape changes in it.
    """
    source = bundle.file(artefact)
    known = [each.block for each in bundle.spec.maps]
    file = folder / f"without{source.suffix}"
    if source.suffix == ".onnx":
        import onnx

        model = onnx.load(source)
        for block in blocks:
            bypass_onnx(model, block, known)
        onnx.save(model, file)
    else:
        import openvino

        from edgeattn.engines.openvino import openvino_core

        ir = openvino_core().read_model(source)
        for block in blocks:
            bypass_openvino(ir, block, known)
        openvino.save_model(ir, file, compress_to_fp16=False)
    return open_artefact(bundle, artefact, threads=threads, file=file)


def bypass_onnx(model: onnx.ModelProto, block: str, known: Collection[str]) -> None:
    """Lead what enters a block past it, in place.

    Raises:
        BundleError: see `open_without`.
    """
    graph = model.graph
    makes = {output: node for node in graph.node for output in node.output}
    made = {output for node in graph.node if part_of(node.name, known) == block for output in node.output}
    for node in graph.node:  # quantizers, and what the quantizer's tool split up, bear no module's name
        live = [name for name in node.input if _is_live(name, makes)]
        if live and made.issuperset(live) and part_of(node.name, known) is None:
            made.update(node.output)
    reading = [(node, i) for node in graph.node for i, name in enumerate(node.input) if name in makes]
    inside = [(node, i) for node, i in reading if made.intersection(node.output)]
    outside = [(node, i) for node, i in reading if not made.intersection(node.output)]
    entering = {name for node, i in inside if (name := node.input[i]) not in made and _is_live(name, makes)}
    leaving = {node.input[i] for node, i in outside if node.input[i] in made}
    _only({_source(name, makes) for name in entering}, {_source(name, makes) for name in leaving}, block)
    entry = max(entering, key=lambda name: makes[name].op_type in _QUANTIZING)
    if makes[entry].op_type not in _QUANTIZING:  # what quantizes the leaving value quantizes the entering one
        leaving = {_source(name, makes) for name in leaving}
        outside = [(node, i) for node, i in reading if node.op_type in _QUANTIZING] + outside
    for node, i in outside:
        if node.input[i] in leaving:
            node.input[i] = entry


def bypass_openvino(model: Any, block: str, known: Collection[str]) -> None:
    """Lead what enters a block past it, in place.

    Raises:
        BundleError: see `open_without`.
    """
    inside: dict[str, Any] = {}
    hang_on_input = set[str]()
    for op in model.get_ordered_ops():
        name, part = op.get_friendly_name(), part_of(op.get_friendly_name(), known)
        live = hang_on_input.intersection(value.get_node().get_friendly_name() for value in op.input_values())
        if live or op.get_type_name() == "Parameter":
            hang_on_input.add(name)
        follows = part is None and live and op.get_type_name() != "Result" and inside.keys() >= live
        if part == block or follows:
            inside[name] = op
    entering: dict[str, Any] = {}
    leaving: dict[str, Any] = {}
    for op in inside.values():
        for value in op.input_values():
            source = value.get_node().get_friendly_name()
            if source in hang_on_input and source not in inside:
                entering[source] = value
        for output in op.outputs():
            readers = [each.get_node() for each in output.get_target_inputs()]
            outside = [each for each in readers if each.get_friendly_name() not in inside]
            if any(each.get_type_name() != "Result" for each in outside):
                leaving[op.get_friendly_name()] = output
    _only(set(entering), set(leaving), block)
    (entry,), (output,) = entering.values(), leaving.values()
    last = output.get_node()
    is_quantized = entry.get_node().get_type_name() == "FakeQuantize"
    if (
        last.get_type_name() == "FakeQuantize" and not is_quantized
    ):  # what quantizes the leaving value quantizes the entering one
        last.input(0).replace_source_output(entry)
        return
    for reader in list(output.get_target_inputs()):
        if reader.get_node().get_friendly_name() not in inside and reader.get_node().get_type_name() != "Result":
            reader.replace_source_output(entry)


def _only(entering: Collection[str], leaving: Collection[str], block: str) -> tuple[str, str]:
    if len(entering) != 1 or len(leaving) != 1:
        raise BundleError(
            f"the block {block} cannot be bypassed: {len(entering)} values enter and {len(leaving)} leave it, instead "
            "of one each (exported by an older edgeattn? export it again)"
        )
    return next(iter(entering)), next(iter(leaving))


def _source(name: str, makes: Mapping[str, Any]) -> str:
    """The value behind quantizers."""
    while name in makes and makes[name].op_type in _QUANTIZING:
        name = makes[name].input[0]
    return name


def _is_live(name: str, makes: Mapping[str, Any]) -> bool:
    """Whether a value hangs on the input, and is none of the weights."""
    return name in makes and makes[name].op_type != "Constant" and _source(name, makes) in makes
