"""Skipped tests are listed; with `--check-skips`, or under CI, one that `skips.toml` does not allow fails the run."""

from __future__ import annotations

import fnmatch
import os
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALLOWED = Path(__file__).with_name("skips.toml")


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = f"fail when a test is skipped that {ALLOWED.name} does not allow; the default where CI is set"
    parser.addoption("--check-skips", action="store_true", default=bool(os.environ.get("CI")), help=help_text)
    parser.addoption("--allowed-skips", type=Path, default=ALLOWED, help="file of the tests that may be skipped")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("check_skips"):
        config.pluginmanager.register(SkipCheck(config.getoption("allowed_skips")), "skip-check")


class SkipCheck:
    """Collects what was skipped and sets the exit status."""

    def __init__(self, path: Path) -> None:
        self.allowed: dict[str, str] = tomllib.loads(path.read_text(encoding="utf-8"))["skips"]
        self.skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)  # a whole file, as by importorskip

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.OK and any(
            self._reason(*each) is None for each in self.skipped.items()
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section(f"{len(self.skipped)} skipped")
        for test, why in sorted(self.skipped.items()):
            reason = self._reason(test, why)
            verdict = (
                "NOT ALLOWED: run it, or give the reason in tests/skips.toml"
                if reason is None
                else f"allowed: {reason}"
            )
            terminalreporter.line(f"{test}: {why} ({verdict})")

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped:
            why = getattr(report, "wasxfail", None) or str(report.longrepr)
            if isinstance(report.longrepr, tuple):
                why = report.longrepr[2]
            self.skipped[report.nodeid] = why

    def _reason(self, test: str, why: str) -> str | None:
        return next((reason for pattern, reason in self.allowed.items() if _matches(test, why, pattern)), None)


def _matches(test: str, why: str, pattern: str) -> bool:
    pattern = pattern.replace("[", "[[]")  # brackets are those of a parametrized test
    return any(fnmatch.fnmatchcase(what, pattern) for what in (test, f"{test}: {why}"))
