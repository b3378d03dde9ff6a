"""What int8 costs each layer: errors against known ones, rows that are real files."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import small
from disc_ladder import a_ladder
from onnx import numpy_helper

from edgeattn.bundle import Bundle
from edgeattn.deploy import sensitivity as module
from edgeattn.deploy.recipes import FILES
from edgeattn.deploy.recipes.plan import Plan
from edgeattn.deploy.sensitivity import Row, sensitivity, signal_to_error
from edgeattn.deploy.structure import quantized_layers
from edgeattn.timing.bar import progress_bar


@pytest.mark.parametrize("engine", FILES)
def test_signal_to_error_of_a_known_error(engine: str, eca_bundle: Bundle, tmp_path: Path) -> None:
    """The first layer gives 1 % too much: 20 log10(100) = 40 dB, and what follows is off too."""
    ladder = a_ladder(eca_bundle, tmp_path / "s")
    source = eca_bundle.file(eca_bundle.artefact("onnxruntime", "float"))
    model = onnx.load(source)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    for tensor in model.graph.initializer:
        if tensor.name in first.input[1:]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, tensor.name))
    onnx.save(model, tmp_path / "off.onnx")
    found = signal_to_error(engine, source, tmp_path / "off.onnx", ladder.inputs[:4])
    assert found[first.name] == pytest.approx(40.0, abs=0.05)
    assert next(iter(found)) == first.name
    assert all(10 < value < 100 for value in found.values())
    same = signal_to_error(engine, source, source, ladder.inputs[:4])
    assert min(same.values()) > 100


@pytest.mark.parametrize("engine", FILES)
def test_a_row_is_a_file_with_that_layer_in_float(
    engine: str, eca_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, wanted = module._rows, {"block": 1, "layer": 1}
    all_rows: list[Row] = []

    def first_of_each(*args: object) -> list[Row]:
        all_rows.extend(whole(*args))  # type: ignore[arg-type]
        return [next(row for row in all_rows if row.kind == kind) for kind in wanted]

    monkeypatch.setattr(module, "_rows", first_of_each)
    monkeypatch.setattr(module, "TURNS", 2)
    ladder = a_ladder(eca_bundle, tmp_path / "s", memory=tmp_path / "memory.jsonl")
    with progress_bar(False) as bar:
        found = sensitivity(ladder, engine, Plan(), 600.0, bar)
    untouched = quantized_layers(ladder.files(engine, Plan())[1])
    assert {row.name for row in all_rows if row.kind == "layer"} == untouched
    blocks = [row for row in all_rows if row.kind == "block"]
    assert {row.name for row in blocks} <= set(ladder.blocks)
    for rows in (blocks, [row for row in all_rows if row.kind == "layer"]):
        errors = [row.signal_to_error_db for row in rows]
        assert errors == sorted(errors)
    block, layer = found.rows
    for row, gone in ((layer, {layer.name}), (block, {n for n in untouched if n.startswith(f"{block.name}.")})):
        assert row.left_float
        assert gone
        assert quantized_layers(ladder.files(engine, row.left_float.plan)[1]) == untouched - gone
        saved = found.saved(row)
        assert saved["top1"] == row.left_float.figure - found.base.figure
        assert saved["ms"] is not None
    assert found.noise_ms > 0
    told = found.json()
    assert json.loads(json.dumps(told))["rows"][1]["agreement_change"] == found.saved(layer)["agreement"]

    def measured_again(*_: object, **__: object) -> None:
        raise AssertionError("this was measured before")

    monkeypatch.setattr("edgeattn.deploy.ladder.verify", measured_again)
    again = a_ladder(eca_bundle, tmp_path / "s2", memory=tmp_path / "memory.jsonl")
    with progress_bar(False) as bar:
        assert sensitivity(again, engine, Plan(), 600.0, bar).json() == told


def test_without_time_there_are_errors_and_no_figures(eca_bundle: Bundle, tmp_path: Path) -> None:
    ladder = a_ladder(eca_bundle, tmp_path / "s")
    with progress_bar(False) as bar:
        found = sensitivity(ladder, "onnxruntime", Plan(), 0.0, bar)
    names = {row.name for row in found.rows}
    assert len(ladder.blocks) == small.BLOCKS
    assert len(found.rows) == len(names) > 4 * small.BLOCKS
    assert names == set(ladder.blocks) | quantized_layers(ladder.files("onnxruntime", Plan())[1])
    assert all(set(found.saved(row).values()) == {None} for row in found.rows)
