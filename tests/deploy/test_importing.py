"""A model that comes as OpenVINO's IR goes the way of our own: imported, quantized, verified, profiled, for Intel's NPU."""

from __future__ import annotations

import json
from pathlib import Path

import disc_ladder
import discs
import numpy as np
import pytest

from edgeattn.bundle import Bundle, load
from edgeattn.cli import main
from edgeattn.deploy.ladder import Ladder
from edgeattn.deploy.npu.intel import prepare_intel
from edgeattn.deploy.peer import export_peer
from edgeattn.engines import open_engine
from edgeattn.imaging import prepare


def typed(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["edgeattn", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_an_ir_goes_the_way_of_our_own(
    eca_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, ir = export_peer(eca_bundle, tmp_path / "peer")
    photos, report = discs.write(tmp_path / "photos", 60), tmp_path / "r.json"
    assert typed(monkeypatch, "import", ir, "--data", photos) == 0
    assert "onnxruntime cannot run it: it does not read OpenVINO's IR" in capsys.readouterr().out
    path = tmp_path / "peer.edgeattn"
    assert typed(monkeypatch, "quantize", path, "--data", photos, "--minutes", 0.3, "--json", report) in (0, 3)
    held = json.loads(report.read_text())
    made = {(row["engine"], row["precision"]) for row in held["results"]}
    assert made - {("openvino", "bf16")} == {("openvino", "float"), ("openvino", "int8")}
    assert {step["engine"] for step in held["ladder"]} == {"openvino"}
    bundle = load(path)
    engine = open_engine(bundle, engine="openvino", precision="int8")
    assert "int8" in engine.executed_precision
    engine.close()
    assert typed(monkeypatch, "verify", path, "--data", photos, "--json", report) in (0, 3)
    rows = {row["precision"]: row for row in json.loads(report.read_text())["results"]}
    assert rows["float"]["top1"] >= 0.95
    assert rows["int8"]["agreement"] >= 0.95
    assert typed(monkeypatch, "profile", path, "--json", report, "--seconds", 1) in (0, 3)
    assert {row["engine"] for row in json.loads(report.read_text())["results"]} == {"openvino"}
    inputs = [prepare(picture, bundle.spec.input) for picture in disc_ladder.CALIBRATION]
    assert prepare_intel(bundle, inputs).artefact.verdict == "passed"


def test_other_weights_are_measured_anew(eca_bundle: Bundle, tmp_path: Path) -> None:
    """The ladder remembers by the weights too, which an IR keeps in a second file."""
    from edgeattn.deploy.importing import import_model
    from edgeattn.deploy.recipes.plan import DEFAULT_PLAN

    _, ir = export_peer(eca_bundle, tmp_path / "peer")
    keys = set()
    for turn in range(2):
        bundle = import_model(ir, tmp_path / f"b{turn}", discs.pictures(4, seed=1)).bundle
        ladder = Ladder(bundle, [np.zeros(1)], (), tmp_path)
        keys.add(ladder._key("openvino", DEFAULT_PLAN, tuned=False, turn=0))
        weights = np.fromfile(ir.with_suffix(".bin"), np.float32)
        weights[-1] += 0.125
        weights.tofile(ir.with_suffix(".bin"))
    assert len(keys) == 2
