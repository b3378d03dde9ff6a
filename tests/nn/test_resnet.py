"""ResNet-20: the published size, the slot, and its way through export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeattn.deploy import export
from edgeattn.errors import SpecError
from edgeattn.nn import build_model
from edgeattn.nn.cost import cost


def test_it_has_the_published_size() -> None:
    found = cost(build_model("resnet20", 10, imgsz=32), 32)
    assert found.parameters == pytest.approx(0.27e6, rel=0.02), "He et al. 2016, table 6"
    assert found.macs == pytest.approx(40.6e6, rel=0.02)


def test_shapes_gradient_and_maps() -> None:
    model = build_model("resnet20", 10, attention="se", imgsz=32)
    logits, maps = model.attend(torch.randn(2, 3, 32, 32))  # type: ignore[operator]
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(32, 32)] * 3 + [(16, 16)] * 3 + [(8, 8)] * 3
    (logits.sum() + sum(m.sum() for m in maps.values())).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_shortcut_is_every_second_place_and_zeros() -> None:
    model = build_model("resnet20", 10, imgsz=32).eval()
    block = model.backbone.stages[1][0]  # type: ignore[union-attr, index]
    for conv in (block.first, block.second):
        torch.nn.init.zeros_(conv[0].weight)
    x = torch.rand(1, 16, 8, 8)
    with torch.no_grad():
        y = block(x)
    torch.testing.assert_close(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_it_is_exported(tmp_path: Path) -> None:
    model = build_model("resnet20", 3, attention="eca", imgsz=32).eval()
    pictures = [np.random.default_rng(i).integers(0, 256, (32, 32, 3)).astype(np.uint8) for i in range(2)]
    bundle = export(model, tmp_path / "r", labels=["a", "b", "c"], imgsz=32, pictures=pictures, mechanism="eca")
    assert len(bundle.spec.maps) == 9
    assert all(a.gates["parity"]["verdict"] == "passed" for a in bundle.artefacts)


def test_what_it_cannot_be() -> None:
    with pytest.raises(SpecError, match="'wide' widens EdgeMeta's perceptrons, of which resnet20 has none"):
        build_model("resnet20", 10, attention="wide", imgsz=32)
    with pytest.raises(SpecError, match="equal_cost_to narrows EdgeMeta's perceptrons, of which resnet20"):
        build_model("resnet20", 10, attention="se", imgsz=32, equal_cost_to="plain")
