"""Boxes and masks as a user types them: one COCO file with outlines, both tasks, from the pictures to a run."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
import squares
from test_verbs import typed

from edgeattn._cv2 import cv2
from edgeattn.bundle import load
from edgeattn.datasets import cards
from edgeattn.errors import DataError
from edgeattn.spec import Task
from edgeattn.tasks import FIGURES
from edgeattn.train import Recipe, sources
from edgeattn.workflow import making

COLOURS = {"red": (60, 60, 220), "blue": (220, 90, 40)}
QUICK = ("--imgsz", "64", "--set", "workers=0", "--set", "batch_size=8", "--attention", "se")


@pytest.fixture
def small_nets() -> Iterator[None]:
    """Picos of five blocks."""
    with small.five_blocks():
        yield


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """56 pictures of one or two coloured squares each, with their outlines."""
    root, rng = tmp_path_factory.mktemp("things"), np.random.default_rng(0)
    images, annotations = [], []
    for i in range(56):
        picture = rng.integers(90, 130, (60, 80, 3), np.uint8)
        images.append({"id": i, "file_name": f"{i}.png", "height": 60, "width": 80})
        for k in range(int(rng.integers(1, 3))):
            side, name = int(rng.integers(16, 28)), rng.choice(list(COLOURS))
            x, y = 40 * k + int(rng.integers(0, 40 - side)), int(rng.integers(0, 60 - side))
            picture[y : y + side, x : x + side] = COLOURS[name]
            outline = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append({
                "id": len(annotations), "image_id": i, "category_id": 3 + 4 * list(COLOURS).index(name),
                "bbox": [x, y, side, side], "area": side**2, "iscrowd": 0, "segmentation": [outline],
            })  # fmt: skip
        cv2.imwrite(str(root / f"{i}.png"), picture)
    annotations[0]["bbox"] = [-5, 0, 30, 20]
    categories = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
    (root / "things.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return root


@pytest.mark.usefixtures("small_nets")
@pytest.mark.parametrize(
    "told_by", [("detect", "mAP50", "detections"), ("segment", "mIoU", "regions")], ids=lambda t: t[0]
)
def test_from_outlines_to_a_run(
    told_by: tuple[str, str, str],
    things: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, figure, key = told_by
    run, bundle, report = tmp_path / "run", tmp_path / "run.edgeattn", tmp_path / "report.json"
    asked = () if task == "detect" else ("--task", task)  # which COCO's boxes ask for by themselves
    code, printed, _ = typed(capsys, monkeypatch, "train", things, *asked, "--out", run, "--epochs", "2", *QUICK)
    assert code == 0
    assert "1 box over the edge of the picture, cut there" in printed
    assert f"validation {figure}" in printed
    code, printed, _ = typed(capsys, monkeypatch, "export", run)
    assert code == 0
    made = load(bundle)
    assert made.spec.task == task
    assert made.spec.labels == (("red", "blue") if task == "detect" else ("background", "red", "blue"))
    assert made.spec.maps
    code, printed, _ = typed(capsys, monkeypatch, "quantize", bundle, "--run", run, "--minutes", "0", "--json", report)
    assert code in (0, 1, 3), "eight pictures tell little"
    assert figure in printed
    results = json.loads(report.read_text())["results"]
    assert {(r["engine"], r["precision"]) for r in results} >= {("onnxruntime", "int8"), ("openvino", "int8")}
    lines = tmp_path / "lines.jsonl"
    words = ("run", bundle, "--source", things, "--precision", "float", "--sink", "jsonl,mp4", "--out", lines)
    code, printed, _ = typed(capsys, monkeypatch, *words, "--max-frames", "4")
    assert code == 0
    told = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(told) == 4
    assert all(key in line for line in told)


@pytest.mark.usefixtures("small_nets")
@pytest.mark.parametrize(
    ("task", "written"), [("detect", squares.folder), ("segment", squares.masks)], ids=["boxes", "masks"]
)
def test_make_from_boxes_or_masks_to_a_bundle_that_runs(
    task: Task,
    written: Callable[[Path, int], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, out, report = written(tmp_path / "set", 56), tmp_path / "out", tmp_path / "report.json"
    monkeypatch.setattr(making, "plan", lambda recipe, *_: replace(recipe, epochs=1))
    words = ("make", data, "--out", out, "--model", "pico", "--json", report, *QUICK)
    code, printed, _ = typed(capsys, monkeypatch, *words)
    assert code == 0
    assert f"edgeattn run {out / 'set.edgeattn'} --source 0" in printed
    told, figure = json.loads(report.read_text()), FIGURES[task].key
    assert 0 <= told[f"test_{figure}"] <= 1
    assert 0 <= told[f"validation_{figure}"] <= 1
    made = load(out / "set.edgeattn")
    assert (made.spec.task, made.spec.labels[-3:]) == (task, squares.LABELS)
    assert {(a.engine, a.precision) for a in made.artefacts} >= {("openvino", "int8"), ("onnxruntime", "int8")}
    words = ("run", made.path, "--source", data / "images", "--sink", "none", "--max-frames", "2")
    code, printed, _ = typed(capsys, monkeypatch, *words, "--precision", "float")
    assert code == 0


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_demo_of_boxes_or_masks(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, with little of everything."""
    usual = making.demo_recipe

    def short(seed: int, task: Task = "classify") -> Recipe:
        return replace(usual(seed, task), imgsz=64, epochs=1, views_per_epoch=32, batch_size=16, workers=0)

    monkeypatch.setattr(making, "demo_recipe", short)
    monkeypatch.setattr("edgeattn.workflow.demo_recipe", short)
    monkeypatch.setattr(making, "CLASSIFIER_EPOCHS", 1)
    for name, few in (("CARDS_HELD_OUT", 16), ("DENSE_HELD_OUT", 16), ("PICTURES", 32)):
        monkeypatch.setattr(sources, name, few)
    monkeypatch.setattr(cards, "write_video", functools.partial(cards.write_video, seconds=1.2))
    verb = importlib.import_module("edgeattn.cli.profile")  # of the package the function has its name
    monkeypatch.setattr(verb, "profile", functools.partial(verb.profile, samples=5))
    out, report = tmp_path / "demo", tmp_path / "report.json"
    code, printed, _ = typed(capsys, monkeypatch, "demo", "--task", task, "--out", out, "--json", report)
    assert code == 0
    assert "of the video's frames right" in printed
    told = json.loads(report.read_text())
    assert 0 <= told[f"int8_{FIGURES[task].key}"] <= 1
    assert told["run"]["frames"] == 36
    assert (out / "cards-attention.mp4").stat().st_size > 0
    assert load(Path(told["bundle"])).spec.task == task
    assert (out / "classifier").exists() == (task == "detect"), "what the detector starts from"


def test_what_does_not_fit_is_said(
    things: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, said in (
        (("train", things, "--task", "detct", "--out", tmp_path / "r"), "mean 'detect'"),
        (("train", things, "--task", "segment", "--out", tmp_path / "r", "--attention", "sse"), "mean 'se'"),
        (("train", tmp_path, "--out", tmp_path / "r"), "holds nothing that is known"),
        (("train", things, "--out", tmp_path / "r", "--set", "height=9999"), "height=9999 is out of range"),
    ):
        code, _, err = typed(capsys, monkeypatch, *words)
        assert (code, said in " ".join(err.split())) == (2, True), err


@pytest.mark.parametrize("verb", ["train", "make"])
def test_missing_pictures_stop_the_training_unless_they_are_skipped(
    verb: str, things: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*_: object, **__: object) -> None:
        raise DataError("the training begins")

    monkeypatch.setattr("edgeattn.train.loop.train", begun)
    monkeypatch.setattr("edgeattn.workflow.make", begun)
    listed = json.loads((things / "things.json").read_text())
    listed["images"].append({"id": 99, "file_name": "gone.png", "height": 60, "width": 80})
    short = tmp_path / "short"
    short.mkdir()
    for one in listed["images"][:40]:
        (short / one["file_name"]).write_bytes((things / one["file_name"]).read_bytes())
    (short / "things.json").write_text(json.dumps(listed))
    words = (verb, short, "--out", tmp_path / "r", *QUICK)
    code, _, err = typed(capsys, monkeypatch, *words)
    assert code == 2
    assert "17 of 57 pictures are missing" in " ".join(err.split())
    code, printed, err = typed(capsys, monkeypatch, *words, "--skip-missing")
    assert (code, "the training begins" in err) == (2, True)
    assert "17 pictures left out: " in printed
