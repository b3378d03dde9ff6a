"""Area attention: multi-head self-attention inside each of a few strips of the map, with positions from a convolution.

Paper: YOLOv12: Attention-Centric Real-Time Object Detectors (Tian et al. 2025, arXiv:2502.12524).
    y = x + BN(Wo (a + BN(DW7x7(V)))), a = [V_i A_i']_i, A_i = softmax(Q_i' K_i / sqrt(D)) inside each of the `area` strips,
    Q, K, V = BN(W x), heads i of D = 32 channels
Deviations: the shortcut is inside; the last BatchNorm starts at 0.2. A strip is a run of N / area places, row after row. Where
`area` does not divide N, the largest smaller number that does is taken (7 x 7: one strip; 3 x 3: three). Heads and then strips
stand in the batch dimensions, so that no matrix product has more than four.
Map: what each place receives from its own strip, the mean of A over heads and queries; sums to 1 over the whole map.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention._tokens import heads_for, residual
from edgeattn.nn.layers import ConvNorm


class AreaAttention(nn.Module):
    """Area attention: (B, C, H, W) -> (B, C, H, W); heads of 32 channels unless `num_heads` says otherwise."""

    first_stage: int = 2

    def __init__(self, channels: int, *, num_heads: int | None = None, area: int = 4) -> None:
        super().__init__()
        if area < 1:
            raise SpecError(f"area: area={area} must be 1 at least")
        self.num_heads = heads_for("area", channels, num_heads)
        self.area = area
        self.head_dim = channels // self.num_heads
        self.query: nn.Module = ConvNorm(channels, channels, 1)
        self.key: nn.Module = ConvNorm(channels, channels, 1)
        self.value: nn.Module = ConvNorm(channels, channels, 1)
        self.position: nn.Module = ConvNorm(channels, channels, 7, groups=channels)
        self.project: nn.Module = residual(channels, channels)
        self.scale = self.head_dim**-0.5

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Add to every place, head by head, a weighted mean of its strip."""
        return self._mix(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW, weights_GAMM = self._mix(x_BCHW)
        height, width = x_BCHW.shape[2:]
        received_BhHW = weights_GAMM.mean(2).reshape(-1, self.num_heads, height, width)
        return y_BCHW, received_BhHW.mean(1) / weights_GAMM.shape[1]

    def _mix(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        v_BCHW = self.value(x_BCHW)
        q_GDAM, k_GDAM = self._in_strips(self.query(x_BCHW) * self.scale), self._in_strips(self.key(x_BCHW))
        weights_GAMM = (q_GDAM.permute(0, 2, 3, 1) @ k_GDAM.transpose(1, 2)).softmax(-1)
        mixed_GADM = self._in_strips(v_BCHW).transpose(1, 2) @ weights_GAMM.transpose(-2, -1)
        mixed_BCHW = mixed_GADM.transpose(1, 2).reshape(x_BCHW.shape)
        return x_BCHW + self.project(mixed_BCHW + self.position(v_BCHW)), weights_GAMM

    def _in_strips(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (G, D, A, M): G = batch x heads, A strips of M places."""
        places = x_BCHW.shape[2] * x_BCHW.shape[3]
        strips = max(n for n in range(1, self.area + 1) if places % n == 0)
        return x_BCHW.reshape(-1, self.head_dim, strips, places // strips)
