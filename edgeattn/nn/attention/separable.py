"""Separable self-attention: one context vector, gathered from all places, weighs the values of every place.

Paper: Separable Self-attention for Mobile Vision Transformers (Mehta and Rastegari 2022, arXiv:2206.02680), MobileViTv2.
    a = softmax over the N = H W places of w_q x;   context = sum_n a_n (W_k x_n + b_k)
    y = x + W_o (context * relu(W_v x))
`SeparableSigmoid` weighs with a mean and a sigmoid, context = W_k mean_n(s(w_q x_n + b_q) x_n) + b_k: another function, to be
trained anew, without softmax and MatMul.
Deviations: the weights a sum to 1, so W_k acts on the gathered vector instead of on every place, the same numbers; all places
are one set, where the paper takes each pixel of a 2 x 2 patch on its own; the LayerNorm before the block is a BatchNorm behind
W_v and behind W_o, which folds, and w_q loses its bias, which softmax does not feel; the branch starts at 0.2 of its norm's scale.
Map: the weights a, which sum to 1; of `SeparableSigmoid` the sigmoid.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn.attention._parts import gate
from edgeattn.nn.layers import BRANCH, ConvNorm, global_mean


class SeparableSelfAttention(nn.Module):
    """Separable self-attention: (B, C, H, W) -> (B, C, H, W)."""

    first_stage: int = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        out = ConvNorm(channels, channels, 1)
        nn.init.constant_(out[1].weight, BRANCH)  # type: ignore[arg-type]
        self.query = nn.Conv2d(channels, 1, 1, bias=False)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value: nn.Module = ConvNorm(channels, channels, 1)
        self.out: nn.Module = out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mix the places."""
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        gathered_BC11, a_BHW = self._gather(x_BCHW)
        return x_BCHW + self.out(self.key(gathered_BC11) * self.value(x_BCHW).relu()), a_BHW

    def _gather(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of all places, and the weights."""
        a_BN1 = self.query(x_BCHW).flatten(2).softmax(2).transpose(1, 2)
        gathered_BC1 = x_BCHW.flatten(2) @ a_BN1
        return gathered_BC1.unsqueeze(3), a_BN1.reshape(-1, *x_BCHW.shape[2:])


class SeparableSigmoid(SeparableSelfAttention):
    """Separable self-attention with a sigmoid and a mean in the place of softmax: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.query = nn.Conv2d(channels, 1, 1)

    def _gather(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        a_B1HW = gate(self.query(x_BCHW))
        return global_mean(x_BCHW * a_B1HW), a_B1HW.squeeze(1)
