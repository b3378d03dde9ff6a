"""A net in MobileNetV3's manner (Howard et al. 2019, arXiv:1905.02244): hard-swish, and gates behind the depthwise convolutions."""

from __future__ import annotations

import copy

import discs
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, hardsigmoid, hardswish

from edgeattn.imaging import prepare
from edgeattn.nn.layers import ConvNorm, fold, global_mean
from edgeattn.spec import InputSpec

SIDE = 32
"""Of its input, in pixels."""
STEPS = 250
FAR = 150.0
"""Where one channel in `EVERY` behind the depthwise convolutions starts, the others at 0: a stand-in for the few channels far from
zero that long trainings leave and that widen the range of all, as ReLU6 does not let them."""
EVERY = 16


class Gate(nn.Module):
    """Squeeze-and-excitation with a hard sigmoid, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * hardsigmoid(self.expand(self.reduce(global_mean(x_BCHW)).relu()))


class Block(nn.Module):
    """(B, C, H, W) -> (B, C', H / stride, W / stride): widen, mix locally, attend, narrow."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * channels
        self.expand, self.project = ConvNorm(channels, hidden, 1), ConvNorm(hidden, out, 1)
        self.local = ConvNorm(hidden, hidden, 5, stride=stride, groups=hidden)
        self.attention = Gate(hidden)
        self.has_shortcut = stride == 1 and channels == out

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        y_BCHW = self.attention(hardswish(self.local(hardswish(self.expand(x_BCHW)))))
        z_BCHW = self.project(y_BCHW)
        return x_BCHW + z_BCHW if self.has_shortcut else z_BCHW, y_BCHW.abs().mean(1)


class HardSwishNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.last = ConvNorm(3, 16, 3, stride=2), ConvNorm(40, 160, 1)
        shapes = ((16, 16, 2), (16, 24, 2), (24, 24, 1), (24, 40, 1), (40, 40, 1), (40, 40, 1))
        self.blocks = nn.ModuleList(Block(*shape) for shape in shapes)
        self.widen, self.head = nn.Linear(160, 128), nn.Linear(128, classes)
        for layer in (self.last, *(block.local for block in self.blocks)):
            with torch.no_grad():
                layer[1].bias[::EVERY] = FAR

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x_BCHW, maps = hardswish(self.stem(x_BCHW)), {}
        for place, block in enumerate(self.blocks):
            x_BCHW, maps[f"blocks.{place}"] = block.attend(x_BCHW)
        x_BC = global_mean(hardswish(self.last(x_BCHW))).flatten(1)
        return self.head(hardswish(self.widen(x_BC))), maps

    def deployed(self) -> HardSwishNet:
        twin = copy.deepcopy(self).eval()
        fold(twin)
        return twin


def learnt() -> HardSwishNet:
    """One that knows discs, after some fifteen seconds of a core."""
    torch.manual_seed(0)
    shown = discs.pictures(60)
    images_NHW3 = torch.from_numpy(np.concatenate([prepare(picture, InputSpec(SIDE, SIDE)) for picture, _ in shown]))
    labels_N = torch.tensor([label for _, label in shown])
    net = HardSwishNet(len(discs.COLOURS)).train()
    optimizer = torch.optim.AdamW(net.parameters(), 0.005)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.005, STEPS)
    for _ in range(STEPS):
        some = torch.randint(len(shown), (32,))
        x_B3HW = (images_NHW3[some].permute(0, 3, 1, 2).float() - 128) / 128
        optimizer.zero_grad()
        cross_entropy(net(x_B3HW), labels_N[some]).backward()
        optimizer.step()
        schedule.step()
    return net.eval()
