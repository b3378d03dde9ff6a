"""Which artefact is the fastest on this machine, among those that may be trusted on it?

Int8 is faster than float on one processor and slower on another, and processors without VNNI may even compute it
differently. So each candidate first answers the bundle's golden inputs, then all are timed in turns; the result is
cached by model, processor and versions.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeattn.bundle import Bundle
from edgeattn.engines import check_names, held, open_artefact
from edgeattn.engines.base import Array, Engine, checked_threads, infer_all
from edgeattn.engines.kept import keep, recall
from edgeattn.errors import BundleError, EngineError
from edgeattn.spec import Artefact, Spec, weight_bits
from edgeattn.tasks import agreeing
from edgeattn.timing import NS_PER_MS, Clock, monotonic_ns
from edgeattn.timing.environment import adds_bytes_exactly, processor_key, versions

BUDGET_MS = 1000.0
"""Time to spend on timing, all candidates together."""
ROUNDS = (5, 200)
"""Least and most inferences timed of each candidate."""
WARM_UP = 3
"""Inferences of each candidate before timing."""
AGREEMENT = 0.9
"""Least share of golden inputs that a candidate must answer as the maker's float did, relative to the share that it
answered so on the maker's machine."""
KEPT = "choices"
"""Folder of the cache."""
TIE = 1.05
"""Ratio of medians up to which two are equally fast; float is then preferred, as its answers are the maker's."""


@dataclass(frozen=True)
class Timing:
    """One candidate that was timed."""

    engine: str
    """Its engine."""
    precision: str
    """Precision of its file."""
    median_ms: float
    """Median time of one inference."""
    n: int
    """Inferences timed."""


@dataclass(frozen=True)
class Choice:
    """The artefact to run on this machine, and why."""

    engine: str
    """Engine of the artefact."""
    precision: str
    """Precision of the artefact's file."""
    line: str
    """The reason in one line, for people."""
    timings: tuple[Timing, ...]
    """What was timed, the choice first, the others from the fastest to the slowest."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    cached: bool = False
    """True when the timings are of an earlier run on this machine."""


def choose(
    bundle: Bundle,
    *,
    engine: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    maps: bool = False,
    clock: Clock = monotonic_ns,
    budget_ms: float = BUDGET_MS,
) -> Choice:
    """Choose the fastest of a bundle's artefacts that passed their gates.

    Without one that passed, float artefacts that were not proven are taken, and the line says so. A `precision` asked
    for by name opens artefacts whose gates did not pass, too.

    Args:
        bundle: the model.
        engine: consider this engine alone.
        precision: consider this precision alone.
        threads: threads that compute one inference; None: the default.
        maps: time with the attention maps among the outputs.
        clock: gives nanoseconds.
        budget_ms: time to spend on timing, all candidates together.

    Raises:
        NameNotFoundError: no engine or precision has that name.
        BundleError: the bundle holds no such artefact.
        EngineError: no artefact can be loaded and trusted on this machine.
    """
    check_names(engine, precision)
    threads = checked_threads(threads)
    tiers = _tiers(bundle, engine, precision)
    key = _key(bundle, tiers, threads, maps, forced=precision is not None)
    if (kept := recall(KEPT, key, Choice)) and kept.timings:
        line = _line(kept.timings, kept.notes, "timed on this machine before")
        return replace(kept, line=line, cached=True)
    notes: list[str] = []
    for remark, artefacts in tiers:
        with contextlib.ExitStack() as stack:
            forced = precision is not None
            engines, left_out = _trusted(bundle, artefacts, stack, threads=threads, maps=maps, forced=forced)
            notes += left_out
            if engines:
                notes = [remark, *notes] if remark else notes
                choice = _fastest(engines, _probe(bundle), clock, budget_ms, notes)
                keep(KEPT, key, choice)
                return choice
    raise EngineError(f"{bundle.path}: nothing in it can be run and trusted here: {'; '.join(notes)}")


def _tiers(bundle: Bundle, engine: str | None, precision: str | None) -> list[tuple[str, list[Artefact]]]:
    """Artefacts to consider, and if none of those can be used, the next best, each with what is to be said of them."""
    found = held(bundle, engine and (engine,), precision and (precision,))
    if not found:
        bundle.artefact(engine or "onnxruntime", precision or "float")  # says what the bundle holds
        raise BundleError(f"{bundle.path} holds no artefact for a processor; make one with: edgeattn export")
    tiers = [("", [a for a in found if a.verdict == "passed"])]
    unproven = [a for a in found if a.verdict == "cannot tell" and (a.precision == "float" or precision)]
    tiers.append(("not proven by its gates: see edgeattn verify", unproven))
    if precision:
        tiers.append(("its gates failed, opened because it was asked for", [a for a in found if a.verdict == "failed"]))
    tiers = [tier for tier in tiers if tier[1]]
    if not tiers:
        raise EngineError(
            f"{bundle.path}: no artefact passed its gates and none is float; see: edgeattn verify {bundle.path}, "
            "or ask for one by name with --precision"
        )
    return tiers


def _trusted(
    bundle: Bundle,
    artefacts: Sequence[Artefact],
    stack: contextlib.ExitStack,
    *,
    threads: int,
    maps: bool,
    forced: bool,
) -> tuple[list[Engine], list[str]]:
    """Open artefacts; keep those that load here and give the maker's answers (when forced: others too), with notes."""
    golden = bundle.golden()
    kept: list[Engine] = []
    notes: list[str] = []
    for artefact in artefacts:
        name = f"{artefact.engine} {artefact.precision}"
        if (
            not forced
            and artefact.precision == "int8"
            and weight_bits(artefact.recipe) == 8
            and not adds_bytes_exactly()
        ):
            notes.append(
                f"{name} left out: its weights of eight bits overflow on a processor without VNNI; quantize --portable"
            )
            continue
        try:
            engine = open_artefact(bundle, artefact, threads=threads, maps=maps)
            stack.callback(engine.close)
            agreement = golden_agreement(engine, golden, bundle.spec)
        except EngineError as error:
            notes.append(f"{name} left out: {error}")
            continue
        trusted = agreement >= AGREEMENT * makers_agreement(artefact)
        if trusted or forced:
            kept.append(engine)
        if not trusted:
            done = "opened as asked, but" if forced else "left out:"
            notes.append(
                f"{name} {done} here it gives the maker's answer on {100 * agreement:.0f} % of the golden inputs"
            )
    return kept, notes


def golden_agreement(engine: Engine, golden: Mapping[str, Array], spec: Spec) -> float:
    """Share of golden inputs on which an engine's answer is the maker's; 0 when an answer is not finite.

    Without golden inputs there is nothing to disagree with: 1.
    """
    if not golden:
        return 1.0
    given = infer_all(engine, golden["inputs"])
    if not np.isfinite(given[spec.output]).all():
        return 0.0
    return agreeing(given, {name: values for name, values in golden.items() if name != "inputs"}, spec)


def makers_agreement(artefact: Artefact) -> float:
    """Share of golden inputs that an artefact answered as float where it was made, as its gates tell; else 1."""
    return next((gate["golden_agreement"] for gate in artefact.gates.values() if "golden_agreement" in gate), 1.0)


def _probe(bundle: Bundle) -> Array:
    """An input to time with: a golden one where there is, since zeros may run faster than pictures."""
    golden = bundle.golden()
    if golden:
        return golden["inputs"][:1]
    spec = bundle.spec.input
    noise = np.random.default_rng(0).integers(0, 256, spec.shape, np.uint8)
    return noise if spec.layout == "nhwc_u8" else ((noise - np.float32(128)) / np.float32(128))


def _fastest(engines: list[Engine], image: Array, clock: Clock, budget_ms: float, notes: list[str]) -> Choice:
    times = _interleaved(engines, image, clock, budget_ms)
    timings = [
        Timing(e.name, e.precision, statistics.median(ms), len(ms)) for e, ms in zip(engines, times, strict=True)
    ]
    timings.sort(key=lambda timing: timing.median_ms)
    tied = [t for t in timings if t.median_ms <= TIE * timings[0].median_ms]
    best = next((t for t in tied if t.precision == "float"), tied[0])
    ordered = (best, *(t for t in timings if t is not best))
    return Choice(best.engine, best.precision, _line(ordered, notes), ordered, tuple(notes))


def _interleaved(engines: list[Engine], image: Array, clock: Clock, budget_ms: float) -> list[list[float]]:
    """Milliseconds of each engine's inferences, taken in turns so that a disturbance meets all of them."""
    for engine in engines:
        for _ in range(WARM_UP):
            engine.infer(image)
    times: list[list[float]] = [[] for _ in engines]
    start = clock()
    for turn in range(ROUNDS[1]):
        for engine, ms in zip(engines, times, strict=True):
            before = clock()
            engine.infer(image)
            ms.append((clock() - before) / NS_PER_MS)
        if turn + 1 >= ROUNDS[0] and clock() - start > budget_ms * NS_PER_MS:
            break
    return times


def _line(timings: Sequence[Timing], notes: Sequence[str], when: str = "timed on this machine") -> str:
    best, others = timings[0], timings[1:]
    reasons = [f"{t.engine} {t.precision} {t.median_ms:.2f}" for t in others] or ["no other to choose from"]
    tie = ["a tie, so the float one"] if others and others[0].median_ms < best.median_ms else []
    said = "; ".join([", ".join(reasons), *tie, *notes, when])
    return f"{best.engine} {best.precision}: {best.median_ms:.2f} ms ({said})"


def _key(
    bundle: Bundle, tiers: Sequence[tuple[str, list[Artefact]]], threads: int, maps: bool, *, forced: bool
) -> dict[str, Any]:
    """What a choice depends on."""
    named = ("edgeattn", "onnxruntime", "openvino")
    return {
        "bundle": bundle.digest(),
        "artefacts": [
            [a.engine, a.precision, a.verdict, makers_agreement(a)] for _, artefacts in tiers for a in artefacts
        ],
        "processor": processor_key(),
        "versions": {name: version for name, version in versions().items() if name in named},
        "threads": threads,
        "maps": maps,
        "forced": forced,
    }
