"""The grid's lines and tables: like is compared with like, and older lines stay readable."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeattn.profiling.prices import Price, PriceList
from edgeattn.train import Recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.delitem(sys.modules, "evidence", raising=False)  # a folder of results has the same name
    import evidence

    return evidence


def written(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def line(attention: str, seed: int, top1: float, **more: Any) -> dict[str, Any]:
    """As it was written before lines told size, teacher and recipe."""
    told = {"dataset": "d", "model": "pico", "attention": attention, "teach": "labels", "epochs": 3, "seed": seed}
    return told | {"precision": "float32", "test_top1": top1} | more


def test_unequal_runs_are_not_paired(evidence: Any, tmp_path: Path) -> None:
    others: tuple[dict[str, Any], ...] = ({"precision": "bf16"}, {"imgsz": 64}, {"recipe": {"lr": 0.1}}, {"epochs": 4})
    rows = [line("none", seed, 0.8) for seed in range(3)] + [line("se", seed, 0.81 + seed / 1000) for seed in range(3)]
    rows += [line("none", seed, 0.6, **other) for seed in range(3) for other in others]
    found = list(evidence.table(evidence.runs(written(tmp_path / "d.jsonl", *rows)), {}))
    assert len(found) == 2 + len(others)
    (gain,) = (row for row in found if row["attention"] == "se")
    assert gain["against none"].startswith("+1.10 ± 0.25 (n 3, p ")
    assert all(row["against none"] == "-" for row in found if row is not gain)


def test_distilled_is_compared_with_plain_and_teachers_with_themselves(evidence: Any, tmp_path: Path) -> None:
    rows = [
        line(attention, seed, base + 0.001 * seed, teach=teach, teacher=teacher)
        for attention, teach, teacher, base in (
            ("none", "labels", "none", 0.80), ("se", "labels", "none", 0.81), ("none", "dist", "runs/a", 0.84),
            ("se", "dist", "runs/a", 0.86), ("se", "dist", "runs/b", 0.70),
        )
        for seed in range(3)
    ]  # fmt: skip
    found = evidence.table(evidence.runs(written(tmp_path / "d.jsonl", *rows)), {"se": 1.1})
    told = {(row["attention"], row["taught by"]): row for row in found}
    assert told["se", "dist of runs/a"]["against labels"].startswith("+5.00")
    assert told["se", "dist of runs/a"]["against none"].startswith("+2.00")
    assert told["none", "dist of runs/a"]["against labels"].startswith("+4.00")
    assert told["se", "dist of runs/b"]["against labels"].startswith("-11.00")
    assert told["se", "dist of runs/b"]["against none"] == told["se", "labels"]["against labels"] == "-"
    assert (told["se", "labels"]["price"], told["none", "labels"]["price"]) == ("1.10", "-")


def test_an_engine_that_failed_leaves_a_gap(evidence: Any, tmp_path: Path) -> None:
    int8 = {engine: {"top1": 0.79, "map_js": None} for engine in ("onnxruntime", "openvino")}
    rows = (
        line("none", 0, 0.8, int8=int8),
        line("none", 1, 0.8, int8={"openvino": {"top1": 0.77, "map_js": 0.02}}),
        line("none", 2, 0.8, int8_error="no"),
    )
    (row,) = evidence.table(evidence.runs(written(tmp_path / "d.jsonl", *rows)), {})
    assert (row["int8 onnxruntime %"], row["int8 openvino %"]) == ("79.00 (n 1)", "78.00 (n 2)")
    assert row["maps moved"] == "0.020"


def test_a_run_is_known_again_by_all_that_makes_it(evidence: Any, tmp_path: Path) -> None:
    options = argparse.Namespace(
        data="photos", model="pico", teacher="none", imgsz=32, epochs=3, precision="float32", compile=False
    )
    recipe = evidence.recipe_for(options, "se", "labels", 0)
    before = {key: evidence.cell(recipe, "d")[key] for key in line("se", 0, 0.8) if key != "test_top1"}
    (held,) = evidence.runs(written(tmp_path / "d.jsonl", before | {"precision": "auto", "test_top1": 0.8}))
    assert evidence.cell(recipe, "d").items() <= held.items()
    places = {evidence.folder_of(recipe, "d", tmp_path)}
    assert places == {tmp_path / "d-pico-3" / "se-labels-0"}
    options.teacher = "runs/a"
    taught = evidence.recipe_for(options, "se", "dist", 0)
    options.teacher, options.imgsz = "none", 64
    larger = evidence.recipe_for(options, "se", "labels", 0)
    for other in (taught, larger, Recipe("photos", attention="se", imgsz=32, epochs=3)):
        assert not evidence.cell(other, "d").items() <= held.items()
        places.add(evidence.folder_of(other, "d", tmp_path))
    assert len(places) == 4
    options.model, options.attention = "resnet20", "none,wide,se"
    assert evidence.arms(options) == ["none", "se"]
    options.model = "pico"
    assert evidence.arms(options) == ["none", "wide", "se"]


def test_the_published_lines_are_read(evidence: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cifar10.jsonl"
    file.write_text((ROOT / "evidence" / "cifar10.jsonl").read_text())
    evidence.write_tables(file, None)
    shown = capsys.readouterr().out
    assert "| cifar10 | pico | 32 | 15 | bf16 |" in shown
    assert file.with_suffix(".csv").is_file()
    assert r"\begin{tabular}" in file.with_suffix(".tex").read_text()


def test_prices_are_those_of_a_measured_list(evidence: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = [
        Price(name, engine, "", 1.0, 1.0, 1.3, over, 1.0, {}, {}, "passed")
        for name, engine, over in (("none", "openvino", 1.0), ("se", "onnxruntime", 1.66), ("se", "openvino", 1.17))
    ]
    prices = tmp_path / "prices.json"
    prices.write_text(
        json.dumps({"mechanisms": [{"name": "se"}], "costs": []} | PriceList("box", {}, tuple(measured), 0.0).json())
    )
    file = written(tmp_path / "d.jsonl", line("se", 0, 0.8), line("wide", 0, 0.8))
    evidence.write_tables(file, prices)
    told = {row.split("|")[7].strip(): row.split("|")[-2].strip() for row in capsys.readouterr().out.splitlines()[2:]}
    assert told == {"se": "1.17", "wide": "-"}
