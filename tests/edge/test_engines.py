"""The engines run real files and say what they executed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from onnx import helper

from edgeattn.bundle import Bundle
from edgeattn.engines import default_threads, open_artefact, open_engine
from edgeattn.engines.base import Layer
from edgeattn.engines.fake import FakeEngine
from edgeattn.engines.onnxruntime import OnnxRuntimeEngine, only_outputs
from edgeattn.engines.openvino import OpenVinoEngine, openvino_core
from edgeattn.errors import BundleError, EngineError, NameNotFoundError
from edgeattn.spec import Artefact

ENGINES = ["onnxruntime", "openvino"]


@pytest.fixture(params=[("onnxruntime", "float"), ("openvino", "float"), ("onnxruntime", "int8"), ("openvino", "int8")])
def named(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.mark.parametrize("name", ENGINES)
def test_float_gives_the_makers_answers(tiny_bundle: Bundle, name: str) -> None:
    golden = tiny_bundle.golden()
    engine = open_engine(tiny_bundle, engine=name, precision="float", maps=True)
    for i, image in enumerate(golden["inputs"]):
        outputs = engine.infer(image[None])
        assert set(outputs) == {"logits", "map_0"}
        for output, values in outputs.items():
            np.testing.assert_allclose(values[0], golden[output][i], atol=1e-5)


def test_int8_stays_close_to_float(tiny_int8_bundle: Bundle, named: tuple[str, str]) -> None:
    engine = open_engine(tiny_int8_bundle, engine=named[0], precision=named[1], maps=True)
    golden = tiny_int8_bundle.golden()
    logits = np.concatenate([engine.infer(image[None])["logits"] for image in golden["inputs"]])
    assert np.abs(logits - golden["logits"]).max() < 0.05 * np.ptp(golden["logits"])
    assert (engine.name, engine.precision) == named
    assert engine.details["version"]
    assert engine.details["file"] == tiny_int8_bundle.artefact(*named).file


def test_a_signal_is_survived_after_engines_were_closed(tiny_bundle: Bundle) -> None:
    program = f"""
import gc, os, signal
from edgeattn.bundle import load
from edgeattn.engines import open_engine
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
engines = [open_engine(load({str(tiny_bundle.path)!r}), engine="openvino", precision="float") for _ in range(2)]
while engines:
    engines.pop(0).close()
    gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


def test_executed_precision_is_what_runs(tiny_int8_bundle: Bundle, named: tuple[str, str]) -> None:
    engine = open_engine(tiny_int8_bundle, engine=named[0], precision=named[1])
    assert engine.executed_precision == {"float": "f32", "int8": "int8"}[named[1]]
    engine.close()
    assert engine.executed_precision == {"float": "f32", "int8": "int8"}[named[1]]


def test_a_file_that_calls_itself_int8_but_computes_in_float_is_found_out(tiny_bundle: Bundle) -> None:
    for name in ENGINES:
        engine = open_artefact(tiny_bundle, Artefact("float.onnx", name, "int8"))
        assert (engine.precision, engine.executed_precision) == ("int8", "f32")


def test_onnxruntime_leaves_in_float_what_the_quantizer_left_in_float(tmp_path: Path) -> None:
    """Without `disabled_optimizers`, ONNX Runtime quantizes this lone convolution again, unasked."""
    import onnxruntime

    file = tmp_path / "mixed.onnx"
    file.write_bytes(tiny.int8_model(leave_in_float=("conv_1",)))
    engine = OnnxRuntimeEngine(file, tiny.SPEC, precision="int8", threads=1)
    assert engine.nodes["int8"]["QLinearConv"] == 2
    assert sum(engine.nodes["f32"].get(kind, 0) for kind in ("Conv", "FusedConv")) == 1
    assert engine.executed_precision == "int8+f32"

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "theirs.onnx")
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    theirs = [node.op_type for node in onnx.load(tmp_path / "theirs.onnx").graph.node]
    assert theirs.count("QLinearConv") == 3, "ONNX Runtime mended this: the list of unwanted optimizers can go"


@pytest.mark.parametrize("name", ENGINES)
def test_maps_are_cut_off_before_loading(tiny_bundle: Bundle, name: str) -> None:
    engine = open_engine(tiny_bundle, engine=name, precision="float", maps=False)
    assert list(engine.infer(tiny.inputs(1))) == ["logits"]
    with_maps = open_engine(tiny_bundle, engine=name, precision="float", maps=True)
    np.testing.assert_array_equal(engine.infer(tiny.inputs(1))["logits"], with_maps.infer(tiny.inputs(1))["logits"])


def test_cutting_maps_off_drops_the_nodes_that_only_they_need(tiny_bundle: Bundle) -> None:
    model = onnx.load_model_from_string(only_outputs(tiny_bundle.path / "float.onnx", ["logits"]))
    onnx.checker.check_model(model, full_check=True)
    assert "ReduceMean" not in {node.op_type for node in model.graph.node}
    assert "axes" not in {weight.name for weight in model.graph.initializer}
    assert len(model.graph.node) == len(tiny.float_model().graph.node) - 1


def test_cutting_maps_off_keeps_what_a_subgraph_reads(tmp_path: Path) -> None:
    model = tiny.float_model()
    branch = helper.make_graph(
        [helper.make_node("Mul", ["raw", "std"], ["scaled"])],
        "branch",
        [],
        [helper.make_tensor_value_info("scaled", onnx.TensorProto.FLOAT, [1, 3])],
    )
    gemm = model.graph.node[-1]
    gemm.output[0] = "raw"
    model.graph.node.append(helper.make_node("Cast", ["mean"], ["yes"], to=onnx.TensorProto.BOOL))
    model.graph.node.append(helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch))
    onnx.checker.check_model(model, full_check=True)
    file = tmp_path / "branching.onnx"
    onnx.save(model, file)
    outputs = OnnxRuntimeEngine(file, tiny.SPEC).infer(tiny.inputs(1))
    plain = tiny.answers(_float_bytes(), tiny.inputs(1))["logits"]
    np.testing.assert_allclose(outputs["logits"], 128 * plain, rtol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_outputs_are_the_callers_to_keep(tiny_bundle: Bundle, name: str) -> None:
    engine = open_engine(tiny_bundle, engine=name, precision="float", maps=True)
    images = tiny.inputs(2)
    first = engine.infer(images[:1])
    kept = {output: values.copy() for output, values in first.items()}
    second = engine.infer(images[1:])
    for output, values in first.items():
        np.testing.assert_array_equal(values, kept[output])
        assert not np.shares_memory(values, second[output])
        values[:] = 0  # writable, and not the engine's
    np.testing.assert_array_equal(engine.infer(images[:1])["logits"], kept["logits"])


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    "image",
    [np.zeros((1, 3, 32, 32), np.uint8), np.zeros((1, 32, 32, 3), np.float32), np.zeros((2, 32, 32, 3), np.uint8)],
    ids=["layout", "type", "batch"],
)
def test_a_wrong_input_is_named(tiny_bundle: Bundle, name: str, image: np.ndarray[Any, Any]) -> None:
    engine = open_engine(tiny_bundle, engine=name, precision="float")
    with pytest.raises(EngineError, match=r"must be \(1, 32, 32, 3\) uint8, not \(") as error:
        engine.infer(image)
    assert f"{image.shape} {image.dtype}" in str(error.value)


@pytest.mark.parametrize("name", ENGINES)
def test_a_closed_engine_says_so(tiny_bundle: Bundle, name: str) -> None:
    engine = open_engine(tiny_bundle, engine=name, precision="float")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.infer(tiny.inputs(1))


@pytest.mark.parametrize("kind", [OnnxRuntimeEngine, OpenVinoEngine])
@pytest.mark.parametrize("maps", [True, False])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, kind: Callable[..., Any], maps: bool) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"not a model" * 20)
    with pytest.raises(EngineError, match=r"broken\.onnx") as error:
        kind(file, tiny.SPEC, maps=maps)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [OnnxRuntimeEngine, OpenVinoEngine])
@pytest.mark.parametrize("maps", [True, False])
def test_a_file_without_the_specs_output_is_refused(tmp_path: Path, kind: Callable[..., Any], maps: bool) -> None:
    model = tiny.float_model()
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    file = tmp_path / "other.onnx"
    onnx.save(model, file)
    with pytest.raises(EngineError, match="no output 'logits' but scores, map_0"):
        kind(file, tiny.SPEC, maps=maps)


@pytest.mark.parametrize("kind", [OnnxRuntimeEngine, OpenVinoEngine])
def test_a_file_with_another_input_is_refused(tmp_path: Path, kind: Callable[..., Any]) -> None:
    model = tiny.float_model()
    model.graph.node[0].input[0] = model.graph.input[0].name = "frame"
    file = tmp_path / "other.onnx"
    onnx.save(model, file)
    with pytest.raises(EngineError, match="does not take 'image' as its one input"):
        kind(file, tiny.SPEC)


def test_a_device_that_is_not_there_is_named(tiny_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"device 'NPU' is not on this machine; OpenVINO sees: .*CPU"):
        open_artefact(tiny_bundle, Artefact("float.onnx", "openvino", "float", target="npu"))


def test_unknown_names_list_the_choices(tiny_bundle: Bundle) -> None:
    with pytest.raises(NameNotFoundError, match="Did you mean 'openvino'"):
        open_engine(tiny_bundle, engine="openvin")
    with pytest.raises(NameNotFoundError, match="Choices: bf16, float, int8"):
        open_engine(tiny_bundle, precision="fp16")
    with pytest.raises(BundleError, match=r"no int8 artefact for openvino.*edgeattn quantize"):
        open_engine(tiny_bundle, engine="openvino", precision="int8")


def test_threads(tiny_bundle: Bundle) -> None:
    assert 1 <= default_threads() <= 4
    for name in ENGINES:
        assert open_engine(tiny_bundle, engine=name, precision="float").threads == default_threads()
        assert open_engine(tiny_bundle, engine=name, precision="float", threads=1).threads == 1
        with pytest.raises(EngineError, match="0 threads"):
            open_engine(tiny_bundle, engine=name, precision="float", threads=0)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_that_is_not_installed_is_named(
    tiny_bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(
        "edgeattn.engines.openvino.openvino_core", openvino_core.__wrapped__
    )  # not the one that is open
    with pytest.raises(EngineError, match=f"pip install {name}"):
        open_engine(tiny_bundle, engine=name, precision="float")


def test_openvino_takes_the_precision_hint_and_records_it(tiny_bundle: Bundle) -> None:
    engine = OpenVinoEngine(tiny_bundle.path / "float.onnx", tiny.SPEC)
    assert engine.details["precision_hint"] == "f32"
    with pytest.raises(EngineError, match="cannot compile"):
        OpenVinoEngine(tiny_bundle.path / "float.onnx", tiny.SPEC, hint="f8")


def test_openvino_fills_its_cache_and_survives_a_spoilt_one(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / "cache"))
    expected = open_engine(tiny_bundle, engine="openvino", precision="float").infer(tiny.inputs(1))["logits"]
    blobs = list((tmp_path / "cache" / "openvino").glob("*.blob"))
    assert blobs
    for blob in blobs:
        blob.write_bytes(b"\0" * 100)
    engine = open_engine(tiny_bundle, engine="openvino", precision="float")
    np.testing.assert_array_equal(engine.infer(tiny.inputs(1))["logits"], expected)


def test_openvino_tells_the_same_graph_out_of_its_cache(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept there has lost the names of what was fused."""
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / "cache"))
    first, again = (open_engine(tiny_bundle, engine="openvino", precision="float") for _ in range(2))
    assert (first.details["from_cache"], again.details["from_cache"]) == (False, True)
    written = {node.name for node in onnx.load(tiny_bundle.path / "float.onnx").graph.node}
    told, told_again = ({name for layer in each.layers for name in layer.names} & written for each in (first, again))
    assert told_again == told
    assert len(told) > 5
    assert again.nodes == first.nodes


@pytest.mark.parametrize("obstacle", ["file", "folder"])
def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    blocked = tmp_path / "blocked"
    if obstacle == "file":
        blocked.write_text("in the way")
    else:
        blocked.mkdir()
        (blocked / "openvino").write_text("in the way")
    monkeypatch.setenv("EDGEATTN_CACHE", str(blocked))
    engine = open_engine(tiny_bundle, engine="openvino", precision="float")
    assert engine.infer(tiny.inputs(1))["logits"].shape == (1, 3)


def test_weights_beside_the_file_are_found_when_maps_are_cut_off(tmp_path: Path) -> None:
    model = tiny.float_model()
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="split.bin", size_threshold=64)
    assert (tmp_path / "split.bin").stat().st_size > 0
    expected = tiny.answers(_float_bytes(), tiny.inputs(1))["logits"]
    for kind in (OnnxRuntimeEngine, OpenVinoEngine):
        for maps in (True, False):
            got = kind(tmp_path / "split.onnx", tiny.SPEC, maps=maps).infer(tiny.inputs(1))["logits"]
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_failure_while_running_is_an_engine_error(tmp_path: Path) -> None:
    """A Reshape that cannot hold is found only when it runs."""
    model = tiny.float_model()
    gemm = model.graph.node[-1]
    gemm.output[0] = "raw"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 5], np.int64), "five"))
    model.graph.node.append(helper.make_node("Cast", ["head_bias"], ["zeros"], to=onnx.TensorProto.INT64))
    model.graph.node.append(helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=1))
    model.graph.node.append(helper.make_node("Add", ["five", "zero"], ["shape"]))
    model.graph.node.append(helper.make_node("Reshape", ["raw", "shape"], ["logits"]))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    file = tmp_path / "late.onnx"
    onnx.save(model, file)
    with pytest.raises(EngineError, match=r"late\.onnx: onnxruntime (failed to run|\S+ cannot load)"):
        OnnxRuntimeEngine(file, tiny.SPEC).infer(tiny.inputs(1))


def test_fake_sleeps_and_gives_what_it_was_told() -> None:
    slept: list[float] = []
    script = [{"logits": [[1.0, 0.0, 0.0]]}, {"logits": [[0.0, 1.0, 0.0]]}]
    engine = FakeEngine(script, [0, 25], spec=tiny.SPEC, precision="int8", sleep=slept.append)
    image = tiny.inputs(1)
    assert engine.infer(image)["logits"].argmax() == 0
    assert engine.infer(image)["logits"].argmax() == 1
    assert slept == [0.025]
    assert (engine.calls, engine.name, engine.executed_precision) == (2, "fake", "int8")
    with pytest.raises(EngineError, match="script ended before call 3"):
        engine.infer(image)
    with pytest.raises(EngineError, match="must be"):
        engine.infer(image[0])
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer(image)


def test_fake_repeats_and_gives_copies() -> None:
    values = np.zeros((1, 3), np.float32)
    engine = FakeEngine({"logits": values})
    engine.infer(tiny.inputs(1))["logits"][:] = 7
    assert not engine.infer(tiny.inputs(1))["logits"].any()
    assert not values.any()


def test_importing_engines_loads_none_of_them() -> None:
    modules = ("", ".choose", ".openvino", ".onnxruntime", ".fake")
    script = f"import sys, {', '.join('edgeattn.engines' + name for name in modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"onnxruntime", "openvino", "onnx", "torch"}.intersection(done.stdout.split())


def test_a_process_of_ours_opens_openvino_without_its_converter(tiny_bundle: Bundle) -> None:
    script = (
        "import sys\nfrom edgeattn.timing.memory import leave_out_converter\nleave_out_converter()\n"
        "from edgeattn.bundle import load\nfrom edgeattn.engines import open_engine\n"
        f"open_engine(load({str(tiny_bundle.path)!r}), engine='openvino', precision='float')\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "openvino" in loaded
    assert not [name for name in loaded if name.startswith(("openvino_telemetry", "openvino.tools.ovc."))]


def _float_bytes() -> bytes:
    return bytes(tiny.float_model().SerializeToString())


def test_what_the_cache_holds_of_a_model_is_used_and_made_anew_where_it_is_spoilt(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path))
    image = tiny_bundle.golden()["inputs"][:1]

    def answer() -> tuple[np.ndarray, tuple[Layer, ...]]:
        engine = open_engine(tiny_bundle, engine="onnxruntime", precision="float")
        return engine.infer(image)["logits"], engine.layers

    first = answer()
    (kept,) = (tmp_path / "onnxruntime").glob("*.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)  # from the second start on it is not needed
    second = answer()
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    monkeypatch.delitem(sys.modules, "onnx")
    kept.write_bytes(b"spoilt")
    np.testing.assert_array_equal(first[0], answer()[0])
