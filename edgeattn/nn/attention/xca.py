"""Cross-covariance attention: channels look at channels, at a cost linear in the number of places.

Paper: XCiT: Cross-Covariance Image Transformers (El-Nouby et al. 2021, arXiv:2106.09681); EdgeNeXt (Maaz et al. 2022,
    arXiv:2206.10589) takes it to small nets.
    y = x + Wo [A_i V_i]_i, A_i = softmax(tau_i Q_i K_i') (D x D), every row of Q_i and K_i (D x N) of norm 1
Deviations: the shortcut is inside; a BatchNorm behind each projection (it folds away) stands for the LayerNorm before them; that
of Wo starts at 0.2; heads have 32 channels. The products Q_i K_i' are divided by the norms, the same numbers as the products of
the normed rows at D x D divisions instead of 2 D N.
Map: mean over channels of |y|.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.nn.attention._parts import energy
from edgeattn.nn.attention._tokens import heads_for, in_heads, residual
from edgeattn.nn.layers import ConvNorm

EPSILON = 1e-12
"""Added to squared norms: a channel that is 0 everywhere has a gradient too."""


class CrossCovarianceAttention(nn.Module):
    """XCA: (B, C, H, W) -> (B, C, H, W); heads of 32 channels unless `num_heads` says otherwise."""

    first_stage: int = 2

    def __init__(self, channels: int, *, num_heads: int | None = None) -> None:
        super().__init__()
        self.num_heads = heads_for("xca", channels, num_heads)
        self.query: nn.Module = ConvNorm(channels, channels, 1)
        self.key: nn.Module = ConvNorm(channels, channels, 1)
        self.value: nn.Module = ConvNorm(channels, channels, 1)
        self.temperature = nn.Parameter(torch.ones(self.num_heads, 1, 1))
        self.project: nn.Module = residual(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Add to every channel, head by head, a weighted mean of channels."""
        q_BhDN, k_BhDN, v_BhDN = (
            in_heads(projection(x_BCHW), self.num_heads) for projection in (self.query, self.key, self.value)
        )
        norms_BhDD = _norm(q_BhDN) * _norm(k_BhDN).transpose(-2, -1)  # K itself is turned by the product alone
        weights_BhDD = (q_BhDN @ k_BhDN.transpose(-2, -1) * (self.temperature / norms_BhDD)).softmax(-1)
        return x_BCHW + self.project((weights_BhDD @ v_BhDN).reshape(x_BCHW.shape))  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW = self(x_BCHW)
        return y_BCHW, energy(y_BCHW)


def _norm(x_BhDN: Tensor) -> Tensor:
    return ((x_BhDN * x_BhDN).sum(-1, keepdim=True) + EPSILON).sqrt()
