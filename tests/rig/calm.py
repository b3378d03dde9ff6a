"""Timed checks on a machine that is shared."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from _pytest.runner import runtestprotocol

from edgeattn.profiling.report import CORES_LIMIT
from edgeattn.timing import pressure

_SPINNER = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); os.sched_setaffinity(0, {%d})\nwhile True: pass"


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep every core busy with work that gives way to all other.

    A crowded hypervisor lets a core that slept wait for its turn, at each of a camera loop's wakings, but not one that
    never sleeps: where sleeps of 60 ms took 105, they take 61 so.
    """
    with contextlib.ExitStack() as stack:
        for core in os.sched_getaffinity(0):
            spinner = stack.enter_context(subprocess.Popen([sys.executable, "-c", _SPINNER % core]))
            stack.callback(spinner.kill)
        yield


def cores_taken(do: Callable[[], object], before: float) -> float:
    """Do something, with the cores kept awake if a hypervisor took of them before; the cores that it took meanwhile."""
    with awake() if before > CORES_LIMIT else contextlib.nullcontext():
        began = pressure.read()
        do()
        return pressure.read().stolen_cores(began) or 0.0


def in_calm(check: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> None:
    """Make a timed check up to five times, with pauses: what else runs on a build machine only ever adds, for seconds at times.

    After a try in which a hypervisor took of our cores, as the kernel counts it, they are kept awake. Where most of the
    tries were such all the same, no figure speaks for or against the code: then the check is skipped, and says how much
    was taken.
    """
    taken, failures = [0.0], [AssertionError("not tried")]

    def attempt() -> None:
        failures.clear()
        try:
            check()
        except AssertionError as error:
            failures.append(error)

    for pause_s in (0.0, 0.0, 1.0, 4.0, 8.0):
        sleep(pause_s)
        taken.append(cores_taken(attempt, taken[-1]))
        if not failures:
            return
    del taken[0]
    if statistics.median(taken) <= CORES_LIMIT:
        raise failures[0]
    pytest.skip(f"no verdict: a hypervisor took {min(taken):.1f} to {max(taken):.1f} cores while this was timed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Make a test that failed while a hypervisor took our cores again, from its fixtures on, with the cores kept awake.

    Every test of the rig waits for something with a time-out, and seconds without a core look like a fault. What fails on
    cores of its own fails at once, and what fails each of five times fails.
    """
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports: list[pytest.TestReport] = []
    taken = 0.0
    for _ in range(5):
        reports.clear()
        taken = cores_taken(lambda: reports.extend(runtestprotocol(item, nextitem=nextitem, log=False)), taken)
        if taken <= CORES_LIMIT or not any(report.failed for report in reports):
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
