"""Efficient additive attention: one global query, a weighted sum of all queries, meets the key of every place.

Paper: SwiftFormer: Efficient Additive Attention for Transformer-based Real-time Mobile Vision Applications (Shaker et al. 2023,
arXiv:2303.15446).
    q_n = W_q x_n / |W_q x_n|, k_n = W_k x_n / |W_k x_n|, both over channels
    a = (w_a . q_n) over the N = H W places, divided by its length |a|;   g = sum_n a_n q_n
    y = x + BN(W_o (P(k * g) + q))
Normed form, another function that is trained for itself, without lengths to divide by:
    q = BN(W_q x), k = BN(W_k x), a = BN(w_a . q);   g = mean_n a_n q_n;   y as above
Deviations: the factor 1 / sqrt(C) before a is divided by its length is left out, since it cancels; the shortcut stands inside,
and in the place of its LayerScale the branch ends in a BatchNorm that starts from 0.2.
Map: |a|, scaled so that it sums to 1: the share of each place in the global query.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from edgeattn.nn.layers import BRANCH, ConvNorm, global_mean


class AdditiveAttention(nn.Module):
    """Efficient additive attention: (B, C, H, W) -> (B, C, H, W)."""

    first_stage: int = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        out = ConvNorm(channels, channels, 1)
        nn.init.constant_(out[1].weight, BRANCH)  # type: ignore[arg-type]
        self.query: nn.Module = nn.Conv2d(channels, channels, 1)
        self.key: nn.Module = nn.Conv2d(channels, channels, 1)
        self.weigh: nn.Module = nn.Conv2d(channels, 1, 1, bias=False)
        self.project = nn.Conv2d(channels, channels, 1)
        self.out: nn.Module = out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mix the places."""
        return self._mix(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW, a_B1N = self._mix(x_BCHW)
        return y_BCHW, normalize(a_B1N, p=1.0, dim=2).abs().reshape(-1, *x_BCHW.shape[2:])

    def _mix(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        q_BCHW, k_BCHW = normalize(self.query(x_BCHW), dim=1), normalize(self.key(x_BCHW), dim=1)
        a_B1N = normalize(self.weigh(q_BCHW).flatten(2), dim=2)
        g_BC11 = (q_BCHW.flatten(2) @ a_B1N.transpose(1, 2)).unsqueeze(3)
        return x_BCHW + self.out(self.project(k_BCHW * g_BC11) + q_BCHW), a_B1N


class AdditiveNormed(AdditiveAttention):
    """Additive attention with BatchNorm in the place of lengths: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.query = ConvNorm(channels, channels, 1)
        self.key = ConvNorm(channels, channels, 1)
        self.weigh = ConvNorm(channels, 1, 1)

    def _mix(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        q_BCHW = self.query(x_BCHW)
        a_B1HW = self.weigh(q_BCHW)
        g_BC11 = global_mean(q_BCHW * a_B1HW)
        return x_BCHW + self.out(self.project(self.key(x_BCHW) * g_BC11) + q_BCHW), a_B1HW.flatten(2)
