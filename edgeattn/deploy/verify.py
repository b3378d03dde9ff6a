"""Did anything break? Every artefact of a bundle, the saved file through its engine, against the float one.

Gates that an artefact meets, each ending passed, failed or cannot tell (bf16 meets those of int8):
    load    it opens on this machine (recorded when it does not)
    finite  its outputs are numbers (recorded when they are not)
    golden  float: its outputs differ from the maker's by at most `GOLDEN_DIFFERENCE` of their range;
            int8, where there are no other pictures: it gives the maker's answer on most golden inputs, or nearly as
            often as on the maker's machine
    loss    int8, labelled pictures: it loses at most so much of the task's figure: top-1, mAP50, mIoU (a paired test, see
            `significance.loss_gate` and `fall_gate`)
    flips   int8, pictures without labels: its answer is another one on at most so many
    maps    int8: its attention lies where float's does: the divergence of the maps, relative to how far maps of two
            pictures are apart
    ranks   int8: its maps put the places in the same order as float's
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn import maps as attention
from edgeattn.bundle import Bundle
from edgeattn.deploy.results import Fidelity, Report, Result
from edgeattn.deploy.structure import Structure, structure
from edgeattn.engines import NAMES, held, open_artefact
from edgeattn.engines.base import Array, Engine, infer_all
from edgeattn.engines.choose import AGREEMENT, makers_agreement
from edgeattn.errors import BundleError, DataError, EngineError
from edgeattn.evaluation import classify, looking, significance
from edgeattn.evaluation.judge import BROKEN, SAME, Judge, judge_of
from edgeattn.imaging import Picture, prepare, seen_box
from edgeattn.spec import Artefact, Spec
from edgeattn.tasks import Classification, agreeing, parts
from edgeattn.timing import NS_PER_MS, Clock, monotonic_ns

Shown = tuple[Picture, Any] | tuple[Picture, Any, Array]
"""A picture, its truth (see `evaluation.judge.Judge`; None: not labelled), and where to look on it if that is told."""

MAX_LOSS = 0.01
"""Greatest loss of the task's figure against float that passes."""
MAX_FLIPS = 0.05
"""Greatest share of pictures without labels on which int8 may answer otherwise than float."""
MAX_MAP_JS = 0.05
"""Greatest divergence between float and int8 maps, as a fraction of that between maps of different pictures."""
LEAST_RANK = 0.95
"""Least rank correlation between float and int8 maps."""
GOLDEN_DIFFERENCE = 1e-3
"""Greatest difference from the maker's float outputs, as a fraction of their range; processors round differently."""
MAP_PICTURES = 500
"""Pictures on which maps are compared; a median needs no more."""
LEAST_DIVERGENCE = 1e-9
"""Maps of different pictures that diverge by fewer bits are all alike, and what differs from them is rounding."""


def verify(
    bundle: Bundle,
    data: Iterable[Shown] | None = None,
    *,
    engines: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    threads: int | None = None,
    max_loss: float = MAX_LOSS,
    max_flips: float = MAX_FLIPS,
    max_map_js: float = MAX_MAP_JS,
    least_rank: float = LEAST_RANK,
    clock: Clock = monotonic_ns,
) -> Report:
    """Measure a bundle's artefacts, all in turns on each picture.

    Args:
        bundle: the model.
        data: pictures, (H, W, 3) BGR bytes, each with its truth (of a classifier the label's index, -1: none of the
            labels; of a detector an object with `boxes`, `labels`, `crowd`, of a segmenter one with `class_map()`, as
            `datasets.annotated.Annotated`; None on all: not labelled), and where to look on it, (H, W), all zero where it
            is not known, if there is such a thing. A sequence is taken in a seeded random order, anything else as it
            comes, which should be mixed. None: check the golden inputs alone.
        engines: measure these engines only.
        precisions: measure these precisions only (float is run beside them, as the reference).
        threads: threads that compute one inference; None: the default.
        max_loss: greatest loss of the task's figure that passes, as a fraction.
        max_flips: greatest share of changed answers that passes, on pictures without labels.
        max_map_js: greatest relative divergence of the attention maps that passes.
        least_rank: least rank correlation of the attention maps that passes.
        clock: gives nanoseconds.

    Raises:
        BundleError: the bundle holds no such artefact, or no float one that opens.
        EngineError: an engine failed while it ran.
        DataError: no pictures, or truths that do not fit.
        ExtraMissingError: labelled pictures for a detector, and what measures mAP is not installed.
    """
    judge = judge_of(bundle.spec)
    bounds = _Bounds(max_loss, max_flips, max_map_js, least_rank)
    with contextlib.ExitStack() as stack:
        runs = [_open(bundle, artefact, threads, stack) for artefact in _chosen(bundle, engines, precisions)]
        reference = _reference(bundle, runs, threads, stack)
        order = [reference, *(run for run in runs if run.engine and run is not reference)]
        seen = _Seen(judge) if data is None else _measure(bundle.spec, judge, data, order, clock)
        results = tuple(_result(bundle, run, reference, seen, bounds) for run in runs)
    ordered = tuple(seen.truths[i] for i in seen.in_order()) if seen.is_labelled else ()
    return Report(str(bundle.path), bundle.digest(), bundle.spec.task, len(seen.places), results, ordered)


@dataclass(frozen=True)
class _Bounds:
    loss: float
    flips: float
    map_js: float
    rank: float


@dataclass
class _Seen:
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
class _Run:
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


def _chosen(bundle: Bundle, engines: Sequence[str] | None, precisions: Sequence[str] | None) -> list[Artefact]:
    chosen = held(bundle, engines, precisions)
    if not chosen:
        asked = " ".join([*(engines or ()), *(precisions or ())]) or "artefact for a processor"
        names = ", ".join(f"{a.engine} {a.precision}" for a in held(bundle)) or "none"
        raise BundleError(f"{bundle.path} holds no {asked}; it holds: {names}")
    return chosen


def _open(bundle: Bundle, artefact: Artefact, threads: int | None, stack: contextlib.ExitStack) -> _Run:
    try:
        engine = open_artefact(bundle, artefact, threads=threads, maps=True)
    except EngineError as error:
        return _Run(artefact, failure=str(error))
    stack.callback(engine.close)
    return _Run(artefact, engine)


def _reference(bundle: Bundle, runs: Sequence[_Run], threads: int | None, stack: contextlib.ExitStack) -> _Run:
    """The float artefact that the others are compared with: ONNX Runtime's, else another that opens."""
    floats = held(bundle, precisions=["float"])
    failures = []
    for artefact in sorted(floats, key=lambda a: a.engine != "onnxruntime"):
        run = next((r for r in runs if r.artefact is artefact), None) or _open(bundle, artefact, threads, stack)
        if run.engine:
            return run
        failures.append(run.failure)
    why = "; ".join(failures) or "it holds none; make it with: edgeattn export"
    raise BundleError(f"{bundle.path}: no float artefact to compare with ({why})")


def _measure(spec: Spec, judge: Judge, data: Iterable[Shown], order: Sequence[_Run], clock: Clock) -> _Seen:
    """Run all (the reference first in `order`) on every picture."""
    seen = _Seen(judge)
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
    picture: Picture, where: Array, order: Sequence[_Run], outputs: Sequence[Mapping[str, Array]], spec: Spec
) -> None:
    """Note how well each artefact's mean map tells where to look, on what the model sees."""
    x, y, w, h = (round(edge) for edge in seen_box(picture.shape[0], picture.shape[1], spec.input))
    seen = np.zeros((h, w))  # letterboxed, it reaches beyond the picture
    left, top = max(0, -x), max(0, -y)
    inside = where[max(0, y) : y + h, max(0, x) : x + w]
    seen[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    if not seen.any():
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


def _note_same(run: _Run, name: str) -> None:
    """The reference's maps are its own."""
    for series, figure in ((run.divergences, 0.0), (run.ranks, 1.0), (run.overlaps, 1.0)):
        series.setdefault(name, []).append(figure)


def _infer(run: _Run, image: Array, clock: Clock) -> dict[str, Array]:
    assert run.engine
    before = clock()
    outputs = run.engine.infer(image)
    run.times_ms.append((clock() - before) / NS_PER_MS)
    return outputs


def _answer(
    judge: Judge, size: tuple[int, int], truth: Any, order: Sequence[_Run], outputs: Sequence[Mapping[str, Array]]
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


def _truth(judge: Judge, picture: Picture, told: Any, at: int, seen: _Seen) -> Any:
    if seen.truths and (told is None) == seen.is_labelled:
        raise DataError(
            f"picture {at} is {'not ' if told is None else ''}labelled unlike those before; label all or none"
        )
    try:
        return None if told is None else judge.truth(told, picture)
    except DataError as error:
        raise DataError(f"picture {at}: {error}") from error


def _result(bundle: Bundle, run: _Run, reference: _Run, seen: _Seen, bounds: _Bounds) -> Result:
    artefact, engine, n, spec, judge = run.artefact, run.engine, len(seen.places), bundle.spec, seen.judge
    if engine is None:
        failed = {"load": {"verdict": "failed", "reason": run.failure}}
        return Result(artefact.engine, artefact.precision, n=n, gates=failed)
    golden = _golden_gate(bundle, run)
    same, answers, scores = np.array(run.same), np.array(run.answers), np.array(run.scores)
    flips = tuple(sorted(seen.places[i] for i in np.flatnonzero(same < SAME)))
    by_map = _drift(run, seen)
    blocks = _blocks(run, by_map, spec)
    drift = np.median(list(by_map.values()), axis=0) if blocks else np.empty(0)
    ranks, overlaps = (np.array(list(series.values())) for series in (run.ranks, run.overlaps))
    agreed = {"golden_agreement": golden["agreement"]} if golden else {}  # what another machine is held to
    judged: dict[str, Any] = {}
    if BROKEN in run.answers:
        judged["finite"] = {"verdict": "failed", "pictures": run.answers.count(BROKEN)}
    if golden and (artefact.precision == "float" or not n):
        judged["golden"] = golden
    elif seen.is_labelled and run is not reference:
        judged["loss"] = significance.plain(judge.loss(reference.marks, run.marks, bounds.loss)) | agreed
    elif n and run is not reference:
        judged["flips"] = significance.plain(significance.proportion_gate(len(flips), n, bounds.flips)) | agreed
    if artefact.precision != "float" and len(drift):
        judged["maps"] = significance.plain(significance.median_gate(drift, bounds.map_js))
        judged["ranks"] = significance.plain(
            significance.median_gate(1.0 - np.median(ranks, axis=0), 1.0 - bounds.rank)
        )
    ordered = seen.in_order()
    found = judge.figures(run.marks) if seen.is_labelled else {}
    worths = np.array([judge.worth(marks) for marks in run.marks])
    classes = judge.classes(run.marks) if seen.is_labelled else ()
    classified = spec.task == "classify"
    known = classified and seen.is_labelled
    return Result(
        artefact.engine,
        artefact.precision,
        executed_precision=engine.executed_precision,
        structure=_structure(bundle, run),
        threads=engine.threads,
        n=n,
        figure=found.pop(judge.figure.key, None),
        figures=found,
        agreement=float(same.mean()) if n else golden.get("agreement"),
        map_js=float(np.median(drift)) if blocks else None,
        map_rank=float(np.median(ranks)) if blocks else None,
        map_overlap=float(np.median(overlaps)) if blocks else None,
        latency_ms=statistics.median(run.times_ms) if n else None,
        macro=classify.macro([one for one in classes if isinstance(one, classify.ClassScore)]) if known else None,
        calibration_error=classify.calibration(scores, worths > 0).error if known else None,
        looking={name: statistics.fmean(values) for name, values in run.looking.items()},
        blocks=blocks,
        classes=classes,
        flips=flips,
        answers=tuple(answers[ordered].tolist()) if n and classified else (),
        scores=tuple(scores[ordered].tolist()) if n else (),
        worths=tuple(worths[ordered].tolist()) if seen.is_labelled else (),
        gates=judged,
    )


def _structure(bundle: Bundle, run: _Run) -> Structure | None:
    if run.engine is None or run.artefact.precision != "int8" or run.engine.name not in NAMES:
        return None
    return structure(bundle.file(run.artefact), run.engine)


def _drift(run: _Run, seen: _Seen) -> dict[str, NDArray[np.float64]]:
    """Per map and picture: how far it is from the reference's, relative to how far maps of two pictures are apart.

    Empty without maps and without a second picture.
    """
    return {
        name: np.array(run.divergences[name]) / max(statistics.median(apart), LEAST_DIVERGENCE)
        for name, apart in seen.apart.items()
        if name in run.divergences
    }


def _blocks(run: _Run, drift: Mapping[str, NDArray[np.float64]], spec: Spec) -> tuple[Fidelity, ...]:
    paths = {m.output: m.block for m in spec.maps}
    return tuple(
        Fidelity(
            paths[name],
            float(np.median(drift[name])),
            statistics.median(run.ranks[name]),
            statistics.median(run.overlaps[name]),
        )
        for name in drift
    )


def _golden_gate(bundle: Bundle, run: _Run) -> dict[str, Any]:
    """Compare with the maker's float answers; empty where the bundle has none."""
    golden, spec = bundle.golden(), bundle.spec
    if not golden or not run.engine:
        return {}
    got = infer_all(run.engine, golden["inputs"])
    n = len(golden["inputs"])
    if not all(np.isfinite(values).all() for values in got.values()):
        return {"verdict": "failed", "n": n, "agreement": 0.0, "reason": "its outputs are not all finite"}
    agreement = agreeing(got, golden, spec)
    changed = round((1 - agreement) * n)
    figures: dict[str, Any] = {"n": n, "agreement": agreement}
    if run.artefact.precision != "float":
        allowed = 1 - AGREEMENT * makers_agreement(run.artefact)
        return significance.plain(significance.proportion_gate(changed, n, allowed)) | figures
    given, wanted = parts(got, spec), parts(golden, spec)
    worst = max(difference(given[name], wanted[name]) for name in given if name in wanted)
    verdict = "passed" if worst <= GOLDEN_DIFFERENCE else "failed"
    return {"verdict": verdict, "difference": worst, "bound": GOLDEN_DIFFERENCE} | figures


def difference(got: Array, wanted: Array) -> float:
    """Greatest difference as a fraction of the range of what was wanted; not a number where one of both is not."""
    greatest = np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max()
    return float(greatest) / max(float(np.ptp(wanted)), 1e-6)
