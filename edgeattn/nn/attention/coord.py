"""Coordinate attention: a gate along the rows times a gate along the columns, each a channel wide.

Paper: Coordinate Attention for Efficient Mobile Network Design (Hou et al. 2021, arXiv:2103.02907).
    z_h = mean over W of x (C x H), z_w = mean over H of x (C x W)
    f = hswish(BN(W1 [z_h; z_w])), split again into f_h, f_w
    y = x * s(F_h f_h) * s(F_w f_w)
Deviations: the squeeze is a multiple of 8 and at least 8; both gates start open. In evaluation W1, BN and the activation are
applied to each of the two without joining them first: the same numbers, since all three then act on every position alone, and
no concat or split in the graph.
Map: mean over channels of the gate s(F_h f_h) * s(F_w f_w).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.nn.attention._parts import gate, row_and_column_means, squeezed_width, start_open
from edgeattn.nn.layers import ConvNorm


class CoordinateAttention(nn.Module):
    """Coordinate attention: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 32) -> None:
        super().__init__()
        width = squeezed_width(channels, reduction)
        self.reduce: nn.Module = ConvNorm(channels, width, 1)
        self.act = nn.Hardswish()
        self.gate_h = nn.Conv2d(width, channels, 1)
        self.gate_w = nn.Conv2d(width, channels, 1)
        start_open(self.gate_h)
        start_open(self.gate_w)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh every channel by row and by column."""
        h_BCH1, w_BC1W = self._gates(x_BCHW)
        return x_BCHW * h_BCH1 * w_BC1W

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        h_BCH1, w_BC1W = self._gates(x_BCHW)
        map_BHW = h_BCH1.squeeze(3).transpose(1, 2) @ w_BC1W.squeeze(2) / x_BCHW.shape[1]
        return x_BCHW * h_BCH1 * w_BC1W, map_BHW

    def _gates(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        h_BCH1, w_BC1W = row_and_column_means(x_BCHW)
        if self.training:
            joined_BCL1 = torch.cat([h_BCH1, w_BC1W.transpose(2, 3)], dim=2)
            f_BRL1 = self.act(self.reduce(joined_BCL1))
            f_h_BRH1, f_w_BRW1 = f_BRL1.split([x_BCHW.shape[2], x_BCHW.shape[3]], dim=2)
            f_w_BR1W = f_w_BRW1.transpose(2, 3)
        else:
            f_h_BRH1, f_w_BR1W = self.act(self.reduce(h_BCH1)), self.act(self.reduce(w_BC1W))
        return gate(self.gate_h(f_h_BRH1)), gate(self.gate_w(f_w_BR1W))
