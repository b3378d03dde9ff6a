"""Boxes and masks as a user types them: one COCO file with outlines, both tasks, from the pictures to a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_verbs import typed

from edgeattn._cv2 import cv2
from edgeattn.bundle import load
from edgeattn.errors import DataError

COLOURS = {"red": (60, 60, 220), "blue": (220, 90, 40)}
QUICK = ("--imgsz", "64", "--set", "workers=0", "--set", "batch_size=8", "--attention", "se")


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
