"""The file for Intel's NPU: what of it differs, and what it answers on a processor; no such device is at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import disc_ladder
import discs
import nncf
import onnx
import openvino
import pytest
import small
from typer.testing import CliRunner

from edgeattn.bundle import Bundle, extend, load
from edgeattn.cli import app
from edgeattn.datasets.folder import scan
from edgeattn.deploy.calibration import draw
from edgeattn.deploy.lint import lint
from edgeattn.deploy.npu.intel import prepare_intel
from edgeattn.deploy.recipes import quantize_for
from edgeattn.deploy.recipes.openvino import quantize_openvino
from edgeattn.engines.base import Array
from edgeattn.engines.openvino import openvino_core
from edgeattn.errors import DataError
from edgeattn.imaging import prepare


def ranges_of_depthwise(file: Path) -> list[int]:
    """How many ranges the activation of each depthwise convolution has."""
    found = []
    for op in openvino_core().read_model(file).get_ordered_ops():
        if op.get_type_name() == "GroupConvolution":
            source = op.input_value(0).get_node()
            if source.get_type_name() == "FakeQuantize":
                found.append(max(source.input_value(1).get_shape(), default=1))
    return found


def quantized_by_nncf_alone(source: Path, target: Path, inputs: Sequence[Array]) -> None:
    """As by NNCF's own choices."""
    model = openvino_core().read_model(source)
    openvino.save_model(nncf.quantize(model, nncf.Dataset(list(inputs))), target)


def test_one_range_for_the_activation_of_a_depthwise_convolution(eca_bundle: Bundle, tmp_path: Path) -> None:
    inputs = [prepare(picture, eca_bundle.spec.input) for picture in disc_ladder.CALIBRATION]
    source = eca_bundle.file(eca_bundle.artefact("onnxruntime", "float"))
    quantized_by_nncf_alone(source, tmp_path / "plain.xml", inputs)
    assert max(ranges_of_depthwise(tmp_path / "plain.xml")) > 1
    quantize_openvino(source, tmp_path / "ours.xml", inputs)
    found = ranges_of_depthwise(tmp_path / "ours.xml")
    depthwise = [n for n in onnx.load(source).graph.node for a in n.attribute if a.name == "group" and a.i > 1]
    assert len(depthwise) >= small.BLOCKS
    assert found == [1] * len(depthwise), "each is quantized, by one range"


def test_lint_looks_at_the_file_that_the_device_is_given(eca_bundle: Bundle, tmp_path: Path) -> None:
    """int8 with a range a channel is slow there, our own is not; without either float is given."""
    rule = "one scale for a map's channels"
    inputs = [prepare(picture, eca_bundle.spec.input) for picture in disc_ladder.CALIBRATION]
    assert rule not in {finding.rule for finding in lint(eca_bundle, "intel")}
    made, files = quantize_for("openvino", eca_bundle.path / "float.onnx", tmp_path, inputs)
    quantized_by_nncf_alone(eca_bundle.path / "float.onnx", tmp_path / "int8.xml", inputs)
    passed = replace(made, gates={"loss": {"verdict": "passed"}})
    bundle = extend(eca_bundle, (passed,), files, path=tmp_path / "b.edgeattn")
    (found,) = [finding for finding in lint(bundle, "intel") if finding.rule == rule]
    assert (found.file, found.targets) == ("int8.xml", ("intel",))
    assert "backbone.stages.0.0.local" in found.blocks
    assert rule not in {finding.rule for finding in lint(prepare_intel(bundle, inputs).bundle, "intel")}


def test_it_joins_the_bundle_and_says_where_it_was_measured(eca_bundle: Bundle, tmp_path: Path) -> None:
    bundle = extend(eca_bundle, (), {}, path=tmp_path / "b.edgeattn")
    inputs = [prepare(picture, bundle.spec.input) for picture in disc_ladder.CALIBRATION]
    made = prepare_intel(bundle, inputs)
    (held,) = [a for a in load(bundle.path).artefacts if a.target == "npu"]
    assert (held.file, held.engine, held.verdict) == ("npu.xml", "openvino", "passed")
    assert held.gates == made.artefact.gates
    assert "not measured on the NPU" in held.gates["golden"]["where"]
    assert held.recipe["activations"] == "per tensor"
    with pytest.raises(DataError, match="32 others to calibrate on"):
        prepare_intel(bundle, inputs[:4])


def test_the_verb_reports_what_was_made(eca_bundle: Bundle, tmp_path: Path) -> None:
    bundle = extend(eca_bundle, (), {}, path=tmp_path / "b.edgeattn")
    listing = scan(discs.write(tmp_path / "photos", 11, seed=1))
    draw(listing.samples, listing.labels, listing.root).write(tmp_path / "c.toml")
    words = ["compile", str(bundle.path), "--target", "intel", "--calibration", str(tmp_path / "c.toml")]
    ran = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "r.json")])
    assert ran.exit_code == 0, ran.output
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["target"], told["toolchain"], told["compiled"], told["nodes_on_cpu"]) == (
        "intel", "openvino", False, None,
    )  # fmt: skip
    assert 0 < told["relative_error"] < 0.2
    assert told["log"].endswith("OpenVINO compiles it on the device, when it is first opened there")
    assert told["artefact"]["file"] == "npu.xml"
