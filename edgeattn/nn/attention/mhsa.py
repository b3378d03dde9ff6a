"""Multi-head self-attention, and a retrainable form of it without a softmax.

Paper: Attention Is All You Need (Vaswani et al. 2017, arXiv:1706.03762); Replacing softmax with ReLU in Vision Transformers
    (Wortsman et al. 2023, arXiv:2309.08586).
    y = x + Wo [V_i A_i']_i, A_i = softmax(Q_i' K_i / sqrt(D)) for every head i of D channels
    ReLU form: A_i = relu(Q_i' K_i / sqrt(D)) / N
Deviations: the shortcut is inside; a BatchNorm behind each projection (it folds away) stands for the LayerNorm before them, as
in LeViT (Graham et al. 2021, arXiv:2104.01136); that of Wo starts at 0.2; no positions. In the ReLU form 1 / N is folded into Q,
the same numbers since relu(a / N) = relu(a) / N.
Map: what each place receives, the mean of A over heads and queries; sums to 1 with the softmax.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn.attention._tokens import heads_for, in_heads, received, residual, softmax_weights
from edgeattn.nn.layers import ConvNorm


class MultiHeadSelfAttention(nn.Module):
    """MHSA: (B, C, H, W) -> (B, C, H, W); heads of 32 channels unless `num_heads` says otherwise."""

    first_stage: int = 2

    def __init__(self, channels: int, *, num_heads: int | None = None) -> None:
        super().__init__()
        self.num_heads = heads_for("mhsa", channels, num_heads)
        self.query: nn.Module = ConvNorm(channels, channels, 1)
        self.key: nn.Module = ConvNorm(channels, channels, 1)
        self.value: nn.Module = ConvNorm(channels, channels, 1)
        self.project: nn.Module = residual(channels, channels)
        self.scale = (channels // self.num_heads) ** -0.5

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Add to every place, head by head, a weighted mean of all places."""
        return self._mix(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW, weights_BhNN = self._mix(x_BCHW)
        return y_BCHW, received(weights_BhNN, *x_BCHW.shape[2:])

    def _mix(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        weights_BhNN = self._weights(self.query(x_BCHW), in_heads(self.key(x_BCHW), self.num_heads))
        mixed_BhDN = in_heads(self.value(x_BCHW), self.num_heads) @ weights_BhNN.transpose(-2, -1)
        return x_BCHW + self.project(mixed_BhDN.reshape(x_BCHW.shape)), weights_BhNN

    def _weights(self, q_BCHW: Tensor, k_BhDN: Tensor) -> Tensor:
        return softmax_weights(in_heads(q_BCHW * self.scale, self.num_heads), k_BhDN)


class MultiHeadReLUAttention(MultiHeadSelfAttention):
    """MHSA with ReLU / N in the place of the softmax, another function that is trained for itself."""

    def _weights(self, q_BCHW: Tensor, k_BhDN: Tensor) -> Tensor:
        q_BhDN = in_heads(q_BCHW * (self.scale / k_BhDN.shape[-1]), self.num_heads)
        return (q_BhDN.transpose(-2, -1) @ k_BhDN).relu()
