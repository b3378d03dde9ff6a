"""LayerScale in the slot, a control: one learned number a channel that sees nothing of the picture.

Paper: Going deeper with Image Transformers (Touvron et al. 2021, arXiv:2103.17239).
    y = gamma * x, gamma: C
Deviations: the paper scales a residual branch and starts it near 0; here it scales the stream itself, as a gate does, and gamma
starts at 1.
Map: mean over channels of |gamma * x|.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.nn.attention._parts import energy


class LayerScale(nn.Module):
    """Scale of each channel: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, init_values: float = 1.0) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), init_values))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Scale the channels."""
        return x_BCHW * self.gamma

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        y_BCHW = self(x_BCHW)
        return y_BCHW, energy(y_BCHW)
