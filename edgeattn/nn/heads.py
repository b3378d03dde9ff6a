"""Heads: from the backbone's features to a task's outputs."""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn.layers import global_mean


class ClassificationHead(nn.Module):
    """Global average pooling, dropout, one linear layer: (B, C, H, W) -> (B, K)."""

    def __init__(self, channels: int, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits."""
        return self.linear(self.dropout(global_mean(x_BCHW).flatten(1)))  # type: ignore[no-any-return]
