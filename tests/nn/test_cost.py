"""Costs against figures known from elsewhere, and nets of equal cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeattn.errors import NameNotFoundError, SpecError
from edgeattn.nn import build_model
from edgeattn.nn.backbone import SIZES, EdgeMeta
from edgeattn.nn.cost import cost, equal_cost


def test_counts_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(8, 5))
    found = cost(net, 10)
    assert found.parameters == 3 * 8 * 9 + 8 + 16 + 8 * 5 + 5
    assert found.macs == 100 * 3 * 8 * 9 + 8 * 5


@pytest.mark.parametrize(
    ("size", "millions", "mmac"), [("pico", 0.27, 49), ("nano", 1.03, 184), ("tiny", 2.91, 523), ("small", 6.28, 1181)]
)
def test_published_costs(size: str, millions: float, mmac: float) -> None:
    found = cost(EdgeMeta(size, "none", imgsz=224), 224)
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.006)
    assert found.macs / 1e6 == pytest.approx(mmac, rel=0.015)


@pytest.mark.parametrize("imgsz", [32, 96])
@pytest.mark.parametrize("attention", ["se", "cbam", "coord"])
def test_equal_cost(attention: str, imgsz: int) -> None:
    plain = cost(build_model("pico", 10, imgsz=imgsz), imgsz)
    unmatched = cost(build_model("pico", 10, attention=attention, imgsz=imgsz), imgsz)
    matched = cost(build_model("pico", 10, attention=attention, imgsz=imgsz, equal_cost_to="plain"), imgsz)
    assert unmatched.parameters > 1.01 * plain.parameters
    assert matched.parameters == pytest.approx(plain.parameters, rel=0.01)
    assert matched.macs == pytest.approx(plain.macs, rel=0.01)


def test_a_seed_gives_the_same_weights_whether_the_widths_are_known_or_not() -> None:
    equal_cost.cache_clear()
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        weights.append(
            build_model("pico", 10, attention="se", equal_cost_to="plain").state_dict()["head.linear.weight"]
        )
    assert torch.equal(*weights)


class Glutton(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


def test_what_cannot_be_equal() -> None:
    with pytest.raises(SpecError, match=r"cannot cost what pico without attention costs.*larger model"):
        build_model("pico", 10, attention=f"{__name__}:Glutton", equal_cost_to="plain")
    with pytest.raises(NameNotFoundError, match="plain"):
        build_model("pico", 10, attention="se", equal_cost_to="plan")


def test_wide_spends_on_perceptrons() -> None:
    plain, wide = cost(EdgeMeta("pico", "none"), 96), cost(EdgeMeta("pico", "wide"), 96)
    assert 1.15 < wide.parameters / plain.parameters < 1.3
    assert SIZES["pico"].hidden(2.5) == (40, 80, 160, 320)
