"""Verify passes what is sound, fails what is broken, and says when it cannot tell; real files, real engines."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from onnx import helper, numpy_helper

from edgeattn.bundle import Bundle, write
from edgeattn.cli.verify import remarks
from edgeattn.deploy.results import Report, Result, gates
from edgeattn.deploy.verify import BROKEN, verify
from edgeattn.engines import open_engine
from edgeattn.errors import BundleError, DataError, NameNotFoundError
from edgeattn.imaging import prepare
from edgeattn.spec import Artefact, MapSpec, Rejection

PICTURES = tiny.pictures(300, seed=5)


def changed(bundle: Bundle, path: Path, **files: bytes) -> Bundle:
    """A copy of a bundle with other files (`int8_onnx` stands for int8.onnx)."""
    held: dict[str, Path | bytes] = {name: bundle.path / name for name in bundle.sha256}
    held |= {name.replace("_", "."): data for name, data in files.items()}
    return write(replace(bundle, path=path), held)


def rewired(model: bytes, output: str, add: Callable[[onnx.GraphProto, str], None]) -> bytes:
    """A model with nodes added between what made an output (now under the name given to `add`) and the output."""
    loaded = onnx.load_model_from_string(model)
    inner = f"{output}_inner"
    for node in loaded.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == output:
                    names[i] = inner
    add(loaded.graph, inner)
    return bytes(loaded.SerializeToString())


def of(report: Report, engine: str, precision: str) -> Result:
    return next(r for r in report.results if (r.engine, r.precision) == (engine, precision))


@pytest.fixture(scope="module")
def report(tiny_int8_bundle: Bundle) -> Report:
    return verify(tiny_int8_bundle, PICTURES, threads=1)


def test_sound_artefacts_pass(report: Report) -> None:
    assert [(r.engine, r.precision, r.verdict) for r in report.results] == [
        ("onnxruntime", "float", "passed"),
        ("openvino", "float", "passed"),
        ("onnxruntime", "int8", "passed"),
        ("openvino", "int8", "passed"),
    ]
    assert report.verdict == "passed"
    for result in report.results:
        assert result.n == report.n == 300
        assert result.figure == 1.0
        assert result.agreement == 1.0
        assert result.flips == ()
        assert result.latency_ms is not None
        assert result.latency_ms > 0
        assert result.threads == 1


def test_which_gates_an_artefact_meets(report: Report) -> None:
    assert set(of(report, "onnxruntime", "float").gates) == {"golden"}
    assert set(of(report, "openvino", "float").gates) == {"golden"}
    for engine in ("onnxruntime", "openvino"):
        result = of(report, engine, "int8")
        assert set(result.gates) == {"loss", "maps", "ranks"}
        assert result.gates["loss"]["high"] <= 0.01
        assert result.executed_precision == "int8"
        assert result.map_js is not None
        assert 0 < result.map_js < 0.05
        assert result.gates["loss"]["golden_agreement"] == 1.0
        assert result.map_rank is not None
        assert result.map_rank > 0.95
        (block,) = result.blocks
        assert (block.js, block.rank, block.overlap) == (result.map_js, result.map_rank, result.map_overlap)


def test_the_report_is_what_other_programs_read(report: Report) -> None:
    payload = json.loads(json.dumps(report.json(), allow_nan=False))
    assert payload["schema"] == "edgeattn.verify/1"
    assert payload["verdict"] == "passed"
    keys = {"engine", "precision", "n", "top1", "agreement", "map_js", "map_rank", "verdict"}
    assert all(keys <= row.keys() for row in payload["results"])


def test_gates_go_into_an_artefact(report: Report) -> None:
    measured = gates(of(report, "openvino", "int8"))
    assert Artefact("int8.xml", "openvino", "int8", gates=measured).verdict == "passed"


def test_a_spoilt_int8_file_fails(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    bundle = changed(tiny_int8_bundle, tmp_path / "x.edgeattn", int8_onnx=tiny.spoilt_int8_model())
    report = verify(bundle, PICTURES[:60], threads=1)
    spoilt = of(report, "onnxruntime", "int8")
    assert spoilt.verdict == "failed"
    assert spoilt.gates["loss"]["verdict"] == "failed"
    assert spoilt.gates["loss"]["value"] == pytest.approx(2 / 3)
    assert spoilt.figure == spoilt.agreement == pytest.approx(1 / 3)
    assert report.verdict == "failed"
    assert of(report, "openvino", "float").verdict == "passed"


def test_few_pictures_cannot_tell_and_say_how_many_it_takes(tiny_int8_bundle: Bundle) -> None:
    report = verify(tiny_int8_bundle, PICTURES[:30], threads=1)
    assert report.verdict == "cannot tell"
    for engine in ("onnxruntime", "openvino"):
        gate = of(report, engine, "int8").gates["loss"]
        assert (gate["verdict"], gate["needed_n"]) == ("cannot tell", 268)
        assert of(report, engine, "float").verdict == "passed", "float is proven by the golden answers"


def test_a_wider_bound_needs_fewer_pictures(tiny_int8_bundle: Bundle) -> None:
    assert verify(tiny_int8_bundle, PICTURES[:30], threads=1, max_loss=0.1).verdict == "passed"


def test_attention_that_lies_elsewhere_fails_although_the_answers_are_right(
    tiny_int8_bundle: Bundle, tmp_path: Path
) -> None:
    def mirror(graph: onnx.GraphProto, inner: str) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array([3, 2, 1, 0], np.int64), "backwards"))
        graph.node.append(helper.make_node("Gather", [inner, "backwards"], ["map_0"], axis=2))

    model = rewired(tiny.int8_model(), "map_0", mirror)
    bundle = changed(tiny_int8_bundle, tmp_path / "x.edgeattn", int8_onnx=model)
    result = of(verify(bundle, PICTURES, threads=1), "onnxruntime", "int8")
    assert result.figure == 1.0
    assert result.gates["loss"]["verdict"] == "passed"
    assert result.gates["maps"]["verdict"] == "failed"
    assert result.verdict == "failed"
    assert result.map_js is not None
    assert result.map_js > 0.1
    assert result.map_overlap is not None
    assert result.map_overlap < 0.9


@pytest.mark.parametrize("spoilt", ["constant", "shuffled"])
def test_maps_that_tell_nothing_fail(tiny_int8_bundle: Bundle, tmp_path: Path, spoilt: str) -> None:
    def spoil(graph: onnx.GraphProto, inner: str) -> None:
        if spoilt == "constant":
            graph.initializer.append(numpy_helper.from_array(np.zeros((1, 4, 4), np.float32), "nothing"))
            graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
            graph.node.append(helper.make_node("Mul", [inner, "nothing"], ["gone"]))
            graph.node.append(helper.make_node("Add", ["gone", "half"], ["map_0"]))
            return
        order = np.random.default_rng(0).permutation(16)
        for name, value in (("row", [1, 16]), ("order", order), ("square", [1, 4, 4])):
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        graph.node.append(helper.make_node("Reshape", [inner, "row"], ["gone"]))
        graph.node.append(helper.make_node("Gather", ["gone", "order"], ["mixed"], axis=1))
        graph.node.append(helper.make_node("Reshape", ["mixed", "square"], ["map_0"]))

    bundle = changed(tiny_int8_bundle, tmp_path / "x.edgeattn", int8_onnx=rewired(tiny.int8_model(), "map_0", spoil))
    result = of(verify(bundle, PICTURES[:100], threads=1), "onnxruntime", "int8")
    assert result.gates["maps"]["verdict"] == "failed"
    assert result.gates["ranks"]["verdict"] == "failed"
    (block,) = result.blocks
    assert block.block == "stages.2.attention"
    assert block.rank < 0.5
    assert block.overlap < 0.8


def test_one_spoilt_block_of_five_fails_and_is_named(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    """Four blocks whose attention is kept do not make up for one whose attention is gone."""
    outputs = ["map_0", *(f"map_{i}" for i in range(1, 5))]

    def five(model: bytes, constant: str = "") -> bytes:
        loaded = onnx.load_model_from_string(model)
        loaded.graph.initializer.append(numpy_helper.from_array(np.full((1, 4, 4), 0.5, np.float32), "half"))
        for name in outputs[1:]:
            source = "half" if name == constant else "map_0"
            loaded.graph.node.append(helper.make_node("Identity", [source], [name]))
            loaded.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4, 4]))
        return bytes(loaded.SerializeToString())

    float_model = five(tiny.float_model().SerializeToString())
    files = {"float_onnx": float_model, "golden/golden_npz": tiny.golden(float_model)}
    maps = tuple(MapSpec(name, f"stages.{i}", "energy") for i, name in enumerate(outputs))
    wide = replace(tiny_int8_bundle, spec=replace(tiny_int8_bundle.spec, maps=maps))
    for constant, expected in (("", "passed"), ("map_3", "failed")):
        bundle = changed(wide, tmp_path / f"{expected}.edgeattn", int8_onnx=five(tiny.int8_model(), constant), **files)
        report = verify(bundle, PICTURES, engines=["onnxruntime"], precisions=["int8"], threads=1)
        (result,) = report.results
        assert (result.gates["maps"]["verdict"], result.gates["ranks"]["verdict"]) == (expected, expected)
    assert result.gates["maps"]["block"] == result.gates["ranks"]["block"] == "stages.3"
    assert result.map_js == max(block.js for block in result.blocks) == result.blocks[3].js
    assert (result.map_rank, result.map_overlap) == (result.blocks[3].rank, result.blocks[3].overlap)
    assert sum("attention in stages.3" in line for line in remarks(report)) == 2


def test_bits_that_two_pictures_share_do_not_hide_a_drift(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    """Gates that hardly leave one half diverge by a millionth of a bit between pictures; the bound follows that."""

    def flatten(graph: onnx.GraphProto, inner: str) -> None:
        for name, value in (("small", 0.001), ("half", 0.5)):
            graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
        graph.node.append(helper.make_node("Mul", [inner, "small"], ["faint"]))
        graph.node.append(helper.make_node("Add", ["faint", "half"], ["map_0"]))

    def mirrored(graph: onnx.GraphProto, inner: str) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array([3, 2, 1, 0], np.int64), "backwards"))
        graph.node.append(helper.make_node("Gather", [inner, "backwards"], ["turned"], axis=2))
        flatten(graph, "turned")

    plain, sound, drifted = (
        rewired(model, "map_0", change)
        for model, change in (
            (tiny.float_model().SerializeToString(), flatten),
            (tiny.int8_model(), flatten),
            (tiny.int8_model(), mirrored),
        )
    )
    files = {"float_onnx": plain, "golden/golden_npz": tiny.golden(plain)}
    for int8, expected in ((sound, "passed"), (drifted, "failed")):
        bundle = changed(tiny_int8_bundle, tmp_path / f"{expected}.edgeattn", int8_onnx=int8, **files)
        result = of(verify(bundle, PICTURES[:60], threads=1), "onnxruntime", "int8")
        assert result.gates["maps"]["verdict"] == expected


def test_outputs_that_are_no_numbers_fail(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    def poison(graph: onnx.GraphProto, inner: str) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 1], np.float32), "signs"))
        graph.node.append(helper.make_node("Log", ["signs"], ["poison"]))
        graph.node.append(helper.make_node("Add", [inner, "poison"], ["logits"]))

    model = rewired(tiny.int8_model(), "logits", poison)
    bundle = changed(tiny_int8_bundle, tmp_path / "x.edgeattn", int8_onnx=model)
    result = of(verify(bundle, PICTURES[:12], threads=1), "onnxruntime", "int8")
    assert result.gates["finite"] == {"verdict": "failed", "pictures": 12}
    assert result.figure == 0.0
    assert BROKEN not in (-1, 0)
    without_pictures = of(verify(bundle, threads=1), "onnxruntime", "int8")
    assert without_pictures.gates["golden"]["verdict"] == "failed"
    assert "not all finite" in without_pictures.gates["golden"]["reason"]


def test_a_file_that_does_not_load_fails_and_the_others_are_measured(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    bundle = changed(tiny_int8_bundle, tmp_path / "x.edgeattn", int8_onnx=b"no model")
    report = verify(bundle, PICTURES[:30], threads=1)
    broken = of(report, "onnxruntime", "int8")
    assert broken.verdict == "failed"
    assert "int8.onnx" in broken.gates["load"]["reason"]
    assert of(report, "openvino", "int8").agreement == 1.0
    json.dumps(report.json(), allow_nan=False)


def test_without_pictures_the_golden_inputs_are_checked(tiny_int8_bundle: Bundle) -> None:
    report = verify(tiny_int8_bundle, threads=1)
    assert report.n == 0
    for engine in ("onnxruntime", "openvino"):
        exact = of(report, engine, "float").gates["golden"]
        assert exact["verdict"] == "passed"
        assert exact["difference"] < 1e-5
        few = of(report, engine, "int8").gates["golden"]
        assert (few["verdict"], few["agreement"], few["needed_n"]) == ("cannot tell", 1.0, 25)
        assert of(report, engine, "int8").figure is None


def test_float_that_differs_from_the_makers_answers_fails(tiny_bundle: Bundle, tmp_path: Path) -> None:
    model = tiny.float_model()
    bias = next(weight for weight in model.graph.initializer if weight.name == "head_bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(3, 0.1, np.float32), "head_bias"))
    bundle = changed(tiny_bundle, tmp_path / "x.edgeattn", float_onnx=model.SerializeToString())
    report = verify(bundle, threads=1)
    for result in report.results:
        assert result.gates["golden"]["verdict"] == "failed"
        assert result.gates["golden"]["agreement"] == 1.0, "the best class is the same: a shift only"


def test_pictures_without_labels_are_judged_by_changed_answers(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    unlabelled = [(picture, None) for picture, _ in PICTURES[:90]]
    report = verify(tiny_int8_bundle, unlabelled, threads=1)
    good = of(report, "onnxruntime", "int8")
    assert good.figure is None
    assert good.gates["flips"]["verdict"] == "passed"
    bundle = changed(tiny_int8_bundle, tmp_path / "x.edgeattn", int8_onnx=tiny.spoilt_int8_model())
    bad = of(verify(bundle, unlabelled, threads=1), "onnxruntime", "int8")
    assert bad.gates["flips"]["verdict"] == "failed"
    assert bad.agreement == pytest.approx(1 / 3)


def test_flips_name_the_pictures_by_their_place(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    bundle = changed(tiny_int8_bundle, tmp_path / "x.edgeattn", int8_onnx=tiny.spoilt_int8_model())
    answers = {}
    for precision in ("float", "int8"):
        engine = open_engine(bundle, engine="onnxruntime", precision=precision)
        inputs = [prepare(picture, bundle.spec.input) for picture, _ in PICTURES[:20]]
        answers[precision] = [int(engine.infer(image)["logits"].argmax()) for image in inputs]
    expected = tuple(i for i in range(20) if answers["float"][i] != answers["int8"][i])
    assert expected
    for data in (PICTURES[:20], iter(PICTURES[:20])):
        assert of(verify(bundle, data, threads=1), "onnxruntime", "int8").flips == expected


def test_one_artefact_alone_is_still_compared_with_float(tiny_int8_bundle: Bundle) -> None:
    report = verify(tiny_int8_bundle, PICTURES[:12], engines=["openvino"], precisions=["int8"], threads=1)
    (result,) = report.results
    assert (result.engine, result.precision, result.agreement) == ("openvino", "int8", 1.0)
    assert set(result.gates) == {"loss", "maps", "ranks"}


def test_what_is_not_there_is_said(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no int8; it holds: onnxruntime float, openvino float"):
        verify(tiny_bundle, precisions=["int8"])
    with pytest.raises(NameNotFoundError, match="no engine is named 'tflite'"):
        verify(tiny_bundle, engines=["tflite"])
    int8 = tiny.int8_model()
    alone = Bundle(tmp_path / "x.edgeattn", tiny.SPEC, (Artefact("int8.onnx", "onnxruntime", "int8"),))
    with pytest.raises(BundleError, match="no float artefact to compare with"):
        verify(write(alone, {"int8.onnx": int8}))


def test_a_bundle_without_golden_inputs_is_judged_by_pictures_alone(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    held = {name: tiny_int8_bundle.path / name for name in tiny_int8_bundle.sha256 if name != "golden/golden.npz"}
    bundle = write(replace(tiny_int8_bundle, path=tmp_path / "x.edgeattn"), held)
    report = verify(bundle, PICTURES, threads=1)
    assert of(report, "onnxruntime", "float").verdict == "cannot tell", "nothing to compare the reference with"
    assert of(report, "openvino", "float").gates["loss"]["verdict"] == "passed"
    assert of(report, "onnxruntime", "int8").verdict == "passed"


def test_one_picture_has_no_maps_to_be_relative_to(tiny_int8_bundle: Bundle) -> None:
    result = of(verify(tiny_int8_bundle, PICTURES[:1], threads=1), "onnxruntime", "int8")
    assert result.map_js is None
    assert "maps" not in result.gates


def test_a_picture_of_none_of_the_labels_is_right_when_rejected(tmp_path: Path) -> None:
    spec = replace(tiny.SPEC, rejection=Rejection(0.5))
    bundle = tiny.bundle(tmp_path / "x.edgeattn", spec=spec)
    grey = np.full((40, 40, 3), 128, np.uint8)
    report = verify(bundle, [*PICTURES[:6], (grey, -1), (grey, 0)], threads=1)
    assert of(report, "onnxruntime", "float").figure == pytest.approx(7 / 8)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "no pictures"),
        ([(PICTURES[0][0], 3)], "label 3; the bundle knows 0 to 2"),
        ([(PICTURES[0][0], -1)], "label -1"),
        ([(PICTURES[0][0], 0), (PICTURES[1][0], None)], "label all or none"),
        ([(PICTURES[0][0][..., 0], 0)], "must be"),
    ],
)
def test_data_that_does_not_fit_is_refused(tiny_bundle: Bundle, data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        verify(tiny_bundle, data, threads=1)


def test_latency_is_by_the_clock_that_is_given(tiny_bundle: Bundle) -> None:
    ticks = itertools.count(0, 3_000_000)
    report = verify(tiny_bundle, PICTURES[:5], threads=1, clock=lambda: next(ticks))
    assert [result.latency_ms for result in report.results] == [3.0, 3.0]


@pytest.mark.parametrize("first", ["import edgeattn.deploy.verify", "import edgeattn.deploy"])
def test_verify_is_the_function_whatever_was_imported_before_and_needs_no_torch(first: str) -> None:
    script = (
        f"import sys; {first}; from edgeattn.deploy import verify; from edgeattn.deploy.verify import BROKEN\n"
        "import edgeattn.deploy\n"
        "print(type(verify).__name__, edgeattn.deploy.verify is verify, {'torch', 'nncf'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "function True set()"
