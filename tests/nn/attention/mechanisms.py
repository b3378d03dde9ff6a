"""What the tests of the mechanisms share: naive building blocks, and checks that hold for all."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeattn.deploy import export
from edgeattn.imaging import Picture
from edgeattn.nn.attention import attend

C, H, W = 16, 6, 5
Array = NDArray[np.float64]
Naive = Callable[[nn.Module, Array], tuple[Array, Array]]
"""(module, x (C, H, W)) -> the output (C, H, W) and the map (H, W), by loops over the paper's formula."""


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def conv1x1(layer: nn.Module, x_C: Array) -> Array:
    """A linear layer or pointwise convolution (with or without bias) of one vector."""
    weight = array(layer.weight).reshape(layer.weight.shape[:2])
    bias = 0 if layer.bias is None else array(layer.bias)
    return np.array([sum(weight[o, i] * x_C[i] for i in range(len(x_C))) for o in range(len(weight))]) + bias


def convolve(layer: nn.Conv2d, x: Array) -> Array:
    """Any 2-D convolution with zero padding, (C, H, W) to (O, H', W'), by loops."""
    weight, (sy, sx), (dy, dx), (py, px) = array(layer.weight), layer.stride, layer.dilation, layer.padding
    outs, ins, kh, kw = weight.shape
    height = (x.shape[1] + 2 * py - dy * (kh - 1) - 1) // sy + 1
    width = (x.shape[2] + 2 * px - dx * (kw - 1) - 1) // sx + 1
    y = np.zeros((outs, height, width))
    each = outs // layer.groups
    for o in range(outs):
        for i in range(height):
            for j in range(width):
                total = 0.0 if layer.bias is None else float(layer.bias.detach()[o])
                for c in range(ins):
                    for a in range(kh):
                        for b in range(kw):
                            row, column = i * sy + a * dy - py, j * sx + b * dx - px
                            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                                total += weight[o, c, a, b] * x[o // each * ins + c, row, column]
                y[o, i, j] = total
    return y


def normed(norm: nn.Module, x: Array) -> Array:
    """BatchNorm in eval mode of (C, ...)."""
    scale = array(norm.weight) / np.sqrt(array(norm.running_var) + norm.eps)
    shape = (-1, *[1] * (x.ndim - 1))
    return (x - array(norm.running_mean).reshape(shape)) * scale.reshape(shape) + array(norm.bias).reshape(shape)


def softmax(x: Array) -> Array:
    """Over a vector."""
    e = [math.exp(v - max(x)) for v in x]
    return np.array(e) / sum(e)


def warmed(module: nn.Module, channels: int = C, size: tuple[int, int] = (H, W)) -> nn.Module:
    """The module in eval mode, with running statistics that are not those of a fresh norm and no parameter at zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        module.train()
        for _ in range(4):
            module(torch.randn(8, channels, *size) * 2 + 1)
    return module.eval()


def check_equals_naive(
    module: nn.Module, naive: Naive, *, channels: int = C, size: tuple[int, int] = (H, W), atol: float = 1e-5
) -> None:
    module, x = warmed(module, channels, size), torch.randn(2, channels, *size)
    y, maps = attend(module, x)
    for b in range(2):
        expected_y, expected_map = naive(module, array(x[b]))
        assert np.abs(array(y[b]) - expected_y).max() <= atol
        assert np.abs(array(maps[b]) - expected_map).max() <= atol


def check_shapes_and_gradient(module: nn.Module, *, channels: int = C, size: tuple[int, int] = (H, W)) -> None:
    """`forward` is `attend` without the map; the map is (B, H, W) and non-negative; the gradient reaches every parameter."""
    x = torch.randn(2, channels, *size)
    y, maps = attend(warmed(module, channels, size), x)
    assert torch.allclose(module(x), y, atol=1e-6)
    assert y.shape == x.shape
    assert maps.shape == (2, *size)
    assert (maps >= 0).all()
    module.train()
    module.zero_grad()
    torch.manual_seed(0)
    x = torch.randn(4, channels, *size, requires_grad=True)
    (module(x) * torch.randn(4, channels, *size)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    starved = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert starved == []


class OneBlock(nn.Module):
    """The smallest classifier around a mechanism: its map is a quarter of the picture wide."""

    def __init__(self, attention: nn.Module, channels: int = C) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 4, 4)
        self.attention = attention
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)[0]

    def attend(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y, map_BHW = attend(self.attention, self.stem(x))
        return self.head(y.mean((2, 3))), {"attention": map_BHW}

    def deployed(self) -> OneBlock:
        twin = OneBlock(self.attention, self.stem.out_channels)
        twin.load_state_dict(self.state_dict())
        if hasattr(self.attention, "deployed"):
            twin.attention = self.attention.deployed(self.stem.out_channels)
        return twin.eval()


def pictures(n: int, seed: int = 0) -> list[Picture]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, 40, 40, 3), np.uint8))


def check_export(
    module: nn.Module, folder: Path, *, channels: int = C, imgszs: tuple[int, int] = (32, 48)
) -> list[list[str]]:
    """ONNX Runtime and OpenVINO give torch's logits and map within 1e-4 of their range, at two sizes.

    Returns:
        The operators of the graphs, by size.
    """
    import onnx

    operators = []
    for imgsz in imgszs:
        net = OneBlock(warmed(module, channels, (imgsz // 4, imgsz // 4)), channels).eval()
        bundle = export(net, folder / f"net-{imgsz}", labels=("a", "b", "c"), imgsz=imgsz, pictures=pictures(4))
        assert all(artefact.gates["parity"]["difference"] <= 1e-4 for artefact in bundle.artefacts)
        operators.append([node.op_type for node in onnx.load(bundle.path / "float.onnx").graph.node])
    return operators


def planted(channels: int = C, side: int = 8, at: tuple[int, int] = (2, 5), value: float = 6.0) -> Tensor:
    """(1, C, side, side): nearly nothing but one bright place."""
    x = torch.full((1, channels, side, side), 0.01)
    x[:, :, at[0], at[1]] = value
    return x
