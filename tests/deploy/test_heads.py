"""Heads as units: what decodes stays in float, branches are told apart, and the ladder leaves in float the one that is off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import squares
from onnx import TensorProto, helper, numpy_helper
from openvino.passes import ConstantFolding, Manager

from edgeattn.deploy import heads
from edgeattn.deploy.climb import climb
from edgeattn.deploy.ladder import Bounds, Ladder
from edgeattn.deploy.sensitivity import sensitivity
from edgeattn.deploy.structure import quantized_layers
from edgeattn.imaging import prepare
from edgeattn.spec import InputSpec, Spec
from edgeattn.timing.bar import progress_bar

SPEC = replace(squares.SPEC, labels=tuple("abcdef"))


def ultralytics_like(*, joint: bool, classes: int = 6) -> onnx.ModelProto:
    """Two levels with DFL, as ultralytics exports it: branches joined late, or `joint` already on each level."""
    rng, held = np.random.default_rng(0), []
    nodes: list[onnx.NodeProto] = []

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], f"/{output}/{kind}", **attributes))
        return output

    def conv(x: str, name: str, channels: int, before: int) -> str:
        held.append(
            numpy_helper.from_array(rng.normal(0, 0.1, (channels, before, 1, 1)).astype(np.float32), f"{name}.w")
        )
        return node("Conv", [x, f"{name}.w"], name)

    def shape(name: str, *values: int) -> str:
        held.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    trunk, joined = node("Relu", [conv("x", "trunk", 8, 3)], "relu"), []
    for level in "12":
        box = conv(node("Relu", [conv(trunk, f"box{level}a", 8, 8)], f"box{level}r"), f"box{level}b", 64, 8)
        cls = conv(node("Relu", [conv(trunk, f"cls{level}a", 8, 8)], f"cls{level}r"), f"cls{level}b", classes, 8)
        joined.append((box, cls))
    if joint:
        levels = [node("Concat", [*pair], f"level{i}", axis=1) for i, pair in enumerate(joined)]
        flat = [node("Reshape", [x, shape(f"s{x}", 1, 64 + classes, -1)], f"flat{x}") for x in levels]
        whole, sizes = node("Concat", flat, "whole", axis=2), shape("sizes", 64, classes)
        nodes.append(helper.make_node("Split", [whole, sizes], ["box", "cls"], "/split/Split", axis=1))
    else:
        for k, (name, channels) in enumerate((("box", 64), ("cls", classes))):
            flat = [node("Reshape", [p[k], shape(f"s{p[k]}", 1, channels, -1)], f"flat{p[k]}") for p in joined]
            node("Concat", flat, name, axis=2)
    bins = node("Softmax", [node("Reshape", ["box", shape("bins", 1, 4, 16, -1)], "binned")], "share", axis=2)
    turned = node("Transpose", [bins], "turned", perm=[0, 2, 1, 3])
    held.append(numpy_helper.from_array(np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1), "dfl.w"))
    edges = node("Reshape", [node("Conv", [turned, "dfl.w"], "dfl"), shape("four", 1, 4, -1)], "edges")
    held.append(numpy_helper.from_array(np.float32(8), "stride"))
    node("Concat", [node("Mul", [edges, "stride"], "pixels"), node("Sigmoid", ["cls"], "scores")], "boxes", axis=1)
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", [1, 3, 4, 4]), ("boxes", [1, 4 + classes, 32]))
    ]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def in_openvino(model: onnx.ModelProto, folder: Path) -> list[heads.Node]:
    onnx.save(model, folder / "m.onnx")
    read = openvino.Core().read_model(folder / "m.onnx")
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(read)
    return heads.of_openvino(read)


@pytest.mark.parametrize("joint", [False, True], ids=["apart", "joint"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_decoding_and_branches_of_an_exported_head(engine: str, joint: bool, tmp_path: Path) -> None:
    model = ultralytics_like(joint=joint)
    nodes = heads.of_onnx(model) if engine == "onnxruntime" else in_openvino(model, tmp_path)
    decoding = heads.decoding(nodes)
    assert {"/dfl/Conv", "/pixels/Mul", "/scores/Sigmoid"} <= decoding
    assert not any(name.startswith(("/trunk", "/relu", "/box1", "/box2", "/cls1", "/cls2")) for name in decoding)
    found = {name: {one.split("/")[1] for one in own} for name, own in heads.branches(nodes, SPEC).items()}
    assert found == {
        heads.BOXES: {"box1a", "box1r", "box1b", "box2a", "box2r", "box2b"},
        heads.CLASSES: {"cls1a", "cls1r", "cls1b", "cls2a", "cls2r", "cls2b"},
    }


def test_branches_that_cannot_be_told_apart_are_one_head() -> None:
    nodes = heads.of_onnx(ultralytics_like(joint=True, classes=64))
    found = heads.branches(nodes, replace(SPEC, labels=tuple(map(str, range(64)))))
    assert list(found) == [heads.WHOLE]
    assert len(found[heads.WHOLE]) == 12
    assert not any("trunk" in name or "/relu" in name for name in found[heads.WHOLE]), "the backbone is no part of it"
    assert list(heads.branches(heads.of_onnx(ultralytics_like(joint=False, classes=64)), SPEC)) == [
        heads.BOXES,
        heads.CLASSES,
    ]


def test_our_own_head_tells_by_its_names_what_channels_do_not() -> None:
    """Of four classes both branches have four channels where edges are not distributions."""
    named = {"box": "head.one.edges", "cls": "head.one.classes"}
    nodes = [
        node._replace(
            name=f"{named[node.name[1:4]]}.{node.name[4]}.{node.name}" if node.name[1:4] in named else node.name
        )
        for node in heads.of_onnx(ultralytics_like(joint=True, classes=64))
    ]
    found = heads.branches(nodes, replace(SPEC, labels=tuple(map(str, range(64)))))
    assert {name: len(own) for name, own in found.items()} == {heads.BOXES: 6, heads.CLASSES: 6}


def test_a_classifier_has_none() -> None:
    spec = Spec("classify", InputSpec(32, 32), ("a", "b"))
    assert heads.branches(heads.of_onnx(ultralytics_like(joint=False)), spec) == {}


def a_ladder(folder: Path, *, loud: bool) -> Ladder:
    inputs = [prepare(picture, squares.SPEC.input) for picture, _ in squares.pictures(8, seed=1)]
    (folder / "scratch").mkdir()
    validation = squares.pictures(12, seed=3)
    return Ladder(
        squares.bundle(folder / "b.edgeattn", loud=loud),
        inputs,
        validation,
        folder / "scratch",
        None,
        Bounds(loss=0.05),
    )


def test_the_branch_that_is_off_stays_in_float_and_no_other(tmp_path: Path) -> None:
    ladder = a_ladder(tmp_path, loud=True)
    assert dict(ladder.heads) == {heads.BOXES: ("head.boxes/Conv_6",), heads.CLASSES: ("head.classes/Conv_8",)}
    made = climb(ladder, 3.0, engines=("onnxruntime",))
    steps = [(step.rung, step.kept, step.is_inside) for step in ladder.steps]
    assert steps == [
        ("branch float", True, False), ("full bias", True, False), ("box branch float", True, True),
        ("taken back", False, False),
    ]  # fmt: skip
    first, _, best, _ = ladder.steps
    assert first.figure < 0.3
    assert best.figure > 0.9
    assert best.json()["map50"] == best.figure
    assert best.blocks == (heads.BOXES,)
    artefact, files = made["onnxruntime"]
    assert artefact.recipe["float_layer_names"] == ["head.boxes/Conv_6"]
    assert quantized_layers(Path(str(files["int8.onnx"]))) == {"head.classes/Conv_8"}, (
        "ONNX Runtime's stem is quicker in float"
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_nothing_after_the_last_layers_is_rounded(engine: str, tmp_path: Path) -> None:
    ladder = a_ladder(tmp_path, loud=False)
    file = ladder.files(engine, ladder.start)[1]
    if engine == "openvino":
        read = openvino.Core().read_model(file)
        rounded = {
            port.get_node().get_friendly_name()
            for op in read.get_ops() if op.get_type_name() == "FakeQuantize"
            for port in op.output(0).get_target_inputs()
        }  # fmt: skip
    else:
        graph = onnx.load(file).graph
        integers = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        rounded = {node.name for node in graph.node if node.input and node.input[0] in integers}
        rounded -= {"head/Reshape_8", "head/Reshape_9"}  # which take the last layers' own outputs
    assert not any(name.startswith("head/") for name in rounded), rounded


def test_what_int8_costs_is_told_branch_by_branch(tmp_path: Path) -> None:
    ladder = a_ladder(tmp_path, loud=True)
    with progress_bar(False, a_second=2) as bar:
        found = sensitivity(ladder, "onnxruntime", ladder.start, 60.0, bar)
    branches = {row.name: row for row in found.rows if row.kind == "head"}
    assert set(branches) == {heads.BOXES, heads.CLASSES}
    saved = {name: found.saved(row)["map50"] for name, row in branches.items()}
    assert (saved[heads.BOXES] or 0.0) > 0.5 > abs(saved[heads.CLASSES] or 0.0)
    assert branches[heads.CLASSES].signal_to_error_db > 20
    row = next(row for row in found.json()["rows"] if row["name"] == heads.BOXES)
    assert row["map50_change"] == saved[heads.BOXES]
