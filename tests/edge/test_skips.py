from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CASES = """
import pytest

def test_runs():
    assert 1 + 1 == 2

@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.skip(reason="no camera here")
def test_camera(side):
    assert side == 0

def test_expected_to_fail():
    pytest.xfail("not solved yet")
"""


def outcome(folder: Path, allowed: str, *flags: str) -> tuple[int, str]:
    """Run pytest on `CASES` with this allow-list, in a process of its own."""
    (folder / "conftest.py").write_text("pytest_plugins = ['skips']\n")
    (folder / "test_cases.py").write_text(CASES)
    (folder / "allowed.toml").write_text("[skips]\n" + allowed)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--allowed-skips",
        "allowed.toml",
        *flags,
    ]
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_skip_that_is_not_allowed_fails_the_run(tmp_path: Path) -> None:
    code, output = outcome(tmp_path, '"test_cases.py::test_camera*" = "no build machine has one"\n', "--check-skips")
    assert code == 1
    assert "3 skipped" in output
    assert "test_cases.py::test_camera[32]: Skipped: no camera here (allowed: no build machine has one)" in output
    assert "test_cases.py::test_expected_to_fail: not solved yet (NOT ALLOWED" in output


def test_allowed_skips_pass(tmp_path: Path) -> None:
    allowed = (
        '"test_cases.py::test_camera[[]*" = "wrong: brackets are meant as they are"\n'
        '"test_cases.py::test_camera[32]" = "no build machine has one"\n'
        '"*::test_camera[*]" = "no build machine has one"\n'
        '"test_cases.py::test_expected*" = "known limit"\n'
    )
    code, output = outcome(tmp_path, allowed, "--check-skips")
    assert code == 0, output
    assert "NOT ALLOWED" not in output


@pytest.mark.parametrize(("why", "passes"), [("no camera*", True), ("no verdict*", False)])
def test_a_skip_may_be_allowed_for_one_reason_only(tmp_path: Path, why: str, passes: bool) -> None:
    allowed = f'"*::test_camera[*]: Skipped: {why}" = "asked for"\n"*::test_expected*" = "known limit"\n'
    code, output = outcome(tmp_path, allowed, "--check-skips")
    assert (code == 0, "NOT ALLOWED" not in output) == (passes, passes), output


def test_skips_are_free_without_the_flag(tmp_path: Path) -> None:
    assert outcome(tmp_path, "")[0] == 0
