"""The rules, each on a graph that breaks it and on one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeattn._cv2 import cv2  # noqa: F401  OpenCV before torch's OpenMP
from edgeattn.deploy import export
from edgeattn.deploy.lint import lint


class Net(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, 16, 4, 4), middle, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)).mean((2, 3)))


class Of(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def tokens(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return (
        (torch.softmax(flat.transpose(1, 2) @ flat * 0.01, -1) @ flat.transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    )


CASES = {
    "no maximum over channels": lambda x: x * x.amax(1, keepdim=True).sigmoid(),
    "no mean over channels": lambda x: x * x.mean(1, keepdim=True).sigmoid(),
    "no division or square root over maps": lambda x: x / (x.abs() + 1.0),
    "no transpose above rank 4": lambda x: (
        x.reshape(x.shape[0], 4, 4, 2, 4, -1).permute(0, 2, 1, 4, 3, 5).reshape(x.shape)
    ),
}


@pytest.mark.parametrize("rule", list(CASES))
def test_a_broken_rule_is_found(rule: str, tmp_path: Path) -> None:
    findings = lint(bundle(Net(Of(CASES[rule])), tmp_path, 32))
    assert rule in {finding.rule for finding in findings}
    assert all(finding.block and finding.evidence and finding.mend for finding in findings)


def test_many_tokens(tmp_path: Path) -> None:
    assert lint(bundle(Net(Of(tokens)), tmp_path / "few", 32)) == []
    assert [f.rule for f in lint(bundle(Net(Of(tokens)), tmp_path / "many", 64))] == ["softmax over 196 tokens at most"]


def test_a_gate_of_convolutions_breaks_none(tmp_path: Path) -> None:
    assert lint(bundle(Net(nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU())), tmp_path, 32)) == []


def bundle(net: nn.Module, folder: Path, imgsz: int):
    import numpy as np

    torch.manual_seed(0)
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8))
    return export(net.eval(), folder / "m", labels=("a", "b", "c"), imgsz=imgsz, pictures=pictures)
