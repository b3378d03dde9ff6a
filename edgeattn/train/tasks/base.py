"""What the loop asks of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from edgeattn.imaging import Picture
from edgeattn.train.loader import Views
from edgeattn.train.recipe import Recipe


class Mixed(NamedTuple):
    """A batch as the loss sees it."""

    pictures: Tensor
    """(B, 3, H, W), normalised."""
    target: Tensor
    """What the net is to answer, (B, ...): of a classifier, distributions (B, K)."""
    where: Tensor
    """Where to look, (B, h, w); (B, 0, 0) where nobody tells."""


class Compared(NamedTuple):
    """What two nets answer to the same question, row by row."""

    own: Tensor
    """Logits of the student, (N, K)."""
    told: Tensor
    """Logits of the teacher, (N, K)."""
    label: Tensor
    """The true class, (N,)."""


class TrainingTask(Protocol):
    """One task. The truth of a picture is what its `View` says: a label, boxes, a map of classes."""

    terms: tuple[str, ...]
    """Names of its loss terms."""

    def build(self, recipe: Recipe, classes: int) -> nn.Module:
        """The net, with fresh weights: (B, 3, H, W) -> its answer."""

    def views(self, samples: Sequence[Any], recipe: Recipe) -> Views:
        """Augmented views of what the data holds: `Sample`s of a classifier, else `Annotated` pictures."""

    def truth(self, shown: Any) -> Any:
        """The truth of a view that shows all of a card, or of an annotated picture, as it is."""

    def stack(self, truths: Sequence[Any]) -> Tensor:
        """The truths of a batch as one tensor (B, ...)."""

    def mix(self, batch: Mixed, classes: int, share: float, rng: np.random.Generator) -> Mixed:
        """Make the target of the stacked truth, and mix a `share` of all batches with themselves, where the task can."""

    def loss(self, answer: Any, target: Tensor, smoothing: float) -> dict[str, Tensor]:
        """The loss terms by name, of the net's answer in training mode."""

    def compared(self, own: Any, told: Any, target: Tensor) -> Compared:
        """What distillation of answers compares of a student's answer in training and a teacher's."""

    def figures(
        self, model: nn.Module, pictures: Sequence[tuple[Picture, Any]], recipe: Recipe, labels: Sequence[str]
    ) -> dict[str, float]:
        """How well a net does on pictures of any size: that of `tasks.FIGURES`, and others; nan where there are no pictures."""
