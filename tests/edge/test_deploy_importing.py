"""Classifiers from elsewhere: what their input wants is found, told or read; what cannot be run is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper
from openvino.preprocess import PrePostProcessor

from edgeattn._cv2 import cv2
from edgeattn.bundle import load
from edgeattn.cli import main
from edgeattn.datasets.labelled import read_labels
from edgeattn.deploy import importing, verify
from edgeattn.deploy.importing import Labelled, import_model
from edgeattn.deploy.lint import lint
from edgeattn.deploy.peer import export_peer
from edgeattn.engines import open_engine
from edgeattn.engines.openvino import openvino_core
from edgeattn.errors import BundleError, DataError, EdgeAttnError, GateError
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


def as_ir(file: Path) -> Path:
    """OpenVINO's form of an ONNX file, which is removed."""
    openvino.save_model(openvino_core().read_model(file), file.with_suffix(".xml"))
    file.unlink()
    return file.with_suffix(".xml")


def as_it_is(file: Path) -> Path:
    return file


FORMS = pytest.mark.parametrize(
    ("form", "engines"), [(as_it_is, ("onnxruntime", "openvino")), (as_ir, ("openvino",))], ids=["onnx", "ir"]
)


@FORMS
def test_the_normalisation_is_found_by_trying(form: Any, engines: tuple[str, ...], tmp_path: Path) -> None:
    pictures = bytes_of(shades())
    found = import_model(form(brightness(tmp_path / "m.onnx")), tmp_path / "m", pictures, labels=SIDES)
    assert [one.top1 for one in found.tried[:3]] == [1.0, 1.0, 0.5]
    assert (found.tried[0].normalisation, found.tried[0].channels) == ("0..1", "rgb")
    bundle = load(tmp_path / "m.edgeattn")
    assert bundle.spec.input.shape == (1, 3, 32, 32)
    assert bundle.spec.input.std == (255.0, 255.0, 255.0)
    assert bundle.provenance["imported"]["normalisation"] == "0..1"
    assert tuple(artefact.engine for artefact in bundle.artefacts) == engines
    for name in engines:
        engine = open_engine(bundle, engine=name, precision="float")
        outputs = engine.infer(prepare(pictures[1][0], bundle.spec.input))
        # logits, not the probabilities that the file gives: 3 * 20 * (140 / 255) - 28
        mean = float(pictures[1][0][:, 5:45].mean()) / 255  # the square in the middle
        assert outputs["probabilities"].ravel() == pytest.approx([28 - 60 * mean, 60 * mean - 28], abs=0.1)
        engine.close()
    assert verify(bundle, pictures).verdict == "passed"


@FORMS
@pytest.mark.parametrize("last", [False, True])
def test_the_order_of_channels_is_found_and_turned_inside(
    last: bool, form: Any, engines: tuple[str, ...], tmp_path: Path
) -> None:
    """A net that was trained on BGR (its first channel is blue) gets RGB like all others."""
    opponents = (np.eye(3)[:, ::-1] * 3 - 1) * 5
    pictures = tiny.pictures(24)
    file = form(a_model(tmp_path / "m.onnx", opponents, [0, 0, 0], last=last))
    found = import_model(file, tmp_path / "m", pictures, labels=COLOURS)
    assert found.tried[0].channels == "bgr"
    assert found.tried[0].top1 == 1.0
    spec = found.bundle.spec
    for name in engines:
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
    found = import_model(file, tmp_path / "m", bytes_of(shades()))
    assert found.tried == ()
    assert found.bundle.spec.labels == SIDES
    assert (found.bundle.spec.input.height, found.bundle.spec.input.std[0]) == (64, 255.0)
    helper.set_model_props(model, told | {"imgsz": "[32, 96]"})
    onnx.save(model, file)
    spec = import_model(file, tmp_path / "m", bytes_of(shades())).bundle.spec
    assert (spec.input.height, spec.input.width) == (32, 96)
    helper.set_model_props(model, told | {"task": "pose"})
    onnx.save(model, file)
    with pytest.raises(DataError, match="ultralytics to pose"):
        import_model(file, tmp_path / "m", bytes_of(shades()))


def test_what_an_ultralytics_folder_says_is_believed(tmp_path: Path) -> None:
    folder = tmp_path / "yolo11n-cls_openvino_model"
    folder.mkdir()
    file = as_ir(brightness(folder / "m.onnx", size=("h", "w")))
    told = "description: x\ntask: {task}\nimgsz:\n- 64\n- 64\nnames:\n  0: 'no'\n  1: great\n    white, shark\n"
    (folder / "metadata.yaml").write_text(told.format(task="classify"))
    found = import_model(folder, folder, bytes_of(shades()))
    assert found.bundle.path == tmp_path / "yolo11n-cls_openvino_model.edgeattn"
    assert found.bundle.spec.labels == ("no", "great white, shark")
    assert (found.tried, found.bundle.spec.input.height) == ((), 64)
    assert found.failures == {"onnxruntime": "it does not read OpenVINO's IR"}
    (folder / "metadata.yaml").write_text(told.format(task="pose"))
    with pytest.raises(DataError, match="ultralytics to pose"):
        import_model(folder, folder, bytes_of(shades()))
    (folder / "metadata.yaml").write_text("names: [")
    with pytest.raises(DataError, match=r"metadata.yaml cannot be read .* restore it, or remove it"):
        import_model(file, folder, bytes_of(shades()))


def told_to_model_api(file: Path, **told: str) -> Path:
    model = openvino_core().read_model(file)
    file.unlink()
    for key, value in told.items():
        model.set_rt_info(value, ["model_info", key])
    openvino.save_model(model, file.with_suffix(".xml"))
    return file.with_suffix(".xml")


@FORMS
def test_what_model_api_is_told_is_believed(form: Any, engines: tuple[str, ...], tmp_path: Path) -> None:
    """A net that takes BGR, less 100, 110, 120 in that order: its mean is turned with its channels."""
    told = {
        "model_type": "Classification", "labels": "red_one green blue", "reverse_input_channels": "False",
        "mean_values": "100 110 120", "scale_values": "50",
    }  # fmt: skip
    opponents = (np.eye(3)[:, ::-1] * 3 - 1) * 5
    file = a_model(tmp_path / "m.onnx", opponents, np.array([100, 110, 120]) / 50 @ opponents)
    if form is as_ir:
        file = told_to_model_api(file, **told)
    else:
        model = onnx.load(file)
        helper.set_model_props(model, {f"model_info {key}": value for key, value in told.items()})
        onnx.save(model, file)
    pictures = tiny.pictures(24)
    found = import_model(file, tmp_path / "m", pictures)
    assert found.tried == ()
    spec = found.bundle.spec
    assert spec.labels == ("red_one", "green", "blue")
    assert (spec.input.mean, spec.input.std) == ((120.0, 110.0, 100.0), (50.0, 50.0, 50.0))
    assert found.bundle.provenance["imported"]["normalisation"] == importing.TOLD
    for artefact in found.bundle.artefacts:
        engine = open_engine(found.bundle, engine=artefact.engine, precision="float")
        answers = [decode(engine.infer(prepare(picture, spec.input)), spec).index for picture, _ in pictures]
        engine.close()
        assert answers == [label for _, label in pictures]


def test_a_detector_that_model_api_knows_is_refused(tmp_path: Path) -> None:
    file = told_to_model_api(brightness(tmp_path / "m.onnx"), model_type="ssd", labels="dark bright")
    with pytest.raises(DataError, match="a model for ssd; this version imports classifiers"):
        import_model(file, tmp_path / "m", bytes_of(shades()))


def test_an_ir_that_is_changed_too_much_makes_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are those of the file as it came, which gives probabilities, through another door."""
    file = as_ir(brightness(tmp_path / "m.onnx"))
    original = importing._logits
    monkeypatch.setattr(importing, "_logits", lambda *given: original(*given) * 0.5)
    with pytest.raises(GateError, match="openvino answers otherwise than the file as it came"):
        import_model(file, tmp_path / "m", bytes_of(shades()), labels=SIDES)
    assert not (tmp_path / "m.edgeattn").exists()


def test_an_ir_has_no_onnx(tmp_path: Path) -> None:
    file = as_ir(brightness(tmp_path / "m.onnx"))
    bundle = import_model(file, tmp_path / "m", bytes_of(shades()), labels=SIDES).bundle
    assert sorted(bundle.sha256) == ["float.bin", "float.xml", "golden/golden.npz"]
    with pytest.raises(BundleError, match=r"no float artefact for onnxruntime.*came as OpenVINO's IR.*ONNX export"):
        bundle.artefact("onnxruntime", "float")
    with pytest.raises(BundleError, match=r"came as OpenVINO's IR"):
        lint(bundle)
    with pytest.raises(BundleError, match=r"came as OpenVINO's IR"):
        export_peer(bundle, tmp_path / "peer")


def unknown_operator(file: Path) -> Path:
    model = onnx.load(brightness(file))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Frobnicate", "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, file)
    return file


def no_model(file: Path) -> Path:
    file.write_bytes(b"nothing")
    return file


def with_preprocessing(file: Path) -> Path:
    """As Model API and others put it inside: bytes, channels last."""
    steps = PrePostProcessor(openvino_core().read_model(file))
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    openvino.save_model(steps.build(), file.with_suffix(".xml"))
    return file.with_suffix(".xml")


def without_weights(file: Path) -> Path:
    file.with_suffix(".bin").unlink()
    return file


def cut_off(file: Path) -> Path:
    weights = file.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:8])
    return file


def two_inputs(file: Path) -> Path:
    model = onnx.load(brightness(file))
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]))
    model.graph.node[2].input[1] = "y"
    onnx.save(model, file)
    return file


def detector(file: Path) -> Path:
    """Gives six numbers of sixteen places."""
    x, boxes = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 32, 32]), ("boxes", [1, 6, 16]))
    )
    shape = numpy_helper.from_array(np.array([1, 6, 16 * 32]), "shape")
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MaxPool", ["flat"], ["boxes"], kernel_shape=[32], strides=[32]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [boxes], [shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    return file


def quantized(file: Path) -> Path:
    """Its means go through eight bits."""
    model = onnx.load(brightness(file))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(0), "zero"))
    there = helper.make_node("QuantizeLinear", ["mean", "scale", "zero"], ["bytes"])
    back = helper.make_node("DequantizeLinear", ["bytes", "scale", "zero"], ["again"])
    model.graph.node[1].input[0] = "again"
    model.graph.node.insert(1, there)
    model.graph.node.insert(2, back)
    onnx.save(model, file)
    return file


@pytest.mark.parametrize(
    ("made", "labels", "said"),
    [
        (lambda f: brightness(f, size=("h", "w")), SIDES, r"leaves the size of its pictures open .*--imgsz"),
        (lambda f: brightness(f, batch=4), SIDES, "takes 4 pictures at once"),
        (lambda f: brightness(f, kind=TensorProto.FLOAT16), SIDES, "type float16; export it with float32"),
        (brightness, COLOURS, "none fits 3 labels"),
        (brightness, (), "does not name its classes"),
        (unknown_operator, SIDES, "Frobnicate"),
        (no_model, SIDES, "cannot be read as ONNX"),
        (lambda f: f, SIDES, "there is no .*m.onnx; name an .onnx file"),
        (lambda f: f.parent, SIDES, r"should hold one model.xml and holds none"),
        (lambda f: as_ir(brightness(f, size=("h", "w"))), SIDES, r"leaves the size of its pictures open .*--imgsz"),
        (lambda f: as_ir(brightness(f, batch=4)), SIDES, "takes 4 pictures at once"),
        (lambda f: with_preprocessing(brightness(f)), SIDES, "type u8; export it with float32"),
        (lambda f: as_ir(brightness(f)), COLOURS, r"gives probabilities \[0, 2\]: none fits 3 labels"),
        (lambda f: as_ir(brightness(f)), (), "does not name its classes"),
        (lambda f: without_weights(as_ir(brightness(f))), SIDES, "lacks its weights; copy m.bin beside it"),
        (lambda f: cut_off(as_ir(brightness(f))), SIDES, r"m.xml cannot be read as OpenVINO IR"),
        (two_inputs, SIDES, r"takes x .*, y .*; a model of pictures takes one input"),
        (lambda f: as_ir(two_inputs(f)), SIDES, r"takes x .*, y .*; a model of pictures takes one input"),
        (lambda f: as_ir(detector(f)), SIDES, r"gives boxes \[1, 6, 16\]: none fits 2 labels"),
        (lambda f: a_model(f, np.ones((3, 2)), [np.nan, 1]), SIDES, r"answers with what is no number \(nan\)"),
        (quantized, SIDES, r"is quantized already \(2 times DequantizeLinear, QuantizeLinear\)"),
        (lambda f: as_ir(quantized(f)), SIDES, r"is quantized already \(1 times FakeQuantize\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(made: Any, labels: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeAttnError, match=said):
        import_model(made(tmp_path / "m.onnx"), tmp_path / "m", bytes_of(shades()), labels=labels)
    assert not (tmp_path / "m.edgeattn").exists()


@FORMS
def test_a_size_left_open_is_chosen(form: Any, engines: tuple[str, ...], tmp_path: Path) -> None:
    file = form(brightness(tmp_path / "m.onnx", size=("h", "w")))
    found = import_model(file, tmp_path / "m", bytes_of(shades()), labels=SIDES, imgsz=48, normalisation="0..1")
    assert found.bundle.spec.input.shape == (1, 3, 48, 48)
    assert [artefact.gates["parity"]["verdict"] for artefact in found.bundle.artefacts] == ["passed"] * len(engines)


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
    found = import_model(tmp_path / "m.onnx", tmp_path / "m", bytes_of(shades()), labels=SIDES)
    assert found.tried[0].normalisation == "0..1"
    held = onnx.load(found.bundle.path / "float.onnx")
    assert [entry.version for entry in held.opset_import] == [13]


@FORMS
@pytest.mark.parametrize("kind", ["Identity", "Flatten", "Reshape"])
def test_a_softmax_before_a_change_of_shape_is_cut_off(
    kind: str, form: Any, engines: tuple[str, ...], tmp_path: Path
) -> None:
    """A bundle gives logits: probabilities would be taken for logits, and softmaxed once more."""
    file = brightness(tmp_path / "m.onnx", batch=1)
    model = onnx.load(file)
    model.graph.node[-1].output[0] = "inner"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "two"))
    inputs = ["inner", "two"] if kind == "Reshape" else ["inner"]
    model.graph.node.append(helper.make_node(kind, inputs, ["probabilities"]))
    onnx.save(model, file)
    pictures = bytes_of(shades())
    spec = (found := import_model(form(file), tmp_path / "m", pictures, labels=SIDES)).bundle.spec
    for name in engines:
        engine = open_engine(found.bundle, engine=name, precision="float")
        answer = engine.infer(prepare(pictures[1][0], spec.input))[spec.output].ravel()
        engine.close()
        assert answer[0] == pytest.approx(-answer[1], abs=1e-4)
        assert answer[1] > 2, "a logit"


def test_a_depthwise_first_layer_gets_its_channels_turned_too(tmp_path: Path) -> None:
    opponents, pictures = (np.eye(3)[:, ::-1] * 3 - 1) * 5, tiny.pictures(24)
    file = a_model(tmp_path / "m.onnx", opponents, [0, 0, 0])
    model = onnx.load(file)
    model.graph.node[0].input[0] = "each"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 1, 1, 1), np.float32), "depthwise"))
    model.graph.node.insert(0, helper.make_node("Conv", ["x", "depthwise"], ["each"], group=3))
    onnx.save(model, file)
    found = import_model(file, tmp_path / "m", pictures, labels=COLOURS)
    assert (found.tried[0].channels, found.tried[0].top1) == ("bgr", 1.0)
    assert [result.figure for result in verify(found.bundle, pictures).results] == [1.0, 1.0]


@pytest.mark.parametrize(("opset", "kept"), [(13, 0), (17, 1), (18, 0), (18, 1)])
def test_pooling_and_clips_are_repaired_as_at_export(opset: int, kept: int, tmp_path: Path) -> None:
    file = clipped(tmp_path / "m.onnx", opset, kept)
    found = import_model(file, tmp_path / "m", bytes_of(shades()), labels=SIDES, normalisation="0..1", channels="rgb")
    kinds = [node.op_type for node in onnx.load(found.bundle.path / "float.onnx").graph.node]
    assert kinds[:2] == ["Clip", "GlobalAveragePool"]
    assert not {"Min", "Max", "ReduceMean"}.intersection(kinds)
    assert all(artefact.gates["parity"]["verdict"] == "passed" for artefact in found.bundle.artefacts)


def clipped(file: Path, opset: int, kept: int) -> Path:
    """As `brightness`, its pictures clipped by Min and Max, its means with or without their dimensions."""
    weights = {"m": np.array([[-20, 20]] * 3), "b": np.array([28, -28]), "low": np.array(0.0), "high": np.array(1.0)}
    held = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    axes = {"axes": [2, 3]} if opset < 18 else {}
    if opset >= 18:
        held.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    nodes = [
        helper.make_node("Min", ["x", "high"], ["below"]),
        helper.make_node("Max", ["below", "low"], ["clipped"]),
        helper.make_node("ReduceMean", ["clipped", *([] if axes else ["axes"])], ["mean"], keepdims=kept, **axes),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "m", "b"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])],
        held,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), file)
    return file


def test_a_repair_that_changes_the_answers_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "Max"

    monkeypatch.setattr("edgeattn.deploy.foreign.onnx.rewrite", wrong)
    file = clipped(tmp_path / "m.onnx", 18, 1)
    found = import_model(file, tmp_path / "m", bytes_of(shades()), labels=SIDES, normalisation="0..1", channels="rgb")
    assert [node.op_type for node in onnx.load(found.bundle.path / "float.onnx").graph.node][:2] == ["Min", "Max"]


def test_an_operator_that_an_engine_lacks_is_named_with_its_block(tmp_path: Path) -> None:
    file = unknown_operator(tmp_path / "m.onnx")
    model = onnx.load(file)
    model.graph.node[1].name = "/stages.1/attention/Frobnicate"
    onnx.save(model, file)
    with pytest.raises(DataError) as refused:
        import_model(file, tmp_path / "m", bytes_of(shades()), labels=SIDES)
    told = str(refused.value)
    assert told.count("; it names Frobnicate (/stages.1/attention/Frobnicate)") == 2, "for each engine"
    assert f"{file}: onnxruntime" in told
    assert "float.onnx" not in told


@FORMS
def test_another_size_than_the_file_s_own_is_refused(form: Any, engines: tuple[str, ...], tmp_path: Path) -> None:
    file = form(brightness(tmp_path / "m.onnx"))
    with pytest.raises(DataError, match="takes pictures of 32 x 32 alone; leave out --imgsz 48"):
        import_model(file, tmp_path / "m", bytes_of(shades()), labels=SIDES, imgsz=48)
    assert import_model(file, tmp_path / "m", bytes_of(shades()), labels=SIDES, imgsz=32).bundle


def test_without_pictures_nothing_is_imported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="checks a model on pictures; give at least one"):
        import_model(brightness(tmp_path / "m.onnx"), tmp_path / "m", [], labels=SIDES)


def test_engines_that_differ_make_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where one of them computes an operator wrongly."""
    original = importing._logits

    def off(engine: Any, spec: Any, inputs: Any) -> Any:
        return original(engine, spec, inputs) * (1.01 if engine.name == "openvino" else 1.0)

    monkeypatch.setattr(importing, "_logits", off)
    with pytest.raises(GateError, match="openvino answers otherwise than onnxruntime"):
        import_model(brightness(tmp_path / "m.onnx"), tmp_path / "m", bytes_of(shades()), labels=SIDES)
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


def as_folders(root: Path, n: int = 12) -> None:
    for i, (picture, label) in enumerate(bytes_of(shades(n))):
        folder = root / SIDES[label]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{i}.png"), picture)


def test_what_npu_compilers_refuse_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = brightness(tmp_path / "m.onnx")
    model = onnx.load(file)
    model.opset_import[0].version, model.ir_version = 21, 10
    onnx.save(model, file)
    as_folders(tmp_path / "photos")
    assert typed(monkeypatch, "import", file, "--data", tmp_path / "photos", "--labels", "dark,bright") == 0
    told = f"lint: rules of NPU compilers broken: 2; edgeattn lint {tmp_path / 'm.edgeattn'} --target all"
    assert told in capsys.readouterr().out


def test_from_a_file_and_class_folders_to_a_verified_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_folders(tmp_path / "photos", 20)
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
