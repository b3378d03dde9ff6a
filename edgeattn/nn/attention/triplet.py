"""Triplet attention: the mean of three gates, over (H, W), (C, H) and (C, W), each from the mean and maximum along the third axis.

Paper: Rotate to Attend: Convolutional Triplet Attention Module (Misra et al. 2020, arXiv:2010.03045).
    g_a = s(BN(f7x7([max_a(x); mean_a(x)]))) for each axis a of C, W, H
    y = x * (g_C + g_W + g_H) / 3
Deviations: the gates start open. The paper turns the tensor so that a is first, weighs it, and turns it back; here each axis is
reduced where it stands and the gates are added before they meet x: the same numbers, without a tensor moved.
Map: mean over channels of the gate (g_C + g_W + g_H) / 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.nn.attention._parts import gate, need_odd, start_open
from edgeattn.nn.layers import ConvNorm


class TripletAttention(nn.Module):
    """Triplet attention: (B, C, H, W) -> (B, C, H, W), any `channels`."""

    def __init__(self, channels: int, *, kernel_size: int = 7) -> None:
        super().__init__()
        need_odd(f"triplet: kernel_size={kernel_size}", kernel_size)
        norms = ConvNorm(2, 1, kernel_size), ConvNorm(2, 1, kernel_size), ConvNorm(2, 1, kernel_size)
        for norm in norms:
            start_open(norm[1])
        self.hw: nn.Module = norms[0]
        self.ch: nn.Module = norms[1]
        self.cw: nn.Module = norms[2]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh along each pair of axes."""
        hw_B1HW, ch_BCH1, cw_BC1W = self._gates(x_BCHW)
        return x_BCHW * ((hw_B1HW + ch_BCH1 + cw_BC1W) * (1 / 3))

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        hw_B1HW, ch_BCH1, cw_BC1W = self._gates(x_BCHW)
        map_BHW = (hw_B1HW.squeeze(1) + ch_BCH1.mean(1) + cw_BC1W.mean(1)) * (1 / 3)
        return x_BCHW * ((hw_B1HW + ch_BCH1 + cw_BC1W) * (1 / 3)), map_BHW

    def _gates(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gates: (B, 1, H, W), (B, C, H, 1) and (B, C, 1, W)."""
        hw_B1HW = gate(self.hw(_reduced(x_BCHW, 1)))
        ch_B1CH = gate(self.ch(_reduced(x_BCHW, 3)))
        cw_B1CW = gate(self.cw(_reduced(x_BCHW, 2)))
        return hw_B1HW, ch_B1CH.squeeze(1).unsqueeze(3), cw_B1CW.squeeze(1).unsqueeze(2)


def _reduced(x_BCHW: Tensor, axis: int) -> Tensor:
    return torch.stack([x_BCHW.amax(axis), x_BCHW.mean(axis)], dim=1)
