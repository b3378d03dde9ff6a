"""Heads: from the backbone's features to a task's outputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgeattn.nn.layers import global_mean


class ClassificationHead(nn.Module):
    """Global average pooling of the last stage (B, C, H, W), dropout, one linear layer: -> (B, K)."""

    def __init__(self, channels: int, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, classes)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Logits."""
        return self.linear(self.dropout(global_mean(stages[-1]).flatten(1)))  # type: ignore[no-any-return]
