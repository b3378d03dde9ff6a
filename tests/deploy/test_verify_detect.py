"""Detectors are verified and quantized as classifiers are: by what their task is judged by, on real files."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import squares
import tiny_detector
import typer
from onnxruntime.quantization import QuantType, quantize_static
from typer.testing import CliRunner

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle
from edgeattn.cli.verify import verify as verify_verb
from edgeattn.deploy.calibration import Reader
from edgeattn.deploy.quantize import quantize
from edgeattn.deploy.results import Report, Result
from edgeattn.deploy.verify import verify
from edgeattn.errors import DataError
from edgeattn.imaging import prepare
from edgeattn.workflow import outside_data

PICTURES = squares.pictures(40, seed=3)
CALIBRATION = [picture for picture, _ in squares.pictures(32, seed=1)]

app = typer.Typer()
app.command()(verify_verb)


def shared_scale() -> bytes:
    """Int8 throughout, as by ultralytics#23987: one scale of the output for boxes in pixels and scores below 1."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "float.onnx"), Path(scratch, "int8.onnx")
        source.write_bytes(squares.float_model())
        inputs = [prepare(picture, squares.SPEC.input) for picture in CALIBRATION[:8]]
        quantize_static(
            source, target, Reader(inputs, "image"), per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return target.read_bytes()


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return squares.bundle(tmp_path_factory.mktemp("d") / "squares.edgeattn", {"naive.onnx": shared_scale()})


@pytest.fixture(scope="module")
def report(collapsed: Bundle) -> Report:
    return verify(collapsed, PICTURES, threads=1)


def of(report: Report, engine: str, precision: str) -> Result:
    return next(r for r in report.results if (r.engine, r.precision) == (engine, precision))


def test_float_finds_the_squares_and_is_judged_by_map(report: Report) -> None:
    assert (report.task, report.measured.name) == ("detect", "mAP50")
    for engine in ("onnxruntime", "openvino"):
        found = of(report, engine, "float")
        assert found.verdict == "passed"
        assert found.figure is not None
        assert found.figure > 0.95
        assert 0.6 < found.figures["map"] < found.figure
        assert found.agreement == 1.0
        assert [one.label for one in found.classes] == list(squares.LABELS)


def test_a_scale_that_boxes_and_scores_share_leaves_nothing_and_the_gate_says_so(report: Report) -> None:
    found = of(report, "onnxruntime", "int8")
    assert (found.figure, found.agreement, found.verdict) == (0.0, 0.0, "failed")
    loss = found.gates["loss"]
    assert loss["verdict"] == "failed"
    assert loss["value"] > 0.95
    assert loss["low"] > 0.9
    assert loss["golden_agreement"] == 0.0


def test_the_report_names_the_figure_of_the_task(report: Report) -> None:
    told = json.loads(json.dumps(report.json(), allow_nan=False))
    assert told["task"] == "detect"
    assert all({"map50", "map", "agreement", "verdict"} <= row.keys() for row in told["results"])
    assert not any("top1" in row or "worths" in row for row in told["results"])


def test_truths_that_do_not_fit_are_named(collapsed: Bundle) -> None:
    picture, truth = PICTURES[0]
    strange = squares.Squares(truth.boxes, truth.labels + 3, truth.crowd)
    with pytest.raises(DataError, match=r"picture 0: it has label \d; the bundle knows 0 to 2"):
        verify(collapsed, [(picture, strange)], threads=1)
    nothing = squares.Squares(truth.boxes[:0], truth.labels[:0], truth.crowd[:0])
    with pytest.raises(DataError, match="no boxes on the labelled pictures"):
        verify(collapsed, [(picture, nothing)] * 2, threads=1)


def test_pictures_without_labels_are_judged_by_boxes_that_are_not_float_s(collapsed: Bundle) -> None:
    report = verify(collapsed, [(picture, None) for picture, _ in PICTURES], threads=1, engines=["onnxruntime"])
    int8 = of(report, "onnxruntime", "int8")
    assert int8.figure is None
    assert int8.gates["flips"]["verdict"] == "failed"
    assert len(int8.flips) == 40
    assert report.json()["results"][0]["map50"] is None


def typed(*words: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares.folder(tmp_path_factory.mktemp("data") / "squares", 40, seed=5)


def test_the_verb_takes_a_folder_of_boxes_and_writes_a_page(collapsed: Bundle, folder: Path, tmp_path: Path) -> None:
    page, told = tmp_path / "v.html", tmp_path / "v.json"
    code, said = typed("--data", folder, "--html", page, "--json", told, collapsed.path)
    assert code == 1
    assert "artefact mAP50 % as float % loss, points" in said
    assert "onnxruntime int8 failed: it loses 9" in said
    assert "points of mAP50, 1.0 are allowed; this one works: " in said
    assert "onnxruntime float: mAP, of IoU 0.5 to 0.95, " in said
    rows = json.loads(told.read_text())["results"]
    assert rows[0]["map50"] > 0.95
    assert len(rows[2]["flips"]) == 40
    text = page.read_text()
    assert "Worst first, by F1 of the picture" in text
    assert "AP50 %" in text
    assert "found" in text


def test_boxes_that_are_no_good_are_cut_or_left_out_and_counted(
    collapsed: Bundle, folder: Path, tmp_path: Path
) -> None:
    root = squares.folder(tmp_path / "bad", 3, seed=6)
    label = root / "labels" / "000.txt"
    label.write_text(label.read_text() + "0 0.99 0.5 0.3 0.3\n1 0.5 0.5 0 0.2\n")
    _, said = typed("--data", root, "--engine", "onnxruntime", "--precision", "float", collapsed.path)
    assert "1 box over the edge of the picture, cut there" in said
    assert "1 box without area in the picture, left out" in said
    (root / "labels" / "009.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match="009"):
        typed("--data", root, collapsed.path)
    code, said = typed("--data", root, "--skip-missing", "--precision", "float", collapsed.path)
    assert code == 0
    assert "1 pictures left out" in said
    (root / "classes.txt").write_text("red\ngreen\nviolet\n")
    with pytest.raises(DataError, match=r"the class violet, which is no label of the bundle; labels: red, green, blue"):
        typed("--data", root, "--skip-missing", collapsed.path)
    classes = tmp_path / "classes" / "red"
    classes.mkdir(parents=True)
    cv2.imwrite(str(classes / "1.png"), PICTURES[0][0])
    with pytest.raises(DataError, match="holds class folders, neither boxes nor masks"):
        typed("--data", tmp_path / "classes", collapsed.path)


def test_our_int8_keeps_the_boxes_on_both_engines(tmp_path: Path) -> None:
    made = quantize(squares.bundle(tmp_path / "squares.edgeattn"), CALIBRATION, PICTURES, max_loss=0.05)
    for engine in ("onnxruntime", "openvino"):
        whole, int8 = (of(made.report, engine, precision) for precision in ("float", "int8"))
        executed, layers = ("int8", 3) if engine == "openvino" else ("int8+f32", 2)  # all but the stem
        assert int8.executed_precision == executed
        assert int8.structure is not None
        assert (int8.structure.quantized, int8.structure.fell_back) == (layers, ())
        assert int8.verdict == "passed", int8.gates
        assert whole.figure is not None
        assert int8.figure is not None
        assert int8.figure > whole.figure - 0.01
        assert int8.figures["map"] > whole.figures["map"] - 0.03


def test_an_imported_detector_is_measured_where_boxes_are_known(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgeattn.cli.importing import import_

    file, told = tiny_detector.model(tmp_path / "m.onnx"), tmp_path / "i.json"
    import_(file, data=folder, out=tmp_path / "made", json=told)
    said = " ".join(capsys.readouterr().out.split())
    assert "artefact mAP50 %" in said
    assert f"edgeattn quantize {tmp_path / 'made'}.edgeattn --data {folder}" in said
    rows = json.loads(told.read_text())["measured"]["results"]
    assert [row["verdict"] for row in rows] == ["passed", "passed"]
    assert all(0.0 <= row["map50"] < 0.5 for row in rows), "its boxes are whole cells, the squares lie anywhere"
    with pytest.raises(DataError, match="the class red, green, blue, which is no label"):
        import_(file, data=folder, out=tmp_path / "made", labels="a,b,c")


def test_pictures_for_a_detector_from_elsewhere_calibrate_or_measure_never_both(tmp_path: Path) -> None:
    bundle, root = squares.bundle(tmp_path / "b.edgeattn"), squares.folder(tmp_path / "flat", 50, seed=2)
    data = outside_data(bundle, root)
    assert data.calibration is not None
    drawn = {data.calibration.root / file for file in data.calibration.files}
    measured = {one.path for one in data.validation.samples}  # type: ignore[attr-defined]
    assert (len(drawn), len(measured), drawn & measured) == (32, 18, set())
    picture, truth = data.validation[0]
    assert picture.shape == (480, 640, 3)
    assert set(truth.labels) <= {0, 1, 2}
    for part, n, seed in (("train", 40, 3), ("val", 9, 4)):
        squares.folder(tmp_path / "parts" / part, n, seed=seed)
    whole = tmp_path / "parts"
    (whole / "data.yaml").write_text(f"names: {list(squares.LABELS)}\ntrain: train/images\nval: val/images\n")
    data = outside_data(bundle, whole)
    assert data.calibration is not None
    assert all(file.startswith("train/") for file in data.calibration.files)
    assert len(data.validation) == 9
