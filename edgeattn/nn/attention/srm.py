"""Style-based recalibration, a channel gate that each channel computes from its own mean and deviation.

Paper: SRM: A Style-based Recalibration Module for Convolutional Neural Networks (Lee et al. 2019, arXiv:1903.10829).
    y = x * s(BN(w_mean * mean(x) + w_std * std(x))), w_mean and w_std: C; mean and std over H and W
Deviations: std is sqrt(variance + eps), whose gradient is finite on a flat channel, and divides by HW, so that a map of one place
works; the gate starts open, from the bias of BN. `deployed` folds BN into the weights and one shift: the same numbers.
Map: mean over channels of |gate * x|.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention._parts import energy, gate, start_open
from edgeattn.nn.layers import global_mean


class StyleRecalibration(nn.Module):
    """SRM: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        if eps <= 0:
            raise SpecError(f"srm: eps={eps} must be above 0; 1e-5 is usual")
        self.eps = eps
        bound = 0.5**0.5  # that of a layer with two inputs
        self.weight_mean = nn.Parameter(torch.empty(channels, 1, 1).uniform_(-bound, bound))
        self.weight_std = nn.Parameter(torch.empty(channels, 1, 1).uniform_(-bound, bound))
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        start_open(self.norm)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh the channels."""
        mean_BC11 = global_mean(x_BCHW)
        apart_BCHW = x_BCHW - mean_BC11
        std_BC11 = (global_mean(apart_BCHW * apart_BCHW) + self.eps).sqrt()
        gate_BC11 = gate(self.norm(mean_BC11 * self.weight_mean + std_BC11 * self.weight_std))
        return x_BCHW * gate_BC11

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW = self(x_BCHW)
        return y_BCHW, energy(y_BCHW)

    def deployed(self, channels: int) -> nn.Module:
        """The same gate in eval mode with BN folded into the weights and a shift."""
        norm = self.norm
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            scale_C = norm.weight / (norm.running_var + norm.eps).sqrt()
            shift_C = norm.bias - norm.running_mean * scale_C
            twin = StyleRecalibration(channels, eps=self.eps)
            twin.weight_mean.copy_(self.weight_mean * scale_C[:, None, None])
            twin.weight_std.copy_(self.weight_std * scale_C[:, None, None])
        twin.norm = _Shift(shift_C[:, None, None])
        return twin.eval()


class _Shift(nn.Module):
    def __init__(self, shift_C11: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift_C11.detach().clone())

    def forward(self, z_BC11: Tensor) -> Tensor:
        return z_BC11 + self.shift
