"""Lite: the published weights in its place, gradients, folding, the slots."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from edgeattn.errors import SpecError
from edgeattn.nn import ATTENTIONS, Classifier, build_model
from edgeattn.nn.attention import EMPTY
from edgeattn.nn.cost import cost
from edgeattn.nn.lite import Lite
from edgeattn.nn.pretrained import efficientnet_lite0

REFUSED = ("wide", "relu_linear", "relu_linear_mean")
FITTING = [name for name in ATTENTIONS if name not in REFUSED]


class FarPadding(nn.Module):
    """A strided convolution padded as TensorFlow does: what is missing goes to the far side, in zeros of its own scale."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.more = conv, conv.kernel_size[0] - 2
        self.zero = -1 / 128 if conv.in_channels == 3 else 0.0
        conv.padding = (0, 0)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        near = self.more // 2
        return self.conv(pad(x_BCHW, (near, self.more - near) * 2, value=self.zero))


def test_it_is_the_published_net_but_for_the_padding() -> None:
    torch.manual_seed(0)
    lite, published, x = Lite("none").eval(), efficientnet_lite0().eval(), torch.randn(2, 3, 96, 96)
    for parent in list(lite.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                setattr(parent, name, FarPadding(child))
    with torch.no_grad():
        expected = published._swish(published._bn0(published._conv_stem(x + 1 / 128)))
        for block in list(published._blocks)[:8]:
            expected = block(expected)
        found = lite(x)
    assert found.shape == expected.shape == (2, 80, 6, 6)
    assert (found - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())


@pytest.mark.parametrize("attention", FITTING)
def test_slots_gradients_and_folding(attention: str) -> None:
    torch.manual_seed(0)
    model = build_model("lite", 5, attention=attention)
    assert isinstance(model, Classifier)
    with torch.no_grad():
        for parameter in model.parameters():  # branches that start at zero hide what is behind them for one step
            parameter.add_(0.01 * torch.randn_like(parameter))
    nn.functional.cross_entropy(model(torch.randn(8, 3, 96, 96)), torch.arange(8) % 5).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    twin, x = model.eval().deployed(), torch.randn(2, 3, 96, 96)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    with torch.no_grad():
        (logits, maps), (expected, expected_maps) = twin.attend(x), model.attend(x)
    assert (logits - expected).abs().max() <= 1e-4 * max(1.0, float(expected.max() - expected.min()))
    first = getattr(ATTENTIONS[attention], "first_stage", 0)
    stages = range(3, 3) if attention in EMPTY else range(first, 3)
    assert {path: tuple(m.shape) for path, m in maps.items()} == {
        f"stages.{s}.0": (2, 24 >> s, 24 >> s) for s in stages
    }
    assert maps.keys() == expected_maps.keys()


def test_it_is_as_small_as_pico() -> None:
    lite, pico = (cost(build_model(name, 8, attention="coord"), 96) for name in ("lite", "pico"))
    assert lite.parameters < pico.parameters
    assert lite.macs < 3.5 * pico.macs


def test_what_does_not_fit_it_is_refused() -> None:
    with pytest.raises(SpecError, match=r"perceptrons.*take --model pico"):
        build_model("lite", 3, attention="wide")
    with pytest.raises(SpecError, match="dim=16 must divide channels=24"):
        build_model("lite", 3, attention="relu_linear")
    with pytest.raises(SpecError, match=r"equal_cost_to.*take pico"):
        build_model("lite", 3, attention="se", equal_cost_to="plain")
