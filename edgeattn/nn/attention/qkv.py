"""Query, key, value: scaled dot-product attention with one head, as the founding articles have it.

Paper: Neural Machine Translation by Jointly Learning to Align and Translate (Bahdanau et al. 2014, arXiv:1409.0473), which
    brought the weighted mean; Attention Is All You Need (Vaswani et al. 2017, arXiv:1706.03762), which gave it this form.
    y = x + Wo softmax(Q' K / sqrt(D)) V, Q = Wq x and K = Wk x of D x N, V = Wv x of C x N
Deviations: D is a quarter of C, at least 8 (SAGAN, Zhang et al. 2018, arXiv:1805.08318, takes an eighth): scores of all C cost
four times as much; no LayerNorm and no positions; Wo ends in a BatchNorm, whose scale starts at 0.2.
Map: what each place receives, the mean over queries of the softmax; sums to 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention._tokens import in_heads, received, residual, softmax_weights


class QueryKeyValue(nn.Module):
    """Single-head attention: (B, C, H, W) -> (B, C, H, W)."""

    first_stage: int = 2

    def __init__(self, channels: int, *, qk_dim: int | None = None) -> None:
        super().__init__()
        width = max(8, channels // 4) if qk_dim is None else qk_dim
        if width < 1:
            raise SpecError(f"qkv: qk_dim={qk_dim} must be 1 at least; the default is {max(8, channels // 4)}")
        self.query = nn.Conv2d(channels, width, 1, bias=False)
        self.key = nn.Conv2d(channels, width, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.project: nn.Module = residual(channels, channels)
        self.scale = width**-0.5

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Add to every place a weighted mean of all places."""
        return self._mix(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW, weights_B1NN = self._mix(x_BCHW)
        return y_BCHW, received(weights_B1NN, *x_BCHW.shape[2:])

    def _mix(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        q_B1DN, k_B1DN = in_heads(self.query(x_BCHW) * self.scale, 1), in_heads(self.key(x_BCHW), 1)
        weights_B1NN = softmax_weights(q_B1DN, k_B1DN)
        mixed_B1CN = in_heads(self.value(x_BCHW), 1) @ weights_B1NN.transpose(-2, -1)
        return x_BCHW + self.project(mixed_B1CN.reshape(x_BCHW.shape)), weights_B1NN
