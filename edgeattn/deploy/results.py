"""What `verify` found: figures and gates of every artefact, and the report that other programs read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeattn.deploy.structure import Structure
from edgeattn.evaluation import classify, significance
from edgeattn.evaluation.judge import ClassFigures
from edgeattn.evaluation.significance import Verdict
from edgeattn.spec import Task, to_json
from edgeattn.tasks import FIGURES, Figure

SCHEMA = "edgeattn.verify/1"


@dataclass(frozen=True)
class Fidelity:
    """How near the maps of one attention block are to the float reference's: medians over the pictures."""

    block: str
    """The block's path."""
    js: float
    """Divergence, as a fraction of that between maps of different pictures: 0 is equal."""
    rank: float
    """Rank correlation: 1 is equal."""
    overlap: float
    """Share of what float marks most (a fifth of the places) that it marks most too: 1 is equal."""


@dataclass(frozen=True)
class Result:
    """What was measured on one artefact."""

    engine: str
    """Its engine."""
    precision: str
    """Precision of its file: `float` or `int8`."""
    executed_precision: str = "nothing"
    """What the engine executed."""
    threads: int = 0
    """Threads that computed one inference."""
    n: int = 0
    """Pictures."""
    figure: float | None = None
    """By what its task is judged (see `tasks.FIGURES`): top-1, mAP50 or mIoU; None: no labels."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What else is known of the answers, as `map` of a detector; empty: no labels."""
    agreement: float | None = None
    """Share of pictures (of a segmenter: of pixels) on which it answers as the float reference; without pictures, as the maker
    on golden inputs."""
    map_js: float | None = None
    """Divergence of its maps from float's, as a fraction of that between different pictures, in the worst block; None: no
    maps."""
    map_rank: float | None = None
    """Rank correlation of its maps with float's, in the worst block; None: no maps."""
    map_overlap: float | None = None
    """Share of what float's maps mark most (a fifth of the places) that its own mark most too, in the worst block; None: no
    maps."""
    latency_ms: float | None = None
    """Median time of one inference with maps, all artefacts in turns."""
    macro: classify.Macro | None = None
    """Precision, recall and F1, each class counting the same; None: no labels."""
    calibration_error: float | None = None
    """Mean gap between the answers' probabilities and the share of right ones (ECE); None: no labels."""
    looking: Mapping[str, float] = field(default_factory=dict)
    """How well the mean of its maps tells where to look (see `evaluation.looking`), means over the pictures with a truth."""
    blocks: tuple[Fidelity, ...] = ()
    """The maps block by block, from the first to the last."""
    structure: Structure | None = None
    """Which layers of an int8 file are executed on integers; None: float, or an engine that does not tell."""
    classes: ClassFigures = ()
    """Figures class by class; empty: no labels."""
    flips: tuple[int, ...] = ()
    """Places, in the data, of the pictures that it answers otherwise than the float reference."""
    answers: tuple[int, ...] = field(default=(), repr=False)
    """A classifier's answers in the order of the data: indices of labels, -1 for none of them."""
    scores: tuple[float, ...] = field(default=(), repr=False)
    """How sure the answers are, likewise."""
    worths: tuple[float, ...] = field(default=(), repr=False)
    """How good the answers are, 0 to 1, likewise; empty: no labels."""
    gates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Gates by name: figures and `verdict`."""

    @property
    def verdict(self) -> Verdict:
        """The worst of its gates."""
        return significance.worst([gate["verdict"] for gate in self.gates.values()])


@dataclass(frozen=True)
class Report:
    """What was measured on a bundle."""

    bundle: str
    """The bundle's folder."""
    digest: str
    """The bundle's digest."""
    task: Task
    """What the model does."""
    n: int
    """Pictures."""
    results: tuple[Result, ...]
    """One an artefact."""
    truth: tuple[Any, ...] = field(default=(), repr=False)
    """What is on the pictures, in the order of the data (see `evaluation.judge.Judge.truth`); empty: not labelled."""

    @property
    def measured(self) -> Figure:
        """The key and the name of the figure by which the results are judged."""
        return FIGURES[self.task]

    @property
    def verdict(self) -> Verdict:
        """The worst of its results."""
        return significance.worst([result.verdict for result in self.results])

    def json(self) -> dict[str, Any]:
        """The report as other programs read it."""
        rows = [_finite(to_json(result)) | {"verdict": result.verdict} for result in self.results]
        for row in rows:  # a line a picture would bury the figures
            del row["answers"], row["scores"], row["worths"]
            row |= {self.measured.key: row.pop("figure"), **row.pop("figures")}
        head = {"schema": SCHEMA, "bundle": self.bundle, "digest": self.digest, "task": self.task, "n": self.n}
        return head | {"verdict": self.verdict, "results": rows}


def _finite(value: Any) -> Any:
    """JSON values without what JSON does not know: a figure over nothing is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def gates(result: Result) -> dict[str, dict[str, Any]]:
    """A result's gates as plain values, for an artefact of bundle.json."""
    return {name: dict(gate) for name, gate in result.gates.items()}
