"""What blocks cost: which node belongs to which, and nets without a block, on real exported nets in both engines."""

from __future__ import annotations

from pathlib import Path

import discs
import numpy as np
import pytest
import torch
from torch import nn

from edgeattn.bundle import Bundle, extend
from edgeattn.deploy.export import export
from edgeattn.deploy.recipes import quantize_for
from edgeattn.engines import open_artefact
from edgeattn.engines.base import Layer
from edgeattn.engines.onnxruntime import in_groups
from edgeattn.errors import BundleError
from edgeattn.imaging import prepare
from edgeattn.nn import build_model
from edgeattn.nn.cost import cost
from edgeattn.profiling.ablation import open_without
from edgeattn.profiling.blocks import OTHER, Block, group, measure_blocks
from edgeattn.profiling.peaks import Peaks
from edgeattn.profiling.roofline import Roof, Work, roof, work_of

PICTURES = [picture for picture, _ in discs.pictures(9, seed=1)]


def net(*, attention: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = build_model("pico", 3, attention="coord", imgsz=32).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.copy_(torch.linspace(0.5, 2.0, len(module.running_var)))
        if not attention and hasattr(module, "attention"):
            module.attention = nn.Identity()
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained pico with coordinate attention, float and int8 for both engines."""
    folder = tmp_path_factory.mktemp("blocks")
    path = folder / "coord.edgeattn"
    made = export(net(), path, labels=("a", "b", "c"), imgsz=32, pictures=PICTURES[:2], mechanism="coord")
    inputs = [prepare(picture, made.spec.input) for picture in PICTURES]
    for engine in ("onnxruntime", "openvino"):
        artefact, files = quantize_for(engine, made.file(made.artefact("onnxruntime", "float")), folder, inputs)
        made = extend(made, (artefact,), files)
    return made


CASES = [(engine, precision) for engine in ("onnxruntime", "openvino") for precision in ("float", "int8")]


@pytest.mark.parametrize(("engine", "precision"), CASES)
def test_every_block_has_its_time_and_what_is_executed(bundle: Bundle, engine: str, precision: str) -> None:
    opened = open_artefact(bundle, bundle.artefact(engine, precision), threads=1)
    try:
        found = measure_blocks(bundle, opened, prepare(PICTURES[0], bundle.spec.input))
    finally:
        opened.close()
    names = [each.block for each in bundle.spec.maps]
    attention = {each.name: each for each in found.blocks if each.is_attention}
    assert list(attention) == names
    assert sum(each.share for each in found.blocks) == pytest.approx(1.0)
    assert sum(each.nodes for each in found.blocks) >= 100
    assert {each.executed_precision for each in attention.values()} == {"f32"}, "its branch is left in float"
    rest = {each.name: each.executed_precision for each in found.blocks if not each.is_attention}
    assert {"stages.0", "stages.1", "stages.2", "stages.3", "head"} <= set(rest)
    assert rest["stages.2"] == ("int8" if precision == "int8" else "f32")
    assert 0.5 < found.accounted < 2.0, "0.9 to 1.1 where nothing else runs"
    assert 0.5 < found.counting_over_whole < 2.0
    assert (found.between_ms > 0) == (engine == "openvino")
    assert found.between_ms < 0.8 * sum(each.ms for each in found.blocks)
    assert sum(each.ms for each in attention.values()) > 0


def test_a_net_without_its_blocks_is_that_net(bundle: Bundle, tmp_path: Path) -> None:
    """The bypassed file answers as the same weights with nothing in the slot."""
    bare = export(
        net(attention=False), tmp_path / "bare.edgeattn", labels=("a", "b", "c"), imgsz=32, pictures=PICTURES[:2]
    )
    image = prepare(PICTURES[5], bundle.spec.input)
    names = [each.block for each in bundle.spec.maps]
    for engine in ("onnxruntime", "openvino"):
        artefact = bundle.artefact(engine, "float")
        engines = (
            open_artefact(bare, bare.artefact(engine, "float")),
            open_without(bundle, artefact, names, tmp_path),
            open_without(bundle, artefact, names[:1], tmp_path),
        )
        wanted, got, partly = (each.infer(image)[bundle.spec.output] for each in engines)
        np.testing.assert_allclose(got, wanted, atol=2e-5)
        assert np.abs(partly - wanted).max() > 1e-3
        for each in engines:
            each.close()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_int8_without_its_blocks_stays_int8(bundle: Bundle, engine: str, tmp_path: Path) -> None:
    artefact, names = bundle.artefact(engine, "int8"), [each.block for each in bundle.spec.maps]
    whole, without = open_artefact(bundle, artefact), open_without(bundle, artefact, names, tmp_path)
    assert without.integer_layers >= whole.integer_layers
    assert any(".attention" in layer.names[0] for layer in whole.layers if layer.names and layer.kind != "Const")
    assert not any(".attention" in layer.names[0] for layer in without.layers if layer.names and layer.kind != "Const")


def test_what_bears_no_modules_names_is_not_bypassed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    block = tiny_bundle.spec.maps[0].block
    with pytest.raises(BundleError, match=f"{block} cannot be bypassed: 0 values enter"):
        open_without(tiny_bundle, tiny_bundle.artefact("onnxruntime", "float"), [block], tmp_path)


def test_what_an_engine_adds_belongs_to_the_attention_at_whose_border_it_is() -> None:
    names = ["stages.0.0"]
    nodes = [
        Layer(("backbone.stages.0.0.local/Conv_1",), "Conv", "int8"),
        Layer(("conv_DequantizeLinear",), "DequantizeLinear", "convert"),
        Layer((), "Reorder", "f32"),
        Layer(("n0", "backbone.stages.0.0.attention.gate/Conv_3", "x/Relu_4"), "Convolution", "f32"),
        Layer(("head/Gemm_9",), "Gemm", "f32"),
        Layer((), "Reorder", "f32"),
        Layer(("Cast",), "Cast", "f32"),
    ]
    reads = [(), (0,), (1,), (2,), (3,), (4,), ()]
    assert group(nodes, reads, names) == [
        "stages.0", "stages.0.0", "stages.0.0", "stages.0.0", "head", "head", OTHER,
    ]  # fmt: skip


def test_groups_stand_together_as_far_as_the_graph_allows() -> None:
    reads = [(), (0,), (0,), (1,), (2,), (3, 4)]
    assert in_groups(reads, ["a", "b", "c", "b", "c", "a"]) == [0, 1, 3, 2, 4, 5]


def test_the_work_of_the_parts_is_the_work_of_the_whole(bundle: Bundle) -> None:
    """Against torch's own count, which counts multiplications by 4-dimensional tensors alike."""
    names = [each.block for each in bundle.spec.maps]
    work = work_of(bundle.file(bundle.artefact("onnxruntime", "float")), names)
    assert sum(each.macs for each in work.values()) == pytest.approx(cost(net(), 32).macs, rel=0.01)
    assert set(names) < set(work)
    assert 0 < sum(work[name].macs for name in names) < 0.2 * sum(each.macs for each in work.values())


def test_what_bounds_a_part() -> None:
    peaks = Peaks(threads=1, f32_gops=100.0, bf16_gops=None, int8_gops=400.0, memory_gb_s=10.0)

    def of(ms: float, precision: str, work: Work) -> Roof:
        return roof(Block("stages.0", False, ms, 1.0, precision, 3, 0), work, peaks)

    busy = of(1.0, "int8", Work(macs=150_000_000, numbers=1_000_000))
    assert (busy.bound, busy.compute_share, busy.memory_share) == ("compute", pytest.approx(0.75), pytest.approx(0.1))
    moving = of(1.0, "f32", Work(macs=1_000_000, numbers=2_000_000))
    assert (moving.bound, moving.bytes, moving.memory_share) == ("memory", 8_000_000, pytest.approx(0.8))
    assert of(1.0, "f32", Work(macs=1_000_000, numbers=10_000)).bound == "overhead"
    assert of(1.0, "bf16", Work(macs=1_000_000, numbers=10_000)).compute_share is None
