"""What a profile found: raw durations, what was executed, where, and whether the figures can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.timing.statistics import Summary, summary

SCHEMA = "edgeattn.profile/1"
STAGES = ("capture", "resize", "infer", "decode", "draw")
"""A frame's way, in order."""
WAITED_LIMIT = 0.05
"""Share of the measured time with tasks waiting for a core, above which other programs' use of cores disturbs."""
CORES_LIMIT = 0.1
"""Cores of other programs (where tasks waited), or of a hypervisor, above which a profile is not valid."""

Durations = NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """Durations of one artefact."""

    engine: str
    """Engine that ran it."""
    precision: str
    """Precision of the file: `float` or `int8`."""
    executed_precision: str
    """What the engine executed, as far as it says."""
    threads: int
    """Threads that compute one inference."""
    load_ms: float
    """Opening the file: read, compiled, ready; the import of the engine's package is not in it."""
    first_ms: float
    """The first inference."""
    warmup: int
    """Inferences between the first one and the measured ones."""
    latencies_ms: Durations
    """Inferences alone, back to back, after the warm-up."""
    stages_ms: Mapping[str, Durations]
    """Stages of a frame's way, from capture to drawing; `infer` is one inference in between the other stages."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the engine says of itself."""
    mode: str = "single"
    """How inferences followed each other: `single`, one at a time."""

    @property
    def latency_ms(self) -> Summary:
        """p50, p90, p99 and max of one inference, with n."""
        return summary(self.latencies_ms)

    @property
    def frames_ms(self) -> Durations:
        """A frame's whole way, all stages together."""
        return np.asarray(sum(self.stages_ms[stage] for stage in STAGES), np.float64)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `blocks` stays empty until costs are told per attention block."""
        latency = self.latency_ms
        return {
            "engine": self.engine,
            "precision": self.precision,
            "executed_precision": self.executed_precision,
            "threads": self.threads,
            "mode": self.mode,
            "n": latency.pop("n"),
            "latency_ms": latency,
            "load_ms": self.load_ms,
            "first_ms": self.first_ms,
            "warmup": self.warmup,
            "stages_ms": {stage: summary(values) for stage, values in self.stages_ms.items()},
            "frame_ms": summary(self.frames_ms),
            "details": dict(self.details),
            "blocks": [],
        }


@dataclass(frozen=True)
class Report:
    """A profile: one result an artefact, all measured in turns in one process."""

    bundle: str
    """Name of the bundle."""
    digest: str
    """Digest of its files."""
    source: str
    """Where the frames came from."""
    results: tuple[Result, ...]
    """One an artefact, in the bundle's order."""
    skipped: tuple[tuple[str, str, str], ...]
    """Artefacts that could not be opened: engine, precision, why."""
    environment: Mapping[str, Any]
    """The machine and its software."""
    seconds: float
    """How long was measured, warm-up excluded."""
    waited_share: float | None
    """Share of that time in which some task waited for a core, ours too; None where the kernel does not tell."""
    other_cores: float | None
    """Cores that other programs used in that time, on average; None where the kernel does not tell."""
    stolen_cores: float | None
    """Cores that a hypervisor took in that time, on average; None where the kernel does not tell."""
    stopped_early: bool
    """True when it was interrupted; the figures are of what had been measured by then."""

    @property
    def disturbances(self) -> tuple[str, ...]:
        """Why the figures are not to be trusted; empty where nothing speaks against them."""
        found = []
        waited, others, stolen = self.waited_share or 0.0, self.other_cores or 0.0, self.stolen_cores or 0.0
        if waited > WAITED_LIMIT and others > CORES_LIMIT:
            found.append(f"other programs used {others:.2f} cores, and tasks waited for one {waited:.0%} of the time")
        if stolen > CORES_LIMIT:
            found.append(f"the hypervisor gave {stolen:.2f} of our cores to others")
        usable = self.environment["usable_cores"]
        if any(result.threads > usable for result in self.results):
            found.append(f"more threads than the {usable} cores this process may use")
        return tuple(found)

    @property
    def valid(self) -> bool:
        """False when something disturbed the measurement."""
        return not self.disturbances

    def ratio(self, result: Result) -> float | None:
        """Median of a result over that of the same engine's float artefact; None where that was not measured."""
        for other in self.results:
            if (other.engine, other.precision) == (result.engine, "float"):
                return float(np.median(result.latencies_ms) / np.median(other.latencies_ms))
        return None

    def to_json(self) -> dict[str, Any]:
        """The report as `--json` writes it, schema `edgeattn.profile/1`."""
        return {
            "schema": SCHEMA,
            "bundle": self.bundle,
            "bundle_digest": self.digest,
            "source": self.source,
            "valid": self.valid,
            "disturbances": list(self.disturbances),
            "pressure": {
                "waited_share": self.waited_share,
                "other_cores": self.other_cores,
                "stolen_cores": self.stolen_cores,
            },
            "stopped_early": self.stopped_early,
            "seconds": self.seconds,
            "results": [result.to_json() | {"ratio_to_float": self.ratio(result)} for result in self.results],
            "skipped": [{"engine": e, "precision": p, "reason": why} for e, p, why in self.skipped],
            "environment": dict(self.environment),
        }
