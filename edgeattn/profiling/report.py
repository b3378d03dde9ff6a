"""What a profile found: raw durations, what was executed, where, and whether the figures can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.engines.base import Layer
from edgeattn.profiling.ablation import Saved
from edgeattn.profiling.blocks import ATTENTION, Block, Blocks
from edgeattn.profiling.peaks import Peaks
from edgeattn.profiling.roofline import Roof
from edgeattn.timing.histogram import Histogram
from edgeattn.timing.sensors import Sensors, dropped, told
from edgeattn.timing.statistics import (
    PERCENTILES,
    Ratio,
    Summary,
    bootstrap_ratio,
    intervals,
    jitter,
    paired_ratio,
    summary,
)

SCHEMA = "edgeattn.profile/1"
STAGES = ("capture", "resize", "infer", "decode", "draw")
"""A frame's way, in order."""
WAITED_LIMIT = 0.05
"""Share of the measured time with tasks waiting for a core, above which other programs' use of cores disturbs."""
CORES_LIMIT = 0.1
"""Cores of other programs (where tasks waited), or of a hypervisor, above which a profile is not valid."""
RAW_KEPT = 20_000
"""Most raw durations that the JSON holds."""

Durations = NDArray[np.float64]
NOTHING: Durations = np.empty(0, np.float64)


@dataclass(frozen=True)
class Result:
    """Durations of one artefact."""

    engine: str
    """Engine that ran it."""
    precision: str
    """Precision of the file: `float`, `bf16` or `int8`."""
    executed_precision: str
    """What the engine executed, as far as it says."""
    threads: int
    """Threads that compute one inference."""
    load_ms: float
    """Opening the file: read, compiled, ready; the import of the engine's package is not in it."""
    first_ms: float
    """The first inference."""
    warmup: int
    """Frames between the first inference and the measured ones."""
    latencies_ms: Durations
    """Inferences alone, after the warm-up; in `cold`, process start to first result."""
    stages_ms: Mapping[str, Durations]
    """Stages of a frame's way; `infer` is one inference in between the other stages."""
    settled: bool = True
    """The warm-up ended because the times had no longer changed; False: because it took too long."""
    inside_ms: Durations = field(default_factory=lambda: NOTHING)
    """`latencies_ms` by the engine's own clock, as OpenVINO's benchmark_app counts; empty where it has none."""
    thread_ms: Mapping[str, Durations] = field(default_factory=dict)
    """What the measuring thread itself computed in each stage; the engine's own threads are not in it."""
    starts_ns: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """When each stage began."""
    ages_ms: Durations = field(default_factory=lambda: NOTHING)
    """From when each frame was due or captured to its result; empty where frames have no age."""
    age_from: str | None = None
    """What ages count from: `due`, `kernel`, `sender` or `received`."""
    histogram: Histogram | None = None
    """Inferences of a long run, in place of `latencies_ms`."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the engine says of itself: device, streams, pinning, spinning, version, file and its digest."""
    layers: Sequence[Layer] = ()
    """The graph as executed, node by node."""
    mode: str = "single"
    """How inferences followed each other: see `modes`."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    """Of a process that holds this artefact alone; empty where none was started."""
    blocks: Blocks | None = None
    """What each part of the net takes; None: not measured, or its engine does not tell."""
    without: Mapping[str, Saved] = field(default_factory=dict)
    """What is gained without an attention block, or without all of them (`ATTENTION`)."""
    roofs: Mapping[str, Roof] = field(default_factory=dict)
    """Each part against the processor's best, where that was asked for."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What only this mode tells."""

    @property
    def name(self) -> str:
        """Engine and precision."""
        return f"{self.engine} {self.precision}"

    @property
    def latency_ms(self) -> Summary:
        """The percentiles and max of one inference, with n."""
        return self.histogram.summary(PERCENTILES) if self.histogram else summary(self.latencies_ms, PERCENTILES)

    @property
    def latency_intervals_ms(self) -> dict[str, tuple[float, float] | None]:
        """Interval of each percentile."""
        return self.histogram.intervals() if self.histogram else intervals(self.latencies_ms)

    @property
    def frames_ms(self) -> Durations:
        """A frame's whole way, all stages together; live, the wait for the frame is left out."""
        counted = [ms for stage, ms in self.stages_ms.items() if not (self.mode == "live" and stage == "capture")]
        return np.asarray(sum(counted), np.float64) if counted else NOTHING

    @property
    def throughput_fps(self) -> float | None:
        """Inferences a second: of all streams together, or of one that never pauses."""
        if "throughput_fps" in self.more:
            return float(self.more["throughput_fps"])
        return 1000 / float(self.latencies_ms.mean()) if self.latencies_ms.size and self.mode == "single" else None

    def _block(self, block: Block) -> dict[str, Any]:
        without = self.without.get(block.name)
        held = self.roofs.get(block.name)
        return vars(block) | {"without": vars(without) if without else None, "roof": vars(held) if held else None}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        latency, values = self.latency_ms, self.latencies_ms
        n = latency.pop("n")
        if values.size:
            latency |= {"mean": float(values.mean()), "min": float(values.min())}
        written = {
            "engine": self.engine,
            "precision": self.precision,
            "executed_precision": self.executed_precision,
            "threads": self.threads,
            "mode": self.mode,
            "n": n,
            "latency_ms": latency,
            "latency_interval_ms": self.latency_intervals_ms,
            "inside_ms": summary(self.inside_ms) if self.inside_ms.size else None,
            "jitter_ms": jitter(values),
            "throughput_fps": self.throughput_fps,
            "load_ms": self.load_ms,
            "compile_ms": self.details.get("compile_ms"),
            "first_ms": self.first_ms,
            "warmup": self.warmup,
            "warmup_settled": self.settled,
            "stages_ms": {stage: summary(each) for stage, each in self.stages_ms.items()},
            "thread_ms_p50": {stage: float(np.median(each)) for stage, each in self.thread_ms.items() if each.size},
            "frame_ms": summary(self.frames_ms),
            "memory": dict(self.memory) or None,
            "details": dict(self.details),
            "layers": [{"names": list(names), "type": kind, "precision": to} for names, kind, to in self.layers],
            "blocks": [self._block(each) for each in self.blocks.blocks] if self.blocks else [],
            "blocks_sum_over_whole": self.blocks.accounted if self.blocks else None,
            "blocks_counting_over_whole": self.blocks.counting_over_whole if self.blocks else None,
            "blocks_between_ms": self.blocks.between_ms if self.blocks else None,
            "without_attention": vars(self.without[ATTENTION]) if ATTENTION in self.without else None,
            "latencies_ms": values.round(4).tolist() if values.size <= RAW_KEPT else None,
            **self.more,
        }
        if self.ages_ms.size:
            written |= {
                "age_ms": summary(self.ages_ms, PERCENTILES),
                "age_interval_ms": intervals(self.ages_ms),
                "age_from": self.age_from,
                "ages_ms": self.ages_ms.round(4).tolist() if self.ages_ms.size <= RAW_KEPT else None,
            }
        return written


@dataclass(frozen=True)
class Report:
    """A profile: one result an artefact, all measured in one go."""

    bundle: str
    """Name of the bundle."""
    digest: str
    """Digest of its files."""
    model: Mapping[str, Any]
    """Which model that is: see `identity.model_of`."""
    source: str
    """Where the frames came from."""
    results: tuple[Result, ...]
    """One an artefact, in the bundle's order."""
    skipped: tuple[tuple[str, str, str], ...]
    """Artefacts that could not be opened: engine, precision, why."""
    environment: Mapping[str, Any]
    """The machine and its software."""
    memory: Mapping[str, Any]
    """Of the measuring process, with all engines open."""
    seconds: float
    """How long was measured, warm-up excluded."""
    waited_share: float | None
    """Share of that time in which some task waited for a core, ours too; None where the kernel does not tell."""
    other_cores: float | None
    """Cores that other programs used in that time, on average; None where the kernel does not tell."""
    stolen_cores: float | None
    """Cores that a hypervisor took in that time, on average; None where the kernel does not tell."""
    readings: tuple[Sensors, ...]
    """Of the sensors, from the beginning to the end."""
    stopped_early: bool
    """True when it was interrupted; the figures are of what had been measured by then."""
    mode: str = "single"
    """How inferences followed each other."""
    peaks: Peaks | None = None
    """The processor's best, where parts were held against it."""

    @property
    def weather(self) -> tuple[str, ...]:
        """What pressed on the machine meanwhile; empty where nothing did."""
        found = []
        waited, others, stolen = self.waited_share, self.other_cores or 0.0, self.stolen_cores or 0.0
        if others > CORES_LIMIT and (waited is None or waited > WAITED_LIMIT):
            how = (
                "the kernel tells not whether we waited"
                if waited is None
                else f"tasks waited for one {waited:.0%} of the time"
            )
            found.append(f"other programs used {others:.2f} cores, and {how}")
        if stolen > CORES_LIMIT:
            found.append(f"the hypervisor gave {stolen:.2f} of our cores to others")
        if self.readings and (fell := dropped(list(self.readings))):
            found.append(fell)
        return tuple(found)

    @property
    def loaded(self) -> tuple[str, ...]:
        """In mode `live`, the box's own load: it belongs to what is measured there."""
        return self.weather if self.mode == "live" else ()

    @property
    def disturbances(self) -> tuple[str, ...]:
        """Why the figures are not to be trusted; empty where nothing speaks against them."""
        found = list(self.weather if self.mode != "live" else ())
        usable = self.environment["usable_cores"]
        if any(result.threads > usable for result in self.results):
            found.append(f"more threads than the {usable} cores this process may use")
        return tuple(found)

    @property
    def valid(self) -> bool:
        """False when something disturbed the measurement."""
        return not self.disturbances

    def ratio(self, result: Result) -> Ratio | None:
        """Median of a result over that of the same engine's float artefact; None where that was not measured."""
        for other in self.results:
            if (other.engine, other.precision) == (result.engine, "float"):
                return _ratio(result, other)
        return None

    def to_json(self) -> dict[str, Any]:
        """The report as `--json` writes it, schema `edgeattn.profile/1`."""
        results = []
        for result in self.results:
            ratio = self.ratio(result)
            results.append(
                result.to_json()
                | {
                    "ratio_to_float": ratio and ratio.value,
                    "ratio_to_float_interval": [ratio.low, ratio.high] if ratio and isfinite(ratio.high) else None,
                }
            )
        return {
            "schema": SCHEMA,
            "bundle": self.bundle,
            "bundle_digest": self.digest,
            "model": dict(self.model),
            "source": self.source,
            "mode": self.mode,
            "valid": self.valid,
            "disturbances": list(self.disturbances),
            "loaded": list(self.loaded),
            "pressure": {
                "waited_share": self.waited_share,
                "other_cores": self.other_cores,
                "stolen_cores": self.stolen_cores,
            },
            "sensors": told(list(self.readings)) if self.readings else None,
            "memory": dict(self.memory),
            "stopped_early": self.stopped_early,
            "seconds": self.seconds,
            "results": results,
            "skipped": [{"engine": e, "precision": p, "reason": why} for e, p, why in self.skipped],
            "environment": dict(self.environment),
            "peaks": vars(self.peaks) if self.peaks else None,
        }


def _ratio(result: Result, other: Result) -> Ratio | None:
    """Of two medians; by turns where the two took turns."""
    if result is other:
        return Ratio(1.0, 1.0, 1.0)
    if result.histogram or other.histogram or not (result.latencies_ms.size and other.latencies_ms.size):
        above, below = result.latency_ms["p50"], other.latency_ms["p50"]
        return Ratio(above / below, 0.0, float("inf")) if above and below else None
    value = float(np.median(result.latencies_ms) / np.median(other.latencies_ms))
    if result.mode == "single":
        turns = [by_turns(each.latencies_ms, int(each.more.get("burst", 1))) for each in (result, other)]
        n = min(map(len, turns))
        if n:
            found = paired_ratio(turns[0][:n], turns[1][:n])
            return Ratio(found.value, found.low, found.high)
    block = max(1, result.latencies_ms.size // 30)
    found = bootstrap_ratio(result.latencies_ms, other.latencies_ms, block=block, draws=200)
    return Ratio(value, found.low, found.high)


def by_turns(values_ms: Durations, burst: int) -> Durations:
    """The median of each burst; a last one that was cut short is left out."""
    whole = len(values_ms) // burst * burst
    return np.median(values_ms[:whole].reshape(-1, burst), axis=1)
