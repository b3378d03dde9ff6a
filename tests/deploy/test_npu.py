"""Three mechanisms through Qualcomm's compiler and simulator, from torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import discs
import pytest
import torch

from edgeattn.deploy import export
from edgeattn.deploy.npu.qualcomm import compile_qualcomm
from edgeattn.nn import build_model

needs_toolchain = pytest.mark.skipif(importlib.util.find_spec("onnxruntime_qnn") is None, reason="needs the extra qnn")


@needs_toolchain
@pytest.mark.parametrize("attention", ["se", "coord", "shsa"])
def test_a_mechanism_becomes_one_node_that_answers_right(attention: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build_model("pico", 3, attention=attention, imgsz=64).eval()
    pictures = [picture for picture, _ in discs.pictures(8)]
    made = compile_qualcomm(export(net, tmp_path / "m", labels="abc", imgsz=64, pictures=pictures, mechanism=attention))
    gate = made.artefact.gates["simulated"]
    assert gate["nodes"] == ["EPContext"]
    assert gate["verdict"] == "passed", gate
    assert made.bundle.file(made.artefact).stat().st_size > 100_000
