"""Qualcomm's compiler and simulator on real bundles; what it refuses and what answers wrongly stays out of the bundle."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper
from typer.testing import CliRunner

from edgeattn.bundle import GOLDEN, Bundle, load, write
from edgeattn.cli import app
from edgeattn.deploy.npu import qualcomm
from edgeattn.deploy.npu.qualcomm import CompileError, compile_qualcomm, relative_error
from edgeattn.deploy.verify import verify
from edgeattn.errors import DataError, EngineError, NameNotFoundError

HAS_TOOLCHAIN = importlib.util.find_spec("onnxruntime_qnn") is not None
needs_toolchain = pytest.mark.skipif(not HAS_TOOLCHAIN, reason="needs the extra qnn")


def with_model(bundle: Bundle, path: Path, model: bytes) -> Bundle:
    """A bundle with another float model, and the golden answers that this one gives."""
    held: dict[str, Path | bytes] = {name: bundle.path / name for name in bundle.sha256}
    return write(replace(bundle, path=path), held | {"float.onnx": model, GOLDEN: tiny.golden(model)})


@needs_toolchain
def test_compiled_executed_and_kept(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_model(tiny_int8_bundle, tmp_path / "q.edgeattn", tiny.float_model().SerializeToString())
    ran = CliRunner().invoke(app, ["compile", str(bundle.path), "--json", str(tmp_path / "r.json")])
    assert ran.exit_code == 0, ran.output
    assert "one node" in ran.output
    assert "simulated on a PC, not measured on hardware" in ran.output
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["target"], told["toolchain"], told["version"] is None) == ("qualcomm", "onnxruntime-qnn", False)
    assert (told["compiled"], told["nodes_on_cpu"]) == (True, 0)
    assert 0 < told["relative_error"] < 0.03
    assert told["artefact"]["gates"]["simulated"]["nodes"] == ["EPContext"]
    kept = load(bundle.path)
    artefact = next(a for a in kept.artefacts if a.target == "qualcomm")
    assert set(artefact.toolchain) == {"onnxruntime", "onnxruntime-qnn"}
    (node,) = onnx.load(kept.file(artefact)).graph.node
    assert node.op_type == "EPContext"
    # The processor's artefacts stand beside it as before.
    assert {(a.engine, a.precision) for a in kept.artefacts if a.target == "cpu"} == {
        ("onnxruntime", "float"), ("openvino", "float"), ("onnxruntime", "int8"), ("openvino", "int8"),
    }  # fmt: skip
    assert len(verify(kept, tiny.pictures(6), threads=1).results) == 4


@needs_toolchain
def test_where_eight_bits_are_too_few_weights_get_sixteen(
    tiny_int8_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_model(tiny_int8_bundle, tmp_path / "q.edgeattn", tiny.float_model().SerializeToString())
    eight = compile_qualcomm(bundle).artefact
    assert eight.recipe["weights"] == "s8 per channel"
    monkeypatch.setattr(qualcomm, "BOUND", eight.gates["simulated"]["value"] * 0.9)
    sixteen = compile_qualcomm(bundle).artefact
    assert sixteen.recipe["weights"] == "s16"
    assert sixteen.gates["simulated"]["value"] < eight.gates["simulated"]["value"]


@needs_toolchain
def test_pictures_livelier_than_those_of_the_calibration_are_not_cut_off(
    tiny_int8_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = with_model(tiny_int8_bundle, tmp_path / "q.edgeattn", tiny.float_model().SerializeToString())
    pale = [(128 + 0.6 * (picture - 128.0)).astype(np.uint8) for picture in tiny.inputs(24)[:, None]]
    gate = compile_qualcomm(bundle, pale).artefact.gates["simulated"]
    assert gate["verdict"] == "passed", gate


def test_ranges_have_headroom_and_end_where_a_clip_does(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["image", "one"], ["copy"]),
        helper.make_node("Clip", ["copy", "", "six"], ["clipped"]),
        helper.make_node("Clip", ["copy"], ["open"]),
        helper.make_node("Sigmoid", ["clipped"], ["gate"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("image", "gate", "open")]
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [], [v]) for name, v in (("one", 1.0), ("six", 6.0))]
    graph = helper.make_graph(nodes, "clips", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    found = qualcomm._ranges(tmp_path / "m.onnx", np.array([[-1, 0, 2, 4], [0, 0, 5, 1]], np.float32), "image")
    ends = {name: (float(told["rmin"]), float(told["rmax"])) for name, (told,) in found.items()}
    assert ends == {"image": (-2, 10), "copy": (-2, 10), "clipped": (-2, 6), "open": (-2, 10)}


@needs_toolchain
def test_answers_that_differ_stay_out(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_model(tiny_int8_bundle, tmp_path / "q.edgeattn", tiny.float_model(seed=1).SerializeToString())
    wrong = {name: value.copy() for name, value in bundle.golden().items()}
    wrong["logits"] = wrong["logits"][:, ::-1]
    np.savez_compressed(tmp_path / "golden.npz", **wrong)
    held: dict[str, Path | bytes] = {name: bundle.path / name for name in bundle.sha256}
    spoilt = write(replace(bundle, path=tmp_path / "s.edgeattn"), held | {GOLDEN: tmp_path / "golden.npz"})
    made = compile_qualcomm(spoilt)
    assert made.artefact.gates["simulated"]["verdict"] == "failed"
    assert made.artefact.gates["simulated"]["value"] > 0.5
    assert not [a for a in load(spoilt.path).artefacts if a.target == "qualcomm"]


@needs_toolchain
def test_what_the_compiler_refuses_is_told_with_its_log(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    model = tiny.float_model()
    last = model.graph.node[-1]
    last.output[0] = "before"
    model.graph.node.append(helper.make_node("NonZero", ["before"], ["places"], "nonzero"))
    model.graph.node.append(helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("ReduceSum", ["floats"], ["sum"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["before", "sum"], ["logits"]))
    bundle = with_model(tiny_int8_bundle, tmp_path / "q.edgeattn", model.SerializeToString())
    refused = r"q\.edgeattn: the Qualcomm compiler refuses it: .*(NonZero|nonzero)"
    with pytest.raises(CompileError, match=refused) as caught:
        compile_qualcomm(bundle)
    assert "NonZero" in caught.value.log


def test_where_nothing_was_compiled_the_report_holds_the_log(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = "ModuleNotFoundError: No module named 'onnxruntime_qnn'\n"
    monkeypatch.setattr(qualcomm, "_in_a_process", lambda folder: printed)
    ran = CliRunner().invoke(app, ["compile", str(tiny_bundle.path), "--json", str(tmp_path / "r.json")])
    assert isinstance(ran.exception, CompileError)
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["target"], told["toolchain"], told["compiled"], told["log"]) == (
        "qualcomm", "onnxruntime-qnn", False, printed,
    )  # fmt: skip
    assert (told["nodes_on_cpu"], told["relative_error"], told["artefact"]) == (None, None, None)


def test_a_file_with_parts_beside_it_is_counted_and_stays_out(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toolchain's child is played here: right answers, by two nodes and one that the processor computes."""

    def compiled(folder: Path) -> str:
        golden = tiny_bundle.golden()
        np.savez(folder / "answers.npz", logits=golden["logits"][1::2])
        told = {"nodes": ["EPContext", "Cast", "EPContext"], "compile_s": 0.5, "toolchain": {}}
        (folder / "done.json").write_text(json.dumps(told))
        return "in parts\n"

    monkeypatch.setattr(qualcomm, "_in_a_process", compiled)
    ran = CliRunner().invoke(app, ["compile", str(tiny_bundle.path), "--json", str(tmp_path / "r.json")])
    assert ran.exit_code == 1, ran.output
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["compiled"], told["nodes_on_cpu"], told["relative_error"]) == (True, 1, 0.0)
    assert told["log"] == "in parts\n" * len(qualcomm.WEIGHTS)
    assert told["artefact"]["gates"]["simulated"]["verdict"] == "failed"


@pytest.mark.skipif(HAS_TOOLCHAIN, reason="the toolchain is there")
def test_without_the_toolchain_it_says_what_to_install(tiny_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"not installed; pip install 'edgeattn\[qnn\]'"):
        compile_qualcomm(tiny_bundle)


def test_maps_have_to_be_right_too() -> None:
    told = {"nodes": ["EPContext"], "compile_s": 0.5}
    assert qualcomm._judge({"logits": 0.02, "map_0": 0.029}, told, "logits", 5)["verdict"] == "passed"
    assert qualcomm._judge({"logits": 0.02, "map_0": 0.031}, told, "logits", 5)["verdict"] == "failed"
    assert qualcomm._judge({"logits": 0.02, "map_0": float("inf")}, told, "logits", 5)["verdict"] == "failed"
    assert (
        qualcomm._judge({"logits": 0.02}, told | {"nodes": ["EPContext", "Cast"]}, "logits", 5)["verdict"] == "failed"
    )


def test_refusals(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(NameNotFoundError, match=r"chip.*sm8550"):
        compile_qualcomm(tiny_bundle, chip="sm8555")
    held: dict[str, Path | bytes] = {name: tiny_bundle.path / name for name in tiny_bundle.sha256 if name != GOLDEN}
    bare = write(replace(tiny_bundle, path=tmp_path / "bare.edgeattn"), held)
    with pytest.raises(DataError, match=r"has no golden inputs to check the compiled model on; export it anew"):
        compile_qualcomm(bare)
    ran = CliRunner().invoke(app, ["compile", str(tiny_bundle.path), "--target", "tpu"])
    assert isinstance(ran.exception, NameNotFoundError)


def test_a_compiler_that_hangs_is_stopped(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qualcomm, "TIMEOUT_S", 0.01)
    with pytest.raises(EngineError, match="did not end within"):
        compile_qualcomm(tiny_bundle)


def test_relative_error_by_hand() -> None:
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == 0.0
    assert relative_error(np.array([3.0, 5.0]), np.array([3.0, 4.0])) == pytest.approx(0.2)
