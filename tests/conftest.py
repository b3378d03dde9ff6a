"""Fixtures for all tests, torch-free: real tiny bundles (see `tiny.py`)."""

from __future__ import annotations

import os

import pytest
import tiny
from skips import pytest_addoption, pytest_configure  # noqa: F401  the hooks of `--check-skips`

from edgeattn.bundle import Bundle

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # A core each: processes whose threads share the cores wait for one another more than they compute.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A float bundle for both engines: 32x32 in, labels red, green, blue, map `map_0` of 4x4, golden of 24."""
    return tiny.bundle(tmp_path_factory.mktemp("bundles") / "tiny.edgeattn")


@pytest.fixture(scope="session")
def tiny_int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with int8 artefacts for both engines as well."""
    return tiny.bundle(tmp_path_factory.mktemp("bundles") / "tiny-int8.edgeattn", int8=tiny.int8_model())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
