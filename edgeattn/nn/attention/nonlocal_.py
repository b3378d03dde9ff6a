"""Non-local block: every place adds a weighted mean of all places, embedded in half the channels.

Paper: Non-local Neural Networks (Wang et al. 2018, arXiv:1711.07971), the embedded Gaussian form.
    y = x + BN(Wz (g softmax(theta' phi)')), theta = Wt x, phi = Wp x, g = Wg x, all C/2 x N
Deviations: phi has no bias, since it would add the same to all logits of a query; the embeddings have at least one channel. As
in the paper there is no 1 / sqrt(C/2), and the scale of the BatchNorm starts at 0, so that the block starts as the identity.
Map: what each place receives, the mean over queries of the softmax; sums to 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention._tokens import in_heads, received, residual, softmax_weights

SIDE = 14
"""Side of the largest square map: its N x N weights then have 38,416 numbers."""


class NonLocal(nn.Module):
    """Non-local block: (B, C, H, W) -> (B, C, H, W)."""

    first_stage: int = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(1, channels // 2)
        self.theta = nn.Conv2d(channels, width, 1)
        self.phi = nn.Conv2d(channels, width, 1, bias=False)
        self.g = nn.Conv2d(channels, width, 1)
        self.z: nn.Module = residual(width, channels, 0.0)

    @staticmethod
    def check_map(height: int, width: int) -> None:
        """Refuse maps of more than 196 places.

        Raises:
            SpecError: the map is too large; the message names the nearest that is not.
        """
        if height * width <= SIDE**2:
            return
        short = min(height, width, SIDE)
        long = SIDE**2 // short
        fits = (short, long) if height < width else (long, short)
        raise SpecError(
            f"non_local: a map of {height} x {width} has {height * width} places, more than {SIDE**2}; the nearest that "
            f"fits is {fits[0]} x {fits[1]} (imgsz={16 * SIDE} or less keeps the third stage at {SIDE} x {SIDE})"
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Add to every place a weighted mean of all places."""
        return self._mix(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW, weights_B1NN = self._mix(x_BCHW)
        return y_BCHW, received(weights_B1NN, *x_BCHW.shape[2:])

    def _mix(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        theta_BRHW, g_BRHW = self.theta(x_BCHW), self.g(x_BCHW)
        weights_B1NN = softmax_weights(in_heads(theta_BRHW, 1), in_heads(self.phi(x_BCHW), 1))
        mixed_B1RN = in_heads(g_BRHW, 1) @ weights_B1NN.transpose(-2, -1)
        return x_BCHW + self.z(mixed_B1RN.reshape(g_BRHW.shape)), weights_B1NN
