"""Layers that the backbone and the attention mechanisms share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BRANCH = 0.2
"""Scale that a residual branch starts from: twelve blocks then begin near the identity and learn sooner."""


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm."""

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out)
        )
        self._strided_depthwise = stride > 1 and groups == channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        if self.training and self._strided_depthwise and torch.is_autocast_enabled("cpu"):
            # oneDNN's gradient of a strided depthwise convolution takes 60 to 80 ms in bf16 and 2 to 7 ms in float32:
            # a third of a pico's whole step.
            with torch.autocast("cpu", enabled=False):
                y_BCHW: Tensor = self[1](self[0](x_BCHW.float()))
        else:
            y_BCHW = self[1](self[0](x_BCHW))
        return y_BCHW

    def folded(self) -> nn.Conv2d:
        """The same as one convolution with a bias, for evaluation."""
        conv, norm = self[0], self[1]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        return torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm.eval())


def global_mean(x_BCHW: Tensor) -> Tensor:
    """Global average pooling, (B, C, H, W) to (B, C, 1, 1), written so that export finds one node."""
    return x_BCHW.mean((2, 3), keepdim=True)


def global_max(x_BCHW: Tensor) -> Tensor:
    """Global max pooling, (B, C, H, W) to (B, C, 1, 1), written so that export finds one node."""
    return x_BCHW.amax((2, 3), keepdim=True)


def fold(module: nn.Module) -> None:
    """Replace every `ConvNorm` below `module` by its folded convolution, in place; the module must be in eval mode."""
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, child.folded())
        else:
            fold(child)
