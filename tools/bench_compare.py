"""How well `compare` tells a slow-down of 5 % from none, on this machine as restless as it is, with real engines.

The slower bundle is the same one; its engine keeps its thread busy for 5 % of each inference's own time, after it:

    python tools/bench_compare.py sign-digits --engine openvino --precision int8
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import time
from typing import Any

from edgeattn import engines
from edgeattn.bundle import Bundle, load
from edgeattn.profiling.duel import Duel
from edgeattn.timing import monotonic_ns, pressure


class Slowed:
    """An engine that takes longer by a share of its own time."""

    def __init__(self, engine: engines.Engine, share: float) -> None:
        self._engine, self._share = engine, share

    def infer(self, image: engines.Array) -> dict[str, engines.Array]:
        start_ns = time.perf_counter_ns()
        outputs = self._engine.infer(image)
        now_ns = time.perf_counter_ns()
        end_ns = now_ns + self._share * (now_ns - start_ns)
        while time.perf_counter_ns() < end_ns:
            pass
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each trial")
    parser.add_argument("--slow", type=int, default=10, help="trials with the slow-down")
    parser.add_argument("--same", type=int, default=20, help="trials without")
    parser.add_argument("--percent", type=float, default=5.0)
    options = parser.parse_args()
    bundle = load(options.bundle)
    real = engines.open_artefact

    def open_artefact(bundle: Bundle, artefact: Any, **rest: Any) -> Any:
        engine = real(bundle, artefact, **rest)
        return Slowed(engine, options.percent / 100) if bundle.provenance.get("slowed") else engine

    engines.open_artefact = open_artefact
    slower = dataclasses.replace(bundle, provenance={"slowed": True})
    before = pressure.read(monotonic_ns)
    for name, other, trials in (
        (f"{options.percent:g} % slower", slower, options.slow),
        ("same", bundle, options.same),
    ):
        verdicts: collections.Counter[str] = collections.Counter()
        for _ in range(trials):
            duel = Duel(
                bundle, other, engine=options.engine, precision=options.precision, threads=options.threads,
                seconds=options.seconds,
            )  # fmt: skip
            for _ in duel:
                pass
            found = duel.comparison().differences[0]
            verdicts[found.verdict] += 1
            print(f"  {name}: {found.line}", flush=True)
        print(f"{name}: {', '.join(f'{count} of {trials} {verdict}' for verdict, count in verdicts.most_common())}")
    after = pressure.read(monotonic_ns)
    print(f"others used {after.other_cores(before) or 0:.2f} cores, tasks waited {after.waited_share(before) or 0:.0%}")


if __name__ == "__main__":
    main()
