"""Classifiers from elsewhere: what their input wants is found, told or read; what cannot be run is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper

from edgeattn._cv2 import cv2
from edgeattn.bundle import load
from edgeattn.cli import main
from edgeattn.datasets.labelled import read_labels
from edgeattn.deploy import importing, verify
from edgeattn.deploy.importing import Labelled, import_onnx
from edgeattn.engines import open_engine
from edgeattn.errors import DataError, EdgeAttnError, GateError
from edgeattn.imaging import prepare
from edgeattn.tasks import decode

COLOURS = ("red", "green", "blue")
SIDES = ("dark", "bright")


def shades(n: int = 12) -> Labelled:
    """Grey pictures about 100 and about 140."""
    rng = np.random.default_rng(0)
    return [(rng.integers(-9, 10, (40, 50, 3)).astype(np.int16) + 100 + 40 * (i % 2), i % 2) for i in range(n)]  # type: ignore[misc]


def bytes_of(pictures: Labelled) -> Labelled:
    return [(picture.astype(np.uint8), label) for picture, label in pictures]


def a_model(
    file: Path,
    matrix: Any,
    bias: Any,
    *,
    size: Any = (32, 32),
    batch: Any = "n",
    last: bool = False,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Mean of each channel, a matrix and a softmax."""
    weights = {
        "m": np.asarray(matrix, np.float32),
        "b": np.asarray(bias, np.float32),
        "axes": np.array([1, 2] if last else [2, 3]),
    }
    shape = [batch, *size, 3] if last else [batch, 3, *size]
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "m"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("probabilities", kind, [batch, weights["b"].size])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    return file


def brightness(file: Path, **options: Any) -> Path:
    """Bright is a mean above 0.47: of all ways to prepare pictures, right for 0..1 alone."""
    return a_model(file, np.array([[-1, 1]] * 3) * 20, [28, -28], **options)


def test_the_normalisation_is_found_by_trying(tmp_path: Path) -> None:
    pictures = bytes_of(shades())
    found = import_onnx(brightness(tmp_path / "m.onnx"), tmp_path / "m", pictures, labels=SIDES)
    assert [one.top1 for one in found.tried[:3]] == [1.0, 1.0, 0.5]
    assert (found.tried[0].normalisation, found.tried[0].channels) == ("0..1", "rgb")
    bundle = load(tmp_path / "m.edgeattn")
    assert bundle.spec.input.shape == (1, 3, 32, 32)
    assert bundle.spec.input.std == (255.0, 255.0, 255.0)
    assert bundle.provenance["imported"]["normalisation"] == "0..1"
    for name in ("onnxruntime", "openvino"):
        engine = open_engine(bundle, engine=name, precision="float")
        outputs = engine.infer(prepare(pictures[1][0], bundle.spec.input))
        # logits, not the probabilities that the file gives: 3 * 20 * (140 / 255) - 28
        mean = float(pictures[1][0][:, 5:45].mean()) / 255  # the square in the middle
        assert outputs["probabilities"].ravel() == pytest.approx([28 - 60 * mean, 60 * mean - 28], abs=0.1)
        engine.close()
    assert verify(bundle, pictures).verdict == "passed"


@pytest.mark.parametrize("last", [False, True])
def test_the_order_of_channels_is_found_and_turned_inside(last: bool, tmp_path: Path) -> None:
    """A net that was trained on BGR (its first channel is blue) gets RGB like all others."""
    opponents = (np.eye(3)[:, ::-1] * 3 - 1) * 5
    pictures = tiny.pictures(24)
    found = import_onnx(
        a_model(tmp_path / "m.onnx", opponents, [0, 0, 0], last=last), tmp_path / "m", pictures, labels=COLOURS
    )
    assert found.tried[0].channels == "bgr"
    assert found.tried[0].top1 == 1.0
    spec = found.bundle.spec
    for name in ("onnxruntime", "openvino"):
        engine = open_engine(found.bundle, engine=name, precision="float")
        answers = [decode(engine.infer(prepare(picture, spec.input)), spec).index for picture, _ in pictures]
        engine.close()
        assert answers == [label for _, label in pictures]


def test_what_the_file_says_is_believed(tmp_path: Path) -> None:
    file = brightness(tmp_path / "m.onnx", size=("h", "w"))
    model = onnx.load(file)
    told = {"author": "Ultralytics", "task": "classify", "names": "{0: 'dark', 1: 'bright'}", "imgsz": "[64, 64]"}
    helper.set_model_props(model, told)
    onnx.save(model, file)
    found = import_onnx(file, tmp_path / "m", bytes_of(shades()))
    assert found.tried == ()
    assert found.bundle.spec.labels == SIDES
    assert (found.bundle.spec.input.height, found.bundle.spec.input.std[0]) == (64, 255.0)
    helper.set_model_props(model, told | {"task": "detect"})
    onnx.save(model, file)
    with pytest.raises(DataError, match="ultralytics to detect"):
        import_onnx(file, tmp_path / "m", bytes_of(shades()))


def unknown_operator(file: Path) -> Path:
    model = onnx.load(brightness(file))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Frobnicate", "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, file)
    return file


def no_model(file: Path) -> Path:
    file.write_bytes(b"nothing")
    return file


@pytest.mark.parametrize(
    ("made", "labels", "said"),
    [
        (lambda f: brightness(f, size=("h", "w")), SIDES, r"leaves the size of its pictures open .*--imgsz"),
        (lambda f: brightness(f, batch=4), SIDES, "takes 4 pictures at once"),
        (lambda f: brightness(f, kind=TensorProto.FLOAT16), SIDES, "type FLOAT16; export it with float32"),
        (brightness, COLOURS, "none fits 3 labels"),
        (brightness, (), "does not name its classes"),
        (unknown_operator, SIDES, "Frobnicate"),
        (no_model, SIDES, "cannot be read as ONNX"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(made: Any, labels: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeAttnError, match=said):
        import_onnx(made(tmp_path / "m.onnx"), tmp_path / "m", bytes_of(shades()), labels=labels)
    assert not (tmp_path / "m.edgeattn").exists()


def test_a_size_left_open_is_chosen(tmp_path: Path) -> None:
    file = brightness(tmp_path / "m.onnx", size=("h", "w"))
    found = import_onnx(file, tmp_path / "m", bytes_of(shades()), labels=SIDES, imgsz=48, normalisation="0..1")
    assert found.bundle.spec.input.shape == (1, 3, 48, 48)


def test_an_old_opset_is_raised(tmp_path: Path) -> None:
    """Int8 with a scale a channel needs opset 13."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["mean"]),
            helper.make_node("Gemm", ["mean", "m", "b"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])],
        [
            numpy_helper.from_array(np.array([[-20, 20]] * 3, np.float32), "m"),
            numpy_helper.from_array(np.array([28, -28], np.float32), "b"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4), tmp_path / "m.onnx")
    found = import_onnx(tmp_path / "m.onnx", tmp_path / "m", bytes_of(shades()), labels=SIDES)
    assert found.tried[0].normalisation == "0..1"
    held = onnx.load(found.bundle.path / "float.onnx")
    assert [entry.version for entry in held.opset_import] == [13]


def test_engines_that_differ_make_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where one of them computes an operator wrongly."""
    original = importing._logits

    def off(engine: Any, spec: Any, inputs: Any) -> Any:
        return original(engine, spec, inputs) * (1.01 if engine.name == "openvino" else 1.0)

    monkeypatch.setattr(importing, "_logits", off)
    with pytest.raises(GateError, match="openvino answers otherwise than onnxruntime"):
        import_onnx(brightness(tmp_path / "m.onnx"), tmp_path / "m", bytes_of(shades()), labels=SIDES)
    assert not (tmp_path / "m.edgeattn").exists()


def test_labels_are_read(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dark\nbright\n\n")
    (tmp_path / "labels.csv").write_text("index,name\n0,crane\n1,owl\n2,crane\n")
    assert read_labels(str(tmp_path / "names.txt")) == SIDES
    assert read_labels("dark, bright") == SIDES
    assert read_labels(str(tmp_path / "labels.csv")) == ("crane (0)", "owl", "crane (2)")


def typed(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["edgeattn", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_from_a_file_and_class_folders_to_a_verified_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, (picture, label) in enumerate(bytes_of(shades(20))):
        folder = tmp_path / "photos" / SIDES[label]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{i}.png"), picture)
    file, report = brightness(tmp_path / "m.onnx"), tmp_path / "r.json"
    words = ("import", file, "--data", tmp_path / "photos", "--json", report)
    assert typed(monkeypatch, *words, "--labels", "dark,bright") == 0
    printed = capsys.readouterr().out
    assert "0..1" in printed
    assert f"edgeattn quantize {tmp_path / 'm.edgeattn'} --data {tmp_path / 'photos'}" in printed
    assert json.loads(report.read_text())["tried"][0]["top1"] == 1.0
    assert typed(monkeypatch, "verify", tmp_path / "m.edgeattn", "--data", tmp_path / "photos", "--json", report) == 0
    assert {row["top1"] for row in json.loads(report.read_text())["results"]} == {1.0}
    rows = [f"{SIDES[i % 2]}/{i}.png,{i % 2}" for i in range(20)]
    (tmp_path / "photos.csv").write_text("\n".join(["file,index", *rows]))
    assert typed(monkeypatch, "verify", tmp_path / "m.edgeattn", "--data", tmp_path / "photos.csv") == 0
    assert typed(monkeypatch, *words, "--labels", "day,night") == 2
    assert "'bright', which is no label" in capsys.readouterr().err
