"""Mobile multi-query attention: all heads share one key and one value, taken from a map of half the size.

Paper: MobileNetV4: Universal Models for the Mobile Ecosystem (Qin et al. 2024, arXiv:2404.10518), after Fast Transformer
    Decoding: One Write-Head is All You Need (Shazeer 2019, arXiv:1911.02150).
    y = x + Wo [V A_i']_i, A_i = softmax(Q_i' K / sqrt(D)), K = Wk SR(x), V = Wv SR(x), SR = BN(DW3x3 with stride 2)
Deviations: the shortcut is inside; Q has a BatchNorm (it folds away) in the place of the norm before the block; that of Wo starts
at 0.2 in the place of a layer scale; heads have 32 channels by default.
Map: what each key receives, the mean of A over heads and queries, held over the places it stands for and scaled to sum to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.errors import SpecError
from edgeattn.nn.attention._tokens import heads_for, in_heads, received, residual, softmax_weights
from edgeattn.nn.layers import ConvNorm


class MobileMQA(nn.Module):
    """Mobile MQA: (B, C, H, W) -> (B, C, H, W); heads of 32 channels unless `num_heads` says otherwise."""

    first_stage: int = 2

    def __init__(self, channels: int, *, num_heads: int | None = None, kv_stride: int = 2) -> None:
        super().__init__()
        if kv_stride not in (1, 2):
            raise SpecError(f"mqa: kv_stride={kv_stride} must be 1 or 2; the nearest is {1 if kv_stride < 1 else 2}")
        self.num_heads = heads_for("mqa", channels, num_heads)
        key_dim = channels // self.num_heads
        self.query: nn.Module = ConvNorm(channels, channels, 1)
        self.reduce: nn.Module = ConvNorm(channels, channels, 3, stride=kv_stride, groups=channels)
        self.key = nn.Conv2d(channels, key_dim, 1, bias=False)
        self.value = nn.Conv2d(channels, key_dim, 1, bias=False)
        self.project: nn.Module = residual(channels, channels)
        self.scale = key_dim**-0.5

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Add to every place, head by head, a weighted mean of the reduced map."""
        return self._mix(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW, weights_BhNM, reduced = self._mix(x_BCHW)
        map_BHW = F.interpolate(received(weights_BhNM, *reduced).unsqueeze(1), x_BCHW.shape[2:]).squeeze(1)
        return y_BCHW, map_BHW / map_BHW.sum((1, 2), keepdim=True)

    def _mix(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        reduced_BChw = self.reduce(x_BCHW)
        q_BhDN = in_heads(self.query(x_BCHW) * self.scale, self.num_heads)
        weights_BhNM = softmax_weights(q_BhDN, in_heads(self.key(reduced_BChw), 1))
        mixed_BhDN = in_heads(self.value(reduced_BChw), 1) @ weights_BhNM.transpose(-2, -1)
        return x_BCHW + self.project(mixed_BhDN.reshape(x_BCHW.shape)), weights_BhNM, reduced_BChw.shape[2:]
