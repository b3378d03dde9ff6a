"""Segmentation: the class of each pixel that logits give, where it lies in the frame, and what is told and drawn of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from test_detector import command

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle, load, write
from edgeattn.camera import Frame, Result
from edgeattn.camera.lines import Changes
from edgeattn.camera.model import Model
from edgeattn.deploy.foreign import metadata
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import ExtraMissingError, SpecError
from edgeattn.imaging import prepare, resize_crop
from edgeattn.spec import Artefact, InputSpec, Rejection, Spec, Thresholds
from edgeattn.tasks import Regions, agreeing, decode, draw, segment, told

LABELS = ("background", "red", "green", "blue")
SIDE = 64
INPUT = InputSpec(SIDE, SIDE, fit="letterbox")
SPEC = Spec("segment", INPUT, LABELS)
COLOURS = np.array([[128, 128, 128], [0, 0, 255], [0, 255, 0], [255, 0, 0]], np.uint8)
"""BGR of each class."""


def seen(logits: NDArray[Any], spec: Spec = SPEC, size: tuple[int, int] | None = None) -> Regions:
    answer = decode({"logits": logits}, spec, size)
    assert isinstance(answer, Regions)
    return answer


def one_hot(classes_HW: NDArray[Any], k: int = len(LABELS)) -> NDArray[np.float32]:
    """Logits (1, K, H, W) that say just that."""
    return (8.0 * (np.arange(k)[:, None, None] == classes_HW)).astype(np.float32)[None]


def painted(classes_HW: NDArray[Any]) -> NDArray[np.uint8]:
    return COLOURS[classes_HW]


def blocks(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A map of classes of a few rectangles."""
    rng, classes = np.random.default_rng(seed), np.zeros((height, width), np.uint8)
    for k in (1, 2, 3):
        y, x = int(rng.integers(0, height // 2)), int(rng.integers(0, width // 2))
        classes[y : y + height // 3, x : x + width // 3] = k
    return classes


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (128, 64), (40, 100), (33, 77), (480, 640)])
@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_classes_come_back_to_where_they_are_in_the_frame(size: tuple[int, int], fit: Any) -> None:
    """What the net sees of a painted frame, answered pixel by pixel, gives the frame's classes but for seams."""
    truth, spec = blocks(*size), Spec("segment", InputSpec(SIDE, SIDE, fit=fit), LABELS)
    view = resize_crop(painted(truth), spec.input)
    answer = np.abs(view[..., None, :].astype(int) - COLOURS).sum(-1).argmin(-1)
    given = seen(one_hot(answer), spec, size).class_map
    assert given.shape == size
    assert (given == segment.IGNORE).any() == (fit == "crop" and size[0] != size[1])
    inside = given != segment.IGNORE
    scale = max(1.0, max(size) / SIDE)
    seam = cv2.dilate(truth, np.ones((3, 3), np.uint8)) != cv2.erode(truth, np.ones((3, 3), np.uint8))
    near = cv2.dilate(seam.astype(np.uint8), None, iterations=int(np.ceil(scale))) > 0
    np.testing.assert_array_equal(given[inside & ~near], truth[inside & ~near])


def test_a_frame_of_the_input_inside_the_bars_is_exact() -> None:
    """No pixel is moved where the frame goes into the input unscaled."""
    truth = np.random.default_rng(0).integers(0, 4, (40, 64)).astype(np.uint8)
    bars = np.zeros((64, 64), np.uint8)
    bars[12:52] = truth
    np.testing.assert_array_equal(seen(one_hot(bars), size=(40, 64)).class_map, truth)


def test_small_logits_are_laid_over_the_input_bilinearly() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 4, 16, 16)).astype(np.float32)
    upscaled = np.stack([cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for plane in logits[0]])
    answer = seen(logits)
    np.testing.assert_array_equal(answer.class_map, upscaled.argmax(0))
    assert answer.shares.sum() == pytest.approx(1.0)
    exponentials = np.exp(logits[0])
    assert answer.score == pytest.approx((exponentials.max(0) / exponentials.sum(0)).mean(), abs=1e-6)


@pytest.mark.parametrize(("classes", "scale"), [(2, (8, 8)), (4, (3, 5)), (11, (4, 4)), (11, (1, 2)), (200, (8, 8))])
@pytest.mark.parametrize("smooth", [True, False])
def test_laid_over_few_cells_or_over_all_the_classes_are_the_same(
    classes: int, scale: tuple[int, int], smooth: bool
) -> None:
    """Of large regions, where few cells are mixed, and of noise; of noise, whole numbers make equals."""
    rows, cols = 20, 24
    coarse = np.random.default_rng(classes).normal(size=(classes, 3, 3) if smooth else (classes, rows, cols))
    logits = np.stack([cv2.resize(np.round(4 * k).astype(np.float32), (cols, rows)) for k in coarse])
    size = (rows * scale[0], cols * scale[1])
    laid = np.stack([cv2.resize(k.astype(np.float64), size[::-1], interpolation=cv2.INTER_LINEAR) for k in logits])
    given = segment.best(logits, size)
    assert given.shape == size
    chosen = np.take_along_axis(laid, given[None].astype(int), 0)[0]
    np.testing.assert_allclose(chosen, laid.max(0), atol=1e-4)
    places = segment.best(logits, (rows, cols))
    np.testing.assert_array_equal(places, logits.argmax(0), "of equals the first")


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_shares_are_those_of_the_map(fit: Any) -> None:
    answer = seen(one_hot(blocks(SIDE, SIDE)), Spec("segment", InputSpec(SIDE, SIDE, fit=fit), LABELS), (90, 120))
    counted = np.bincount(answer.class_map.ravel(), minlength=256)[: len(LABELS)] / answer.class_map.size
    np.testing.assert_allclose(answer.shares, counted, atol=0.01)


def test_what_is_there_is_told_without_background_and_specks() -> None:
    classes = np.zeros((SIDE, SIDE), np.uint8)
    classes[:32, :32], classes[40:, :20], classes[0, 60:] = 3, 1, 2
    answer = seen(one_hot(classes))
    assert (answer.label, answer.rejected) == ("red, blue", False), "green is a speck; the order is the labels'"
    assert json.loads(json.dumps(told(answer))) == {
        "regions": [{"label": "blue", "share": 0.25}, {"label": "red", "share": round(480 / 4096, 4)}]
    }
    nothing = seen(one_hot(np.zeros((8, 8))))
    assert (nothing.label, nothing.rejected, told(nothing)) == ("nothing", True, {"regions": []})


def test_regions_are_coloured_and_background_is_not() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    classes = np.zeros((240, 320), np.uint8)
    classes[20:100, 50:300] = 2
    answer = seen(one_hot(classes), Spec("segment", InputSpec(240, 320), LABELS))
    drawn = draw(picture, answer)
    assert drawn.shape == picture.shape
    np.testing.assert_array_equal(drawn[:20], picture[:20])
    inside = drawn[30:90, 60:290].astype(int)
    tint = 2 * inside - picture[30:90, 60:290]
    assert np.ptp(tint, axis=(0, 1)).max() <= 2, "half of it is one colour"
    assert np.abs(draw(picture, answer, 0.0)[:200].astype(int) - picture[:200]).max() <= 1, (
        "the opacity is what is asked for"
    )
    assert (drawn[-12:, :60] != picture[-12:, :60]).any(), "a legend stands at the lower left"
    assert draw(picture[:20, :20].copy(), seen(one_hot(classes[20:40, 50:70]), size=(20, 20))).shape == (20, 20, 3)


def test_answers_agree_where_nearly_all_pixels_do() -> None:
    classes = np.zeros((SIDE, SIDE), np.uint8)
    one, nearly, other = one_hot(classes), classes.copy(), classes.copy()
    nearly[:3], other[:4] = 1, 1
    given = {SPEC.output: one_hot(nearly)}
    assert agreeing(given, {SPEC.output: one}, SPEC) == 1.0
    given = {SPEC.output: np.concatenate([one_hot(other), one])}
    assert agreeing(given, {SPEC.output: np.concatenate([one, one])}, SPEC) == 0.5


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(SpecError, match="no output 'logits' but other"):
        decode({"other": np.zeros((1, 4, 8, 8))}, SPEC)
    with pytest.raises(SpecError, match=r"4 labels ask for \(1, 4, h, w\)"):
        seen(np.zeros((1, 3, 8, 8), np.float32))
    for wrong in ({"thresholds": Thresholds()}, {"rejection": Rejection(0.5)}):
        with pytest.raises(SpecError, match="no meaning for task segment"):
            Spec("segment", INPUT, LABELS, **wrong)  # type: ignore[arg-type]


def test_regions_are_handed_over() -> None:
    answer = seen(one_hot(blocks(SIDE, SIDE)))
    if importlib.util.find_spec("supervision") is None:
        with pytest.raises(ExtraMissingError, match=r"edgeattn\[supervision\]"):
            answer.supervision()
        return
    given = answer.supervision()
    assert given.data["class_name"].tolist() == [LABELS[k] for k in answer.there]
    np.testing.assert_array_equal(given.mask.sum((1, 2)), [(answer.class_map == k).sum() for k in answer.there])
    assert len(seen(one_hot(np.zeros((8, 8)))).supervision()) == 0


def graph(*, floats: bool = False) -> onnx.ModelProto:
    """A real segmenter: the mean colour of each 4 x 4 cell; grey is background. With `floats` it takes (1, 3, H, W), 0 to 255."""
    weights: dict[str, Any] = {
        "opponents": np.array([[0, 0, 0], [2, -1, -1], [-1, 2, -1], [-1, -1, 2]], np.float32)[..., None, None] / 128,
        "bias": np.array([1, 0, 0, 0], np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["cells", "opponents", "bias"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIDE, SIDE, 3])
    if floats:
        nodes, image = nodes[2:], helper.make_tensor_value_info("planes", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    made = helper.make_graph(
        nodes,
        "tiny_segmenter",
        [image],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, SIDE // 4, SIDE // 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    gates = {"parity": {"verdict": "passed", "n": 1}}
    artefacts = tuple(Artefact("float.onnx", name, "float", gates=gates) for name in ("onnxruntime", "openvino"))
    folder = tmp_path_factory.mktemp("segmenter") / "m.edgeattn"
    return write(Bundle(folder, SPEC, artefacts), {"float.onnx": graph().SerializeToString()})


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_segmenter_runs_on_a_folder(
    engine: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, lines = tmp_path / "pictures", tmp_path / "out.jsonl"
    pictures.mkdir()
    classes = np.zeros((48, 64), np.uint8)
    classes[8:24, 4:36], classes[40:] = 1, 3
    for i in range(3):
        cv2.imwrite(str(pictures / f"{i}.png"), painted(classes))
    ran = ("run", bundle.path, "--source", pictures, "--engine", engine, "--precision", "float", "--sink", "mp4,jsonl")
    assert command(*ran, "--out", lines.with_suffix(".mp4"), monkeypatch=monkeypatch) == 0
    told_all = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(told_all) == 3
    assert [each["label"] for each in told_all[0]["regions"]] == ["red", "blue"]
    assert [each["share"] for each in told_all[0]["regions"]] == pytest.approx([1 / 6, 1 / 6], abs=0.04)
    assert "smoothed" not in told_all[0]
    assert lines.with_suffix(".mp4").stat().st_size > 500


def test_changes_are_those_of_the_kinds_of_regions(bundle: Bundle) -> None:
    model, changes, events = Model(bundle, FakeEngine({}), ""), Changes(0.0, fps=10.0), []
    for index, k in enumerate([0, 1, 1, 3]):
        found = seen(one_hot(np.full((8, 8), k)))
        frame = Frame(prepare(painted(np.zeros((8, 8), int)), INPUT)[0], index, 0, "received")
        event = changes(Result(frame, found, found, {}, 0, 0, {}, 0, model))
        events += [(event["from"], event["to"])] if event else []
    assert events == [(None, "nothing"), ("nothing", "red"), ("red", "blue")]


def test_a_segmenter_from_elsewhere_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, pictures = tmp_path / "m.onnx", tmp_path / "pictures"
    onnx.save(graph(floats=True), file)
    pictures.mkdir()
    for i in range(3):
        cv2.imwrite(str(pictures / f"{i}.png"), painted(blocks(48, 64, i)))
    ask = ("import", file, "--data", pictures, "--task", "segment", "--labels", ",".join(LABELS))
    assert command(*ask, monkeypatch=monkeypatch) == 2
    assert "tell it with --normalise and --channels" in capsys.readouterr().err.replace("\n", " ")
    assert command(*ask, "--normalise", "0..255", "--channels", "rgb", monkeypatch=monkeypatch) == 0
    made = load(tmp_path / "m.edgeattn")
    assert (made.spec.task, made.spec.input.fit, made.spec.labels) == ("segment", "letterbox", LABELS)
    assert [a.gates["parity"]["verdict"] for a in made.artefacts] == ["passed", "passed"]
    assert command(*ask[:-1], "cat,dog", *("--normalise", "0..255", "--channels", "rgb"), monkeypatch=monkeypatch) == 2
    assert "none fits 2 labels" in capsys.readouterr().err.replace("\n", " ")


def test_outlines_of_single_things_are_no_map_of_classes() -> None:
    """What ultralytics calls to segment gives boxes, each with its mask."""
    assert metadata({"task": "segment", "names": "{0: 'cat'}", "imgsz": "[64, 64]"}).task == "detect"
