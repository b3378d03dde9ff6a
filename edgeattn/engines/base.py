"""The contract of an engine: `infer` and `close`, and a record of what is executed; and what all engines share."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import EngineError
from edgeattn.spec import InputSpec, Spec
from edgeattn.timing.environment import usable_cores

Array = NDArray[np.generic]

MOST_THREADS = 4
"""Most threads taken unasked: small nets gain little beyond, and capture, decoding and drawing want cores too."""


class Layer(NamedTuple):
    """One node of a graph as it is executed."""

    names: tuple[str, ...]
    """Of the file's nodes that went into it."""
    kind: str
    """Type, in the engine's words."""
    precision: str
    """What it computes in: `int8`, `f32`, `bf16`, ...; `convert`: it goes from float to integers or back."""


Grouping = Callable[[Sequence[Layer], Sequence[Sequence[int]]], Sequence[str]]
"""Names the group of each node of a graph, from the nodes and, for each, the places of those whose outputs it reads."""


class Counted(NamedTuple):
    """Times of groups of nodes."""

    nodes: tuple[Layer, ...]
    """What is executed."""
    groups: tuple[str, ...]
    """The group of each node."""
    ms: Mapping[str, float]
    """Time of each group in one inference."""
    whole_ms: float
    """Time of one inference of the engine as it is, in turns with the counting."""
    counting_ms: float
    """Time of one that is counted: what is beyond `whole_ms` is the counting's own."""
    between_ms: float = 0.0
    """Of the sum of all groups, what no counter tells: time between the nodes, spread evenly over them."""


class Engine(Protocol):
    """Runs one artefact. Not thread-safe: one thread calls `infer`."""

    name: str
    """`onnxruntime`, `openvino` or `fake`."""
    precision: str
    """Precision of the file: `float` or `int8`."""
    threads: int
    """Threads that compute one inference."""
    details: Mapping[str, Any]
    """Version, device and whatever else is worth a line in a report."""

    @property
    def executed_precision(self) -> str:
        """What the engine executes, as far as it says: `f32`, `bf16`, `int8`, `int8+f32`, ...; found out when asked."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The graph as it is executed, node by node; empty where the device does not show it."""

    @property
    def nodes(self) -> Mapping[str, Mapping[str, int]]:
        """Nodes of the graph as it is executed, by precision and type; those that only move numbers are left out."""

    @property
    def integer_layers(self) -> frozenset[str]:
        """Names, as in the file, of the convolutions and matrix products that are executed on integers."""

    @property
    def inside_ms(self) -> float | None:
        """What the last inference took by the engine's own clock, in milliseconds: without the call and the copies around it.
        None where it has none."""

    def infer(self, image: Array) -> dict[str, Array]:
        """Run one batch of shape `spec.input.shape` and return the outputs by name; they are the caller's to keep.

        Raises:
            EngineError: the input has another shape or type, the engine failed, or it is closed.
        """

    def count(self, image: Array, grouping: Grouping) -> Counted:
        """Time groups of nodes, on a copy of the model that is made for it.

        Raises:
            EngineError: the engine or its device does not tell the times of parts.
        """

    def close(self) -> None:
        """Free what the engine holds; a second call does nothing."""


def default_threads() -> int:
    """Physical cores that this process may use (affinity, container quota), at most `MOST_THREADS`."""
    import psutil

    return max(1, min(psutil.cpu_count(logical=False) or 1, usable_cores(), MOST_THREADS))


def checked_threads(threads: int | None) -> int:
    """The threads asked for, or the default.

    Raises:
        EngineError: fewer than one.
    """
    if threads is not None and threads < 1:
        raise EngineError(f"{threads} threads cannot compute anything; ask for 1 or more")
    return threads or default_threads()


def wanted_outputs(spec: Spec, *, maps: bool) -> list[str]:
    """Names of the outputs to compute: the task's, and those of the attention maps where asked for."""
    return [*spec.outputs, *(m.output for m in spec.maps if maps)]


def check_outputs(file: Path, wanted: Collection[str], given: Collection[str]) -> None:
    """Check that a file gives the outputs that its spec names.

    Raises:
        EngineError: one is missing.
    """
    missing = [name for name in wanted if name not in given]
    if missing:
        raise EngineError(f"{file} gives no output '{missing[0]}' but {', '.join(given)}; export the bundle again")


def check_image(image: Array, spec: InputSpec) -> None:
    """Check an input against the spec.

    Raises:
        EngineError: another shape or type; names what was expected and what was given.
    """
    expected = np.dtype(np.uint8 if spec.layout == "nhwc_u8" else np.float32)
    if image.shape != spec.shape or image.dtype != expected:
        raise EngineError(
            f"the input must be {spec.shape} {expected}, not {image.shape} {image.dtype}; prepare frames with "
            "edgeattn.imaging.prepare(frame, spec.input)"
        )


def infer_all(engine: Engine, inputs: Array) -> dict[str, Array]:
    """Run (N, ...) inputs one by one, as engines take them, and join their outputs by name."""
    rows = [engine.infer(inputs[i : i + 1]) for i in range(len(inputs))]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def counted(layers: Iterable[Layer], moving: Collection[str]) -> dict[str, dict[str, int]]:
    """Layers by precision and type, without the types that only move numbers."""
    counts: dict[str, collections.Counter[str]] = {}
    for layer in layers:
        if layer.kind not in moving:
            counts.setdefault(layer.precision, collections.Counter())[layer.kind] += 1
    return {precision: dict(kinds) for precision, kinds in counts.items()}


def executed(counts: Mapping[str, int]) -> str:
    """Name what ran from the number of computing nodes (convolutions, matrix products) per precision, int8 first."""
    ran = sorted((name for name, count in counts.items() if count), key=lambda name: (name != "int8", name))
    return "+".join(ran) or "unknown"


def cache_dir() -> Path | None:
    """Folder for what can be made again: `EDGEATTN_CACHE`, else `~/.cache/edgeattn`; None where none can be written."""
    try:
        folder = Path(os.environ.get("EDGEATTN_CACHE") or Path.home() / ".cache" / "edgeattn")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
