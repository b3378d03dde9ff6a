"""Single-head self-attention on a part of the channels; the rest passes by.

Paper: SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design (Yun and Ro 2024, arXiv:2401.16456).
    [x1; x2] = x, x1 of P = C / 4.67 channels, and [Q; K; V] = BN(W norm(x1)), Q and K of 16 channels, V of P
    y = x + BN(Wo relu([V softmax(Q' K / sqrt(16))'; x2]))
Deviations: P is a multiple of 8 and at least 8; a BatchNorm stands for the GroupNorm of one group; the shortcut, around the
module in the paper, is inside. As in the authors' code the scale of the last BatchNorm starts at 0.
`deployed` folds both norms around W into it: the same numbers.
Map: what each place receives, the mean over queries of the softmax; sums to 1.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention._tokens import in_heads, received, residual, softmax_weights
from edgeattn.nn.layers import ConvNorm

RATIO = 4.67
"""Channels for one that attends."""


class SingleHeadSelfAttention(nn.Module):
    """SHSA: (B, C, H, W) -> (B, C, H, W); the first `pdim` channels attend, with queries and keys of `qk_dim`."""

    first_stage: int = 2

    def __init__(self, channels: int, *, qk_dim: int = 16, pdim: int | None = None) -> None:
        super().__init__()
        if qk_dim < 1:
            raise SpecError(f"shsa: qk_dim={qk_dim} must be 1 at least")
        self.pdim = max(8, round(channels / RATIO / 8) * 8) if pdim is None else pdim
        if not 1 <= self.pdim < channels:
            nearest = min(max(1, self.pdim), channels - 1)
            raise SpecError(
                f"shsa: pdim={self.pdim} must leave some of the {channels} channels; the nearest is {nearest}"
            )
        self.pre_norm: nn.Module = nn.BatchNorm2d(self.pdim)
        self.query: nn.Module = ConvNorm(self.pdim, qk_dim, 1)
        self.key: nn.Module = ConvNorm(self.pdim, qk_dim, 1)
        self.value: nn.Module = ConvNorm(self.pdim, self.pdim, 1)
        self.project: nn.Module = residual(channels, channels, 0.0)
        self.scale = qk_dim**-0.5

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mix the places of some channels, then all channels."""
        return self._mix(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW, weights_B1NN = self._mix(x_BCHW)
        return y_BCHW, received(weights_B1NN, *x_BCHW.shape[2:])

    def deployed(self, channels: int) -> nn.Module:
        """The same with `pre_norm` and the norms behind it folded into the three projections."""
        twin = copy.deepcopy(self).eval()
        norm = twin.pre_norm
        assert isinstance(norm, nn.BatchNorm2d)
        for name in ("query", "key", "value"):
            setattr(twin, name, _behind(norm, getattr(twin, name)))
        twin.pre_norm = nn.Identity()
        return twin

    def _mix(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_BPHW = self.pre_norm(x_BCHW[:, : self.pdim])
        q_B1DN, k_B1DN = in_heads(self.query(x_BPHW) * self.scale, 1), in_heads(self.key(x_BPHW), 1)
        weights_B1NN = softmax_weights(q_B1DN, k_B1DN)
        mixed_B1PN = in_heads(self.value(x_BPHW), 1) @ weights_B1NN.transpose(-2, -1)
        joined_BCHW = torch.cat([mixed_B1PN.reshape(x_BPHW.shape), x_BCHW[:, self.pdim :]], dim=1)
        return x_BCHW + self.project(joined_BCHW.relu()), weights_B1NN


def _behind(norm: nn.BatchNorm2d, projection: ConvNorm) -> nn.Conv2d:
    """One 1 x 1 convolution for `norm`, then `projection`."""
    conv = projection.folded()
    assert norm.running_var is not None
    assert norm.running_mean is not None
    assert conv.bias is not None
    with torch.no_grad():
        scale_P = norm.weight * (norm.running_var + norm.eps).rsqrt()
        conv.bias += conv.weight[:, :, 0, 0] @ (norm.bias - norm.running_mean * scale_P)
        conv.weight *= scale_P[:, None, None]
    return conv
