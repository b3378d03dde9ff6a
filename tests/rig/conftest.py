"""Faults that take long are ordered when the first test of the rig begins, and looked at by `test_waits.py`, the last but one."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator

import pytest
import waits

Outcomes = dict[str, concurrent.futures.Future[None]]


@pytest.fixture(scope="session", autouse=True)
def outcomes(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    """What becomes of each of the long faults that were asked for."""
    asked = {item.callspec.params["name"] for item in request.session.items if item.path.name == "test_waits.py"}
    pool = concurrent.futures.ThreadPoolExecutor(len(waits.FAULTS))
    yield {name: pool.submit(waits.FAULTS[name]) for name in waits.FAULTS if name in asked}
    pool.shutdown(wait=False, cancel_futures=True)
