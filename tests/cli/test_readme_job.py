"""The CI job that the README hands out: its commands run as they stand, on a tiny bundle and for a shorter time."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from edgeattn.bundle import Bundle
from edgeattn.cli import app


def test_the_job_in_the_readme_runs(tiny_int8_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = (Path(__file__).parents[2] / "README.md").read_text().partition("<!-- latency job -->")[2]
    job = yaml.safe_load(re.search(r"```yaml\n(.*?)```", told, re.DOTALL)[1])  # type: ignore[index]
    budget = re.search(r"```toml\n(.*?)```", told, re.DOTALL)[1]  # type: ignore[index]
    steps = [step["run"] for step in job["jobs"]["latency"]["steps"] if step.get("run", "").startswith("edgeattn")]
    assert [step.split()[1] for step in steps] == ["compare", "profile"]
    for place in (tmp_path, tmp_path / "before"):
        shutil.copytree(tiny_int8_bundle.path, place / "signs.edgeattn")
    (tmp_path / "budget.toml").write_text(budget)
    monkeypatch.chdir(tmp_path)
    for step in steps:
        command, guard, allowed = step.replace("--seconds 60", "--seconds 1").partition(" || ")
        assert (guard, allowed) == (" || ", "[ $? = 3 ]")
        outcome = CliRunner().invoke(app, command.split()[1:])
        assert outcome.exit_code in (0, 1, 3), outcome.output
        assert outcome.exception is None or isinstance(outcome.exception, SystemExit)
    assert (tmp_path / "compare.md").read_text().startswith("### ")
    assert "budget passed" in (tmp_path / "profile.md").read_text()
    assert "</html>" in (tmp_path / "profile.html").read_text()
