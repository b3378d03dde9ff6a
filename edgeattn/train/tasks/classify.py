"""Classification: logits (B, K) against a label a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeattn.datasets.cards import CardSample
from edgeattn.datasets.folder import Sample
from edgeattn.evaluation import classify
from edgeattn.imaging import Picture
from edgeattn.nn.model import build_model
from edgeattn.train import losses
from edgeattn.train.loader import FolderViews, evaluation_batches, normalise
from edgeattn.train.recipe import Recipe
from edgeattn.train.tasks.base import Compared, Mixed


class Classify:
    """As `TrainingTask`; the truth is the place of the class in the labels."""

    terms: tuple[str, ...] = ("cross_entropy",)

    def build(self, recipe: Recipe, classes: int) -> nn.Module:
        """As `TrainingTask.build`."""
        return build_model(
            recipe.model,
            classes,
            attention=recipe.attention,
            imgsz=recipe.imgsz,
            dropout=recipe.dropout,
            equal_cost_to=recipe.equal_cost_to,
        )

    def views(self, samples: Sequence[Sample], recipe: Recipe) -> FolderViews:
        """As `TrainingTask.views`."""
        return FolderViews(samples, recipe.input, recipe.augment)

    def truth(self, shown: CardSample) -> int:
        """Its label."""
        return shown.label

    def stack(self, truths: Sequence[int]) -> Tensor:
        """Labels (B,)."""
        return torch.tensor(truths)

    def mix(self, batch: Mixed, classes: int, share: float, rng: np.random.Generator) -> Mixed:
        """Mixup (Zhang et al. 2018, arXiv:1710.09412) of pictures, of labels, and of where to look."""
        batch = batch._replace(target=nn.functional.one_hot(batch.target, classes).float())
        if rng.random() >= share:
            return batch
        kept = rng.beta(0.8, 0.8)
        kept = max(kept, 1.0 - kept)  # the first picture stays the main one: its label is the distillation's target
        return Mixed(*(kept * value + (1 - kept) * value.flip(0) for value in batch))

    def loss(self, answer: Tensor, target: Tensor, smoothing: float) -> dict[str, Tensor]:
        """Cross entropy."""
        return {"cross_entropy": losses.soft_cross_entropy(answer, target, smoothing)}

    def compared(self, own: Tensor, told: Tensor, target: Tensor) -> Compared:
        """The answers, and the main class of each picture."""
        return Compared(own, told, target.argmax(1))

    def figures(
        self, model: nn.Module, pictures: Sequence[tuple[Picture, Any]], recipe: Recipe, labels: Sequence[str]
    ) -> dict[str, float]:
        """Those of `evaluation.classify`: `top1`, the share of right answers, and others."""
        truth_N = np.array([label for _, label in pictures], np.int64)
        answer_N, confidence_N = _answered(model, pictures, recipe)
        return classify.figures(truth_N, answer_N, confidence_N, labels)


def answers(model: nn.Module, pictures: Sequence[tuple[Picture, int]], recipe: Recipe) -> NDArray[np.int64]:
    """Best class of each picture, (N,)."""
    return _answered(model, pictures, recipe)[0]


def _answered(
    model: nn.Module, pictures: Sequence[tuple[Picture, int]], recipe: Recipe
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Best class of each picture, and its probability, (N,) both."""
    model.eval()
    device = next(model.parameters()).device
    best, shares = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    with torch.inference_mode():
        for batch_BHW3 in evaluation_batches(pictures, recipe.input):
            share_B, best_B = model(normalise(batch_BHW3.to(device))).float().softmax(1).max(1)
            best.append(best_B.cpu().numpy())
            shares.append(share_B.cpu().numpy())
    return np.concatenate(best), np.concatenate(shares)
