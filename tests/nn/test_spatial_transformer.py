"""The spatial transformer: identity at the start, the same numbers as torch's grid and as loops, its map, both engines."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from edgeattn.deploy import export
from edgeattn.errors import SpecError
from edgeattn.imaging import Picture
from edgeattn.nn import build_model
from edgeattn.nn.spatial_transformer import SpatialTransformer

TURNED = (0.6, 0.2, 0.15, -0.25, 0.7, -0.1)
"""A zoom, a turn and a shift: theta, row by row."""


def fixed(module: SpatialTransformer, theta: tuple[float, ...]) -> SpatialTransformer:
    """One that looks at the same place whatever the picture."""
    with torch.no_grad():
        module.theta.weight.zero_()
        module.theta.bias.copy_(torch.tensor(theta))
    return module.eval()


def moving(attention: str, imgsz: int) -> SpatialTransformer:
    """One that turns each picture otherwise, its norms warm."""
    torch.manual_seed(2)
    module = SpatialTransformer(build_model("pico", 4, attention=attention, imgsz=imgsz), imgsz=imgsz)
    fixed(module, TURNED).train()
    nn.init.normal_(module.theta.weight, std=0.2)
    with torch.no_grad():
        for _ in range(4):
            module(torch.randn(8, 3, imgsz, imgsz))
    return module.eval()


def bilinear(picture: NDArray[np.float64], theta: tuple[float, ...], side: int) -> NDArray[np.float64]:
    """The paper's sampling by loops: (3, H, W) to (3, side, side)."""
    a, b, tx, c, d, ty = theta
    _, height, width = picture.shape
    shown = np.zeros((3, side, side))
    for i in range(side):
        for j in range(side):
            u, v = (2 * j + 1) / side - 1, (2 * i + 1) / side - 1
            column = ((a * u + b * v + tx + 1) * width - 1) / 2
            row = ((c * u + d * v + ty + 1) * height - 1) / 2
            for y in (math.floor(row), math.floor(row) + 1):
                for x in (math.floor(column), math.floor(column) + 1):
                    if 0 <= y < height and 0 <= x < width:
                        shown[:, i, j] += picture[:, y, x] * (1 - abs(row - y)) * (1 - abs(column - x))
    return shown


def test_starts_as_the_plain_model() -> None:
    model, x = moving("se", 64).model, torch.randn(2, 3, 64, 64)
    module = SpatialTransformer(model, imgsz=64).eval()
    scale = float(model(x).detach().abs().max())
    assert (module(x) - model(x)).abs().max() <= 1e-5 * scale
    assert (fixed(module, TURNED)(x) - model(x)).abs().max() > 0.01 * scale
    assert torch.allclose(SpatialTransformer(nn.Identity(), imgsz=64)(x), x, atol=1e-4)


@pytest.mark.parametrize("imgsz", [7, 24, 96])
def test_equals_torchs_affine_grid(imgsz: int) -> None:
    module, x = fixed(SpatialTransformer(nn.Identity(), imgsz=imgsz), TURNED), torch.rand(2, 3, imgsz, imgsz)
    grid = affine_grid(torch.tensor(TURNED).reshape(1, 2, 3).expand(2, 2, 3), [2, 3, imgsz, imgsz], align_corners=False)
    expected = grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    assert torch.allclose(module(x), expected, atol=1e-5)


@pytest.mark.parametrize("theta", [TURNED, (1.4, 0.0, 0.3, 0.1, 1.2, 0.0)])  # the second looks beyond the picture
def test_equals_loops(theta: tuple[float, ...]) -> None:
    module, x = fixed(SpatialTransformer(nn.Identity(), imgsz=9), theta), torch.rand(1, 3, 9, 9)
    assert np.abs(module(x)[0].detach().numpy() - bilinear(x[0].double().numpy(), theta, 9)).max() <= 1e-5


def test_gradient_reaches_every_parameter() -> None:
    """The identity hides the localisation net from the first step's gradient, and from no other's."""
    torch.manual_seed(0)
    module = SpatialTransformer(build_model("pico", 4, attention="se", imgsz=32), imgsz=32).train()
    x, optimiser = torch.randn(8, 3, 32, 32), torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(2):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(x), torch.arange(8) % 4).backward()
        starved = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert all(name.startswith(("look", "locate")) for name in starved)
        assert (starved == []) == (step == 1)
        optimiser.step()


def test_attend_adds_its_map_to_the_models_own() -> None:
    module, x = moving("se", 64), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, maps = module.attend(x)
        shown = module._sample(x, module.transform(x))
        expected = module.model.attend(shown)[1]
    assert torch.allclose(logits, module(x), atol=1e-6)
    assert list(maps) == ["transformer", *expected]
    assert len(expected) == 12
    assert maps["transformer"].shape == (2, 14, 14)
    assert (maps["transformer"] >= 0).all()
    assert not torch.allclose(maps["transformer"][0], maps["transformer"][1], atol=1e-3)
    assert all(torch.allclose(maps[path], expected[path], atol=1e-6) for path in expected)
    plain = SpatialTransformer(nn.Flatten(), imgsz=64)
    assert list(plain.attend(x)[1]) == ["transformer"]


def density(*theta: float) -> Tensor:
    return SpatialTransformer(nn.Identity(), imgsz=8).density(torch.tensor([theta]))[0]


def test_map_of_the_identity_is_1() -> None:
    shown = density(1, 0, 0, 0, 1, 0)
    assert torch.allclose(shown[1:-1, 1:-1], torch.ones(12, 12), atol=0.05)
    assert (shown[0] > 0.7).all()  # the edge is soft


def test_map_of_a_zoom_to_a_quarter() -> None:
    """Each axis halved: the inner quarter of the picture is seen four times as densely, the rest not at all."""
    shown = density(0.5, 0, 0, 0, 0.5, 0)
    assert torch.allclose(shown[4:10, 4:10], torch.full((6, 6), 4.0), atol=0.01)
    assert torch.allclose(shown[3, 4:10], torch.full((6,), 2.0), atol=0.01)  # centred on the edge itself
    assert float(shown[3, 3]) == pytest.approx(1.0, abs=0.01)
    assert shown[:3].max() < 0.01
    assert shown[:, 11:].max() < 0.01
    assert float(shown.mean()) == pytest.approx(1.0, abs=0.01)  # no sample is lost


def test_map_of_a_look_to_the_right() -> None:
    """x from 0 to 1, y from -0.5 to 0.5: columns 7 to 13, rows 4 to 9."""
    shown = density(0.5, 0, 0.5, 0, 0.5, 0) > 2.5
    expected = torch.zeros(14, 14, dtype=torch.bool)
    expected[4:10, 7:] = True
    assert torch.equal(shown, expected)


@pytest.mark.parametrize("theta", [TURNED, (-0.4, 0.3, -0.2, 0.3, 0.5, 0.1)])  # the second is mirrored
def test_map_counts_the_samples(theta: tuple[float, ...]) -> None:
    grid = affine_grid(torch.tensor(theta).reshape(1, 2, 3), [1, 1, 280, 280], align_corners=False)[0].reshape(-1, 2)
    edges = np.linspace(-1, 1, 15)
    counts = np.histogram2d(grid[:, 1].numpy(), grid[:, 0].numpy(), bins=(edges, edges))[0] / 20**2
    difference = np.abs(density(*theta).numpy() - counts)
    assert difference.mean() < 0.15
    assert np.median(difference) < 0.02
    assert counts.max() > 1.5


def test_the_map_can_be_supervised() -> None:
    module = SpatialTransformer(nn.Identity(), imgsz=32)
    shown = module.attend(torch.randn(2, 3, 32, 32))[1]["transformer"]
    (shown * torch.rand_like(shown)).sum().backward()
    assert module.theta.bias.grad is not None
    assert (module.theta.bias.grad != 0).all()


def test_a_collapsed_transform_stays_finite() -> None:
    theta = torch.zeros(1, 6, requires_grad=True)
    shown = SpatialTransformer(nn.Identity(), imgsz=8).density(theta)
    shown.sum().backward()
    assert torch.isfinite(shown).all()
    assert theta.grad is not None
    assert torch.isfinite(theta.grad).all()


def test_deployed_changes_no_answer_and_leaves_no_batchnorm() -> None:
    module, x = moving("cbam", 64), torch.randn(2, 3, 64, 64)
    twin = module.deployed()
    assert not any(isinstance(part, nn.BatchNorm2d) for part in twin.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    with torch.no_grad():
        (logits, maps), (expected, expected_maps) = twin.attend(x), module.attend(x)
    assert torch.allclose(logits, expected, atol=1e-4)
    assert all(torch.allclose(maps[path], expected_maps[path], atol=1e-4) for path in expected_maps)


@pytest.mark.parametrize("imgsz", [32, 96])
def test_export(imgsz: int, tmp_path: Path) -> None:
    from edgeattn._cv2 import cv2

    small = np.random.default_rng(0).integers(0, 256, (6, 6, 8, 3), np.uint8)
    pictures: list[Picture] = [
        np.asarray(cv2.resize(p, (120, 90), interpolation=cv2.INTER_CUBIC), np.uint8) for p in small
    ]
    bundle = export(moving("se", imgsz), tmp_path / "m", labels=tuple("abcd"), imgsz=imgsz, pictures=pictures)
    assert [artefact.engine for artefact in bundle.artefacts] == ["onnxruntime", "openvino"]
    assert all(artefact.gates["parity"]["difference"] <= 1e-4 for artefact in bundle.artefacts)
    assert bundle.spec.maps[0].output == "map_transformer"
    operators = [node.op_type for node in onnx.load(bundle.path / "float.onnx").graph.node]
    assert operators.count("GridSample") == 1
    assert "AffineGrid" not in operators


def test_bad_arguments() -> None:
    with pytest.raises(SpecError, match=r"imgsz=0.*must be 1 at least"):
        SpatialTransformer(nn.Identity(), imgsz=0)
