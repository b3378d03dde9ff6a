"""Segmenters: any size, few parameters, maps of the decoder's slots, the same numbers when folded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeattn.errors import NameNotFoundError, SpecError
from edgeattn.nn.segment import Segmenter, build_segmenter


@pytest.mark.parametrize(("height", "width"), [(96, 96), (360, 480), (90, 70), (33, 131)])
def test_logits_are_a_fourth_of_any_input(height: int, width: int) -> None:
    net = Segmenter(5, attention="se", imgsz=max(height, width)).eval()
    with torch.no_grad():
        logits = net(torch.randn(2, 3, height, width))
    assert logits.shape == (2, 5, -(-height // 4), -(-width // 4))


@pytest.mark.parametrize("name", ["pico", "lite", "resnet20"])
def test_every_weight_learns(name: str) -> None:
    net = Segmenter(4, size=name, attention="coord", imgsz=64)
    net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert not [path for path, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_nano_segments_streets_with_at_most_1_1_million_parameters() -> None:
    net = Segmenter(11, size="nano", attention="eca", imgsz=480)
    assert sum(weight.numel() for weight in net.parameters()) <= 1_100_000


@pytest.mark.parametrize("attention", ["coord", "separable"])
def test_folded_it_answers_the_same_with_the_decoders_maps(attention: str) -> None:
    net = Segmenter(4, attention=attention, imgsz=96)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    net.eval()
    x = torch.randn(2, 3, 90, 96)
    with torch.no_grad():
        plain, (logits, maps) = net(x), net.attend(x)
        folded, folded_maps = net.deployed().attend(x)
    assert torch.equal(plain, logits)
    assert torch.allclose(plain, folded, atol=1e-4)
    fine = (
        ["head.levels.1", "head.levels.0"] if attention == "coord" else []
    )  # attention over all tokens is for coarse maps
    assert [path for path in maps if path.startswith("head")] == ["head.levels.2", *fine]
    assert maps["head.levels.2"].shape == (2, 6, 6)
    assert all(torch.allclose(maps[path], folded_maps[path], atol=1e-4) for path in maps)


def test_without_attention_there_are_no_maps() -> None:
    assert not Segmenter(3, attention="none", imgsz=64).eval().attend(torch.randn(1, 3, 64, 64))[1]


def flat(classes: int) -> nn.Module:
    """A factory of the user's own."""
    return nn.Conv2d(3, classes, 1)


def test_factories_and_wrong_names() -> None:
    assert build_segmenter(f"{__name__}:flat", 7)(torch.zeros(1, 3, 8, 8)).shape == (1, 7, 8, 8)
    with pytest.raises(NameNotFoundError, match="nano"):
        build_segmenter("nono", 2)
    with pytest.raises(SpecError, match="builds a int"):
        build_segmenter("builtins:int", 2)
