"""The backbone: its published size, gradients, folding, the slot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeattn.errors import NameNotFoundError, SpecError
from edgeattn.nn import ATTENTIONS, Classifier, build_model
from edgeattn.nn.attention import EMPTY
from edgeattn.nn.backbone import SIZES


def warmed(model: nn.Module, imgsz: int = 64) -> nn.Module:
    torch.manual_seed(1)
    model.train()
    for _ in range(3):
        model(torch.randn(6, 3, imgsz, imgsz))
    return model.eval()


@pytest.mark.parametrize("attention", list(ATTENTIONS))
@pytest.mark.parametrize("imgsz", [32, 64, 96])
def test_shapes_and_maps(attention: str, imgsz: int) -> None:
    model = build_model("pico", 7, attention=attention, imgsz=imgsz).eval()
    assert isinstance(model, Classifier)
    x = torch.randn(2, 3, imgsz, imgsz)
    logits, maps = model.attend(x)
    assert logits.shape == (2, 7)
    assert torch.allclose(logits, model(x), atol=1e-6)
    first = getattr(ATTENTIONS[attention], "first_stage", 0)
    assert len(maps) == (0 if attention in EMPTY else sum(SIZES["pico"].depths[first:]))
    if maps:
        stride = 1 if imgsz < 48 else 4
        assert maps[f"stages.{first}.0"].shape == (2, imgsz // (stride << first), imgsz // (stride << first))
        assert maps["stages.3.1"].shape == (2, imgsz // (8 * stride), imgsz // (8 * stride))


@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_gradient_reaches_every_parameter(attention: str) -> None:
    torch.manual_seed(0)
    model = build_model("pico", 5, attention=attention).train()
    with torch.no_grad():
        for parameter in model.parameters():  # branches that start at zero hide what is behind them for one step
            parameter.add_(0.02 * torch.randn_like(parameter))
    nn.functional.cross_entropy(model(torch.randn(8, 3, 96, 96)), torch.arange(8) % 5).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_folding_changes_no_answer_and_leaves_no_batchnorm(attention: str) -> None:
    model = warmed(build_model("pico", 5, attention=attention))
    assert isinstance(model, Classifier)
    twin, x = model.deployed(), torch.randn(2, 3, 64, 64)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    with torch.no_grad():
        (logits, maps), (expected, expected_maps) = twin.attend(x), model.attend(x)
    scale = float(expected.max() - expected.min())
    assert (logits - expected).abs().max() <= 1e-5 * max(scale, 1)
    for path, value in maps.items():
        assert torch.allclose(value, expected_maps[path], atol=1e-4, rtol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()), "the model itself stays trainable"


def factory(classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def test_a_factory_of_ones_own() -> None:
    assert build_model(f"{__name__}:factory", 3)(torch.randn(1, 3, 16, 16)).shape == (1, 3)


def test_an_unknown_model_lists_the_choices() -> None:
    with pytest.raises(NameNotFoundError, match=r"mean 'pico'.*efficientnet-lite0, lite, nano, pico"):
        build_model("picco", 3)


def test_the_pretrained_net_takes_our_normalisation() -> None:
    from edgeattn.nn.pretrained import EfficientNetLite0

    model = EfficientNetLite0(4).eval()
    picture = torch.randint(0, 256, (1, 3, 64, 64)).float()
    assert torch.allclose(model((picture - 128) / 128), model.net((picture - 127) / 128), atol=1e-5)


class Halved(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Narrow(Halved):
    def __init__(self, channels: int) -> None:
        super().__init__(24)


def test_a_class_of_ones_own_that_does_not_fit_is_refused_at_once() -> None:
    with pytest.raises(SpecError, match=r"makes \(1, 16, 12, 12\) of \(1, 16, 24, 24\); it must keep the shape"):
        build_model("pico", 3, attention=f"{__name__}:Halved")
    with pytest.raises(SpecError, match=r"Narrow' fails on \(1, 16, 24, 24\)"):
        build_model("pico", 3, attention=f"{__name__}:Narrow")


def test_a_map_too_large_for_a_mechanism_is_said_at_construction() -> None:
    with pytest.raises(SpecError, match=r"20 x 20 has 400 places.*14 x 14"):
        build_model("pico", 3, attention="nonlocal", imgsz=320)
