"""What others load: the same answers from another kind of input, and metadata that say it (see with_model_api.py)."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import tiny

from edgeattn.bundle import Bundle, load
from edgeattn.deploy.foreign import ZERO_TO_ONE, metadata, read_graph
from edgeattn.deploy.importing import import_model
from edgeattn.deploy.peer import export_peer
from edgeattn.engines import open_engine
from edgeattn.engines.openvino import openvino_core
from edgeattn.imaging import prepare
from edgeattn.tasks import decode


def answers(bundle: Bundle) -> list[list[float]]:
    engine = open_engine(bundle, engine="onnxruntime", precision="float")
    found = [
        decode(engine.infer(prepare(picture, bundle.spec.input)), bundle.spec).probabilities.tolist()
        for picture, _ in tiny.pictures(12)
    ]
    engine.close()
    return found


def test_an_output_for_none_of_these_has_its_name(tmp_path: Path) -> None:
    file, _ = export_peer(load("sign-digits"), tmp_path / "sign.onnx")
    told = metadata(read_graph(file).told)
    assert told.labels == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "none of these")
    assert (told.normalisation, told.imgsz) == (ZERO_TO_ONE, (96, 96))


def test_out_to_others_and_back(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Written for others and imported again, it answers as before; and so once more, from (1, 3, H, W) to the same."""
    expected = answers(tiny_bundle)
    bundle = tiny_bundle
    for turn in range(2):
        file, ir = export_peer(bundle, tmp_path / f"peer{turn}")
        assert [value.name for value in onnxruntime.InferenceSession(file).get_outputs()] == ["output0"]
        assert openvino_core().read_model(ir).get_rt_info(["model_info", "labels"]).astype(str) == "red green blue"
        found = import_model(file, tmp_path / f"back{turn}", tiny.pictures(12))
        assert found.tried == (), "its metadata say all"
        assert found.bundle.spec.labels == tiny.LABELS
        assert answers(found.bundle) == [pytest.approx(row, abs=1e-4) for row in expected]
        bundle = load(found.bundle.path)
