"""How inferences follow each other: each mode measures the contenders of a bench and yields the share that is done.

`single`: one at a time, back to back, the artefacts in turns. `paced`: frames that are due at a fixed rate, each of them
taken. `throughput`: as many at once as there are cores for. `sustained`: frames for minutes on end. `live`: the camera
loop. (`cold`, process start to first result, has a module of its own: no engine is open there.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeattn.camera.files import Folder
from edgeattn.camera.pipeline import Pipeline
from edgeattn.camera.pipeline import Result as Answer
from edgeattn.camera.source import open_source
from edgeattn.errors import EngineError, NameNotFoundError, SourceError, SpecError
from edgeattn.profiling.bench import Bench, Contender
from edgeattn.profiling.streams import Streams
from edgeattn.timing import NS_PER_MS, SAMPLE_FLOORS, usable_cores
from edgeattn.timing.histogram import Histogram
from edgeattn.timing.sensors import read as read_sensors
from edgeattn.timing.statistics import bootstrap_ratio, order_ranks, summary

BURST, UNCOUNTED = 8, 2
"""Inferences alone in one turn of an artefact, and those before them that do not count: the first is a fifth slower."""
SAMPLES = 88 * BURST
"""Inferences an artefact, unless told otherwise: enough for p99, and 88 frames by stages, enough for p90."""
FRAMES = SAMPLE_FLOORS[99]
"""Frames an artefact where they are paced or live, unless told otherwise: enough for p99."""
STARTS = 6
"""Starts of a process an artefact, unless told otherwise."""
SECONDS = 15.0
"""Longest measurement of `single` and `throughput`, unless told otherwise."""
SETTLING = 10
"""First frames of a live source that do not count: the camera adjusts, the drop policy finds its pace."""
MODES = ("single", "paced", "throughput", "sustained", "cold", "live")
"""Names of the modes."""


@dataclass(frozen=True)
class Plan:
    """What to measure, and for how long."""

    mode: str
    """One of `MODES`."""
    samples: int | None
    """Inferences, frames or starts an artefact; None: until the time is over."""
    seconds: float | None
    """Longest time, all artefacts together; None: until the samples are complete."""
    fps: float
    """Frames a second that are due in `paced`."""
    source: str | None
    """Where the frames of `live` come from; None: a test picture."""

    def share(self, samples: int, seconds: float, *, of: int = 1) -> float:
        """Share that is done of one part in `of`, 0 to 1: by samples or by time, whichever is further."""
        by_samples = samples / self.samples if self.samples else 0.0
        return min(1.0, max(by_samples, seconds * of / self.seconds if self.seconds else 0.0))


def plan(
    mode: str,
    *,
    samples: int | None,
    seconds: float | None,
    until: str | None,
    fps: float,
    minutes: float,
    source: str | None,
) -> Plan:
    """Check what was asked for and fill in what was not.

    Raises:
        NameNotFoundError: no mode or percentile has that name.
        SpecError: a number is not above 0, or two of them contradict each other.
    """
    if mode not in MODES:
        raise NameNotFoundError("mode", mode, MODES)
    given = {"samples": samples, "seconds": seconds, "fps": fps, "minutes": minutes}
    for name, value in given.items():
        if value is not None and value <= 0:
            raise SpecError(f"{name} ({value}) of a profile must be above 0")
    if until is not None:
        floors = {f"p{percentile:g}": floor for percentile, floor in SAMPLE_FLOORS.items()}
        if until not in floors:
            raise NameNotFoundError("percentile", until, floors)
        if samples is not None:
            raise SpecError(f"--until {until} says how many samples: {floors[until]}; leave out --samples {samples}")
        samples = -(-floors[until] // BURST) * BURST if mode == "single" else floors[until]
    if mode == "sustained":
        samples, seconds = None, seconds or 60 * minutes
    elif samples is None and seconds is None:
        samples = {"single": SAMPLES, "cold": STARTS, "throughput": None}.get(mode, FRAMES)
        seconds = SECONDS if mode in ("single", "throughput") else None
    return Plan(mode, samples, seconds, fps, source)


def single(bench: Bench, plan: Plan) -> Iterator[float]:
    """One inference at a time, back to back.

    Turns of a few milliseconds put all artefacts under the same weather (frequency, temperature, other load), so that
    their ratios hold even where the absolute figures drift. Each turn of an artefact is one frame from capture to drawing by
    stages, and a burst of inferences alone.
    """
    order, began_ns, done = random.Random(0), bench.clock(), 0.0  # no artefact always runs after the same one
    for contender in bench.contenders:
        contender.more["burst"] = BURST
    while done < 1.0:
        for contender in order.sample(bench.contenders, len(bench.contenders)):
            bench.frame(contender)
            burst(bench, contender)
        done = plan.share(len(bench.contenders[0].latencies_ns), (bench.clock() - began_ns) / 1e9)
        yield done


def burst(bench: Bench, contender: Contender) -> None:
    """Time some inferences alone, back to back, after some that do not count: the caches were somebody else's."""
    infer, clock, image = contender.engine.infer, bench.clock, bench.image
    for _ in range(UNCOUNTED):
        infer(image)
    for _ in range(BURST):
        start_ns = clock()
        infer(image)
        contender.latencies_ns.append(clock() - start_ns)
        if (inside_ms := contender.engine.inside_ms) is not None:
            contender.inside_ms.append(inside_ms)


def paced(bench: Bench, plan: Plan) -> Iterator[float]:
    """Frames that are due at a fixed rate; none is left out, and each one's age counts from when it was due.

    A frame that waits because an earlier one took too long is late, and is measured as late: what leaves the wait out
    (coordinated omission) tells nothing of it.
    """
    period_ns, of = 1e9 / plan.fps, len(bench.contenders)
    for place, contender in enumerate(bench.contenders):
        contender.age_from, began_ns, done = "due", bench.clock(), 0.0
        while done < 1.0:
            due_ns = began_ns + round(len(contender.ages_ns) * period_ns)
            early_ns = due_ns - bench.clock()
            if early_ns > 0:
                bench.sleep(early_ns / 1e9)
            bench.frame(contender)
            now_ns = bench.clock()
            contender.ages_ns.append(now_ns - due_ns)
            contender.latencies_ns.append(round(contender.spans.latest_ms()["infer"] * NS_PER_MS))
            done = plan.share(len(contender.ages_ns), (now_ns - began_ns) / 1e9, of=of)
            yield (place + done) / of
        contender.more["fps_due"] = plan.fps


def throughput(bench: Bench, plan: Plan) -> Iterator[float]:
    """As many inferences at once as there are cores for their threads, each stream with an engine of its own."""
    of = len(bench.contenders)
    for place, contender in enumerate(bench.contenders):
        streams = max(1, usable_cores() // contender.engine.threads)
        crew = [contender.engine, *(bench.another(contender) for _ in range(streams - 1))]
        began_ns, done = bench.clock(), 0.0
        running = Streams(bench, crew)
        try:
            with running:
                while done < 1.0 and not running.error:
                    bench.sleep(0.05)
                    done = plan.share(running.count, (bench.clock() - began_ns) / 1e9, of=of)
                    yield (place + min(done, 0.999)) / of
        finally:  # Ctrl-C keeps what there is
            _note_streams(contender, running, streams, began_ns, bench.clock())
        if running.error:
            raise running.error
        yield (place + 1) / of


def _note_streams(contender: Contender, running: Streams, streams: int, began_ns: int, ended_ns: int) -> None:
    """Inferences a second, with the interval of their median over twenty parts of the time."""
    contender.latencies_ns += [end - start for start, end in running.passes]
    ends_ns = np.asarray([end for _, end in running.passes])
    rates = np.sort(np.histogram(ends_ns, bins=20, range=(began_ns, ended_ns))[0] * 20e9 / (ended_ns - began_ns))
    low, high = order_ranks(20, 50) or (1, 20)
    contender.more |= {
        "streams": streams,
        "throughput_fps": 1e9 * len(running.passes) / (ended_ns - began_ns),
        "throughput_interval_fps": [float(rates[low - 1]), float(rates[high - 1])],
    }


def sustained(bench: Bench, plan: Plan) -> Iterator[float]:
    """Frames back to back for minutes: does the last minute take longer than the first? Heat and leaks show here.

    All times go into a histogram; of the first and the last minute (of less than two minutes the halves) every one is kept.
    """
    of, total_s = len(bench.contenders), (plan.seconds or 60.0) / len(bench.contenders)
    window_s = min(60.0, total_s / 2)
    for place, contender in enumerate(bench.contenders):
        contender.histogram, began_ns = Histogram(), bench.clock()
        first: list[float] = []
        window: list[float] = []
        last: list[float] = []
        windows: list[dict[str, Any]] = []
        contender.more["windows"] = windows
        elapsed_s = 0.0
        while elapsed_s < total_s:
            bench.frame(contender)
            ms = contender.spans.latest_ms()["infer"]
            contender.histogram.record(round(ms * NS_PER_MS))
            window.append(ms)
            elapsed_s = (bench.clock() - began_ns) / 1e9
            if elapsed_s >= window_s * (len(windows) + 1):
                felt = read_sensors(bench.clock)
                windows.append(
                    {
                        "until_s": round(elapsed_s, 3),
                        "latency_ms": summary(window),
                        "temperature_c": dict(felt.temperatures_c),
                        "frequency_mhz": felt.frequency_mhz,
                    }
                )
                first, last, window = first or window, window, []
                if len(windows) > 1:
                    ratio = bootstrap_ratio(last, first, block=max(1, len(last) // 30), draws=200)
                    contender.more["last_over_first"] = dict(ratio._asdict(), window_s=window_s)
            yield (place + min(1.0, elapsed_s / total_s)) / of


def live(bench: Bench, plan: Plan) -> Iterator[float]:
    """The camera loop as `run` turns it: capture thread, drop policy, and ages from capture; without drawing."""
    of = len(bench.contenders)
    for place, contender in enumerate(bench.contenders):
        source = open_source(plan.source or "test", realtime=True)
        if isinstance(source, Folder):
            raise SourceError(f"{source.name}: pictures have no age; --mode live takes a camera, a stream or a video")
        with Pipeline(bench.bundle, source, opened_engine=contender.engine, smooth=True, clock=bench.clock) as pipeline:
            began_ns = bench.clock()
            pipeline.waiting = lambda began_ns=began_ns: plan.share(0, (bench.clock() - began_ns) / 1e9, of=of) >= 1.0
            first_ns = 0
            for number, answer in enumerate(pipeline):
                now_ns = bench.clock()
                if number >= SETTLING:
                    if answer.frame.age_from != contender.age_from:  # an RTSP camera tells its time after some seconds
                        contender.forget()
                        first_ns = 0
                    first_ns = first_ns or now_ns
                    _take(contender, answer, now_ns)
                    if now_ns > first_ns:
                        contender.more["fps"] = (len(contender.ages_ns) - 1) * 1e9 / (now_ns - first_ns)
                contender.more["dropped"] = answer.dropped
                done = plan.share(len(contender.ages_ns), (now_ns - began_ns) / 1e9, of=of)
                yield (place + done) / of
                if done >= 1.0:
                    break
            for status in pipeline.statuses:
                contender.more["source_status"] = status.report()
        if not contender.ages_ns:
            raise EngineError(f"{source.name} gave no more than {SETTLING} frames; a live profile needs a longer one")


def _take(contender: Contender, answer: Answer, now_ns: int) -> None:
    """Note one result of the camera loop."""
    contender.age_from = answer.frame.age_from
    contender.ages_ns.append(round(answer.age_ms * NS_PER_MS))
    contender.latencies_ns.append(round(answer.infer_ms * NS_PER_MS))
    start_ns = now_ns - round(sum(answer.stages_ms.values()) * NS_PER_MS)
    for stage, ms in answer.stages_ms.items():
        contender.spans.record(stage, round(ms * NS_PER_MS), start_ns)
        start_ns += round(ms * NS_PER_MS)


MEASURE: Mapping[str, Callable[[Bench, Plan], Iterator[float]]] = {
    "single": single,
    "paced": paced,
    "throughput": throughput,
    "sustained": sustained,
    "live": live,
}
"""What measures in each mode."""
