"""Coordinate attention: a gate along the rows times a gate along the columns, each a channel wide.

Paper: Coordinate Attention for Efficient Mobile Network Design (Hou et al. 2021, arXiv:2103.02907).
    z_h = mean over W of x (C x H), z_w = mean over H of x (C x W)
    f = hswish(BN(W1 [z_h; z_w])), split again into f_h, f_w
    y = x * s(F_h f_h) * s(F_w f_w)
Deviations: the squeeze is a multiple of 8 and at least 8. W1, BN and the activation are applied to each of the two without
joining them first: the same numbers, since all three act on every position alone, and no concat or split in the graph.
Map: mean over channels of the gate s(F_h f_h) * s(F_w f_w).
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn.attention._parts import squeezed_width


class CoordinateAttention(nn.Module):
    """Coordinate attention: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 32) -> None:
        super().__init__()
        width = squeezed_width(channels, reduction)
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.Hardswish()
        self.gate_h = nn.Conv2d(width, channels, 1)
        self.gate_w = nn.Conv2d(width, channels, 1)

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
        h_BRH1 = self.act(self.norm(self.reduce(x_BCHW.mean(3, keepdim=True))))
        w_BR1W = self.act(self.norm(self.reduce(x_BCHW.mean(2, keepdim=True))))
        return self.gate_h(h_BRH1).sigmoid(), self.gate_w(w_BR1W).sigmoid()
