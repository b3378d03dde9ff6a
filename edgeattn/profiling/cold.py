"""From the start of a process to its first result, in fresh processes: what a box pays after every boot and crash.

The process does what a program with our pipeline does (`camera/first.py`), and tells when, on the clock that all processes
share, and with how much memory. Files are in the system's cache after the first start; a boot adds the disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeattn.bundle import Bundle
from edgeattn.errors import EngineError
from edgeattn.profiling.report import Result
from edgeattn.spec import Artefact
from edgeattn.timing import NS_PER_MS, monotonic_ns

STARTING = ("python", "import", "open", "first")
"""Parts of a start: the interpreter, the packages, bundle and engine, the first picture to its result."""
TIMEOUT_S = 300.0
CODE = "import time; began = time.monotonic_ns(); from edgeattn.camera.first import main; main(began)"


@dataclass
class ColdStarts:
    """Starts of one artefact."""

    artefact: Artefact
    stages_ns: list[list[int]] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    memory: list[dict[str, Any]] = field(default_factory=list)

    def result(self) -> Result:
        """What was measured."""
        stages = np.asarray(self.stages_ns, np.float64).reshape(-1, len(STARTING)) / NS_PER_MS
        return Result(
            engine=self.artefact.engine,
            precision=self.artefact.precision,
            executed_precision=self.told.get("executed_precision", "unknown"),
            threads=self.told.get("threads", 0),
            mode="cold",
            load_ms=float(np.median(stages[:, 2])),
            first_ms=float(np.median(stages[:, 3])),
            warmup=0,
            settled=False,
            latencies_ms=stages.sum(axis=1),
            stages_ms={stage: stages[:, i] for i, stage in enumerate(STARTING)},
            details=self.told.get("details", {}),
            memory={name: _median([each[name] for each in self.memory]) for name in self.memory[-1]},
        )


def cold(bundle: Bundle, starts: list[ColdStarts], threads: int | None, rounds: int) -> Iterator[float]:
    """Start every artefact `rounds` times, in turns; yields the share that is done.

    Raises:
        EngineError: a process failed; its message tells why.
    """
    total = rounds * len(starts)
    for done in range(total):
        start(bundle, starts[done % len(starts)], threads)
        yield (done + 1) / total


def start(bundle: Bundle, into: ColdStarts, threads: int | None) -> None:
    """Start one process and note what it tells.

    Raises:
        EngineError: it failed.
    """
    artefact = into.artefact
    arguments = [str(bundle.path), artefact.engine, artefact.precision, str(threads or 0)]
    started_ns = monotonic_ns()
    try:
        done = subprocess.run(
            [sys.executable, "-c", CODE, *arguments],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{artefact.engine} {artefact.precision} gave no result within {TIMEOUT_S:.0f} s") from error
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(f"{artefact.engine} {artefact.precision} did not start in a process of its own: {why}")
    told = json.loads(done.stdout.splitlines()[-1])
    into.stages_ns.append(np.diff([started_ns, *told.pop("marks_ns")]).tolist())
    into.memory.append(told.pop("memory"))
    into.told = told


def _median(values: list[Any]) -> Any:
    return float(np.median(values)) if all(isinstance(value, int | float) for value in values) else values[-1]
