"""Does what runs still answer as float does? Checks of single frames, counted and judged.

Judged is a window of the latest checks, so that a drift after weeks without one is seen as soon as a drift at the start, and
by the lower end of an interval of high confidence, since it is judged anew at every check for as long as a camera runs. In
simulation, of 2 million checks each, answers that differ at a rate of 3 % never broke the bound of 5 %, those at a rate of
5 % once in 7,000 checks (two and a half days at one in 30 s); a rate of 30 % is found after 60 checks in the median.

A picture that hardly differs from the last one counted says nothing new: where a camera looks at one scene for hours, a
single borderline answer would else be counted a thousand times.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn import maps as attention
from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle
from edgeattn.evaluation import significance
from edgeattn.evaluation.significance import Gate, Verdict
from edgeattn.imaging import Picture
from edgeattn.spec import Spec
from edgeattn.tasks import Prediction, same

MAX_FLIPS = 0.05
"""Greatest share of pictures on which the answer may be another one than float's, as in `verify`."""
MAX_MAP_JS = 0.1
"""Greatest divergence of the maps, relative to that between maps of different pictures. Twice what `verify` allows, as a
camera shows what no test set holds: sound int8 gave 0.002 to 0.017 on nine sets of pictures, bright and dark, and 0.05 on a
test pattern. Ranks are told, not judged: where all is dark, those of a flat map are noise (0.91 to 0.93, same answers).
Judged is the median over blocks, not the worst one as in `verify`: on scenes that nobody calibrated for, a street and a test
pattern, the first blocks of sound int8 are 0.5 and 0.9 off in OpenVINO, and not one answer changes."""
WINDOW = 200
"""Latest checks that are judged."""
LEAST = 20
"""Checks before anything is judged: intervals of fewer are too narrow."""
CONFIDENCE = 0.999
"""One-sided, of the interval that is held against a bound."""
SAME = 1.0
"""Mean difference in grey levels, of 16 x 16 places, up to which two pictures are the same."""
LEAST_DIVERGENCE = 1e-9
"""Maps of different pictures that diverge by fewer bits are all alike, and what differs from them is rounding."""
SHOWN = 3
_SIDE = 16

Maps = Mapping[str, NDArray[Any]]
"""Raw maps (h, w) by block."""


@dataclass(frozen=True)
class Check:
    """One picture, answered twice."""

    given: str
    """What the running model answered."""
    wanted: str
    """What float answered."""
    differs: bool
    """Whether the two are not the same (see `tasks.same`)."""
    map_js: float | None
    """How far the maps diverge, the median over blocks; None: no maps, or nothing to relate it to yet."""
    map_rank: float | None
    """Rank correlation of the maps, the median over blocks."""


class Drift:
    """Counts and judges the checks of one model."""

    def __init__(self, bundle: Bundle) -> None:
        self.checked = self.same = self.differed = 0
        """Pictures that were counted; left out since they were like the one before; answered otherwise than by float."""
        self._window: deque[Check] = deque(maxlen=WINDOW)
        self._apart = golden_apart(bundle)
        self._between: dict[str, deque[float]] = {}
        self._last: dict[int, tuple[NDArray[Any], Maps]] = {}

    def add(
        self,
        picture: Picture,
        given: Prediction,
        wanted: Prediction,
        given_maps: Maps,
        wanted_maps: Maps,
        *,
        camera: int = 0,
    ) -> None:
        """Take in a camera's frame, (H, W, 3) bytes, with the running model's and float's answer and maps."""
        small = cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
        last = self._last.get(camera)
        if last is not None and np.abs(small - last[0]).mean() <= SAME:
            self.same += 1
            return
        if last is not None:
            self._note_apart(wanted_maps, last[1])
        self._last[camera] = (small, wanted_maps)
        self.checked += 1
        differs = not same(given, wanted)
        self.differed += differs
        ratios = [
            float(attention.js_divergence(given_maps[block], wanted)) / max(self._apart[block], LEAST_DIVERGENCE)
            for block, wanted in wanted_maps.items()
            if block in self._apart
        ]
        ranks = [float(attention.rank_correlation(given_maps[b], wanted)) for b, wanted in wanted_maps.items()]
        self._window.append(
            Check(
                given.label,
                wanted.label,
                differs,
                statistics.median(ratios) if ratios else None,
                statistics.median(ranks) if ranks else None,
            )
        )

    @property
    def gates(self) -> dict[str, Gate]:
        """What was judged: `answers`, and where there are maps, `maps`; nothing before there are `LEAST` checks."""
        checks = tuple(self._window)
        if len(checks) < LEAST:
            return {}
        gates = {"answers": significance.proportion_gate(len(_differing(checks)), len(checks), MAX_FLIPS, CONFIDENCE)}
        divergences = [check.map_js for check in checks if check.map_js is not None]
        if len(divergences) >= LEAST:
            gates["maps"] = significance.median_gate(np.array(divergences), MAX_MAP_JS, CONFIDENCE)
        return gates

    @property
    def verdict(self) -> Verdict:
        """The worst of the gates."""
        return significance.worst([gate.verdict for gate in self.gates.values()])

    def reason(self) -> str:
        """What broke a bound, in words; empty where nothing did."""
        gates, said = self.gates, []
        if (gate := gates.get("answers")) and gate.verdict == "failed":
            pairs = ", ".join(f"'{a}' for '{b}' {n} times" for a, b, n in self._pairs()[:SHOWN])
            said.append(
                f"{round(gate.value * gate.n)} of the latest {gate.n} different pictures are answered otherwise than by "
                f"float ({_percent(gate)}): {pairs}"
            )
        if (gate := gates.get("maps")) and gate.verdict == "failed":
            said.append(
                f"over the latest {gate.n} different pictures the attention diverges from float's by {100 * gate.value:.1f} "
                f"% of what maps of different pictures do ({_percent(gate)})"
            )
        return "; ".join(said)

    def report(self) -> dict[str, Any]:
        """As plain JSON values."""
        checks, gates = tuple(self._window), self.gates
        divergences = [check.map_js for check in checks if check.map_js is not None]
        ranks = [check.map_rank for check in checks if check.map_rank is not None]
        return {
            "checked": self.checked,
            "same": self.same,
            "differed": self.differed,
            "window": len(checks),
            "window_differed": len(_differing(checks)),
            "map_js": statistics.median(divergences) if divergences else None,
            "map_rank": statistics.median(ranks) if ranks else None,
            "verdict": significance.worst([gate.verdict for gate in gates.values()]),
            "gates": {name: significance.plain(gate) for name, gate in gates.items()},
            "pairs": [{"given": given, "float": wanted, "n": n} for given, wanted, n in self._pairs()],
        }

    def _pairs(self) -> list[tuple[str, str, int]]:
        """What was answered for what, in the window, the most frequent first."""
        counted = Counter((check.given, check.wanted) for check in _differing(tuple(self._window)))
        return [(given, wanted, n) for (given, wanted), n in counted.most_common(10)]

    def _note_apart(self, maps: Maps, before: Maps) -> None:
        """Without golden maps, those of the pictures themselves tell how far maps of different pictures are apart."""
        if self._apart.keys() - self._between.keys():
            return
        for block, latest in maps.items():
            between = self._between.setdefault(block, deque(maxlen=WINDOW))
            between.append(float(attention.js_divergence(latest, before[block])))
            self._apart[block] = statistics.median(between)


def golden_apart(bundle: Bundle) -> dict[str, float]:
    """By block: how many bits maps of different golden pictures are apart, in the median; empty without two of them."""
    golden = bundle.golden()
    if not golden or len(golden["inputs"]) < 2:
        return {}
    maps = {told.block: golden[told.output] for told in bundle.spec.maps}
    return {block: float(np.median(attention.js_divergence(raw[1:], raw[:-1]))) for block, raw in maps.items()}


def maps_of(outputs: Mapping[str, NDArray[Any]], spec: Spec) -> dict[str, NDArray[Any]]:
    """The attention maps (h, w) by block among an engine's outputs."""
    return {told.block: outputs[told.output][0] for told in spec.maps if told.output in outputs}


def _differing(checks: tuple[Check, ...]) -> list[Check]:
    return [check for check in checks if check.differs]


def _percent(gate: Gate) -> str:
    return (
        f"with {100 * gate.confidence:g} % confidence more than {100 * gate.low:.1f} %, "
        f"{100 * gate.bound:g} % are allowed"
    )
