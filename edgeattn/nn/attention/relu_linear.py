"""ReLU linear attention, a token mixer whose cost grows with N, not N^2.

Paper: EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction (Cai et al. 2023, arXiv:2205.14756).
    q, k, v = W x, in heads of `dim` channels, N = H W places
    o = relu(q) (relu(k)^T v) / (relu(q) sum_n relu(k_n) + eps)
    y = x + BN(W_o o)
`ReLULinearMean` writes 1 / N in the place of the division: another function, to be trained anew, of friendly operators only.
Deviations: one scale, without the paper's second one aggregated by 5 x 5 depthwise convolutions; the branch starts at 0.2 of
its norm's scale.
Map: mean over heads and queries of the weights relu(q) relu(k)^T / (...), what each place receives; with the division it sums
to 1, less where a query is zero.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.layers import BRANCH, ConvNorm


class ReLULinearAttention(nn.Module):
    """ReLU linear attention: (B, C, H, W) -> (B, C, H, W)."""

    first_stage: int = 2

    def __init__(self, channels: int, *, dim: int = 16, eps: float = 1e-5) -> None:
        super().__init__()
        if dim < 1 or channels < dim or channels % dim:
            divisors = [d for d in range(1, channels + 1) if channels % d == 0]
            nearest = min(divisors, key=lambda d: abs(d - dim), default=1)
            raise SpecError(
                f"relu linear attention: dim={dim} must divide channels={channels}; the nearest is {nearest}"
            )
        project = ConvNorm(channels, channels, 1)
        nn.init.constant_(project[1].weight, BRANCH)  # type: ignore[arg-type]
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.project: nn.Module = project
        self.dim = dim
        self.eps = eps

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mix the places."""
        return x_BCHW + self._mix(*self._heads(x_BCHW), x_BCHW.shape)

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        q_BADN, k_BADN, v_BADN = self._heads(x_BCHW)
        mean_q_BAD1 = self._divided(q_BADN, q_BADN, k_BADN).mean(3, keepdim=True)
        map_BN = (mean_q_BAD1.transpose(2, 3) @ k_BADN).mean((1, 2))
        return x_BCHW + self._mix(q_BADN, k_BADN, v_BADN, x_BCHW.shape), map_BN.reshape(-1, *x_BCHW.shape[2:])

    def _heads(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rectified queries and keys, and values, each (B, heads A, dim D, places N)."""
        B, C, H, W = x_BCHW.shape
        qkv_BATN = self.qkv(x_BCHW).reshape(B, C // self.dim, 3 * self.dim, H * W)
        q_BADN, k_BADN, v_BADN = qkv_BATN.split(self.dim, dim=2)
        return q_BADN.relu(), k_BADN.relu(), v_BADN

    def _mix(self, q_BADN: Tensor, k_BADN: Tensor, v_BADN: Tensor, shape_BCHW: tuple[int, ...]) -> Tensor:
        o_BADN = v_BADN @ k_BADN.transpose(2, 3) @ q_BADN
        return self.project(self._divided(o_BADN, q_BADN, k_BADN).reshape(shape_BCHW))  # type: ignore[no-any-return]

    def _divided(self, o_BADN: Tensor, q_BADN: Tensor, k_BADN: Tensor) -> Tensor:
        """What every place gathered, over the sum of its weights."""
        return o_BADN / (k_BADN.sum(3, keepdim=True).transpose(2, 3) @ q_BADN + self.eps)


class ReLULinearMean(ReLULinearAttention):
    """ReLU linear attention with 1 / N in the place of the division: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, dim: int = 16) -> None:
        super().__init__(channels, dim=dim)

    def _divided(self, o_BADN: Tensor, q_BADN: Tensor, k_BADN: Tensor) -> Tensor:
        return o_BADN * (1.0 / k_BADN.shape[3])
