"""Every artefact of several bundles at several numbers of threads, in rounds: what is quickest here, and at what accuracy.

A cell is one artefact with one number of threads. Each round visits all cells in an order of its own, opens each anew and
times a burst, so that slow weather falls on all of them; what was measured is written down at once and not measured again.
"""

from __future__ import annotations

import json
import math
import platform
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn import engines
from edgeattn.bundle import SUFFIX, Bundle, load
from edgeattn.errors import DataError, EngineError
from edgeattn.imaging import prepare
from edgeattn.profiling import frames
from edgeattn.spec import Artefact
from edgeattn.tasks import FIGURES
from edgeattn.timing import NS_PER_MS, environment, monotonic_ns

SCHEMA = "edgeattn.matrix/1"
ROUNDS, WARMUP, BURST = 5, 3, 24
"""Rounds, and in each of them inferences of a cell that do not count and that do."""


@dataclass(frozen=True)
class Cell:
    """One artefact with one number of threads."""

    bundle: str
    """Name of its bundle."""
    digest: str
    """Of the bundle."""
    engine: str
    """Its engine."""
    precision: str
    """Of its file."""
    threads: int
    """That compute one inference."""


@dataclass(frozen=True)
class Entry:
    """What is known of a cell."""

    cell: Cell
    """Which."""
    ms: tuple[float, ...] = ()
    """Median of each round's burst."""
    figure: float | None = None
    """By what its task is judged (top-1, mAP50, mIoU), where it was measured."""
    key: str = "top1"
    """What that is called in JSON."""
    failure: str = ""
    """Why it cannot be run here."""
    best: bool = False
    """Nothing quicker is as accurate; without accuracies: nothing is quicker."""

    @property
    def median_ms(self) -> float:
        """Over the rounds; infinite where it was not measured."""
        return float(np.median(self.ms)) if self.ms else math.inf

    def json(self) -> dict[str, Any]:
        """Plain JSON values."""
        measured = {"ms": self.median_ms, "rounds_ms": list(self.ms)} if self.ms else {"ms": None, "rounds_ms": []}
        return vars(self.cell) | measured | {self.key: self.figure, "failure": self.failure, "best": self.best}


def bundles_of(folder: Path) -> list[Bundle]:
    """The bundle that a folder is, or those in it.

    Raises:
        DataError: there is none.
    """
    if (folder / "bundle.json").is_file():
        return [load(folder)]
    found = sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_dir())
    if not found:
        raise DataError(f"{folder} holds no bundle (NAME{SUFFIX}); name a folder of bundles, or a bundle")
    return [load(path) for path in found]


class Matrix:
    """A measurement in the making: iterate over `measure`, then take the `entries`."""

    def __init__(self, bundles: Sequence[Bundle], threads: Sequence[int], memory: Path, rounds: int = ROUNDS) -> None:
        """Lay out the cells, with what `memory` (JSON lines) holds of them already from this machine."""
        self._bundles = {bundle.digest(): bundle for bundle in bundles}
        self._memory, self._rounds = memory, rounds
        self._images = {
            digest: prepare(next(frames.builtin(bundle)), bundle.spec.input) for digest, bundle in self._bundles.items()
        }
        self._machine = f"{platform.node()}: {environment()['cpu']}"
        self._artefacts: dict[Cell, tuple[Bundle, Artefact]] = {}
        for digest, bundle in self._bundles.items():
            for artefact in engines.held(bundle):
                for count in threads:
                    cell = Cell(bundle.name, digest, artefact.engine, artefact.precision, count)
                    self._artefacts[cell] = bundle, artefact
        self._ms: dict[Cell, dict[int, float]] = {cell: {} for cell in self._artefacts}
        self._failures: dict[Cell, str] = {}
        known = memory.read_text(encoding="utf-8") if memory.is_file() else ""
        self._unfinished = bool(known) and not known.endswith("\n")  # cut off by a kill: what follows begins a line
        for line in known.splitlines():
            self._recall(line)

    def __len__(self) -> int:
        return len(self._artefacts)

    def measure(self) -> Iterator[tuple[int, int]]:
        """Measure what is missing; yields the bursts that are done, and all."""
        total = len(self._artefacts) * self._rounds
        for turn in range(self._rounds):
            cells = [cell for cell in self._artefacts if turn not in self._ms[cell] and cell not in self._failures]
            for cell in random.Random(turn).sample(cells, len(cells)):
                try:
                    self._ms[cell][turn] = self._burst(cell)
                except EngineError as error:
                    self._failures[cell] = str(error)
                else:
                    self._remember(cell, turn)
                yield sum(map(len, self._ms.values())) + self._rounds * len(self._failures), total

    def entries(self, accuracies: Mapping[tuple[str, str, str], float] | None = None) -> list[Entry]:
        """All cells, the quickest first; `accuracies` by digest, engine and precision."""
        told = accuracies or {}
        found = [
            Entry(
                cell, tuple(ms for _, ms in sorted(self._ms[cell].items())),
                told.get((cell.digest, cell.engine, cell.precision)),
                FIGURES[self._bundles[cell.digest].spec.task].key, self._failures.get(cell, ""),
            )
            for cell in self._artefacts
        ]  # fmt: skip
        found.sort(key=lambda entry: entry.median_ms)
        return pareto(found)

    def _burst(self, cell: Cell) -> float:
        bundle, artefact = self._artefacts[cell]
        engine = engines.open_artefact(bundle, artefact, threads=cell.threads)
        try:
            image, took_ns = self._images[cell.digest], []
            for _ in range(WARMUP + BURST):
                began_ns = monotonic_ns()
                engine.infer(image)
                took_ns.append(monotonic_ns() - began_ns)
        finally:
            engine.close()
        return float(np.median(took_ns[WARMUP:])) / NS_PER_MS

    def _remember(self, cell: Cell, turn: int) -> None:
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        line = {
            "schema": SCHEMA,
            "machine": self._machine,
            "cell": vars(cell),
            "round": turn,
            "ms": self._ms[cell][turn],
        }
        with self._memory.open("a", encoding="utf-8") as stream:
            stream.write("\n" * self._unfinished + json.dumps(line) + "\n")
        self._unfinished = False

    def _recall(self, line: str) -> None:
        """Take in a line of the memory, if it is whole, of this machine and of a cell that is asked for."""
        try:
            told = json.loads(line)
            cell = Cell(**told["cell"])
        except (ValueError, KeyError, TypeError):  # cut off by a kill
            return
        if told.get("schema") == SCHEMA and told["machine"] == self._machine and cell in self._ms:
            self._ms[cell][int(told["round"])] = float(told["ms"])


def pareto(entries: Sequence[Entry]) -> list[Entry]:
    """Mark those that nothing quicker matches in accuracy; `entries` stand in the order of their time."""
    marked, most = [], -math.inf
    for entry in entries:
        figure = entry.figure if entry.figure is not None else 0.0
        best = bool(entry.ms) and figure > most
        most = max(most, figure) if entry.ms else most
        marked.append(replace(entry, best=best))
    return marked


def memory_of(folder: Path) -> Path:
    """Where this machine's measurements of a folder of bundles are kept."""
    beside = folder.parent if (folder / "bundle.json").is_file() else folder
    return beside / "matrix" / (re.sub(r"[^A-Za-z0-9_.-]", "-", platform.node() or "box") + ".jsonl")
