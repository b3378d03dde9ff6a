"""The matrix: every artefact of a folder of bundles, resumable, with what is best at its accuracy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle
from edgeattn.cli import app
from edgeattn.errors import DataError, SpecError
from edgeattn.profiling.matrix import Cell, Entry, Matrix, bundles_of, memory_of, pareto


def entry(ms: float, top1: float | None) -> Entry:
    return Entry(Cell("a", "d", "openvino", "float", 1), (ms,) if math.isfinite(ms) else (), top1)


def test_best_is_what_nothing_quicker_matches() -> None:
    told = [entry(1, 0.8), entry(2, 0.7), entry(3, 0.8), entry(4, 0.9), entry(math.inf, 0.99)]
    assert [each.best for each in pareto(told)] == [True, False, False, True, False]
    assert [each.best for each in pareto([entry(1, None), entry(2, None)])] == [True, False]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two bundles: float alone, and with int8."""
    tiny.bundle(tmp_path / "nets" / "plain.edgeattn")
    tiny.bundle(tmp_path / "nets" / "small.edgeattn", int8=tiny.int8_model())
    return tmp_path / "nets"


def test_every_cell_is_measured_once_and_a_second_call_goes_on(folder: Path) -> None:
    bundles, memory = bundles_of(folder), memory_of(folder)
    first = Matrix(bundles, (1, 2), memory, rounds=2)
    steps = first.measure()
    for _ in range(5):
        next(steps)
    kept = memory.read_text(encoding="utf-8")
    memory.write_text(kept + kept.splitlines()[0][:40], encoding="utf-8")  # a kill in the middle of a line
    again = Matrix(bundles, (1, 2), memory, rounds=2)
    done = list(again.measure())
    assert len(again) == 2 * (2 + 4), "artefacts of both bundles, at one thread and at two"
    assert (len(done), done[-1]) == (24 - 5, (24, 24))
    entries = again.entries()
    assert all(len(each.ms) == 2 and each.median_ms > 0 for each in entries)
    assert [each.median_ms for each in entries] == sorted(each.median_ms for each in entries)
    assert list(Matrix(bundles, (1,), memory, rounds=2).measure()) == []


def test_the_command_tells_accuracies_and_draws_the_front(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, colour in (("red", (40, 40, 220)), ("green", (40, 220, 40)), ("blue", (220, 40, 40))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(4):
            picture = np.clip(np.full((40, 40, 3), colour) + rng.integers(-20, 20, (40, 40, 3)), 0, 255).astype(
                np.uint8
            )
            cv2.imwrite(str(tmp_path / "data" / label / f"{i}.png"), picture)
    told, page = tmp_path / "matrix.json", tmp_path / "matrix.html"
    words = ["profile", str(folder), "--matrix", "--threads", "1", "--data", str(tmp_path / "data")]
    done = CliRunner().invoke(app, [*words, "--json", str(told), "--html", str(page)])
    assert done.exit_code == 0, done.output
    report = json.loads(told.read_text(encoding="utf-8"))
    assert {(cell["bundle"], cell["precision"]) for cell in report["cells"]} == {
        ("plain", "float"), ("small", "float"), ("small", "int8"),
    }  # fmt: skip
    assert all(cell["top1"] == 1.0 and len(cell["rounds_ms"]) == 5 for cell in report["cells"])
    assert [cell["best"] for cell in report["cells"]] == [True] + [False] * (len(report["cells"]) - 1)
    assert page.read_text(encoding="utf-8").count("<circle") == len(report["cells"])
    assert "nothing quicker is as accurate" in done.output


def test_pictures_that_do_not_fit_are_told_before_anything_is_measured(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(app, ["profile", str(folder), "--matrix", "--data", str(tmp_path / "empty")])
    assert isinstance(done.exception, DataError)
    assert not memory_of(folder).exists()


def test_a_budget_is_refused_where_it_would_not_be_read(tiny_bundle: Bundle) -> None:
    for words in ((str(tiny_bundle.path), "--matrix"), (str(tiny_bundle.path.parent),)):
        done = CliRunner().invoke(app, ["profile", *words, "--budget", "p99=1us"])
        assert isinstance(done.exception, SpecError)
        assert "name that bundle, without --matrix" in str(done.exception)


def test_one_bundle_is_a_matrix_too_and_a_folder_without_any_says_so(tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert [bundle.name for bundle in bundles_of(tiny_bundle.path)] == [tiny_bundle.name]
    with pytest.raises(DataError, match="holds no bundle"):
        bundles_of(tmp_path)
