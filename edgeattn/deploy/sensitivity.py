"""What int8 costs, layer by layer and block by block: signal-to-error of each, and what it brings to leave it in float.

Signal-to-error is that of a layer's output with all quantizers before it at work: 10 log10 of the sum of squares of float's
values over the sum of squares of the differences, in dB. Accuracy, maps and time with a layer in float are those of a saved
file, as on the ladder: one file a row, attention blocks first, then the layers with the most error.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from edgeattn.deploy.ladder import Ladder, Step
from edgeattn.deploy.layers import layer_outputs
from edgeattn.deploy.recipes.plan import Plan
from edgeattn.deploy.structure import LAYERS_ORT, quantized_layers
from edgeattn.engines.base import Array

PICTURES = 32
"""Inputs on which signal-to-error is measured: a sum over all places of all channels needs no more."""
TURNS = 3
"""Times that the net as it is, is measured: how far its time is apart is the noise of the others."""
SCHEMA = "edgeattn.sensitivity/1"


@dataclass(frozen=True)
class Row:
    """A layer, an attention block or a branch of the head, and what int8 does to it."""

    name: str
    """The layer's name in the graph, or the block's path."""
    kind: str
    """`block`, `head` (a branch of it) or `layer`."""
    place: int
    """How many of its kind are before it in the graph."""
    signal_to_error_db: float
    """Of its output (a block's: of its last layer; a branch's: of its worst)."""
    left_float: Step | None = None
    """What was measured with it in float; None: there was no time."""


@dataclass(frozen=True)
class Sensitivity:
    """One engine's table."""

    engine: str
    """The engine."""
    base: Step
    """The int8 that all rows are compared with."""
    rows: tuple[Row, ...]
    """Blocks, branches of the head, then layers, each with the most error first."""
    noise_ms: float = 0.0
    """How far times of the same file were apart, in milliseconds: smaller differences say nothing."""
    pictures: int = 0
    """Labelled pictures that accuracy was measured on."""

    def saved(self, row: Row) -> dict[str, float | None]:
        """What leaving a row in float changes: the task's figure (see `base.key`), `agreement`, `map_js` and `ms`."""
        left = row.left_float
        if left is None or left.failure:
            return dict.fromkeys((self.base.key, "agreement", "map_js", "ms"))
        moved = None if left.map_js is None or self.base.map_js is None else left.map_js - self.base.map_js
        return {
            self.base.key: left.figure - self.base.figure,
            "agreement": left.agreement - self.base.agreement,
            "map_js": moved,
            "ms": (left.time_ratio - self.base.time_ratio) * self.base.float_ms,
        }

    def json(self) -> dict[str, Any]:
        """As other programs read it."""
        rows = [
            {"name": row.name, "kind": row.kind, "place": row.place, "signal_to_error_db": row.signal_to_error_db}
            | {f"{key}_change": value for key, value in self.saved(row).items()}
            for row in self.rows
        ]
        head = {"engine": self.engine, "pictures": self.pictures, "noise_ms": self.noise_ms, "base": self.base.json()}
        return head | {"rows": rows}


def sensitivity(ladder: Ladder, engine: str, plan: Plan, seconds: float, bar: Progress) -> Sensitivity:
    """Measure an engine's table.

    Args:
        ladder: the bundle with its pictures; what was measured before is remembered.
        engine: the engine.
        plan: how its int8 is quantized, without the change.
        seconds: time to spend; signal-to-error, and int8 as it is, are measured in any case.
        bar: shows how far it is.

    Raises:
        EdgeAttnError: the toolchain failed on `plan`.
    """
    ends = time.monotonic() + seconds
    task = bar.add_task(engine, total=None, note="int8 as it is")
    bases = [ladder.attempt(engine, plan, "as it is", turn=turn) for turn in range(TURNS)]
    rows = _rows(ladder, engine, plan)
    bar.update(task, total=len(rows))
    took_s = 0.0
    for i, row in enumerate(rows):
        left, began = _left_float(ladder, plan, row), time.monotonic()
        bar.update(task, completed=i, note=row.name)
        known = ladder.knows(engine, left)
        if known or began + took_s <= ends:
            rows[i] = replace(row, left_float=ladder.attempt(engine, left, f"{row.kind} float", [row.name]))
            took_s = took_s if known else time.monotonic() - began
    bar.update(task, completed=len(rows), note="")
    times_ms = [step.time_ratio * bases[0].float_ms for step in bases]
    return Sensitivity(engine, bases[0], tuple(rows), max(times_ms) - min(times_ms), len(ladder.validation))


def _left_float(ladder: Ladder, plan: Plan, row: Row) -> Plan:
    if row.kind == "block":
        return replace(plan, rungs={**plan.rungs, row.name: "block"})
    return replace(plan, layers=(*plan.layers, *ladder.heads.get(row.name, (row.name,))))


def _rows(ladder: Ladder, engine: str, plan: Plan) -> list[Row]:
    """What int8 touches, with its signal-to-error: blocks, branches, then layers, each with the most error first."""
    reference, quantized = ladder.files(engine, plan)
    touched = quantized_layers(quantized)
    errors = signal_to_error(engine, reference, quantized, ladder.inputs[:PICTURES])
    layers = [Row(name, "layer", place, errors[name]) for place, name in enumerate(errors) if name in touched]
    blocks: list[Row] = []
    for block in ladder.blocks:
        inside = [name for name in errors if name.startswith(f"{block}.")]
        if touched.intersection(inside):
            blocks.append(Row(block, "block", len(blocks), errors[inside[-1]]))
    branches = [
        Row(name, "head", place, min(errors[layer] for layer in touched.intersection(own)))
        for place, (name, own) in enumerate(ladder.heads.items())
        if touched.intersection(own)
    ]
    return [row for rows in (blocks, branches, layers) for row in sorted(rows, key=lambda row: row.signal_to_error_db)]


def signal_to_error(engine: str, reference: Path, quantized: Path, inputs: Sequence[Array]) -> dict[str, float]:
    """Of every convolution and matrix product of an ONNX file, by name in the order of the graph, in dB.

    Args:
        engine: which of them runs both files.
        reference: the float `.onnx`.
        quantized: the engine's int8 file, made of it.
        inputs: prepared pictures.
    """
    import onnx

    names = [
        node.name for node in onnx.load(reference, load_external_data=False).graph.node if node.op_type in LAYERS_ORT
    ]
    floats = layer_outputs(engine, reference, names, inputs)
    integers = layer_outputs(engine, quantized, names, inputs)
    signal, error = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for ours, theirs in zip(floats, integers, strict=True):
        for name in names:
            signal[name] += float(np.square(ours[name], dtype=np.float64).sum())
            error[name] += float(np.square(np.subtract(ours[name], theirs[name], dtype=np.float64)).sum())
    return {name: float(10 * np.log10(max(signal[name], 1e-30) / max(error[name], 1e-30))) for name in names}
