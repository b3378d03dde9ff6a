"""SimAM, a gate without parameters: places that differ most from their channel's mean pass best.

Paper: SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks (Yang et al., ICML 2021, PMLR 139).
    y = x * s(e / (4 (v + lambda)) + 1/2), e = (x - mean)^2, v = sum(e) / (HW - 1), over each channel
Deviations: none. The division is one number a channel, so that the map itself is only subtracted, multiplied and added to; a map of
one place, where HW - 1 is 0, divides by 1. There is nothing to start open: a gate stands at about s(3/4) = 0.68 on average.
Map: mean over channels of the gate.
Quantization: keep the branch in float; squares and variances of bytes leave little signal.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.layers import global_mean


class SimAM(nn.Module):
    """SimAM: (B, C, H, W) -> (B, C, H, W), any `channels`."""

    def __init__(self, channels: int, *, e_lambda: float = 1e-4) -> None:
        super().__init__()
        if not e_lambda > 0:
            raise SpecError(f"simam: e_lambda={e_lambda} must be above 0; the paper's is 1e-4")
        self.e_lambda = e_lambda

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh every value by its distance from its channel's mean."""
        return x_BCHW * self._gate(x_BCHW)

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        gate_BCHW = self._gate(x_BCHW)
        return x_BCHW * gate_BCHW, gate_BCHW.mean(1)

    def _gate(self, x_BCHW: Tensor) -> Tensor:
        places = x_BCHW.shape[2] * x_BCHW.shape[3]
        apart_BCHW = x_BCHW - global_mean(x_BCHW)
        e_BCHW = apart_BCHW * apart_BCHW
        v_BC11 = global_mean(e_BCHW) * (places / max(places - 1, 1))
        return (e_BCHW * (0.25 / (v_BC11 + self.e_lambda)) + 0.5).sigmoid()
