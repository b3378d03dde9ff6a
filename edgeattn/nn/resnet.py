"""ResNet-20 for pictures of 32 x 32: the control on which attention papers report CIFAR, with the slot where they have theirs.

Paper: Deep Residual Learning for Image Recognition (He et al. 2016, arXiv:1512.03385), section 4.2.
    x = relu(S(x) + A(BN(conv3x3(relu(BN(conv3x3(x)))))))
S is the identity, or every second place and zeros for the new channels (option A, no parameters); A is the slot, in front of
the addition as in squeeze-and-excitation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.backbone import Backbone, Slot, slot_attention
from edgeattn.nn.layers import ConvNorm

WIDTHS, DEPTH = (16, 32, 64), 3


class ResidualBlock(Slot):
    """(B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(self, channels: int, out: int, stride: int, attention: nn.Module) -> None:
        super().__init__(out, attention)
        self.first: nn.Module = ConvNorm(channels, out, 3, stride=stride)
        self.second: nn.Module = ConvNorm(out, out, 3)
        self.stride, self.more = stride, out - channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The block."""
        return (self._shortcut(x_BCHW) + self.attention(self._residual(x_BCHW))).relu()  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, with the attention's map (B, H, W)."""
        y_BCHW, map_BHW = attend(self.attention, self._residual(x_BCHW))
        return (self._shortcut(x_BCHW) + y_BCHW).relu(), map_BHW

    def _residual(self, x_BCHW: Tensor) -> Tensor:
        return self.second(self.first(x_BCHW).relu())  # type: ignore[no-any-return]

    def _shortcut(self, x_BCHW: Tensor) -> Tensor:
        if self.stride == 1:
            return x_BCHW
        return pad(
            x_BCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2)
        )


class ResNet20(Backbone):
    """The backbone: (B, 3, H, W) -> (B, 64, H/4, W/4)."""

    def __init__(self, attention: str, *, imgsz: int = 32) -> None:
        """Build it with fresh weights (He et al. 2015).

        Raises:
            SpecError: the attention is `wide`, which widens perceptrons that this net does not have.
        """
        super().__init__()
        if attention == "wide":
            raise SpecError("'wide' widens EdgeMeta's perceptrons, of which resnet20 has none; take pico or nano")
        self.stem = nn.Sequential(ConvNorm(3, WIDTHS[0], 3), nn.ReLU())
        self.downs = nn.ModuleList(nn.Identity() for _ in WIDTHS)
        self.stages = nn.ModuleList()
        channels = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            blocks = nn.ModuleList()
            for block in range(DEPTH):
                stride = 2 if stage and not block else 1
                side = math.ceil(imgsz / (1 << stage))
                blocks.append(ResidualBlock(channels, width, stride, slot_attention(attention, stage, width, side)))
                channels = width
            self.stages.append(blocks)
        self.widths = WIDTHS
        self.strides = tuple(1 << stage for stage in range(len(WIDTHS)))
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, ConvNorm):
                    nn.init.kaiming_normal_(module[0].weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
