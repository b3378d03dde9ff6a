"""Segmentation: logits (B, K, h, w) against a map of classes a picture.

Legend of shapes: B batch, K classes, H W the input, h w the net's answer, which covers the same; N pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, grid_sample

from edgeattn.datasets.annotated import BACKGROUND, Annotated
from edgeattn.datasets.cards import CardSample
from edgeattn.datasets.masks import MaskFile
from edgeattn.errors import SpecError
from edgeattn.evaluation.judge import SegmentJudge
from edgeattn.evaluation.segment import IGNORE, Marks
from edgeattn.imaging import Picture
from edgeattn.nn.segment import build_segmenter
from edgeattn.spec import Spec
from edgeattn.train import losses
from edgeattn.train.classmaps import MapViews
from edgeattn.train.loader import evaluation_batches, normalise
from edgeattn.train.recipe import Recipe
from edgeattn.train.tasks.base import Compared, Mixed

PIXELS = 1 << 15
"""Most pixels of a batch that the loss looks at, evenly spread: neighbours say nearly the same, and sorting them takes time."""
EVALUATED = 1 << 20
"""Pixels of the inputs that are evaluated at once."""


class Segment:
    """As `TrainingTask`; the truth is the class of every pixel of the view, (H, W) bytes, or IGNORE."""

    terms: tuple[str, ...] = ("cross_entropy", "lovasz")

    def build(self, recipe: Recipe, classes: int) -> nn.Module:
        """As `TrainingTask.build`."""
        longer = max(recipe.input.height, recipe.input.width)
        return build_segmenter(recipe.model, classes, attention=recipe.attention, imgsz=longer, dropout=recipe.dropout)

    def views(self, samples: Sequence[Annotated], recipe: Recipe) -> MapViews:
        """As `TrainingTask.views`; all but the background tells attention where to look.

        Raises:
            SpecError: attention is to be told, and no class is the background.
        """
        masks = samples[0].masks
        if recipe.supervise != "none" and isinstance(masks, MaskFile) and masks.table.names[0].lower() != BACKGROUND:
            raise SpecError(
                f"supervise={recipe.supervise}: attention is taught to look at all but the background, and class 0 of "
                f"{recipe.data} is {masks.table.names[0]}; name class 0 background, or leave it out"
            )
        return MapViews(samples, recipe.input, recipe.augment, foreground=recipe.supervise != "none")

    def truth(self, shown: Annotated | CardSample) -> NDArray[np.uint8]:
        """Its map of classes, (H, W)."""
        return shown.class_map()

    def stack(self, truths: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Maps of classes (B, H, W)."""
        return torch.from_numpy(np.stack(truths))

    def mix(self, batch: Mixed, classes: int, share: float, rng: np.random.Generator) -> Mixed:
        """CutMix (Yun et al. 2019, arXiv:1905.04899): in a rectangle another picture of the batch, with its classes."""
        if rng.random() >= share:
            return batch
        side = math.sqrt(rng.uniform(0.1, 0.5))
        top, left = rng.uniform(0, 1 - side, 2)
        return Mixed(*(_cut(value, value.flip(0), top, left, side) for value in batch))

    def loss(self, answer: Tensor, target: Tensor, smoothing: float) -> dict[str, Tensor]:
        """Cross entropy, its rare classes lifted, and the Lovasz softmax loss, at pixels of the input's own size."""
        logits_NK, label_N = pixels(answer, target)
        if not len(label_N):  # nothing but IGNORE
            return dict.fromkeys(self.terms, answer.sum() * 0.0)
        weight_K = losses.enet_weights(label_N, logits_NK.shape[1]).sqrt()  # as they are, rare classes swell
        return {
            "cross_entropy": cross_entropy(logits_NK, label_N, weight_K, label_smoothing=smoothing),
            "lovasz": losses.lovasz_softmax(logits_NK, label_N),
        }

    def compared(self, own: Tensor, told: Tensor, target: Tensor) -> Compared:
        """The answers at the pixels that the loss looks at."""
        own_NK, label_N = pixels(own, target)
        return Compared(own_NK, pixels(told, target)[0], label_N)

    def figures(
        self, model: nn.Module, pictures: Sequence[tuple[Picture, Any]], recipe: Recipe, labels: Sequence[str]
    ) -> dict[str, float]:
        """`miou`, `pixel_accuracy` and `boundary_f1`, at the pictures' own size, by the edge's own decoding."""
        model.eval()
        device, spec = next(model.parameters()).device, Spec("segment", recipe.input, tuple(labels))
        judge = SegmentJudge(spec)
        at_once = max(1, EVALUATED // (spec.input.height * spec.input.width))
        marks: list[Marks] = []
        with torch.inference_mode():
            for batch_BHW3 in evaluation_batches(pictures, spec.input, at_once):
                answers = model(normalise(batch_BHW3.to(device))).float().cpu().numpy()
                for answer in answers:
                    truth = self.truth(pictures[len(marks)][1])
                    marks.append(judge.marks(truth, judge.answer({spec.output: answer[None]}, truth.shape)))
        return judge.figures(marks)


def pixels(answer_BKhw: Tensor, target_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and classes (N,) at pixels of the target, the answer laid over it bilinearly; without IGNORE.

    Of more than `PIXELS`, every n-th; n is odd, so that they lie differently between the answer's places.
    """
    batch, height, width = target_BHW.shape
    step = -(-target_BHW.numel() // PIXELS) | 1
    place_n = torch.arange(0, height * width, step, device=target_BHW.device)
    x_n = (place_n % width + 0.5) / width * 2 - 1
    y_n = (place_n // width + 0.5) / height * 2 - 1
    grid_B1n2 = torch.stack([x_n, y_n], 1)[None, None].expand(batch, -1, -1, -1)
    taken_BK1n = grid_sample(answer_BKhw.float(), grid_B1n2, padding_mode="border", align_corners=False)
    label_N = target_BHW.flatten(1)[:, ::step].flatten().long()
    known_N = label_N != IGNORE
    return taken_BK1n[:, :, 0].transpose(1, 2).flatten(0, 1)[known_N], label_N[known_N]


def _cut(value: Tensor, other: Tensor, top: float, left: float, side: float) -> Tensor:
    """`value` (B, ..., H, W) with a rectangle of `other`, given in fractions of the sides."""
    height, width = value.shape[-2:]
    y, x = round(top * height), round(left * width)
    rows, columns = slice(y, y + round(side * height)), slice(x, x + round(side * width))
    value = value.clone()
    value[..., rows, columns] = other[..., rows, columns]
    return value
