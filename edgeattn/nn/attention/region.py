"""Region attention: one weight for each region of a grid laid over the map.

Paper: none of its own; a spatial gate at the grain of regions.
    p = mean of x over each region, C x G x G
    y = x * up(s(W2 relu(W1 p))), W1: R x C, W2: 1 x R, each place taking its region's weight
Place (i, j) belongs to region (floor(i G / H), floor(j G / W)): the regions share the map between them, equal where G divides it
and else by up to one row or column larger; an axis shorter than G has as many regions as places. Pooling is an AveragePool where G
divides the map, and otherwise, like the way back, a product with constant 0-1 matrices: exact at any size.
Deviations: the squeeze is a multiple of 8 and at least 8; the gate starts open.
Map: the gate at its places.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention._parts import squeezed_width, start_open


class RegionAttention(nn.Module):
    """Region gate: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, grid: int = 4, reduction: int = 16) -> None:
        super().__init__()
        if grid < 1:
            raise SpecError(f"region: grid={grid} must be 1 at least")
        width = squeezed_width(channels, reduction)
        self.grid = grid
        self.reduce = nn.Conv2d(channels, width, 1)
        self.expand = nn.Conv2d(width, 1, 1)
        start_open(self.expand)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh the regions."""
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        height, width = x_BCHW.shape[2:]
        rows_HG, columns_WG = self._regions(height, x_BCHW), self._regions(width, x_BCHW)
        size = rows_HG.shape[1], columns_WG.shape[1]
        if height % size[0] == 0 and width % size[1] == 0:
            pooled_BCGG = F.avg_pool2d(x_BCHW, (height // size[0], width // size[1]))
        else:
            pooled_BCGG = (rows_HG / rows_HG.sum(0)).T @ (x_BCHW @ (columns_WG / columns_WG.sum(0)))
        weights_B1GG = self.expand(self.reduce(pooled_BCGG).relu()).sigmoid()
        gate_B1HW = rows_HG @ (weights_B1GG @ columns_WG.T)
        return x_BCHW * gate_B1HW, gate_B1HW.squeeze(1)

    def _regions(self, side: int, like: Tensor) -> Tensor:
        """(side, grid): 1 where the row's place belongs to the column's region."""
        grid = min(self.grid, side)
        places = [[float(place * grid // side == region) for region in range(grid)] for place in range(side)]
        return torch.tensor(places, dtype=like.dtype, device=like.device)
