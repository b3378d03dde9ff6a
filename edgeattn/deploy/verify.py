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
    maps    int8: its attention lies where float's does, in every block: the divergence of the maps, relative to how far maps
            of two pictures are apart
    ranks   int8: its maps put the places in the same order as float's, in every block
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.bundle import Bundle
from edgeattn.deploy.measured import Run, Seen, Shown, measure
from edgeattn.deploy.results import Fidelity, Report, Result
from edgeattn.deploy.structure import Structure, structure
from edgeattn.engines import NAMES, held, open_artefact
from edgeattn.engines.base import Array, infer_all
from edgeattn.engines.choose import AGREEMENT, makers_agreement
from edgeattn.errors import BundleError, EngineError
from edgeattn.evaluation import classify, significance
from edgeattn.evaluation.judge import BROKEN, SAME, judge_of
from edgeattn.spec import Artefact, Spec
from edgeattn.tasks import agreeing, parts
from edgeattn.timing import Clock, monotonic_ns

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
        max_map_js: greatest relative divergence of a block's attention maps that passes.
        least_rank: least rank correlation of a block's attention maps that passes.
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
        seen = Seen(judge) if data is None else measure(bundle.spec, judge, data, order, clock)
        results = tuple(_result(bundle, run, reference, seen, bounds) for run in runs)
    ordered = tuple(seen.truths[i] for i in seen.in_order()) if seen.is_labelled else ()
    return Report(str(bundle.path), bundle.digest(), bundle.spec.task, len(seen.places), results, ordered)


@dataclass(frozen=True)
class _Bounds:
    loss: float
    flips: float
    map_js: float
    rank: float


def _chosen(bundle: Bundle, engines: Sequence[str] | None, precisions: Sequence[str] | None) -> list[Artefact]:
    chosen = held(bundle, engines, precisions)
    if not chosen:
        asked = " ".join([*(engines or ()), *(precisions or ())]) or "artefact for a processor"
        names = ", ".join(f"{a.engine} {a.precision}" for a in held(bundle)) or "none"
        raise BundleError(f"{bundle.path} holds no {asked}; it holds: {names}")
    return chosen


def _open(bundle: Bundle, artefact: Artefact, threads: int | None, stack: contextlib.ExitStack) -> Run:
    try:
        engine = open_artefact(bundle, artefact, threads=threads, maps=True)
    except EngineError as error:
        return Run(artefact, failure=str(error))
    stack.callback(engine.close)
    return Run(artefact, engine)


def _reference(bundle: Bundle, runs: Sequence[Run], threads: int | None, stack: contextlib.ExitStack) -> Run:
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


def _result(bundle: Bundle, run: Run, reference: Run, seen: Seen, bounds: _Bounds) -> Result:
    artefact, engine, n, spec, judge = run.artefact, run.engine, len(seen.places), bundle.spec, seen.judge
    if engine is None:
        failed = {"load": {"verdict": "failed", "reason": run.failure}}
        return Result(artefact.engine, artefact.precision, n=n, gates=failed)
    golden = _golden_gate(bundle, run)
    same, answers, scores = np.array(run.same), np.array(run.answers), np.array(run.scores)
    flips = tuple(sorted(seen.places[i] for i in np.flatnonzero(same < SAME)))
    by_map = _drift(run, seen)
    blocks = _blocks(run, by_map, spec)
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
    if artefact.precision != "float" and blocks:
        lost_ranks = {name: 1.0 - np.array(run.ranks[name]) for name in by_map}
        judged["maps"] = _map_gate(by_map, bounds.map_js, blocks)
        judged["ranks"] = _map_gate(lost_ranks, 1.0 - bounds.rank, blocks)
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
        map_js=max((block.js for block in blocks), default=None),
        map_rank=min((block.rank for block in blocks), default=None),
        map_overlap=min((block.overlap for block in blocks), default=None),
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


def _structure(bundle: Bundle, run: Run) -> Structure | None:
    if run.engine is None or run.artefact.precision != "int8" or run.engine.name not in NAMES:
        return None
    return structure(bundle.file(run.artefact), run.engine)


def _drift(run: Run, seen: Seen) -> dict[str, NDArray[np.float64]]:
    """Per map and picture: how far it is from the reference's, relative to how far maps of two pictures are apart.

    Empty without maps and without a second picture.
    """
    return {
        name: np.array(run.divergences[name]) / max(statistics.median(apart), LEAST_DIVERGENCE)
        for name, apart in seen.apart.items()
        if name in run.divergences
    }


def _blocks(run: Run, drift: Mapping[str, NDArray[np.float64]], spec: Spec) -> tuple[Fidelity, ...]:
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


def _map_gate(figures: Mapping[str, NDArray[np.float64]], bound: float, blocks: Sequence[Fidelity]) -> dict[str, Any]:
    """The gate of figures a block and picture, and the block that decides it."""
    place, gate = significance.worst_median_gate(np.array(list(figures.values())), bound)
    return significance.plain(gate) | {"block": blocks[place].block}


def _golden_gate(bundle: Bundle, run: Run) -> dict[str, Any]:
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
