"""What of an int8 file is executed on integers, and that a silent change is noticed.

`structure.json` holds what each mechanism's files quantize, by the versions of the engines that it was written with; written
anew with `python tests/deploy/test_structure.py`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import discs
import pytest

from edgeattn.bundle import Bundle, extend
from edgeattn.cli.verify import executed_layers
from edgeattn.deploy import recipes
from edgeattn.deploy.export import export, versions
from edgeattn.deploy.recipes import quantize_for
from edgeattn.deploy.structure import Structure, structure
from edgeattn.engines import onnxruntime, open_artefact
from edgeattn.imaging import prepare
from edgeattn.nn import build_model

GOLDEN = Path(__file__).with_name("structure.json")
TOOLS = ("onnxruntime", "openvino", "nncf")
MECHANISMS = ("none", "se", "coord", "shsa")
PICTURES = [picture for picture, _ in discs.pictures(11, seed=1)]


def quantized(mechanism: str, folder: Path) -> Bundle:
    """An untrained pico with int8 for both engines."""
    net = build_model("pico", 3, attention=mechanism, imgsz=32).eval()
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


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_quantized_is_executed_on_integers(mechanism: str, tmp_path: Path) -> None:
    bundle = quantized(mechanism, tmp_path)
    ours, _ = found(bundle, "onnxruntime")
    assert (ours.fell_back, ours.unasked) == ((), ())
    theirs, _ = found(bundle, "openvino")
    assert (theirs.fell_back, theirs.unasked) == ((), ())
    assert min(ours.quantized, theirs.quantized) >= 40
    held = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if held["versions"] == versions(*TOOLS):
        assert golden(bundle) == held["mechanisms"][mechanism]


def test_an_exclusion_that_the_engine_undoes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime quantizes a lone convolution that was left in float, unless its optimizer is switched off."""
    original, lone = recipes.float_nodes, "backbone.stages.1.0.expand/Conv_"
    names: list[str] = []

    def one_more(model: Any, plan: Any) -> list[str]:
        names[:] = [node.name for node in model.graph.node if node.name.startswith(lone)]
        return original(model, plan) + names

    monkeypatch.setattr(recipes, "float_nodes", one_more)
    bundle = quantized("none", tmp_path)
    assert len(names) == 1
    assert found(bundle, "onnxruntime")[0].unasked == ()
    monkeypatch.setattr(onnxruntime, "UNWANTED_OPTIMIZERS", [])
    undone, _ = found(bundle, "onnxruntime")
    assert undone.unasked == tuple(names)
    assert f"1 that were left in float are, too: {names[0]}" in executed_layers(undone)


def test_activations_of_another_type_fall_back_and_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations of 16 bits are no integers that ONNX Runtime multiplies; it does not say so."""
    from onnxruntime import quantization

    def wide(*args: Any, **options: Any) -> None:
        original(*args, **options | {"activation_type": quantization.QuantType.QUInt16})

    original = quantization.quantize_static
    monkeypatch.setattr(quantization, "quantize_static", wide)
    bundle = quantized("none", tmp_path)
    fell, _ = found(bundle, "onnxruntime")
    assert len(fell.fell_back) == fell.quantized >= 40
    assert f"0 of {fell.quantized} quantized layers are executed on integers here (in float: " in executed_layers(fell)
    assert executed_layers(fell).endswith(f"and {fell.quantized - 3} more)")


if __name__ == "__main__":
    told = {}
    for name in MECHANISMS:
        with tempfile.TemporaryDirectory() as scratch:
            told[name] = golden(quantized(name, Path(scratch)))
    GOLDEN.write_text(json.dumps({"versions": versions(*TOOLS), "mechanisms": told}, indent=1) + "\n", encoding="utf-8")
