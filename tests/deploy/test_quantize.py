"""Quantization: real int8 files for both engines, measured on the saved file, with gates of three outcomes."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import discs
import numpy as np
import onnx
import pytest
import small
from onnx import TensorProto, helper, numpy_helper

from edgeattn.bundle import Bundle, load
from edgeattn.deploy import quantize
from edgeattn.deploy.calibration import check
from edgeattn.deploy.export import export
from edgeattn.deploy.recipes import quantize_for
from edgeattn.deploy.recipes.onnxruntime import float_nodes
from edgeattn.deploy.structure import Structure, quantized_layers, structure
from edgeattn.engines import held, open_artefact, open_engine
from edgeattn.engines.onnxruntime import OnnxRuntimeEngine
from edgeattn.engines.openvino import OpenVinoEngine, computes_bf16
from edgeattn.errors import DataError, EngineError
from edgeattn.imaging import prepare
from edgeattn.nn import build_model
from edgeattn.spec import InputSpec, Spec, weight_bits
from edgeattn.timing.environment import adds_bytes_exactly
from edgeattn.train import Recipe, train

CALIBRATION = [picture for picture, _ in discs.pictures(16, seed=1)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small trained net with squeeze-and-excitation, in float."""
    root = tmp_path_factory.mktemp("quantize")
    recipe = Recipe(
        str(discs.write(root / "photos", 24)), attention="se", imgsz=32, epochs=30, lr=0.01, batch_size=16, workers=0
    )
    with small.five_blocks():
        trained = train(recipe, root / "run", progress=False)
    pictures = [picture for picture, _ in discs.pictures(16, seed=2)]
    return export(trained.model, root / "discs", labels=trained.labels, imgsz=32, pictures=pictures, mechanism="se")


def test_bf16_is_a_rung_where_the_processor_has_it(bundle: Bundle, tmp_path: Path) -> None:
    made = quantize(copy_of(bundle, tmp_path / "q.edgeattn"), CALIBRATION, discs.pictures(150, seed=3))
    again = load(made.bundle.path)
    assert {a.precision for a in held(again)} == {a.precision for a in again.artefacts}
    if not computes_bf16():
        assert "bf16" not in {a.precision for a in again.artefacts}
        unfit = replace(again.artefact("openvino", "float"), precision="bf16")
        with pytest.raises(EngineError, match="does not compute in bf16"):
            open_artefact(again, unfit)
        return
    artefact = again.artefact("openvino", "bf16")
    assert artefact.file == "float.onnx"
    assert artefact.gates.keys() == {"loss", "maps", "ranks"}
    assert artefact.verdict == "passed"
    engine = open_artefact(again, artefact)
    assert "bf16" in engine.executed_precision
    engine.close()


def test_weights_have_eight_bits_where_that_is_exact(bundle: Bundle, tmp_path: Path) -> None:
    """Seven with `portable`: on x86 without VNNI pairs of products saturate otherwise."""

    def largest(made: Bundle) -> int:
        graph = onnx.load(made.file(made.artefact("onnxruntime", "int8"))).graph
        held = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
        return max(int(np.abs(weights.astype(int)).max()) for weights in held if weights.ndim == 4)

    pictures = discs.pictures(12, seed=3)
    here = quantize(copy_of(bundle, tmp_path / "here.edgeattn"), CALIBRATION, pictures).bundle
    anywhere = quantize(copy_of(bundle, tmp_path / "any.edgeattn"), CALIBRATION, pictures, portable=True).bundle
    bits = 8 if adds_bytes_exactly() else 7
    assert {weight_bits(a.recipe) for a in here.artefacts if a.precision == "int8"} == {bits}
    assert {weight_bits(a.recipe) for a in anywhere.artefacts if a.precision == "int8"} == {7}
    assert (largest(here) > 64, largest(anywhere) > 64) == (bits == 8, False)


def copy_of(bundle: Bundle, path: Path) -> Bundle:
    from edgeattn.bundle import extend

    return extend(bundle, (), {}, path=path)


def test_both_engines_get_int8_that_passes(bundle: Bundle, tmp_path: Path) -> None:
    made = quantize(copy_of(bundle, tmp_path / "q.edgeattn"), CALIBRATION, discs.pictures(150, seed=3))
    again = load(made.bundle.path)
    assert {(a.engine, a.precision) for a in again.artefacts if a.precision != "bf16"} == {
        (engine, precision) for engine in ("onnxruntime", "openvino") for precision in ("float", "int8")
    }
    for engine in ("onnxruntime", "openvino"):
        artefact = again.artefact(engine, "int8")
        assert artefact.verdict == "passed", artefact.gates
        loss = artefact.gates["loss"]
        assert loss["n"] == 450
        assert loss["high"] <= loss["bound"] == 0.01
        assert again.file(artefact).stat().st_size < again.file(again.artefact(engine, "float")).stat().st_size
        opened = open_engine(again, engine=engine, precision="int8")
        assert "int8" in opened.executed_precision
        opened.close()
    by = {(r.engine, r.precision): r for r in made.report.results}
    assert by["onnxruntime", "int8"].agreement >= 0.98
    assert by["openvino", "int8"].map_js is not None


def test_the_gates_branch_stays_float_and_the_rest_is_int8(bundle: Bundle, tmp_path: Path) -> None:
    made = quantize(copy_of(bundle, tmp_path / "q.edgeattn"), CALIBRATION, discs.pictures(4, seed=3))
    graph = onnx.load(made.bundle.path / "int8.onnx").graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    weighted = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    gating = [node for node in weighted if ".attention." in node.input[1]]
    assert len(gating) == 2 * small.BLOCKS
    assert not any(node.input[1] in dequantized for node in gating), "too small to gain by int8"
    rest = [node for node in weighted if node not in gating]
    assert len(rest) == 3 * small.BLOCKS + 8, "those of the blocks, of the stem, between the stages, the head"
    stem, *rest = rest
    assert stem.input[1] not in dequantized, "quicker in float"
    assert all(node.input[0] in dequantized and node.input[1] in dequantized for node in rest)
    floats = Counter(node.op_type for node in graph.node if node.op_type in ("Sigmoid", "Mul"))
    assert floats["Sigmoid"] == small.BLOCKS
    gates = [node for node in graph.node if node.op_type == "Sigmoid"]
    assert not any(
        node.output[0] in {n for q in graph.node if q.op_type == "QuantizeLinear" for n in q.input} for node in gates
    )


def test_answers_are_not_rounded(bundle: Bundle, tmp_path: Path) -> None:
    """The head computes on integers, and what it answers lies on no grid of 256 steps."""
    source = bundle.file(bundle.artefact("onnxruntime", "float"))
    quantize_for("onnxruntime", source, tmp_path, [prepare(picture, bundle.spec.input) for picture in CALIBRATION])
    graph = onnx.load(tmp_path / "int8.onnx").graph
    (head,) = (node for node in graph.node if "logits" in node.output)
    assert head.op_type == "Gemm"
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}
    engine = OnnxRuntimeEngine(tmp_path / "int8.onnx", bundle.spec, precision="int8")
    assert head.name in engine.integer_layers
    engine.close()


def test_too_few_pictures_cannot_tell(bundle: Bundle, tmp_path: Path) -> None:
    made = quantize(copy_of(bundle, tmp_path / "q.edgeattn"), CALIBRATION, discs.pictures(10, seed=3))
    assert made.bundle.artefact("openvino", "int8").verdict == "cannot tell"
    assert made.report.verdict == "cannot tell"


def test_a_ruined_calibration_fails_and_float_is_what_runs(bundle: Bundle, tmp_path: Path) -> None:
    from edgeattn.engines.choose import choose

    grey = [
        np.full((40, 40 + i, 3), 128, np.uint8) for i in range(32)
    ]  # zeros to the first layer: the ranges of nothing
    made = quantize(copy_of(bundle, tmp_path / "q.edgeattn"), grey, discs.pictures(100, seed=3))
    assert made.bundle.artefact("onnxruntime", "int8").verdict == "failed"
    assert made.report.verdict == "failed"
    assert choose(made.bundle).precision != "int8"


def test_int8_that_fails_does_not_replace_what_passed(bundle: Bundle, tmp_path: Path) -> None:
    grey = [np.full((40, 40 + i, 3), 128, np.uint8) for i in range(32)]
    validation, told = discs.pictures(150, seed=3), {"calibration": {"pictures": 48}}
    good = quantize(copy_of(bundle, tmp_path / "q.edgeattn"), CALIBRATION, validation, provenance=told).bundle
    made = quantize(good, grey, validation, provenance={"calibration": {"pictures": 32}})
    assert (made.verdict, made.report.verdict) == ("failed", "failed")
    assert (made.report.bundle, made.report.digest) == (str(good.path), load(good.path).digest())
    again = load(good.path)
    for name in ("onnxruntime", "openvino"):
        assert again.artefact(name, "int8").verdict == "passed"
        assert f"{name} int8: failed, so the bundle keeps the one of before, which has passed" in made.notes
    assert again.provenance["calibration"]["pictures"] == 48
    assert again.sha256 == good.sha256


def test_bf16_that_has_not_passed_is_told_and_left_out(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor without bf16 it does not open; elsewhere so few pictures cannot tell."""
    monkeypatch.setattr(importlib.import_module("edgeattn.deploy.quantize"), "computes_bf16", lambda: True)
    made = quantize(copy_of(bundle, tmp_path / "q.edgeattn"), CALIBRATION, discs.pictures(10, seed=3))
    (told,) = [result for result in made.report.results if result.precision == "bf16"]
    assert told.verdict == ("cannot tell" if computes_bf16() else "failed")
    assert f"openvino bf16: {told.verdict}, so it is left out of the bundle" in made.notes
    assert "bf16" not in {artefact.precision for artefact in made.bundle.artefacts}
    assert made.verdict == "cannot tell", "that of int8"


def test_copies_in_a_calibration_set_are_left_out(bundle: Bundle, tmp_path: Path) -> None:
    copies = [warm(1, seed=9)[0]] * 400
    made = quantize(copy_of(bundle, tmp_path / "q.edgeattn"), warm(40) + copies, [(p, 0) for p in warm(40, seed=6)])
    assert made.bundle.artefact("openvino", "int8").recipe["pictures"] == 41
    assert "399 of the 440 calibration pictures are copies of others: left out" in made.notes


def test_nothing_to_calibrate_on(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="calibration and validation"):
        quantize(bundle, [], [])


def warm(count: int, side: int = 40, seed: int = 5) -> list[np.ndarray]:
    """Noise that is redder than blue."""
    rng = np.random.default_rng(seed)
    tint = np.array([20, 40, 60])
    return [(rng.integers(0, 150, (side, side, 3)) + tint).astype(np.uint8) for _ in range(count)]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (warm(31), "31 different pictures are too few"),
        (warm(20) * 2, "20 different pictures, 40 with repetitions, are too few"),
        (warm(32) + warm(40, seed=6)[:2], r"2 of the calibration pictures are among those.* order of the set: 33, 34"),
        ([picture[..., 0] for picture in warm(40)], r"picture 1 is uint8 \(40, 40\); give \(H, W, 3\) bytes"),
        ([np.full((40, 40, 3), np.nan), *warm(40)], r"picture 1 is float64 \(40, 40, 3\); give \(H, W, 3\) bytes"),
        ([picture[..., ::-1] for picture in warm(40)], "40 levels more blue than red.*40 more red than blue.*swapped"),
        (warm(32, side=18), "18 pixels high or wide.* 40: thumbnails"),
    ],
)
def test_what_ranges_must_not_be_taken_from(bundle: Bundle, pictures: list[np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        quantize(bundle, pictures, [(picture, 0) for picture in warm(40, seed=6)])


def test_a_colder_set_is_no_swapped_one() -> None:
    check([np.roll(picture, 0) // 2 for picture in warm(40)], warm(40, seed=6))
    check([(255 - picture) // 3 for picture in warm(40)], warm(40, seed=6))


@pytest.mark.parametrize("attention", ["none", "eca", "cbam", "coord"])
def test_every_attention_gets_int8(attention: str, tmp_path: Path) -> None:
    with small.five_blocks():
        model = build_model("pico", 3, attention=attention, imgsz=32).eval()
    labels = ("a", "b", "c")
    exported = export(model, tmp_path / "m", labels=labels, imgsz=32, pictures=CALIBRATION[:4], mechanism=attention)
    made = quantize(exported, CALIBRATION, discs.pictures(2))
    picture = prepare(CALIBRATION[0], made.bundle.spec.input)
    for engine in ("onnxruntime", "openvino"):
        opened = open_engine(made.bundle, engine=engine, precision="int8", maps=True)
        answer = opened.infer(picture)
        opened.close()
        assert np.isfinite(answer["logits"]).all()
        assert len(answer) == 1 + len(made.bundle.spec.maps)
        assert "int8" in opened.executed_precision


def test_the_recipe_tells_what_was_done(bundle: Bundle, tmp_path: Path) -> None:
    told = {"calibration": {"pictures": len(CALIBRATION), "seed": 1}}
    made = quantize(copy_of(bundle, tmp_path / "q.edgeattn"), CALIBRATION, discs.pictures(2), provenance=told)
    assert made.bundle.provenance["calibration"] == told["calibration"]
    artefact = made.bundle.artefact("openvino", "int8")
    assert artefact.recipe["pictures"] == 48
    assert set(artefact.toolchain) == {"openvino", "nncf"}
    assert replace(artefact, gates={}).verdict == "cannot tell"


def test_what_keeps_a_divisor_from_zero_stays_in_float_and_shortcuts_do_not(tmp_path: Path) -> None:
    pictures = [picture for picture, _ in discs.pictures(4, seed=2)]
    net = build_model("pico", 3, attention="relu_linear", imgsz=32).eval()
    bundle = export(net, tmp_path / "x", labels=("a", "b", "c"), imgsz=32, pictures=pictures, mechanism="relu_linear")
    model = onnx.load(bundle.file(bundle.artefact("onnxruntime", "float")))
    kept = set(float_nodes(model))
    divisors = {node.input[1] for node in model.graph.node if node.op_type == "Div"}
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    guards = {node.name for node in adds if node.output[0] in divisors}
    assert guards
    assert {node.name for node in adds} & kept == guards


@pytest.mark.parametrize(("channels", "out", "stays"), [(3, 16, True), (3, 32, False), (4, 16, False)])
def test_a_narrow_first_layer_stays_in_float_for_onnxruntime(channels: int, out: int, stays: bool) -> None:
    layer = helper.make_node("Conv", ["x", "weight", ""], ["y"], name="stem", kernel_shape=[3, 3], strides=[2, 2])
    weight = numpy_helper.from_array(np.zeros((out, channels, 3, 3), np.float32), "weight")
    shapes = {"x": (1, channels, 9, 9), "y": (1, out, 4, 4), "z": (1, 8, 4, 4)}
    x, y, z = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in shapes.items())
    last = helper.make_node("Conv", ["y", "more"], ["z"], name="last")
    more = numpy_helper.from_array(np.zeros((8, out, 1, 1), np.float32), "more")
    graph = helper.make_graph([layer, last], "g", [x], [z], [weight, more], value_info=[y])
    assert float_nodes(helper.make_model(graph)) == (["stem"] if stays else [])


def a_transformer(file: Path) -> Path:
    """One head over 16 patches, as others export it: its linear layers are MatMuls with weights, and so is a small one."""
    rng = np.random.default_rng(0)
    weights = {
        "patches": rng.normal(0, 0.1, (64, 3, 8, 8)), "qk": rng.normal(0, 0.1, (64, 128)),
        "small": rng.normal(0, 0.1, (64, 64)), "head": rng.normal(0, 0.1, (64, 3)), "ones": np.ones(64), "scale": np.array(0.125),
    }  # fmt: skip
    held = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    held += [numpy_helper.from_array(np.array(value), name) for name, value in (("flat", [1, 64, 16]), ("axes", [1]))]
    nodes = [
        helper.make_node("Conv", ["x", "patches"], ["map"], strides=[8, 8]),
        helper.make_node("Reshape", ["map", "flat"], ["channels"]),
        helper.make_node("Transpose", ["channels"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "qk"], ["both"]),
        helper.make_node("Split", ["both"], ["q", "k"], axis=2, num_outputs=2),
        helper.make_node("Transpose", ["k"], ["kT"], perm=[0, 2, 1]),
        helper.make_node("Mul", ["q", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "kT"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["tokens", "small"], ["values"]),
        helper.make_node("MatMul", ["weights", "values"], ["mixed"]),
        helper.make_node("Add", ["mixed", "tokens"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "ones"], ["normed"]),
        helper.make_node("ReduceMean", ["normed", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    for node in nodes:
        node.name = f"/{node.output[0]}"
    x, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 32, 32]), ("logits", [1, 3]))
    )
    graph = helper.make_graph(nodes, "g", [x], [logits], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    return file


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_transformer_s_large_linear_layers_are_quantized(engine: str, tmp_path: Path) -> None:
    """Products of two activations, layers with few multiplications, and sums that are normalised next stay in float."""
    inputs = list(np.random.default_rng(1).normal(0, 1, (8, 1, 3, 32, 32)).astype(np.float32))
    artefact, files = quantize_for(engine, a_transformer(tmp_path / "m.onnx"), tmp_path, inputs)
    file = Path(str(files[artefact.file]))
    assert quantized_layers(file) == {"/map", "/both"}
    spec = Spec("classify", InputSpec(32, 32, "nchw_f32", name="x"), ("a", "b", "c"))
    opened = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}[engine](file, spec, threads=1)
    assert structure(file, opened) == Structure(2)
    opened.close()
    if engine == "onnxruntime":
        graph = onnx.load(file).graph
        integers = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
        floats = [node.input[0] for node in graph.node if node.op_type in ("Add", "LayerNormalization")]
        assert len(floats) == 2
        assert not integers.intersection(floats)
