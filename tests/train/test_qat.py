"""Quantization-aware training: what the net sees is what int8 computes; what comes out is a float net without BatchNorm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import discs
import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from torch import nn

from edgeattn import workflow
from edgeattn.deploy.recipes.plan import SMALL_MACS
from edgeattn.engines import open_artefact
from edgeattn.errors import DataError, SpecError
from edgeattn.imaging import prepare
from edgeattn.nn import build_model
from edgeattn.train import Recipe, Trained, TrainingData, load_run, train
from edgeattn.train.qat import INPUT, rounded, unrounded
from edgeattn.train.sources import open_data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, TrainingData]:
    """A float run on coloured discs."""
    root = tmp_path_factory.mktemp("qat")
    recipe = Recipe(
        str(discs.write(root / "photos", 24)), attention="coord", imgsz=32, epochs=20, lr=0.01, batch_size=16, workers=0
    )
    data = open_data(recipe, root)
    return train(recipe, root / "run", data=data, progress=False), data


def seen(attention: str = "coord") -> tuple[nn.Module, nn.Module]:
    """A float net and its rounded copy that has seen a batch, both in eval mode."""
    torch.manual_seed(0)
    net = build_model("pico", 5, attention=attention, imgsz=64).eval()
    copy = rounded(net, 64)
    copy.train()(torch.randn(8, 3, 64, 64).clamp(-1, 1))
    return net, copy.eval()


def test_weights_and_inputs_have_the_levels_of_int8() -> None:
    _, net = seen()
    layer = net.backbone.stages[2][0].expand  # type: ignore[attr-defined, index]
    original = layer.parametrizations.weight.original.detach().flatten(1).numpy()
    scale = np.abs(original).max(axis=1, keepdims=True) / 63
    assert layer.weight.detach().flatten(1).numpy() == pytest.approx(np.round(original / scale) * scale, abs=1e-6)
    ends = getattr(layer, INPUT).ends.numpy()
    x = torch.linspace(2 * float(ends[0]), 2 * float(ends[1]), 5000)
    levels = np.unique(getattr(layer, INPUT)(x).numpy())
    assert len(levels) == 256
    assert 0.0 in levels  # padding is exact
    step = (ends[1] - ends[0]) / 255
    assert (levels[0], levels[-1]) == pytest.approx(tuple(ends), abs=float(step))


def test_ends_are_learnt_in_training_alone() -> None:
    _, net = seen()
    layer = net.backbone.stages[0][0].expand  # type: ignore[attr-defined, index]
    before = getattr(layer, INPUT).ends.clone()
    net.eval()(10 * torch.randn(4, 3, 64, 64))
    assert torch.equal(getattr(layer, INPUT).ends, before)
    net.train()(10 * torch.randn(4, 3, 64, 64))
    assert not torch.equal(getattr(layer, INPUT).ends, before)


def test_what_int8_leaves_in_float_is_not_rounded() -> None:
    _, net = seen("se")
    layers = {name: hasattr(m, INPUT) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    gates = {name: rounded for name, rounded in layers.items() if ".attention." in name}
    assert gates
    assert not any(gates.values())  # far below SMALL_MACS
    assert all(rounded for name, rounded in layers.items() if ".attention." not in name)
    _, net = seen("lka")  # whose projections are as large as the block's own
    projection = net.backbone.stages[0][0].attention  # type: ignore[attr-defined, index]
    places = 16 * 16
    for layer in (m for m in projection.modules() if isinstance(m, nn.Conv2d)):
        assert hasattr(layer, INPUT) == (layer.weight.numel() * places >= SMALL_MACS)


def test_unrounded_is_the_deployed_net_again() -> None:
    net, copy = seen()
    x = torch.randn(2, 3, 64, 64).clamp(-1, 1)
    with torch.no_grad():
        exact, rough = net(x), copy(x)
        again = unrounded(copy)(x)
    assert torch.allclose(again, exact, atol=1e-6)
    assert not torch.allclose(rough, exact, atol=1e-6)
    assert not any("rounded" in name or "parametrizations" in name for name in copy.state_dict())


def test_a_run_ends_in_the_same_int8_files(run: tuple[Trained, TrainingData], tmp_path: Path) -> None:
    trained, data = run
    bundle = workflow.export_run(trained, data, tmp_path / "b")
    before = bundle.file(bundle.artefact("onnxruntime", "float")).read_bytes()
    recipe = workflow.qat_recipe(trained, 3)
    assert recipe.distill == "kd+maps"
    recipe = replace(recipe, lr=trained.recipe.lr / 4)  # so that it moves far enough to be told from the float run
    tuned = train(recipe, tmp_path / "qat", data=data, progress=False)
    with safe_open(tmp_path / "qat" / "model.safetensors", "pt") as kept:
        assert not [name for name in kept.keys() if "running_" in name or "parametrizations" in name]  # noqa: SIM118
    again = load_run(tmp_path / "qat")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(again.model(x), tuned.model(x), atol=1e-5)
        assert not torch.allclose(trained.model(x), tuned.model(x), atol=1e-3)  # it did learn

    quantized = workflow.quantize_run(bundle, data, tmp_path, tune=lambda: again).bundle
    assert {a.file for a in quantized.artefacts} == {"float.onnx", "int8.onnx", "int8.xml"}
    assert quantized.file(quantized.artefact("onnxruntime", "float")).read_bytes() == before
    assert quantized.provenance["qat"]["recipe"]["teacher"] == str(trained.folder)
    graph = onnx.load(quantized.file(quantized.artefact("onnxruntime", "int8"))).graph
    assert not [node for node in graph.node if node.op_type == "BatchNormalization"]
    # The int8 files hold the tuned weights, not the bundle's own: their answers are nearer to the tuned net's.
    picture = prepare(data.validation[0][0], quantized.spec.input)
    exact = (torch.from_numpy(np.array(picture)).permute(0, 3, 1, 2).float() - 128) / 128
    with torch.no_grad():
        wanted, other = (m(exact).numpy() for m in (tuned.model, trained.model))
    for engine in ("onnxruntime", "openvino"):
        opened = open_artefact(quantized, quantized.artefact(engine, "int8"))
        found = opened.infer(picture)[quantized.spec.output]
        opened.close()
        assert np.abs(found - wanted).max() < np.abs(found - other).max()


def test_refusals(run: tuple[Trained, TrainingData], tmp_path: Path) -> None:
    trained, data = run
    with pytest.raises(SpecError, match=r"qat goes on from a trained net; name a finished run"):
        replace(trained.recipe, qat=True)
    with pytest.raises(SpecError, match=r"a Linear has no deployed form; take pico"):
        rounded(nn.Linear(3, 3), 32)
    compiled = replace(trained, recipe=replace(trained.recipe, compile=True))
    assert workflow.qat_recipe(compiled, 1) == workflow.qat_recipe(trained, 1)
    tuned = train(workflow.qat_recipe(trained, 1), tmp_path / "qat", data=data, progress=False)
    with pytest.raises(DataError, match=r"has been fine-tuned for int8 already; name the run that it came from"):
        workflow.qat_recipe(tuned, 1)
