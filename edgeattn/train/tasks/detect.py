"""Detection: boxes and scores at every place against the true boxes of a picture.

Terms: of the one-to-many head `class_many` (binary cross entropy), `box_many` (1 - CIoU) and `edge_many` (distribution focal
loss), of the one-to-one head `class_one` and `box_one`; each weighted by the places' target scores and divided by their sum.

Legend of shapes: B batch, M true boxes of a picture (padded), K classes, A places, R bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeattn.datasets.annotated import Annotated
from edgeattn.datasets.cards import CardSample
from edgeattn.errors import DataError, NameNotFoundError, SpecError
from edgeattn.evaluation.detect import Truth
from edgeattn.evaluation.judge import DetectJudge
from edgeattn.imaging import Picture, prepare
from edgeattn.nn.backbone import SIZES
from edgeattn.nn.detector import BINS, LEVELS, Answer, Detector, Proposals
from edgeattn.nn.model import OTHERS, build_model
from edgeattn.nn.pretrained import TIMM
from edgeattn.spec import Spec
from edgeattn.tasks import Detections
from edgeattn.train.assignment import around, assign, ciou, distribution_focal
from edgeattn.train.boxes import Boxes, BoxViews, true_boxes
from edgeattn.train.loader import normalise
from edgeattn.train.recipe import Recipe
from edgeattn.train.tasks.base import Compared, Mixed

BOX, CLASS, EDGE = 7.5, 0.5, 1.5
"""Weights of the terms (YOLOv8's)."""
MANY = 10
"""Places that learn a box, of the one-to-many head."""
PADDING = -1
"""Label of what fills up a picture's boxes."""
FAINTEST = 1e-4
"""Least score of a teacher, whose logit is taken back from it."""
BATCH = 16
"""Pictures that are judged at once."""


class Detect:
    """As `TrainingTask`; the truth of a view is `Boxes`, that of a picture to judge by a `Truth`."""

    terms: tuple[str, ...] = ("class_many", "box_many", "edge_many", "class_one", "box_one")

    def build(self, recipe: Recipe, classes: int) -> nn.Module:
        """As `TrainingTask.build`.

        Raises:
            NameNotFoundError: no such backbone.
            SpecError: `equal_cost_to`, which nobody has measured for detectors.
        """
        if ":" in recipe.model and not recipe.model.startswith(TIMM):
            return build_model(recipe.model, classes)
        if recipe.model not in (*SIZES, *OTHERS):
            raise NameNotFoundError("model of a detector", recipe.model, (*SIZES, *OTHERS))
        if recipe.equal_cost_to:
            raise SpecError("equal_cost_to compares classifiers; leave it out for a detector")
        side = max(recipe.input.height, recipe.input.width)
        return Detector(classes, size=recipe.model, attention=recipe.attention, imgsz=side)

    def views(self, samples: Sequence[Annotated], recipe: Recipe) -> BoxViews:
        """As `TrainingTask.views`."""
        return BoxViews(samples, recipe.input, recipe.augment, where=recipe.supervise != "none")

    def truth(self, shown: Annotated | CardSample) -> Boxes:
        """Its boxes."""
        return true_boxes(shown)

    def stack(self, truths: Sequence[Boxes]) -> Tensor:
        """Boxes and labels (B, M, 5), M at least 1; label -1 is padding."""
        most = max(1, *(len(truth.labels) for truth in truths)) if truths else 1
        stacked = np.zeros((len(truths), most, 5), np.float32)
        stacked[..., 4] = PADDING
        for row, truth in zip(stacked, truths, strict=True):
            row[: len(truth.labels), :4], row[: len(truth.labels), 4] = truth.boxes, truth.labels
        return torch.from_numpy(stacked)

    def mix(self, batch: Mixed, classes: int, share: float, rng: np.random.Generator) -> Mixed:
        """Mixup of pictures (Zhang et al. 2019, arXiv:1902.04103): both are seen, about half each, with the boxes of both."""
        if rng.random() >= share:
            return batch
        kept = rng.beta(32.0, 32.0)
        return Mixed(
            kept * batch.pictures + (1 - kept) * batch.pictures.flip(0),
            torch.cat([batch.target, batch.target.flip(0)], dim=1),
            torch.maximum(batch.where, batch.where.flip(0)),
        )

    def loss(self, answer: Answer, target: Tensor, smoothing: float) -> dict[str, Tensor]:
        """The terms; scores are not smoothed further, since a place's target is its overlap already."""
        terms: dict[str, Tensor] = {}
        for name, given, most in (("many", answer.many, MANY), ("one", answer.one, 1)):
            if given is not None:
                terms |= {f"{term}_{name}": value for term, value in _terms(answer, given, target, most).items()}
        return terms

    def compared(self, own: Answer, told: Tensor, target: Tensor) -> Compared:
        """Scores where the middles of the true boxes fall, at every level, of both of the student's heads.

        Before the classes' logits stands the background's, 0, which is class 0: scores of one place need not sum to one.
        What fills up a picture's boxes is left out: it would teach the picture's corner, over and over.

        Raises:
            DataError: the teacher answers for other places, or classes, than the student.
        """
        heads = [head.logits.float() for head in (own.many, own.one) if head is not None]
        told_BKA = told[:, 4:].float().clamp(FAINTEST, 1 - FAINTEST).logit()
        if told_BKA.shape != heads[0].shape:
            raise DataError(
                f"the teacher answers {tuple(told.shape)}, the student {tuple(heads[0].shape)} and four edges; "
                "train the teacher at the same imgsz, or distil from its features: cwd or mgd"
            )
        rows_BN = _middle_places(own, target)
        label_BN = (target[..., 4].long() + 1).repeat(1, LEVELS)
        true_BN = label_BN > 0
        return Compared(
            torch.cat([_rows(logits, rows_BN)[true_BN.flatten()] for logits in heads]),
            _rows(told_BKA, rows_BN)[true_BN.flatten()].repeat(len(heads), 1),
            label_BN[true_BN].repeat(len(heads)),
        )

    def figures(
        self, model: nn.Module, pictures: Sequence[tuple[Picture, Truth]], recipe: Recipe, labels: Sequence[str]
    ) -> dict[str, float]:
        """`map50` and `map` (0.5 to 0.95), 0 to 1, of boxes as the edge decodes them."""
        if not len(pictures):
            return {"map50": math.nan, "map": math.nan}
        thresholds = getattr(model, "thresholds", None)
        spec = Spec("detect", recipe.input, tuple(labels), output="boxes", thresholds=thresholds)
        judge = DetectJudge(spec)
        return judge.figures([judge.marks(truth, found) for truth, found in _found(model, pictures, judge)])


def _found(
    model: nn.Module, pictures: Sequence[tuple[Picture, Truth]], judge: DetectJudge
) -> Iterator[tuple[Truth, Detections]]:
    """What is there and what is found, picture by picture, each read once."""
    device = next(model.parameters()).device
    model.eval()
    for start in range(0, len(pictures), BATCH):
        held = [pictures[i] for i in range(start, min(start + BATCH, len(pictures)))]
        seen = torch.from_numpy(np.concatenate([prepare(picture, judge.spec.input) for picture, _ in held]))
        with torch.inference_mode():
            answers = model(normalise(seen.to(device))).float().cpu().numpy()
        for i, (picture, truth) in enumerate(held):
            size = (picture.shape[0], picture.shape[1])
            yield judge.truth(truth, picture), judge.answer({judge.spec.output: answers[i : i + 1]}, size)


def _middle_places(answer: Answer, target: Tensor) -> Tensor:
    """Of every level the place nearest to the middle of each true box, (B, LEVELS M); the first place for padding."""
    middle_BM2 = (target[..., :2] + target[..., 2:4]) / 2
    off_BMA = (answer.places.T - middle_BM2[:, :, None]).abs().amax(3)
    return torch.cat(
        [
            off_BMA.masked_fill(answer.strides != stride, math.inf).argmin(2)
            for stride in sorted(set(answer.strides.tolist()))
        ],
        dim=1,
    )


def _rows(logits_BKA: Tensor, rows_BN: Tensor) -> Tensor:
    """Logits at some places, the background's before them, (B N, 1 + K)."""
    taken_BKN = logits_BKA.gather(2, rows_BN[:, None].expand(-1, logits_BKA.shape[1], -1))
    return F.pad(taken_BKN.transpose(1, 2).flatten(0, 1), (1, 0))


def _terms(answer: Answer, given: Proposals, target: Tensor, most: int) -> dict[str, Tensor]:
    """The terms of one head, whose edges are bins or logarithms."""
    logits_BKA, edges_BNA = given.logits.float(), given.edges.float()
    has_bins = edges_BNA.shape[1] > 4
    reach_B4A = (mean_of_bins(edges_BNA) if has_bins else edges_BNA.exp()) * answer.strides
    boxes_BA4 = around(answer.places, reach_B4A)
    smallest = float(answer.strides.min())
    chosen_BA, truth_BA, score_BA = assign(
        logits_BKA.detach().sigmoid(), boxes_BA4.detach(), answer.places, target, most=most, smallest=smallest
    )
    total = score_BA.sum().clamp_min(1.0)
    labels_BA = target[..., 4].long().clamp_min(0).gather(1, truth_BA)
    wanted_BKA = torch.zeros_like(logits_BKA).scatter_(1, labels_BA[:, None], score_BA[:, None])
    terms = {"class": CLASS * F.binary_cross_entropy_with_logits(logits_BKA, wanted_BKA, reduction="sum") / total}
    wanted_N4 = target[..., :4].gather(1, truth_BA[..., None].expand(-1, -1, 4))[chosen_BA]
    weight_N = score_BA[chosen_BA] / total
    terms["box"] = BOX * ((1 - ciou(boxes_BA4[chosen_BA], wanted_N4)) * weight_N).sum()
    if has_bins:
        picture_N, place_N = chosen_BA.nonzero(as_tuple=True)
        middle_N2, stride_N1 = answer.places.T[place_N], answer.strides[place_N, None]
        reach_N4 = torch.cat([middle_N2 - wanted_N4[:, :2], wanted_N4[:, 2:] - middle_N2], dim=1) / stride_N1
        bins_NR = edges_BNA[picture_N, :, place_N].reshape(-1, BINS)
        terms["edge"] = EDGE * (distribution_focal(bins_NR, reach_N4.flatten()).view(-1, 4).mean(1) * weight_N).sum()
    return terms


def mean_of_bins(edges_BNA: Tensor) -> Tensor:
    """Distances (B, 4, A) in strides, of logits of their bins (B, 4 R, A)."""
    bins_B4RA = edges_BNA.reshape(edges_BNA.shape[0], 4, BINS, -1).softmax(2)
    distances_R = torch.arange(BINS, dtype=bins_B4RA.dtype, device=bins_B4RA.device)
    return (bins_B4RA * distances_R[:, None]).sum(2)
