"""Segmenters are verified and quantized by mIoU, the agreement with float by pixels."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import squares
import typer
from typer.testing import CliRunner

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle
from edgeattn.cli.verify import verify as verify_verb
from edgeattn.deploy.quantize import quantize
from edgeattn.deploy.verify import verify
from edgeattn.errors import DataError

PICTURES = squares.pictures(24, seed=3)
CALIBRATION = [picture for picture, _ in squares.pictures(32, seed=1)]

app = typer.Typer()
app.command()(verify_verb)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return squares.bundle(tmp_path_factory.mktemp("s") / "regions.edgeattn", regions=True)


def test_a_segmenter_is_judged_by_miou_and_its_agreement_by_pixels(bundle: Bundle) -> None:
    report = verify(bundle, PICTURES, threads=1)
    told = json.loads(json.dumps(report.json(), allow_nan=False))
    assert [row["verdict"] for row in told["results"]] == ["passed", "passed"]
    for row in told["results"]:
        assert 0.9 < row["miou"] < 1.0
        assert row["pixel_accuracy"] > 0.97
        assert 0.5 < row["boundary_f1"] <= 1.0
        assert row["agreement"] == pytest.approx(1.0, abs=1e-4)
        assert [one["label"] for one in row["classes"]] == list(squares.REGIONS.labels)


def test_int8_keeps_the_regions_on_both_engines(bundle: Bundle, tmp_path: Path) -> None:
    from edgeattn.bundle import extend

    made = quantize(extend(bundle, (), {}, path=tmp_path / "q.edgeattn"), CALIBRATION, PICTURES)
    found = {(r.engine, r.precision): r for r in made.report.results}
    for engine in ("onnxruntime", "openvino"):
        int8 = found[engine, "int8"]
        executed = "int8" if engine == "openvino" else "int8+f32"  # all but the stem
        assert (int8.verdict, int8.executed_precision) == ("passed", executed), int8.gates
        loss = int8.gates["loss"]
        assert abs(loss["value"]) < 0.01
        assert loss["low"] < loss["value"] < loss["high"] < 0.01
        assert int8.agreement is not None
        assert 0.98 < int8.agreement < 1.0


def test_a_folder_of_masks_is_taken_and_its_classes_are_put_in_the_model_s_order(
    bundle: Bundle, tmp_path: Path
) -> None:
    root = squares.masks(tmp_path / "data", 6, seed=5)
    swapped = np.array([2, 1, 0, 3], np.uint8)  # another table, in which green comes first and the background third
    (root / "classes.txt").write_text("green\nred\nbackground\nblue\n")
    for file in (root / "masks").iterdir():
        cv2.imwrite(str(file), swapped[cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)])
    page, told = tmp_path / "v.html", tmp_path / "v.json"
    done = CliRunner().invoke(app, [str(w) for w in (bundle.path, "--data", root, "--html", page, "--json", told)])
    assert done.exit_code == 0, done.output
    assert "artefact mIoU %" in " ".join(done.output.split())
    assert "boundary F1" in done.output
    assert "boundary F1 %" in page.read_text()
    assert all(row["miou"] > 0.9 for row in json.loads(told.read_text())["results"])
    assert "Worst first, by mIoU of the picture" in page.read_text()
    (root / "classes.txt").write_text("green\nred\nsky\nblue\n")
    with pytest.raises(DataError, match="the class sky, which is no label of the bundle"):
        CliRunner().invoke(app, [str(bundle.path), "--data", str(root)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("classes", "said"),
    [(np.full((480, 640), 4, np.uint8), "it has label 4"), (np.zeros((48, 64), np.uint8), "the picture")],
)
def test_maps_that_do_not_fit_are_named(bundle: Bundle, classes: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=f"picture 0: .*{said}"):
        verify(bundle, [(PICTURES[0][0], SimpleNamespace(class_map=lambda: classes))], threads=1)
