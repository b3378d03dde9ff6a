"""What of an int8 file is executed on integers, and that a silent change is noticed.

`structure.json` holds what each mechanism's files quantize, and the versions of the engines that it was written with. Other
versions are compared with it as well: what they quantize otherwise is looked at before it is written anew.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import discs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.bundle import Bundle, extend
from edgeattn.cli.verify import executed_layers
from edgeattn.deploy import recipes
from edgeattn.deploy.export import export, versions
from edgeattn.deploy.recipes import quantize_for
from edgeattn.deploy.structure import Structure, structure
from edgeattn.engines import onnxruntime, open_artefact
from edgeattn.imaging import prepare
from edgeattn.nn import build_model
from edgeattn.nn.attention import ATTENTIONS, attend, build_attention
from edgeattn.spec import InputSpec
from edgeattn.timing.environment import adds_bytes_exactly

GOLDEN = Path(__file__).with_name("structure.json")
WRITE = "PYTHONPATH=tests python tests/deploy/test_structure.py"
"""Writes it anew, in a few minutes."""
TOOLS = ("onnxruntime", "openvino", "nncf")
MECHANISMS = ("none", "se", "coord", "shsa")
PICTURES = [picture for picture, _ in discs.pictures(11, seed=1)]


class OneBlock(nn.Module):
    """The smallest net around a mechanism: what int8 does to it does not hang on how often it is there."""

    def __init__(self, mechanism: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.block = nn.Module()
        self.block.attention = build_attention(mechanism, 16)
        self.last = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)[0]

    def attend(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y, map_BHW = attend(self.block.attention, self.stem(x).relu())
        return self.head(self.last(y).relu().mean((2, 3))), {"block": map_BHW}


def one_block(mechanism: str, folder: Path) -> Bundle:
    """A single block with int8 for both engines, its norms and sums alive."""
    net = OneBlock(mechanism).train()
    batch = torch.from_numpy(np.concatenate([prepare(p, InputSpec(32, 32)) for p in PICTURES]))
    with torch.no_grad():
        for _ in range(3):
            net((batch.permute(0, 3, 1, 2).float() - 128) / 128)
    return quantized(mechanism, folder, net)


def quantized(mechanism: str, folder: Path, net: nn.Module | None = None) -> Bundle:
    """A net, or an untrained pico, with int8 for both engines."""
    net = (net or build_model("pico", 3, attention=mechanism, imgsz=32)).eval()
    made = export(
        net, folder / "x.edgeattn", labels=("a", "b", "c"), imgsz=32, pictures=PICTURES[:4], mechanism=mechanism
    )
    source = made.file(made.artefact("onnxruntime", "float"))
    inputs = [prepare(picture, made.spec.input) for picture in PICTURES]
    for engine in ("onnxruntime", "openvino"):
        artefact, files = quantize_for(engine, source, folder, inputs)
        made = extend(made, (artefact,), files)
    return made


def found(bundle: Bundle, engine: str) -> tuple[Structure, dict[str, dict[str, int]]]:
    artefact = bundle.artefact(engine, "int8")
    opened = open_artefact(bundle, artefact, threads=1, maps=True)
    try:
        return structure(bundle.file(artefact), opened), {k: dict(v) for k, v in opened.nodes.items()}
    finally:
        opened.close()


def golden(bundle: Bundle) -> dict[str, Any]:
    """What does not depend on the processor: what both files quantize, and ONNX Runtime's integer nodes."""
    (ours, nodes), (theirs, _) = found(bundle, "onnxruntime"), found(bundle, "openvino")
    return {
        "onnxruntime": {"quantized": ours.quantized, "integer": nodes["int8"]},
        "openvino": {"quantized": theirs.quantized},
    }


def assert_golden(bundle: Bundle, kind: str, mechanism: str) -> None:
    """Compare with what is written down, whatever versions are installed; the message tells both."""
    held, given = json.loads(GOLDEN.read_text(encoding="utf-8")), golden(bundle)
    assert given == held[kind][mechanism], (
        f"{mechanism} is quantized otherwise than {GOLDEN.name} says, which was written with {held['versions']}; installed are "
        f"{versions(*TOOLS)}. If the new form is as fast and as exact, write it down with: {WRITE}"
    )


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_quantized_is_executed_on_integers(mechanism: str, tmp_path: Path) -> None:
    bundle = quantized(mechanism, tmp_path)
    ours, _ = found(bundle, "onnxruntime")
    assert (ours.fell_back, ours.unasked) == ((), ())
    theirs, _ = found(bundle, "openvino")
    assert (theirs.fell_back, theirs.unasked, theirs.shifted) == ((), (), ())
    assert min(ours.quantized, theirs.quantized) >= 40
    assert_golden(bundle, "mechanisms", mechanism)


@pytest.mark.parametrize("mechanism", sorted(ATTENTIONS))
def test_every_mechanism_is_quantized_as_written_down(mechanism: str, tmp_path: Path) -> None:
    """A new version of an engine, or a change of a recipe, that moves a layer to float is seen."""
    bundle = one_block(mechanism, tmp_path)
    for engine in ("onnxruntime", "openvino"):
        truth, _ = found(bundle, engine)
        assert truth.unasked == ()
        # Without a dot product of bytes OpenVINO has no integer kernel for every shape: verify tells.
        assert truth.fell_back == () or (engine == "openvino" and not adds_bytes_exactly())
    assert_golden(bundle, "blocks", mechanism)


def test_other_versions_are_compared_too_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, held = one_block("none", tmp_path), json.loads(GOLDEN.read_text(encoding="utf-8"))
    held["versions"] = dict.fromkeys(TOOLS, "0.1")
    (tmp_path / "old.json").write_text(json.dumps(held), encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "GOLDEN", tmp_path / "old.json")
    assert_golden(bundle, "blocks", "none")
    held["blocks"]["none"]["openvino"]["quantized"] += 1
    (tmp_path / "old.json").write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(
        AssertionError, match=r"'onnxruntime': '0.1'.*write it down with: PYTHONPATH=tests python tests/"
    ):
        assert_golden(bundle, "blocks", "none")


def test_an_exclusion_that_the_engine_undoes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime quantizes a lone convolution that was left in float, unless its optimizer is switched off."""
    original, lone = recipes.onnxruntime.float_nodes, "backbone.stages.1.0.expand/Conv_"
    names: list[str] = []

    def one_more(model: Any, plan: Any) -> list[str]:
        names[:] = [node.name for node in model.graph.node if node.name.startswith(lone)]
        return original(model, plan) + names

    monkeypatch.setattr(recipes.onnxruntime, "float_nodes", one_more)
    bundle = quantized("none", tmp_path)
    assert len(names) == 1
    assert found(bundle, "onnxruntime")[0].unasked == ()
    monkeypatch.setattr(onnxruntime, "UNWANTED_OPTIMIZERS", [])
    undone, _ = found(bundle, "onnxruntime")
    assert undone.unasked == tuple(names)
    assert f"1 that were left in float are, too: {names[0]}" in executed_layers(undone)


@pytest.mark.parametrize(("kind", "least"), [("QUInt16", 1.0), ("QInt8", 0.4)])
def test_activations_of_another_type_fall_back_and_are_named(
    kind: str, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 bits ONNX Runtime does not multiply, and signed ones not behind a ReLU that was folded away; it does not say so."""
    from onnxruntime import quantization

    def other(*args: Any, **options: Any) -> None:
        original(*args, **options | {"activation_type": quantization.QuantType[kind]})

    original = quantization.quantize_static
    monkeypatch.setattr(quantization, "quantize_static", other)
    bundle = quantized("none", tmp_path)
    fell, _ = found(bundle, "onnxruntime")
    assert fell.quantized >= 40
    assert len(fell.fell_back) >= least * fell.quantized
    done, told = fell.quantized - len(fell.fell_back), executed_layers(fell)
    assert f"{done} of {fell.quantized} quantized layers are executed on integers here (in float: " in told
    assert told.endswith(f"and {len(fell.fell_back) - 3} more)")


def test_the_preset_with_zero_points_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MIXED leaves every layer on integers, and takes depthwise convolutions off their fast kernel; nothing says so."""
    import nncf

    def mixed(*args: Any, **options: Any) -> Any:
        return original(*args, **options | {"preset": nncf.QuantizationPreset.MIXED})

    original = nncf.quantize
    monkeypatch.setattr(nncf, "quantize", mixed)
    theirs, _ = found(quantized("none", tmp_path), "openvino")
    assert len(theirs.shifted) >= 12
    assert "backbone.stages.0.1.local/Conv" in " ".join(theirs.shifted)
    assert f"; {len(theirs.shifted)} depthwise convolutions by a slow kernel" in executed_layers(theirs)


if __name__ == "__main__":
    told: dict[str, Any] = {"versions": versions(*TOOLS)}
    for key, make, names in (("mechanisms", quantized, MECHANISMS), ("blocks", one_block, sorted(ATTENTIONS))):
        told[key] = {}
        for name in names:
            with tempfile.TemporaryDirectory() as scratch:
                told[key][name] = golden(make(name, Path(scratch)))
    GOLDEN.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
