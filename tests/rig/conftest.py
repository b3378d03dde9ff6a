"""Faults that take long begin with the first test of the rig, and are looked at by `test_waits.py`, the last but one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from calm import pytest_runtest_protocol  # noqa: F401  the hook that makes a test again that failed on robbed cores

Waits = dict[str, subprocess.Popen[str]]


@pytest.fixture(scope="session", autouse=True)
def waits(request: pytest.FixtureRequest) -> Iterator[Waits]:
    """Each of the long faults that were asked for, in a process of its own."""
    asked = [item.callspec.params["name"] for item in request.session.items if item.path.name == "test_waits.py"]
    program = [sys.executable, str(Path(__file__).with_name("waits.py"))]
    begun = {
        name: subprocess.Popen([*program, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name in asked
    }
    yield begun
    for process in begun.values():
        with process:
            process.kill()
