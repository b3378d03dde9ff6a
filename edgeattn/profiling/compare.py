"""Did it get slower? What is said of two measurements, and of two profiles that were written to JSON.

Those were measured apart: one of them may have met a slower machine, which no interval knows, so the bounds are wider than
those of a `duel`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from edgeattn.errors import DataError
from edgeattn.profiling.identity import machine_of
from edgeattn.profiling.report import SCHEMA as PROFILE_SCHEMA
from edgeattn.timing.statistics import Ratio, bootstrap_ratio

SCHEMA = "edgeattn.compare/1"
FEWEST = 6
"""Turns or samples below which nothing is said."""

Verdict = Literal["faster", "slower", "no difference", "too noisy"]


class Bounds(NamedTuple):
    """What counts as a difference."""

    least: float
    """Change below which two are equal to all intents."""
    resolved: float
    """Change that must be ruled out before they are called equal."""


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


def compare_files(a: Path, b: Path, *, force: bool = False) -> Comparison:
    """Compare two profiles that were written to JSON.

    Raises:
        DataError: no such file, another schema, different models, machines or modes (unless `force`), nothing in common.
    """
    before, after = _read(a), _read(b)
    notes = same_model(before["model"], after["model"], force=force)
    machines = [machine_of(each["environment"]) for each in (before, after)]
    if differing := _differing(*machines):
        told = f"different machines ({differing}: {machines[0][differing]}; {machines[1][differing]})"
        notes.append(_forced(told, force=force))
    notes += _changed(*(each["environment"].get("versions", {}) for each in (before, after)))
    notes += _changed(*({"governor": each["environment"].get("governor") or "unknown"} for each in (before, after)))
    for name, each in ((a, before), (b, after)):
        notes += [f"{name} was disturbed: {why}" for why in each["disturbances"]]
    calm = before["valid"] and after["valid"]
    try:
        found = list(_differences(before["results"], after["results"], calm=calm))
    except (KeyError, TypeError) as error:
        raise DataError(f"{a} or {b} is no whole profile (a result tells no {error}); profile again") from error
    if not found:
        raise DataError(f"{a} and {b} hold no artefact in the same mode with as many threads, and with its raw times")
    return Comparison(str(a), str(b), "measured apart", tuple(found), tuple(notes), after["environment"])


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first field by which two machines differ; the kernel keeps some megabytes of memory for itself, by version."""
    for key in a:
        near = key == "memory_mb" and a[key] and b[key] and abs(a[key] - b[key]) <= 0.02 * a[key]
        if a[key] != b[key] and not near:
            return key
    return None


def _differences(before: Any, after: Any, *, calm: bool) -> Iterator[Difference]:
    def key(result: Any) -> tuple[Any, ...]:
        return result["engine"], result["precision"], result["mode"], result["threads"]

    known = {key(result): result for result in before}
    for result in after:
        other = known.get(key(result), {})
        for field, what in (("latencies_ms", ""), ("ages_ms", ", age")):
            if what and any(result.get(name) != other.get(name) for name in ("age_from", "fps_due")):
                continue  # ages from another moment, or of frames that come at another pace
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


def same_model(a: Mapping[str, Any], b: Mapping[str, Any], *, force: bool) -> list[str]:
    """What was forced: nothing where both are one model.

    Raises:
        DataError: they are not, and nobody insists.
    """
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
