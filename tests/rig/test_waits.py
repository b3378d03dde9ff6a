"""What became of the faults that take long, see `waits.py`."""

from __future__ import annotations

import concurrent.futures

import pytest
import waits

pytestmark = pytest.mark.rig


@pytest.mark.parametrize("name", waits.FAULTS)
def test_a_long_fault(name: str, outcomes: dict[str, concurrent.futures.Future[None]]) -> None:
    outcomes[name].result(60)
