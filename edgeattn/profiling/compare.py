"""Did it get slower? Two profiles that were written to JSON, or two bundles that are measured here in turns.

In turns, both meet the same weather, and which comes first is drawn by lot: were they alike, each would be ahead as often
as behind, however restless the machine. A turn counts by the fastest of its burst, since what disturbs only ever adds. Where
memory happens to lie can make one of two equal engines some percent faster for as long as it is open: so they are opened
anew several times, and the interval is over these rounds. Measured apart, one of them may have met a slower machine, which
no interval knows: the bounds are wider.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeattn import engines
from edgeattn.bundle import Bundle
from edgeattn.errors import DataError, SpecError
from edgeattn.evaluation.significance import paired_interval
from edgeattn.profiling import frames
from edgeattn.profiling.bench import Bench, Contender
from edgeattn.profiling.identity import machine_of, model_of
from edgeattn.profiling.modes import BURST, burst
from edgeattn.profiling.report import SCHEMA as PROFILE_SCHEMA
from edgeattn.spec import Artefact
from edgeattn.timing import NS_PER_MS, Clock, environment, monotonic_ns
from edgeattn.timing.statistics import Ratio, bootstrap_ratio, paired_ratio

SCHEMA = "edgeattn.compare/1"
SECONDS = 20.0
"""How long two bundles are measured, unless told otherwise."""
ROUNDS = 6
"""How often their engines are opened anew."""
FEWEST = 6
"""Turns or samples below which nothing is said."""

Verdict = Literal["faster", "slower", "no difference", "too noisy"]


class Bounds(NamedTuple):
    """What counts as a difference."""

    least: float
    """Change below which two are equal to all intents."""
    resolved: float
    """Change that must be ruled out before they are called equal."""


IN_TURNS = Bounds(least=0.025, resolved=0.05)
APART = Bounds(least=0.05, resolved=0.10)


@dataclass(frozen=True)
class Difference:
    """One figure of B against the same of A."""

    name: str
    """Engine and precision, and what was compared where that is not the inference."""
    before_ms: float
    """Median of A; in turns, of the fastest of each burst."""
    after_ms: float
    """The same of B."""
    ratio: Ratio
    """B over A."""
    n: int
    """Samples of the smaller side."""
    verdict: Verdict
    """Whether B is slower."""

    @property
    def line(self) -> str:
        """In words."""
        low, high = 100 * (self.ratio.low - 1), 100 * (self.ratio.high - 1)
        return (
            f"{self.name}: {self.before_ms:.3f} -> {self.after_ms:.3f} ms, {100 * (self.ratio.value - 1):+.1f} % "
            f"({low:+.1f} to {high:+.1f}): {self.verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name, "before_ms": self.before_ms, "after_ms": self.after_ms, "ratio": self.ratio.value,
            "ratio_interval": [self.ratio.low, self.ratio.high], "n": self.n, "verdict": self.verdict,
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What was compared and what came of it."""

    a: str
    """The one before."""
    b: str
    """The one after."""
    how: str
    """In turns or apart, in words."""
    differences: tuple[Difference, ...]
    """One an artefact and figure that both have."""
    notes: tuple[str, ...]
    """What differs besides, what was forced, what only one of them has."""
    environment: Mapping[str, Any]
    """Of this machine; of files, B's."""

    @property
    def verdict(self) -> Verdict:
        """The worst: slower, too noisy, no difference, faster."""
        order: tuple[Verdict, ...] = ("slower", "too noisy", "no difference", "faster")
        return min((each.verdict for each in self.differences), key=order.index)

    def to_json(self) -> dict[str, Any]:
        """The comparison as `--json` writes it."""
        return {
            "schema": SCHEMA, "a": self.a, "b": self.b, "how": self.how, "verdict": self.verdict,
            "differences": [each.to_json() for each in self.differences], "notes": list(self.notes),
            "environment": dict(self.environment),
        }  # fmt: skip


def judge(ratio: Ratio, bounds: Bounds) -> Verdict:
    """Name a ratio of B over A by its interval."""
    if ratio.low > 1 and ratio.value >= 1 + bounds.least:
        return "slower"
    if ratio.high < 1 and ratio.value <= 1 / (1 + bounds.least):
        return "faster"
    if 1 / (1 + bounds.resolved) < ratio.low and ratio.high < 1 + bounds.resolved:
        return "no difference"
    return "too noisy"


class Duel:
    """Two bundles measured in turns: iterate to measure (it yields the share that is done), then take the `comparison`."""

    def __init__(
        self,
        a: Bundle,
        b: Bundle,
        *,
        engine: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        seconds: float = SECONDS,
        rounds: int = ROUNDS,
        force: bool = False,
        clock: Clock = monotonic_ns,
        lot: random.Random | None = None,
    ) -> None:
        """Check that the two can be compared; nothing is opened yet.

        Args:
            a: the one before.
            b: the one after.
            engine: compare this engine only.
            precision: compare this precision only.
            threads: threads that compute one inference.
            seconds: how long to measure altogether, opening excluded.
            rounds: how often the engines are opened anew.
            force: compare different models, too.
            clock: gives nanoseconds.
            lot: draws who comes first; None: no order that an engine could happen to fit.

        Raises:
            DataError: different models, or no artefact that both have.
            NameNotFoundError: no engine or precision has that name.
            SpecError: `seconds` is not above 0.
        """
        if seconds <= 0:
            raise SpecError(f"--seconds {seconds} must be above 0")
        self._bundles, self._threads, self._clock = (a, b), threads, clock
        self._seconds, self._rounds = seconds, rounds
        self._notes = _same_model(model_of(a), model_of(b), force=force)
        asked = (engine and (engine,), precision and (precision,))
        held = [{(x.engine, x.precision): x for x in engines.held(bundle, *asked)} for bundle in (a, b)]
        self._artefacts = [(held[0][key], held[1][key]) for key in held[0] if key in held[1]]
        if not self._artefacts:
            names = [", ".join(f"{e} {p}" for e, p in each) or "nothing that was asked for" for each in held]
            raise DataError(f"{a.name} and {b.name} have no artefact in common: {names[0]}; {names[1]}")
        self._turns: dict[str, list[tuple[float, float, int]]] = {}
        self._lot = lot or random.Random()

    def __iter__(self) -> Iterator[float]:
        for number in range(self._rounds):
            sides = (0, 1) if number % 2 else (1, 0)  # of two equal engines the one that is opened last is often faster
            with _Pair(self._bundles, self._artefacts, sides, self._threads, self._clock) as (before, after):
                began_ns, share = self._clock(), 0.0
                while share < 1.0:
                    self._turn(before, after, number)
                    elapsed_s = (self._clock() - began_ns) / 1e9
                    share = min(1.0, elapsed_s * self._rounds / self._seconds)
                    yield (number + share) / self._rounds

    def comparison(self) -> Comparison:
        """What was measured so far.

        Raises:
            DataError: too little for any verdict.
        """
        found = []
        for name, turns in self._turns.items():
            if len(turns) >= FEWEST:
                before, after, rounds = np.asarray(turns).T
                ratio = _over_rounds(after / before, rounds)
                medians = float(np.median(before)), float(np.median(after))
                found.append(Difference(name, *medians, ratio, len(turns) * BURST, judge(ratio, IN_TURNS)))
        if not found:
            raise DataError(f"stopped before {FEWEST} turns of each; let it run")
        a, b = (str(bundle.path) for bundle in self._bundles)
        how = f"in turns on this machine, the fastest of each {BURST} in a row"
        return Comparison(a, b, how, tuple(found), tuple(self._notes), environment())

    def _turn(self, before: Bench, after: Bench, number: int) -> None:
        both = [(bench, contender) for bench in (before, after) for contender in bench.contenders]
        for bench, contender in self._lot.sample(both, len(both)):
            burst(bench, contender)
        for old, new in zip(before.contenders, after.contenders, strict=True):
            name = f"{old.engine.name} {old.engine.precision}"
            self._turns.setdefault(name, []).append((_fastest(old), _fastest(new), number))


class _Pair:
    """Both bundles' engines, opened side by side."""

    def __init__(
        self,
        bundles: tuple[Bundle, Bundle],
        artefacts: Sequence[tuple[Artefact, Artefact]],
        sides: tuple[int, int],
        threads: int | None,
        clock: Clock,
    ) -> None:
        self._bundles, self._artefacts, self._sides = bundles, artefacts, sides
        self._threads, self._clock = threads, clock
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> tuple[Bench, Bench]:
        with contextlib.ExitStack() as undo:
            benches = {
                side: undo.enter_context(
                    Bench(
                        self._bundles[side], [pair[side] for pair in self._artefacts], frames.builtin(self._bundles[0]),
                        threads=self._threads, named=True, clock=self._clock,
                    )
                )
                for side in self._sides
            }  # fmt: skip
            self._stack = undo.pop_all()
        return benches[0], benches[1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _over_rounds(ratios: NDArray[np.float64], rounds: NDArray[np.float64]) -> Ratio:
    """Mean of the rounds' medians, by their logarithms; the interval is Student's over the rounds, and holds the turns'."""
    medians = [math.log(np.median(ratios[rounds == i])) for i in np.unique(rounds)]
    if len(medians) < 2:
        return paired_ratio(ratios, np.ones_like(ratios))
    mean, half = paired_interval(np.asarray(medians))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def _fastest(contender: Contender) -> float:
    """Of the latest burst, in milliseconds."""
    return min(contender.latencies_ns[-BURST:]) / NS_PER_MS


def compare_files(a: Path, b: Path, *, force: bool = False) -> Comparison:
    """Compare two profiles that were written to JSON.

    Raises:
        DataError: no such file, another schema, different models, machines or modes (unless `force`), nothing in common.
    """
    before, after = _read(a), _read(b)
    notes = _same_model(before["model"], after["model"], force=force)
    machines = [machine_of(each["environment"]) for each in (before, after)]
    if machines[0] != machines[1]:
        differing = next(key for key in machines[0] if machines[0][key] != machines[1][key])
        told = f"different machines ({differing}: {machines[0][differing]}; {machines[1][differing]})"
        notes.append(_forced(told, force=force))
    notes += _changed(before["environment"].get("versions", {}), after["environment"].get("versions", {}))
    for name, each in ((a, before), (b, after)):
        notes += [f"{name} was disturbed: {why}" for why in each["disturbances"]]
    calm = before["valid"] and after["valid"]
    found = list(_differences(before["results"], after["results"], calm=calm))
    if not found:
        raise DataError(f"{a} and {b} hold no artefact in the same mode with as many threads, and with its raw times")
    return Comparison(str(a), str(b), "measured apart", tuple(found), tuple(notes), after["environment"])


def _differences(before: Any, after: Any, *, calm: bool) -> Iterator[Difference]:
    def key(result: Any) -> tuple[Any, ...]:
        return result["engine"], result["precision"], result["mode"], result["threads"]

    known = {key(result): result for result in before}
    for result in after:
        other = known.get(key(result), {})
        for field, what in (("latencies_ms", ""), ("ages_ms", ", age")):
            old, new = other.get(field), result.get(field)
            if old and new and min(len(old), len(new)) >= FEWEST:
                n = min(len(old), len(new))
                ratio = bootstrap_ratio(new, old, block=max(1, n // 20))
                verdict = judge(ratio, APART) if calm else "too noisy"
                medians = float(np.median(old)), float(np.median(new))
                yield Difference(f"{result['engine']} {result['precision']}{what}", *medians, ratio, n, verdict)


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        schema = told["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no profile ({error}); write one with: edgeattn profile BUNDLE --json FILE"
        ) from error
    if schema != PROFILE_SCHEMA:
        raise DataError(f"{path} has the schema {schema}, and not {PROFILE_SCHEMA}; write a profile with --json")
    missing = [name for name in ("model", "environment", "results", "valid", "disturbances") if name not in told]
    if missing:
        raise DataError(f"{path} tells no {missing[0]}: an older version wrote it; profile again")
    return dict(told)


def _same_model(a: Mapping[str, Any], b: Mapping[str, Any], *, force: bool) -> list[str]:
    if a == b:
        return []
    differing = next((key for key in a if key != "digest" and a[key] != b.get(key)), None)
    why = f"{differing}: {a[differing]}; {b.get(differing)}" if differing else "their graphs"
    return [_forced(f"different models ({why})", force=force)]


def _forced(told: str, *, force: bool) -> str:
    if not force:
        raise DataError(f"{told}: that says nothing of a change; compare like with like, or insist with --force")
    return f"forced: {told}"


def _changed(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: {a.get(name, 'none')} -> {b.get(name, 'none')}"
        for name in sorted({*a, *b})
        if a.get(name) != b.get(name)
    ]
