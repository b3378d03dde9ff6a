"""A detector from elsewhere goes the same way as a classifier: imported, checked, run, told, drawn, profiled."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import yaml
from scripted import Clock, File
from tiny_detector import LABELS, frame, model

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle, load
from edgeattn.camera import Folder, Frame, Pipeline, Result
from edgeattn.camera.lines import Changes, frame_line
from edgeattn.camera.model import Model
from edgeattn.cli import main
from edgeattn.deploy import importing, verify
from edgeattn.deploy.importing import import_model
from edgeattn.deploy.peer import export_peer
from edgeattn.engines import open_engine
from edgeattn.engines.choose import golden_agreement
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import DataError, ExtraMissingError, GateError, NameNotFoundError, SpecError
from edgeattn.imaging import prepare
from edgeattn.tasks import Detections, decode

CELLS = {(1, 0): "red", (1, 3): "blue", (2, 1): "green"}
FRAME = frame(CELLS)
BOXES = {"red": [0, 0, 32, 32], "blue": [96, 0, 128, 32], "green": [32, 32, 64, 64]}
FORMS = pytest.mark.parametrize("one_each", [False, True], ids=["proposals", "one-each"])


def shown() -> list[tuple[Any, int]]:
    rng = np.random.default_rng(0)
    return [
        (frame({tuple(rng.integers(0, 4, 2)): str(rng.choice(LABELS)) for _ in range(4)}, 96, 128), -1)
        for _ in range(12)
    ]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("detector")
    return import_model(model(folder / "m.onnx"), folder / "m", shown()).bundle


def answer(bundle: Bundle, name: str, picture: Any = FRAME) -> Detections:
    engine = open_engine(bundle, engine=name, precision="float")
    found = decode(engine.infer(prepare(picture, bundle.spec.input)), bundle.spec, picture.shape[:2])
    engine.close()
    assert isinstance(found, Detections)
    return found


@FORMS
@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_both_forms_of_both_files_give_the_boxes(one_each: bool, ir: bool, tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", one_each=one_each)
    if ir:
        folder = tmp_path / "m_openvino_model"
        folder.mkdir()
        openvino.save_model(openvino.convert_model(file), folder / "m.xml", compress_to_fp16=False)
        told = {"task": "detect", "names": dict(enumerate(LABELS)), "imgsz": [32, 32]}
        (folder / "metadata.yaml").write_text(yaml.safe_dump(told))
        file = folder
    made = import_model(file, tmp_path / "made", shown()).bundle
    assert (made.spec.task, made.spec.labels, made.spec.input.fit) == ("detect", LABELS, "letterbox")
    assert [a.engine for a in made.artefacts] == (["openvino"] if ir else ["onnxruntime", "openvino"])
    assert all(a.gates["parity"]["verdict"] == "passed" and a.gates["parity"]["n"] == 12 for a in made.artefacts)
    assert len(made.golden()["inputs"]) == importing.GOLDEN_FRAMES
    for artefact in made.artefacts:
        found = answer(load(made.path), artefact.engine)
        assert {name: box.tolist() for name, box in zip(found.names, found.boxes, strict=True)} == BOXES
        assert found.scores == pytest.approx([1.0] * 3, abs=1e-3)


@FORMS
def test_masks_of_boxes_come_along(one_each: bool, tmp_path: Path) -> None:
    """What ultralytics calls to segment: boxes, and prototypes for their masks, through import, golden answers and a run."""
    made = import_model(model(tmp_path / "m.onnx", one_each=one_each, masks=True), tmp_path / "m", shown()).bundle
    assert (made.spec.task, made.spec.prototypes) == ("detect", "output1")
    assert set(made.golden()) == {"inputs", "output0", "output1"}
    for artefact in made.artefacts:
        found = answer(made, artefact.engine)
        assert found.masks is not None
        whole = found.masks.whole()
        assert whole.shape == (3, *FRAME.shape[:2])
        for mask, box in zip(whole, found.boxes.astype(int), strict=True):
            assert mask.sum() == 32 * 32
            assert mask[box[1] : box[3], box[0] : box[2]].all()
        engine = open_engine(made, engine=artefact.engine, precision="float")
        assert golden_agreement(engine, made.golden(), made.spec) == 1.0
        engine.close()


def test_masks_are_judged_where_there_are_outlines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outlines that take all of a box are met; of those that take an eighth, the boxes alone."""
    file, told = model(tmp_path / "m.onnx", masks=True), tmp_path / "r.json"
    cv2.imwrite(str(tmp_path / "a.png"), FRAME)
    for part, figures in ((1.0, {1.0}), (0.5, {0.0}), (None, {None})):
        annotations = [
            {"id": i, "image_id": 1, "category_id": LABELS.index(name), "bbox": [x, y, r - x, low - y]}
            | ({"segmentation": [[x, y, x + part * (r - x), y, x, y + part * (low - y)]]} if part else {})
            for i, (name, (x, y, r, low)) in enumerate(BOXES.items(), 1)
        ]
        for one in annotations if part == 1.0 else ():
            x, y, width, height = one["bbox"]
            one["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        held = {
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(LABELS)],
        }
        (tmp_path / "a.json").write_text(json.dumps(held))
        words: tuple[Any, ...] = ("import", file, "--data", tmp_path / "a.json", "--json", told)
        assert command(*words, monkeypatch=monkeypatch) == 0
        printed = " ".join(capsys.readouterr().out.split())
        rows = json.loads(told.read_text())["measured"]["results"]
        assert {row["map50"] for row in rows} == {1.0}
        assert {row.get("mask_map50") for row in rows} == figures
        assert ("has boxes without outlines, so masks are not judged" in printed) == (part is None)
        assert command("verify", tmp_path / "m.edgeattn", "--data", tmp_path / "a.json", monkeypatch=monkeypatch) == 0
        assert ("mAP50 of masks" in capsys.readouterr().out) == (part is not None)


def test_a_file_that_says_nothing_is_told_what_it_does(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx")
    silent = onnx.load(file)
    del silent.metadata_props[:]
    onnx.save(silent, file)
    with pytest.raises(DataError, match=r"--normalise and --channels"):
        import_model(file, tmp_path / "m", shown(), labels=LABELS, task="detect")
    with pytest.raises(DataError, match="none fits 3 labels"):
        import_model(file, tmp_path / "m", shown(), labels=LABELS)
    with pytest.raises(NameNotFoundError, match="task is named 'boxes'"):
        import_model(file, tmp_path / "m", shown(), labels=LABELS, task="boxes")
    told = {"labels": LABELS, "task": "detect", "normalisation": "0..1"}
    for channels, first in (("rgb", "red"), ("bgr", "blue")):
        made = import_model(file, tmp_path / "m", shown(), channels=channels, **told).bundle  # type: ignore[arg-type]
        assert answer(made, "onnxruntime", frame({(1, 0): "red"})).label == first


def test_a_file_is_not_taken_for_another_task_than_it_says(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a model to detect; leave out --task classify"):
        import_model(model(tmp_path / "m.onnx"), tmp_path / "m", shown(), task="classify")
    with pytest.raises(SpecError, match="shown whole"):
        import_model(model(tmp_path / "m.onnx"), tmp_path / "m", shown(), crop=0.9)


@pytest.mark.parametrize("part", ["boxes", "scores"])
def test_an_engine_that_moves_boxes_or_scores_is_refused(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of a hundredth of the scores would be lost beside boxes in pixels, were they not judged apart."""
    honest = importing.infer_all

    def spoilt(engine: Any, inputs: Any) -> Any:
        outputs = honest(engine, inputs)
        if engine.name == "openvino":
            outputs["output0"][:, 4:] *= 0.99 if part == "scores" else 1.0
            outputs["output0"][:, :4] += 0.1 if part == "boxes" else 0.0
        return outputs

    monkeypatch.setattr(importing, "infer_all", spoilt)
    with pytest.raises(GateError, match="openvino answers otherwise than onnxruntime"):
        import_model(model(tmp_path / "m.onnx"), tmp_path / "m", shown())
    assert not (tmp_path / "m.edgeattn").exists()


def test_golden_answers_are_compared_as_boxes(bundle: Bundle) -> None:
    golden = bundle.golden()
    assert (
        golden_agreement(FakeEngine([{"output0": row[None]} for row in golden["output0"]]), golden, bundle.spec) == 1.0
    )
    turned = golden["output0"][:, [0, 1, 2, 3, 6, 4, 5]]
    assert golden_agreement(FakeEngine([{"output0": row[None]} for row in turned]), golden, bundle.spec) == 0.0


def test_thresholds_that_are_asked_for_hold_and_nothing_is_smoothed(bundle: Bundle) -> None:
    rows = np.array([[[0, 0, 9, 9, 0.4, 0], [9, 9, 20, 20, 0.6, 1]]], np.float32)
    for confidence, names in ((None, ["green", "red"]), (0.5, ["green"])):
        source, engine = File(2, Clock()), FakeEngine({"output0": rows})
        with Pipeline(bundle, source, opened_engine=engine, smooth=True, confidence=confidence) as pipeline:
            results = list(pipeline)
        assert [r.prediction.names for r in results] == [names] * 2  # type: ignore[union-attr]
        assert all(r.smoothed is r.prediction for r in results)
        assert pipeline.bundle.spec == bundle.spec, "the bundle is as it was"


def test_changes_are_those_of_the_kinds_of_things(bundle: Bundle) -> None:
    spec, model = bundle.spec, Model(bundle, FakeEngine({}), "")
    changes, told = Changes(0.0, fps=10.0), []
    for index, classes in enumerate([[], [0], [0, 0], [0, 2], [2, 0], []]):
        rows = np.array([[[9 * i, 0, 9 * i + 9, 9, 0.9, c] for i, c in enumerate(classes)]], np.float32).reshape(
            1, -1, 6
        )
        found = decode({"output0": rows}, spec)
        event = changes(Result(Frame(FRAME, index, 0, "received"), found, found, {}, 0, 0, {}, 0, model))
        told += [(event["from"], event["to"])] if event else []
    assert told == [(None, "nothing"), ("nothing", "red"), ("red", "red, blue"), ("red, blue", "nothing")]


def test_a_frames_line_lists_its_boxes(bundle: Bundle, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), FRAME)
    with Pipeline(bundle, Folder(tmp_path), engine="onnxruntime", precision="float") as pipeline:
        (result,) = pipeline
    line = json.loads(json.dumps(frame_line(result)))
    assert {each["label"]: each["box"] for each in line["detections"]} == BOXES
    assert not {"label", "smoothed"} & line.keys()


def test_without_labels_no_package_is_wanted_and_with_them_it_is_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    report = verify(bundle, threads=1)
    assert report.verdict == "passed"
    assert [result.agreement for result in report.results] == [1.0, 1.0]
    unlabelled = verify(bundle, [(picture, None) for picture, _ in shown()], threads=1)
    assert unlabelled.json()["results"][1] | {"agreement": 1.0, "map50": None} == unlabelled.json()["results"][1]
    truth = SimpleNamespace(boxes=np.zeros((0, 4)), labels=np.zeros(0, int), crowd=np.zeros(0, bool))
    with pytest.raises(ExtraMissingError, match=r"pip install 'edgeattn\[detect\]'"):
        verify(bundle, [(FRAME, truth)], threads=1)


def test_what_is_for_classifiers_says_so(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="export --peer takes classifiers only"):
        export_peer(bundle, tmp_path / "peer.onnx")


def command(*words: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a verb; gives its exit code."""
    monkeypatch.setattr("sys.argv", ["edgeattn", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_commands_take_a_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, made = tmp_path / "pictures", tmp_path / "m.edgeattn"
    pictures.mkdir()
    for i, (picture, _) in enumerate([(FRAME, -1), *shown()[:3]]):
        cv2.imwrite(str(pictures / f"{i}.png"), picture)
    empty = tmp_path / "empty"
    empty.mkdir()
    file = model(tmp_path / "m.onnx")
    assert command("import", file, "--data", empty, monkeypatch=monkeypatch) == 2
    assert "holds no pictures" in capsys.readouterr().err
    assert command("import", file, "--data", tmp_path / "gone", monkeypatch=monkeypatch) == 2
    assert "gone: no such file or folder" in capsys.readouterr().err
    for name in ("images", "labels"):
        (tmp_path / "yolo" / name).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "yolo" / "images" / "1.png"), FRAME)
    assert command("import", file, "--data", tmp_path / "yolo", monkeypatch=monkeypatch) == 2
    assert "no data.yaml or classes.txt names their classes" in " ".join(capsys.readouterr().err.split())
    assert command("import", file, "--data", pictures, monkeypatch=monkeypatch) == 0
    assert f"edgeattn run {made}" in capsys.readouterr().out.replace("\n", "")
    assert command("info", made, monkeypatch=monkeypatch) == 0
    assert "m: detect, 32x32" in capsys.readouterr().out
    lines, report = tmp_path / "out.jsonl", tmp_path / "r.json"
    ran: tuple[Any, ...] = (
        "run",
        made,
        "--source",
        pictures,
        "--engine",
        "openvino",
        "--precision",
        "float",
        "--sink",
        "mp4,jsonl",
    )
    ran += ("--out", lines.with_suffix(".mp4"), "--conf", 0.5, "--json", report)
    assert command(*ran, monkeypatch=monkeypatch) == 0
    first = json.loads(lines.read_text().splitlines()[0])
    assert {each["label"] for each in first["detections"]} == set(BOXES)
    assert json.loads(report.read_text())["frames"] == 4
    assert command("profile", made, "--samples", 20, "--json", report, monkeypatch=monkeypatch) == 0
    assert {each["engine"] for each in json.loads(report.read_text())["results"]} == {"onnxruntime", "openvino"}


def test_thresholds_and_collecting_are_refused_where_they_mean_nothing(
    bundle: Bundle,
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path, asked, said in (
        (tiny_bundle.path, ("--conf", 0.5), "classifies; --conf and --iou"),
        (bundle.path, ("--collect", tmp_path), "--collect sorts pictures by class"),
    ):
        assert command("run", path, "--source", "test", *asked, monkeypatch=monkeypatch) == 2
        assert said in capsys.readouterr().err
