"""Each mechanism against a naive reference; shape, gradient and map of all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.errors import NameNotFoundError, SpecError
from edgeattn.nn.attention import ATTENTIONS, attend, build_attention

MECHANISMS = [name for name in ATTENTIONS if name != "none"]
C, H, W = 16, 6, 5


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def made(name: str, channels: int = C) -> nn.Module:
    torch.manual_seed(3)
    attention = build_attention(name, channels)
    attention.train()
    for _ in range(4):  # running statistics that are not those of a fresh norm
        attention(torch.randn(8, channels, H, W) * 2 + 1)
    return attention.eval()


def conv1x1(layer: nn.Module, x_C: np.ndarray) -> np.ndarray:
    weight = layer.weight.detach().numpy()[:, :, 0, 0]
    bias = 0 if layer.bias is None else layer.bias.detach().numpy()
    return np.array([sum(weight[o, i] * x_C[i] for i in range(len(x_C))) for o in range(len(weight))]) + bias


def naive_se(module: nn.Module, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pooled = np.array([x[c].mean() for c in range(C)])
    gate = [sigmoid(v) for v in conv1x1(module.expand, np.maximum(conv1x1(module.reduce, pooled), 0))]
    y = np.stack([x[c] * gate[c] for c in range(C)])
    return y, np.mean([abs(y[c]) for c in range(C)], axis=0)


def naive_eca(module: nn.Module, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pooled = np.array([x[c].mean() for c in range(C)])
    kernel, bias = module.conv.weight.detach().numpy()[0, 0], float(module.conv.bias.detach())
    half = len(kernel) // 2
    y = np.empty_like(x)
    for c in range(C):
        mixed = sum(kernel[k] * pooled[c + k - half] for k in range(len(kernel)) if 0 <= c + k - half < C)
        y[c] = x[c] * sigmoid(mixed + bias)
    return y, np.mean([abs(y[c]) for c in range(C)], axis=0)


def naive_cbam(module: nn.Module, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def mlp(v: np.ndarray) -> np.ndarray:
        return conv1x1(module.mlp[2], np.maximum(conv1x1(module.mlp[0], v), 0))

    total = mlp(np.array([x[c].mean() for c in range(C)])) + mlp(np.array([x[c].max() for c in range(C)]))
    u = np.stack([x[c] * sigmoid(total[c]) for c in range(C)])
    squeezed = np.stack([u.mean(0), u.max(0)])
    weight, bias = module.spatial.weight.detach().numpy()[0], float(module.spatial.bias.detach())
    gate = np.empty((H, W))
    for i in range(H):
        for j in range(W):
            total_ij = bias
            for p in range(2):
                for a in range(7):
                    for b in range(7):
                        row, column = i + a - 3, j + b - 3
                        if 0 <= row < H and 0 <= column < W:
                            total_ij += weight[p, a, b] * squeezed[p, row, column]
            gate[i, j] = sigmoid(total_ij)
    return u * gate, gate


def naive_coord(module: nn.Module, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    conv, norm = module.reduce[0], module.reduce[1]
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    mean, shift = norm.running_mean.numpy(), norm.bias.detach().numpy()

    def gates(strip_CL: np.ndarray, layer: nn.Module) -> np.ndarray:
        columns = []
        for place in range(strip_CL.shape[1]):
            f = (conv1x1(conv, strip_CL[:, place]) - mean) * scale + shift
            f = f * np.clip(f + 3, 0, 6) / 6
            columns.append([sigmoid(v) for v in conv1x1(layer, f)])
        return np.array(columns).T

    g_h, g_w = gates(x.mean(2), module.gate_h), gates(x.mean(1), module.gate_w)
    gate = np.einsum("ch,cw->chw", g_h, g_w)
    return x * gate, gate.mean(0)


NAIVE = {"se": naive_se, "eca": naive_eca, "cbam": naive_cbam, "coord": naive_coord}


@pytest.mark.parametrize("name", MECHANISMS)
def test_equals_a_naive_loop(name: str) -> None:
    module, x = made(name), torch.randn(2, C, H, W)
    y, maps = attend(module, x)
    for b in range(2):
        expected_y, expected_map = NAIVE[name](module, x[b].double().numpy())
        assert np.abs(y[b].detach().numpy() - expected_y).max() <= 1e-5
        assert np.abs(maps[b].detach().numpy() - expected_map).max() <= 1e-5


@pytest.mark.parametrize("name", MECHANISMS)
def test_forward_is_attend_without_the_map(name: str) -> None:
    module, x = made(name), torch.randn(2, C, H, W)
    y, maps = attend(module, x)
    assert torch.equal(module(x), y)
    assert y.shape == x.shape
    assert maps.shape == (2, H, W)
    assert (maps >= 0).all()


@pytest.mark.parametrize("name", MECHANISMS)
def test_gradient_reaches_every_parameter(name: str) -> None:
    module = build_attention(name, C).train()
    torch.manual_seed(0)
    (module(torch.randn(4, C, H, W)) * torch.randn(4, C, H, W)).sum().backward()
    starved = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert starved == []


@pytest.mark.parametrize("name", ["eca"])
def test_deployed_form_is_the_same(name: str) -> None:
    module, x = made(name), torch.randn(2, C, H, W)
    deployed = module.deployed(C)
    for got, wanted in zip(attend(deployed, x), attend(module, x), strict=True):
        assert torch.allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("name", MECHANISMS)
def test_map_lights_up_where_something_stands(name: str) -> None:
    module = made(name)
    x = torch.full((1, C, 8, 8), 0.01)
    x[:, :, 2, 5] = 6.0
    _, map_BHW = attend(module, x)
    gate = map_BHW[0].detach()
    far = gate[7, 0]
    assert (gate[2, 5] - far).abs() > 1e-4
    outside = torch.ones(8, 8, dtype=torch.bool)
    if name in ("se", "eca"):
        assert divmod(int(gate.argmax()), 8) == (2, 5)
        outside[2, 5] = False
    elif name == "coord":  # it sees rows and columns
        outside[2, :], outside[:, 5] = False, False
    else:  # a 7 x 7 kernel, whose padding is felt at the border
        outside[:6], outside[:, 2:], outside[:, 0], outside[7] = False, False, False, False
    assert torch.allclose(gate[outside], gate[outside][0].expand_as(gate[outside]), atol=1e-5)


class Foreign(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x).sigmoid()


def not_a_module(channels: int) -> int:
    return channels


def test_a_class_of_ones_own() -> None:
    module = build_attention(f"{__name__}:Foreign", C)
    x = torch.randn(1, C, H, W)
    y, map_BHW = attend(module, x)
    assert torch.equal(y, module(x))
    assert torch.allclose(map_BHW, y.abs().mean(1))


def test_names_that_nothing_goes_by() -> None:
    with pytest.raises(NameNotFoundError, match=r"'coordd'.*mean 'coord'.*cbam, coord, eca, none, se"):
        build_attention("coordd", C)
    with pytest.raises(NameNotFoundError, match=r"no_such_module"):
        build_attention("no_such_module:Class", C)
    with pytest.raises(SpecError, match=r"int; it must be a torch"):
        build_attention(f"{__name__}:not_a_module", C)
