"""Every artefact in turns on each picture: its answers, times and maps beside the reference's, for `verify` to judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn import maps as attention
from edgeattn.engines.base import Array, Engine
from edgeattn.errors import DataError
from edgeattn.evaluation import looking
from edgeattn.evaluation.judge import BROKEN, Judge
from edgeattn.imaging import Picture, prepare, seen_box
from edgeattn.spec import Artefact, Spec
from edgeattn.tasks import Classification
from edgeattn.timing import NS_PER_MS, Clock

Shown = tuple[Picture, Any] | tuple[Picture, Any, Array]
"""A picture, its truth (see `evaluation.judge.Judge`; None: not labelled), and where to look on it if that is told."""

MAP_PICTURES = 500
"""Pictures on which maps are compared; a median needs no more."""


@dataclass
class Seen:
    """The pictures, while they are measured."""

    judge: Judge
    """Who judges the answers."""
    places: list[int] = field(default_factory=list)
    """Where they stand in the data."""
    truths: list[Any] = field(default_factory=list)
    """What is on them; None on all: not labelled."""
    apart: dict[str, list[float]] = field(default_factory=dict)
    """Per map: divergences, in bits, between the reference's maps of one picture and of the next."""

    @property
    def is_labelled(self) -> bool:
        """Whether the pictures have a truth."""
        return bool(self.truths) and self.truths[0] is not None

    def in_order(self) -> NDArray[np.int64]:
        """The places of the measured pictures, sorted: what turns a list of figures into the data's order."""
        return np.argsort(np.array(self.places, np.int64), kind="stable")


@dataclass
class Run:
    """An artefact, while it is measured."""

    artefact: Artefact
    engine: Engine | None = None
    failure: str = ""
    """Why it does not open."""
    answers: list[int] = field(default_factory=list)
    """Of a classifier the place in the labels, else 0; `BROKEN` where the outputs are not finite."""
    scores: list[float] = field(default_factory=list)
    marks: list[Any] = field(default_factory=list)
    """Where the pictures are labelled: what the figures are made of (see `evaluation.judge`)."""
    same: list[float] = field(default_factory=list)
    """How far each answer is the reference's, 0 to 1."""
    looking: dict[str, list[float]] = field(default_factory=dict)
    """Per measure of `looking`: a figure a picture with a truth."""
    times_ms: list[float] = field(default_factory=list)
    divergences: dict[str, list[float]] = field(default_factory=dict)
    """Per map: divergences, in bits, from the reference's."""
    ranks: dict[str, list[float]] = field(default_factory=dict)
    """Per map: rank correlations with the reference's."""
    overlaps: dict[str, list[float]] = field(default_factory=dict)
    """Per map: share of what the reference marks most that it marks most too."""


def measure(spec: Spec, judge: Judge, data: Iterable[Shown], order: Sequence[Run], clock: Clock) -> Seen:
    """Run all (the reference first in `order`) on every picture.

    Raises:
        EngineError: an engine failed while it ran.
        DataError: no pictures, or truths that do not fit.
    """
    seen = Seen(judge)
    names = [m.output for m in spec.maps]
    previous: Mapping[str, Array] = {}
    for i, (at, (picture, told, *where)) in enumerate(_mixed(data)):
        truth = _truth(judge, picture, told, at, seen)
        seen.places.append(at)
        seen.truths.append(truth)
        image = prepare(picture, spec.input)
        outputs: list[dict[str, Array]] = [{} for _ in order]
        for turn in range(len(order)):
            place = (turn + i) % len(order)  # who is first changes: the first finds the caches cold
            outputs[place] = _infer(order[place], image, clock)
        _answer(judge, (picture.shape[0], picture.shape[1]), truth, order, outputs)
        if i < MAP_PICTURES:
            for name in names:
                if previous:
                    _note(seen.apart, name, attention.js_divergence(outputs[0][name], previous[name]))
                _note_same(order[0], name)
                for run, own in zip(order[1:], outputs[1:], strict=True):
                    _note(run.divergences, name, attention.js_divergence(own[name], outputs[0][name]))
                    _note(run.ranks, name, attention.rank_correlation(own[name], outputs[0][name]))
                    _note(run.overlaps, name, attention.mass_overlap(outputs[0][name], own[name]))
            previous = outputs[0]
            if names and where:
                _look(picture, where[0], order, outputs, spec)
    if not seen.places:
        raise DataError("there are no pictures to verify on; give a folder that holds some")
    return seen


def _look(
    picture: Picture, where: Array, order: Sequence[Run], outputs: Sequence[Mapping[str, Array]], spec: Spec
) -> None:
    """Note how well each artefact's mean map tells where to look, on what the model sees."""
    x, y, w, h = (round(edge) for edge in seen_box(picture.shape[0], picture.shape[1], spec.input))
    seen = np.zeros((h, w))  # letterboxed, it reaches beyond the picture
    left, top = max(0, -x), max(0, -y)
    inside = where[max(0, y) : y + h, max(0, x) : x + w]
    seen[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    if seen.max() <= where.max() / 2:  # what is marked lies beyond what the model sees
        return
    for run, own in zip(order, outputs, strict=True):
        found = attention.mean_map({m.output: own[m.output] for m in spec.maps})
        for name, figure in looking.measures(found, seen).items():
            run.looking.setdefault(name, []).append(figure)


def _mixed(data: Iterable[Shown]) -> Iterator[tuple[int, Shown]]:
    """The pictures with their places: a sequence shuffled, since maps of the same class in a row are too much alike."""
    if isinstance(data, Sequence):
        return ((int(at), data[int(at)]) for at in np.random.default_rng(0).permutation(len(data)))
    return enumerate(data)


def _note(series: dict[str, list[float]], name: str, figure: NDArray[np.float64]) -> None:
    series.setdefault(name, []).append(figure.item())


def _note_same(run: Run, name: str) -> None:
    """The reference's maps are its own."""
    for series, figure in ((run.divergences, 0.0), (run.ranks, 1.0), (run.overlaps, 1.0)):
        series.setdefault(name, []).append(figure)


def _infer(run: Run, image: Array, clock: Clock) -> dict[str, Array]:
    assert run.engine
    before = clock()
    outputs = run.engine.infer(image)
    run.times_ms.append((clock() - before) / NS_PER_MS)
    return outputs


def _answer(
    judge: Judge, size: tuple[int, int], truth: Any, order: Sequence[Run], outputs: Sequence[Mapping[str, Array]]
) -> None:
    """Note what each says of a picture of this height and width, and how far it is what the reference says."""
    wanted = None
    for run, own in zip(order, outputs, strict=True):
        answer = judge.answer(own, size) if all(np.isfinite(values).all() for values in own.values()) else None
        wanted = answer if run is order[0] else wanted
        run.answers.append(BROKEN if answer is None else answer.index if isinstance(answer, Classification) else 0)
        run.scores.append(0.0 if answer is None else judge.score(answer))
        run.same.append(judge.agreement(answer, wanted))
        if truth is not None:
            run.marks.append(judge.marks(truth, answer))


def _truth(judge: Judge, picture: Picture, told: Any, at: int, seen: Seen) -> Any:
    if seen.truths and (told is None) == seen.is_labelled:
        raise DataError(
            f"picture {at} is {'not ' if told is None else ''}labelled unlike those before; label all or none"
        )
    try:
        return None if told is None else judge.truth(told, picture)
    except DataError as error:
        raise DataError(f"picture {at}: {error}") from error
