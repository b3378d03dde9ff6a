"""What became of the faults that take long, see `waits.py`."""

from __future__ import annotations

import subprocess

import pytest
from waits import FAULTS, NO_VERDICT

pytestmark = pytest.mark.rig


@pytest.mark.parametrize("name", FAULTS)
def test_a_long_fault(name: str, waits: dict[str, subprocess.Popen[str]]) -> None:
    said = waits[name].communicate(timeout=300)[0]  # five tries of the longest
    print(said)
    if waits[name].returncode == NO_VERDICT:
        pytest.skip(said.splitlines()[-1])
    assert waits[name].returncode == 0, said
