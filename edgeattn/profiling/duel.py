"""Did it get slower? Two bundles that are measured here, in turns.

In turns, both meet the same weather, and which comes first is drawn by lot: were they alike, each would be ahead as often
as behind, however restless the machine. A turn counts by the fastest of its burst, since what disturbs only ever adds. Where
memory happens to lie can make one of two equal engines some percent faster for as long as it is open: so they are opened
anew several times, and the interval is over these rounds.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgeattn import engines
from edgeattn.bundle import Bundle
from edgeattn.errors import DataError, SpecError
from edgeattn.evaluation.significance import paired_interval
from edgeattn.profiling import frames
from edgeattn.profiling.bench import Bench, Contender
from edgeattn.profiling.compare import FEWEST, Bounds, Comparison, Difference, judge, same_model
from edgeattn.profiling.identity import model_of
from edgeattn.profiling.modes import BURST, burst
from edgeattn.spec import Artefact
from edgeattn.timing import NS_PER_MS, Clock, environment, monotonic_ns
from edgeattn.timing.statistics import Ratio, paired_ratio

SECONDS = 20.0
"""How long two bundles are measured, unless told otherwise."""
ROUNDS = 6
"""How often their engines are opened anew."""
IN_TURNS = Bounds(least=0.025, resolved=0.05)


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
        self._notes = same_model(model_of(a), model_of(b), force=force)
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
