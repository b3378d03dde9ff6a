"""What became of the faults that take long, see `waits.py`."""

from __future__ import annotations

import subprocess

import pytest
from waits import FAULTS

pytestmark = pytest.mark.rig


@pytest.mark.parametrize("name", FAULTS)
def test_a_long_fault(name: str, waits: dict[str, subprocess.Popen[str]]) -> None:
    said = waits[name].communicate(timeout=60)[0]
    print(said)
    assert waits[name].returncode == 0, said
