"""Three mechanisms through Qualcomm's compiler and simulator, from torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import discs
import numpy as np
import pytest
import torch

from edgeattn.deploy import export
from edgeattn.deploy.npu.qualcomm import compile_qualcomm
from edgeattn.imaging import prepare
from edgeattn.nn import build_model
from edgeattn.spec import InputSpec

needs_toolchain = pytest.mark.skipif(importlib.util.find_spec("onnxruntime_qnn") is None, reason="needs the extra qnn")


@needs_toolchain
@pytest.mark.parametrize("attention", ["se", "coord", "shsa"])
def test_a_mechanism_becomes_one_node_that_answers_right(attention: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build_model("pico", 3, attention=attention, imgsz=64)
    pictures = [picture for picture, _ in discs.pictures(8)]
    batch_BHW3 = torch.from_numpy(np.concatenate([prepare(picture, InputSpec(64, 64)) for picture in pictures]))
    with torch.no_grad():
        for parameter in net.parameters():  # shsa starts as the identity, which any compiler gets right
            parameter.add_(0.05 * torch.randn_like(parameter))
        for _ in range(20):
            net((batch_BHW3.permute(0, 3, 1, 2).float() - 128) / 128)
    bundle = export(net.eval(), tmp_path / "m", labels="abc", imgsz=64, pictures=pictures, mechanism=attention)
    made = compile_qualcomm(bundle)
    gate = made.artefact.gates["simulated"]
    assert gate["nodes"] == ["EPContext"]
    assert gate["verdict"] == "passed", gate
    assert made.bundle.file(made.artefact).stat().st_size > 100_000
