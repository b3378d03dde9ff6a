"""Biases corrected layer by layer: what each channel lets through has float's mean again; what must not be touched is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import disc_ladder
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeattn.bundle import Bundle
from edgeattn.deploy.layers import PICTURE
from edgeattn.deploy.recipes.bias import PICTURES, Net, correct_biases
from edgeattn.deploy.recipes.onnxruntime import OnnxNet, quantize_onnxruntime
from edgeattn.deploy.recipes.openvino import OpenvinoNet, quantize_openvino, read_folded
from edgeattn.deploy.structure import LAYERS_ORT
from edgeattn.engines.base import Array
from edgeattn.imaging import prepare


@pytest.fixture
def inputs(eca_bundle: Bundle) -> list[Array]:
    return [prepare(picture, eca_bundle.spec.input) for picture in disc_ladder.CALIBRATION[:PICTURES]]


def by_default(engine: str, source: Path, inputs: Sequence[Array], folder: Path) -> tuple[Net, Net]:
    """Float, and int8 as it is by default."""
    if engine == "onnxruntime":
        quantize_onnxruntime(source, folder / "int8.onnx", inputs)
        return OnnxNet(onnx.load(source)), OnnxNet(onnx.load(folder / "int8.onnx"))
    quantize_openvino(source, folder / "int8.xml", inputs)
    return OpenvinoNet(read_folded(source)), OpenvinoNet(read_folded(folder / "int8.xml"))


def means(net: Net, names: Sequence[str], cut: set[str], inputs: Sequence[Array]) -> dict[str, Array]:
    """Of each layer's channels; of those in `cut`, of what is above zero."""
    told = list(net.outputs(names, [{PICTURE: x} for x in inputs]))

    def mean(name: str, values: Array) -> Array:
        return (np.maximum(values, 0) if name in cut else values).mean(axis=(0, *range(2, values.ndim)))

    return {name: np.mean([mean(name, one[name]) for one in told], axis=0) for name in names}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_channel_has_floats_mean_again(
    engine: str, eca_bundle: Bundle, inputs: list[Array], tmp_path: Path
) -> None:
    source = eca_bundle.path / "float.onnx"
    graph = onnx.load(source).graph
    names = [node.name for node in graph.node if node.op_type in LAYERS_ORT and len(node.input) > 2]
    read = {name: node.op_type for node in graph.node for name in node.input[:1]}
    cut = {node.name for node in graph.node if read.get(node.output[0]) == "Relu"}
    assert set(names) - cut, "some are linear"
    assert set(names) & cut
    reference, int8 = by_default(engine, source, inputs, tmp_path)
    assert int8.biased() == names
    aims, before = means(reference, names, cut, inputs), means(int8, names, cut, inputs)
    correct_biases(int8, reference, inputs)
    after = means(int8, names, cut, inputs)
    assert len(names) > 20
    off = [[float(np.abs(found[name] - aims[name]).mean()) for name in names] for found in (before, after)]
    print(f"mean distance of a channel's mean: {np.mean(off[0]):.4f}, corrected {np.mean(off[1]):.4f}")
    assert np.mean(off[1]) < 0.1 * np.mean(off[0])
    assert all(now <= was + 1e-3 for was, now in zip(*off, strict=True))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_from_known_values_a_layer_is_what_it_is_from_the_picture(
    engine: str, eca_bundle: Bundle, inputs: list[Array], tmp_path: Path
) -> None:
    for net in by_default(engine, eca_bundle.path / "float.onnx", inputs, tmp_path):
        names, pictures = net.biased(), [{PICTURE: x} for x in inputs[:4]]
        whole = list(net.outputs(names, pictures))
        for place in (1, len(names) // 2, len(names) - 1):
            needed, last = net.needed(names[place:], [PICTURE, *names[:place]]), names[place]
            assert needed, "a layer that is computed from nothing"
            assert PICTURE not in needed, "all that comes before would be computed anew"
            known = [{name: values[name] for name in needed} for values in whole]
            for found, wanted in zip(net.outputs([last], known), whole, strict=True):
                np.testing.assert_allclose(found[last], wanted[last], atol=1e-4)
        for found, wanted in zip(net.outputs(names, pictures), whole, strict=True):
            assert all(np.array_equal(found[name], wanted[name]) for name in names), "the net is no longer what it was"


def test_nodes_may_have_no_name(eca_bundle: Bundle, inputs: list[Array]) -> None:
    model, known = onnx.load(eca_bundle.path / "float.onnx"), [{PICTURE: inputs[0]}]
    names = OnnxNet(model).biased()
    (wanted,) = OnnxNet(model).outputs(names, known)
    for node in model.graph.node:
        if node.name not in names:
            node.name = ""
    (found,) = OnnxNet(model).outputs(names, known)
    assert OnnxNet(model).needed(names, [PICTURE]) == [PICTURE]
    assert all(np.array_equal(found[name], wanted[name]) for name in names)


def test_a_bias_that_two_layers_share_is_left_alone(eca_bundle: Bundle, inputs: list[Array], tmp_path: Path) -> None:
    source, target = eca_bundle.path / "float.onnx", tmp_path / "int8.onnx"
    quantize_onnxruntime(source, target, inputs)
    int8 = onnx.load(target)
    makers = {node.output[0]: node for node in int8.graph.node}
    first = next(node for node in int8.graph.node if node.op_type == "Conv" and node.input[2] in makers)
    twin = int8.graph.node.add()
    twin.CopyFrom(first)
    twin.name, twin.output[0] = "twin", "twin"
    shared = makers[first.input[2]].input[0]

    def stored() -> Array:
        return next(numpy_helper.to_array(tensor) for tensor in int8.graph.initializer if tensor.name == shared)

    was = stored()
    correct_biases(OnnxNet(int8), OnnxNet(onnx.load(source)), inputs)
    assert np.array_equal(stored(), was)
