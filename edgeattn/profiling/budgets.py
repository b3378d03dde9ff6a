"""Budgets: bounds on a profile's figures, kept by every artefact measured; judged by interval, not by the figure alone.

As text, `p99=33ms,age_p99=50ms,rss=200MB`; or a TOML file with the same in a table `[budget]`: `p99 = "33ms"`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgeattn.camera.record import MEANING
from edgeattn.errors import NameNotFoundError, SpecError
from edgeattn.profiling.figures import number
from edgeattn.profiling.report import Report, Result
from edgeattn.timing.statistics import PERCENTILES, SAMPLE_FLOORS, intervals, summary

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef, import-not-found, unused-ignore]

UNITS: Mapping[str, Mapping[str, float]] = {
    "ms": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "MB": {"kB": 1e-3, "MB": 1.0, "MiB": 1.048576, "GB": 1e3, "GiB": 1073.741824},
    "FPS": {"fps": 1.0, "FPS": 1.0},
}
"""Units of a quantity, and what each is in the first-named."""
Verdict = Literal["passed", "failed", "cannot tell"]
_MEMORY = ("rss", "pss", "peak_rss")


class Measured(NamedTuple):
    """A figure, with the interval that it may lie in."""

    value: float | None
    """None: too few samples."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    n: int = 1
    """Samples."""


@dataclass(frozen=True)
class Bound:
    """One bound."""

    key: str
    """What is bounded, as the user names it."""
    limit: float
    """Greatest value; of FPS the least."""
    unit: str
    """`ms`, `MB` or `FPS`."""

    @property
    def percentile(self) -> str | None:
        """The percentile that is bounded, as `p99`; None: none is."""
        last = self.key.rpartition("_")[2]
        return last if re.fullmatch(r"p[\d.]+", last) else None

    @property
    def of_memory(self) -> bool:
        """Whether it bounds memory, which is weighed in a process of its own."""
        return self.key in _MEMORY


@dataclass(frozen=True)
class Judged:
    """A bound held against one artefact."""

    bound: Bound
    """The bound."""
    artefact: str
    """Engine and precision."""
    value: float | None
    """What was measured."""
    verdict: Verdict
    """`cannot tell`: too few samples, too close to the bound, or too slow on a disturbed machine."""
    line: str
    """All of it in words."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        told = {"key": self.bound.key, "limit": self.bound.limit, "unit": self.bound.unit}
        return told | {"artefact": self.artefact, "value": self.value, "verdict": self.verdict, "line": self.line}


def read_budget(text: str, mode: str) -> tuple[Bound, ...]:
    """Read a budget, given as text or by its TOML file, for a profile in a mode.

    Raises:
        NameNotFoundError: an unknown key.
        SpecError: an unknown unit, no number, a file that cannot be read, a key that this mode does not measure.
    """
    if text.endswith(".toml"):
        where, entries = text, _read_toml(Path(text))
    else:
        where, entries = "--budget", {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals:
                raise SpecError(f"--budget {part}: must be KEY=VALUE, as in p99=33ms")
            entries[key.strip()] = value.strip()
    if not entries:
        raise SpecError(f"{where}: the budget names nothing to keep; write one as p99=33ms,rss=200MB")
    return tuple(_bound(key, value, mode, where) for key, value in entries.items())


def rests_on(bounds: Sequence[Bound]) -> str | None:
    """The rarest percentile that is bounded: what to measure until; None: none beyond p90."""
    rarest = max((float(bound.percentile[1:]) for bound in bounds if bound.percentile), default=0.0)
    return f"p{rarest:g}" if rarest > 90 else None


def judge(bounds: Sequence[Bound], report: Report, result: Result) -> list[Judged]:
    """Hold every bound against what was measured on one artefact."""
    return [_judge(bound, report, result) for bound in bounds]


def _judge(bound: Bound, report: Report, result: Result) -> Judged:
    value, low, high, n = _KEYS[bound.key][1](result)
    least = bound.unit == "FPS"
    within = low >= bound.limit if least else high <= bound.limit
    beyond = high < bound.limit if least else low > bound.limit
    limit = f"{'at least' if least else 'at most'} {number(bound.limit)} {bound.unit}"
    shown = (
        f"{number(value)} {bound.unit} ({number(low)} to {number(high)})"
        if low < high
        else f"{number(value)} {bound.unit}"
    )
    verdict: Verdict = "passed" if within else "failed" if beyond else "cannot tell"
    why = ""
    if value is None:
        floor = SAMPLE_FLOORS[float(str(bound.percentile)[1:])] if bound.percentile else 1
        verdict = "cannot tell"
        why = f"not enough samples ({n} of {floor}); measure with --until {bound.percentile}" if n else "not measured"
        shown = "not known"
    elif verdict == "cannot tell":
        why = "the bound lies within the range: measure longer, or give it more room"
    elif verdict == "failed" and not report.valid and not bound.of_memory:
        verdict, why = "cannot tell", f"over it, but disturbed: {report.disturbances[0]}"
    if bound.key.startswith("age") and result.age_from:
        why = "; ".join(filter(None, (why, f"counts {MEANING[result.age_from]}")))
    line = f"budget {verdict}: {result.name}: {bound.key} {shown}, {limit}{f' ({why})' if why else ''}"
    return Judged(bound, result.name, value, verdict, line)


def _bound(key: str, value: object, mode: str, where: str) -> Bound:
    if key not in _KEYS:
        raise NameNotFoundError("budget", key, _KEYS)
    unit, _, modes = _KEYS[key]
    if modes and mode not in modes:
        raise SpecError(f"{where}: {key} is not measured in --mode {mode} but in {' or '.join(modes)}")
    found = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", str(value).strip())
    units = UNITS[unit]
    if not found or found[1].count(".") > 1 or float(found[1].strip(".") or 0) <= 0:
        raise SpecError(f"{where}: {key}={value} is no number above 0 with a unit, as {key}=33{unit}")
    if found[2] not in units:
        raise SpecError(f"{where}: {key}={value} has the unit '{found[2]}'; write one of {', '.join(units)}")
    return Bound(key, float(found[1]) * units[found[2]], unit)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("budget")
    except OSError as error:
        raise SpecError(f"{path}: the budget cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: no valid TOML ({error})") from error
    if not isinstance(entries, dict):
        raise SpecError(f'{path}: has no table [budget] with lines as p99 = "33ms"')
    return entries


def _percentile(of: Callable[[Result], Any], name: str) -> Callable[[Result], Measured]:
    def measured(result: Result) -> Measured:
        values = of(result)
        figures, ends = summary(values, PERCENTILES), intervals(values)
        return _measured(figures, ends, name)

    return measured


def _latency(name: str) -> Callable[[Result], Measured]:
    return lambda result: _measured(result.latency_ms, result.latency_intervals_ms, name)


def _measured(figures: Mapping[str, Any], ends: Mapping[str, Any], name: str) -> Measured:
    low, high = ends.get(name) or (0.0, math.inf)
    if name == "max" and figures["max"] is not None:
        low = high = figures["max"]
    return Measured(figures[name], low, high, int(figures["n"] or 0))


def _fixed(of: Callable[[Result], Any]) -> Callable[[Result], Measured]:
    def measured(result: Result) -> Measured:
        value = of(result)
        known = isinstance(value, int | float)
        return Measured(float(value), float(value), float(value)) if known else Measured(None, 0.0, math.inf, 0)

    return measured


def _memory(name: str) -> Callable[[Result], Measured]:
    return _fixed(lambda result: result.memory.get(f"{name}_mb"))


def _throughput(result: Result) -> Measured:
    value = result.throughput_fps
    if value is None:
        return Measured(None, 0.0, math.inf, 0)
    low, high = result.more.get("throughput_interval_fps", (value, value))
    return Measured(value, min(low, value), max(high, value))


def _keys() -> dict[str, tuple[str, Callable[[Result], Measured], tuple[str, ...]]]:
    """Every key: its unit, how it is measured, and the modes that measure it (empty: all)."""
    names = [*(f"p{percentile:g}" for percentile in PERCENTILES), "max"]
    aged, framed = ("paced", "live"), ("paced", "sustained")
    keys: dict[str, tuple[str, Callable[[Result], Measured], tuple[str, ...]]] = {}
    keys |= {name: ("ms", _latency(name), ()) for name in names}
    keys |= {f"age_{name}": ("ms", _percentile(lambda r: r.ages_ms, name), aged) for name in names}
    keys |= {f"frame_{name}": ("ms", _percentile(lambda r: r.frames_ms, name), framed) for name in names}
    keys |= {name: ("MB", _memory(name), ()) for name in _MEMORY}
    warm = ("single", "paced", "throughput", "sustained", "live")
    keys["first"] = ("ms", _fixed(lambda r: r.first_ms), warm)
    keys["load"] = ("ms", _fixed(lambda r: r.load_ms), warm)
    keys["throughput"] = ("FPS", _throughput, ("single", "throughput"))
    return keys


_KEYS = _keys()
