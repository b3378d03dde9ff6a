"""Did anything break? Every artefact of a bundle, the saved file through its engine, against the float one.

Gates that an artefact meets, each ending passed, failed or cannot tell (bf16 meets those of int8):
    load    it opens on this machine (recorded when it does not)
    finite  its outputs are numbers (recorded when they are not)
    golden  float: its outputs differ from the maker's by at most `GOLDEN_DIFFERENCE` of their range;
            int8, where there are no other pictures: it gives the maker's answer on most golden inputs, or nearly as
            often as on the maker's machine
    loss    int8, labelled pictures: it loses at most so much top-1 (a paired test, see `significance.loss_gate`)
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
from edgeattn.imaging import Picture, crop_box, prepare
from edgeattn.spec import Artefact, Spec
from edgeattn.tasks.classify import decode
from edgeattn.timing import NS_PER_MS, Clock, monotonic_ns

Shown = tuple[Picture, int | None] | tuple[Picture, int | None, Array]
"""A picture, its label, and where to look on it if that is told."""

MAX_LOSS = 0.01
"""Greatest loss of top-1 against float that passes."""
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
BROKEN = -2
"""The answer of an artefact whose outputs are not finite; never right."""


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
        data: pictures, (H, W, 3) BGR bytes, each with its label's index (-1: none of the labels; None on all: not
            labelled), and where to look on it, (H, W), all zero where it is not known, if there is such a thing. A
            sequence is taken in a seeded random order, anything else as it comes, which should be mixed. None: check the
            golden inputs alone.
        engines: measure these engines only.
        precisions: measure these precisions only (float is run beside them, as the reference).
        threads: threads that compute one inference; None: the default.
        max_loss: greatest loss of top-1 that passes.
        max_flips: greatest share of changed answers that passes, on pictures without labels.
        max_map_js: greatest relative divergence of the attention maps that passes.
        least_rank: least rank correlation of the attention maps that passes.
        clock: gives nanoseconds.

    Raises:
        SpecError: the model is no classifier.
        BundleError: the bundle holds no such artefact, or no float one that opens.
        EngineError: an engine failed while it ran.
        DataError: no pictures, or labels that do not fit.
    """
    bundle.spec.must_classify("verify")
    bounds = _Bounds(max_loss, max_flips, max_map_js, least_rank)
    with contextlib.ExitStack() as stack:
        runs = [_open(bundle, artefact, threads, stack) for artefact in _chosen(bundle, engines, precisions)]
        reference = _reference(bundle, runs, threads, stack)
        order = [reference, *(run for run in runs if run.engine and run is not reference)]
        seen = _Seen() if data is None else _measure(bundle.spec, data, order, clock)
        results = tuple(_result(bundle, run, reference, seen, bounds) for run in runs)
    truth = seen.truth()
    ordered = () if truth is None else tuple(truth[seen.in_order()].tolist())
    return Report(str(bundle.path), bundle.digest(), len(seen.labels), results, ordered)


@dataclass(frozen=True)
class _Bounds:
    loss: float
    flips: float
    map_js: float
    rank: float


@dataclass
class _Seen:
    """The pictures, while they are measured."""

    places: list[int] = field(default_factory=list)
    """Where they stand in the data."""
    labels: list[int | None] = field(default_factory=list)
    """What is on them."""
    apart: dict[str, list[float]] = field(default_factory=dict)
    """Per map: divergences, in bits, between the reference's maps of one picture and of the next."""

    def truth(self) -> NDArray[np.int64] | None:
        """The labels; None where the pictures have none."""
        known = [label for label in self.labels if label is not None]
        return np.array(known) if known else None

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
    scores: list[float] = field(default_factory=list)
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


def _measure(spec: Spec, data: Iterable[Shown], order: Sequence[_Run], clock: Clock) -> _Seen:
    """Run all (the reference first in `order`) on every picture."""
    seen = _Seen()
    names = [m.output for m in spec.maps]
    previous: Mapping[str, Array] = {}
    for i, (at, (picture, label, *where)) in enumerate(_mixed(data)):
        _check_label(label, at, seen, spec)
        seen.places.append(at)
        seen.labels.append(label)
        image = prepare(picture, spec.input)
        outputs: list[dict[str, Array]] = [{} for _ in order]
        for turn in range(len(order)):
            place = (turn + i) % len(order)  # who is first changes: the first finds the caches cold
            outputs[place] = _infer(order[place], image, spec, clock)
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
    if not seen.labels:
        raise DataError("there are no pictures to verify on; give a folder that holds some")
    return seen


def _look(
    picture: Picture, where: Array, order: Sequence[_Run], outputs: Sequence[Mapping[str, Array]], spec: Spec
) -> None:
    """Note how well each artefact's mean map tells where to look, on the part of the picture that the model sees."""
    x, y, w, h = crop_box(picture.shape[0], picture.shape[1], spec.input)
    seen = where[y : y + h, x : x + w].astype(np.float64)
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


def _infer(run: _Run, image: Array, spec: Spec, clock: Clock) -> dict[str, Array]:
    assert run.engine
    before = clock()
    outputs = run.engine.infer(image)
    run.times_ms.append((clock() - before) / NS_PER_MS)
    finite = all(np.isfinite(value).all() for value in outputs.values())
    answer = decode(outputs, spec) if finite else None
    run.answers.append(answer.index if answer else BROKEN)
    run.scores.append(answer.score if answer else 0.0)
    return outputs


def _check_label(label: int | None, at: int, seen: _Seen, spec: Spec) -> None:
    if seen.labels and (label is None) != (seen.labels[0] is None):
        raise DataError(
            f"picture {at} is {'not ' if label is None else ''}labelled unlike those before; label all or none"
        )
    if label is not None and not (0 <= label < len(spec.labels) or (label == -1 and spec.rejection)):
        raise DataError(f"picture {at} has label {label}; the bundle knows 0 to {len(spec.labels) - 1}")


def _result(bundle: Bundle, run: _Run, reference: _Run, seen: _Seen, bounds: _Bounds) -> Result:
    artefact, engine, n, spec = run.artefact, run.engine, len(seen.labels), bundle.spec
    if engine is None:
        failed = {"load": {"verdict": "failed", "reason": run.failure}}
        return Result(artefact.engine, artefact.precision, n=n, gates=failed)
    golden = _golden_gate(bundle, run)
    truth, answers, expected = seen.truth(), np.array(run.answers), np.array(reference.answers)
    flips = tuple(sorted(seen.places[i] for i in np.flatnonzero(answers != expected)))
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
    elif truth is not None and run is not reference:
        judged["loss"] = (
            significance.plain(significance.loss_gate(expected == truth, answers == truth, bounds.loss)) | agreed
        )
    elif n and run is not reference:
        judged["flips"] = significance.plain(significance.proportion_gate(len(flips), n, bounds.flips)) | agreed
    if artefact.precision != "float" and len(drift):
        judged["maps"] = significance.plain(significance.median_gate(drift, bounds.map_js))
        judged["ranks"] = significance.plain(
            significance.median_gate(1.0 - np.median(ranks, axis=0), 1.0 - bounds.rank)
        )
    ordered = seen.in_order()
    scores = np.array(run.scores)
    classes: tuple[classify.ClassScore, ...] = ()
    if truth is not None:
        known = np.where(answers == BROKEN, -1, answers)
        classes = tuple(classify.per_class(classify.confusion(truth, known, len(spec.labels)), spec.labels))
    return Result(
        artefact.engine,
        artefact.precision,
        executed_precision=engine.executed_precision,
        structure=_structure(bundle, run),
        threads=engine.threads,
        n=n,
        top1=float(np.mean(answers == truth)) if truth is not None else None,
        agreement=(n - len(flips)) / n if n else golden.get("agreement"),
        map_js=float(np.median(drift)) if blocks else None,
        map_rank=float(np.median(ranks)) if blocks else None,
        map_overlap=float(np.median(overlaps)) if blocks else None,
        latency_ms=statistics.median(run.times_ms) if n else None,
        macro=classify.macro(classes) if classes else None,
        calibration_error=classify.calibration(scores, answers == truth).error if truth is not None else None,
        looking={name: statistics.fmean(values) for name, values in run.looking.items()},
        blocks=blocks,
        classes=classes,
        flips=flips,
        answers=tuple(answers[ordered].tolist()) if n else (),
        scores=tuple(scores[ordered].tolist()) if n else (),
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
    changed = int(np.sum(got[spec.output].argmax(axis=1) != golden[spec.output].argmax(axis=1)))
    figures: dict[str, Any] = {"n": n, "agreement": 1 - changed / n}
    if run.artefact.precision != "float":
        allowed = 1 - AGREEMENT * makers_agreement(run.artefact)
        return significance.plain(significance.proportion_gate(changed, n, allowed)) | figures
    worst = max(difference(got[name], golden[name]) for name in got if name in golden)
    verdict = "passed" if worst <= GOLDEN_DIFFERENCE else "failed"
    return {"verdict": verdict, "difference": worst, "bound": GOLDEN_DIFFERENCE} | figures


def difference(got: Array, wanted: Array) -> float:
    """Greatest difference as a fraction of the range of what was wanted; not a number where one of both is not."""
    greatest = np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max()
    return float(greatest) / max(float(np.ptp(wanted)), 1e-6)
