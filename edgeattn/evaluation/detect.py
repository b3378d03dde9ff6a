"""Figures of a detector: average precision as COCO defines it (Lin et al. 2014, arXiv:1405.0312), by faster-coco-eval.

A box found is right where it overlaps a box of its class that no surer one has taken, by an IoU of at least a threshold.
Average precision is the mean of the precision (made falling) at 101 recalls; `ap50` takes the threshold 0.5, `ap` is the
mean over 0.5, 0.55, ..., 0.95. What lies in crowds counts neither way; of each picture and class the surest 100 count.

Legend of shapes: N boxes of a picture, M boxes found in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import DataError, ExtraMissingError

MOST = (1, 10, 100)
"""Boxes found that count, per picture and class; the figures here are for the last."""


class Truth(Protocol):
    """The objects of a picture, as `datasets.annotated.Annotated` holds them."""

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(N, 4): left, top, right and bottom in pixels."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,): places in the names."""

    @property
    def crowd(self) -> NDArray[np.bool_]:
        """(N,): regions of many objects."""


class Found(Protocol):
    """What a detector finds in a picture."""

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(M, 4): left, top, right and bottom in pixels of the picture."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(M,): places in the names."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """(M,): how sure, more is surer."""


@dataclass(frozen=True)
class ClassPrecision:
    """How well one class is found; NaN where there is none."""

    label: str
    """Name of the class."""
    n: int
    """Boxes of it, crowds left out."""
    ap50: float
    """Average precision at an IoU of 0.5, 0 to 1."""
    ap: float
    """Mean average precision over the IoUs 0.5 to 0.95, 0 to 1."""


@dataclass(frozen=True)
class Precision:
    """How well objects are found: means over the classes that occur; NaN where none does."""

    map50: float
    """mAP at an IoU of 0.5, 0 to 1."""
    map: float
    """mAP over the IoUs 0.5 to 0.95, 0 to 1."""
    classes: tuple[ClassPrecision, ...]
    """Class by class, in the order of the names."""


def average_precision(truths: Sequence[Truth], found: Sequence[Found], names: Sequence[str]) -> Precision:
    """Compare what was found with what is there, picture by picture in the same order.

    Raises:
        DataError: the two differ in length, there are no pictures, or shapes, labels or scores are wrong.
        ExtraMissingError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ExtraMissingError("faster-coco-eval", "train", "the precision of a detector") from error
    if len(truths) != len(found) or not truths:
        raise DataError(f"{len(found)} results for {len(truths)} pictures; give one for each, and one at least")
    there = [entry for i, truth in enumerate(truths, 1) for entry in _true_entries(i, truth, len(names))]
    answers = [entry for i, one in enumerate(found, 1) for entry in _found_entries(i, one, len(names))]
    true = COCO(
        {
            "images": [{"id": i} for i in range(1, len(truths) + 1)],
            "annotations": [{**entry, "id": i} for i, entry in enumerate(there, 1)],  # an id of 0 means not matched
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        }
    )
    judge = COCOeval_faster(true, true.loadRes(answers), "bbox")
    judge.params.maxDets = list(MOST)
    judge.evaluate()
    judge.accumulate()
    precision_TRK = judge.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, classes; of any area
    counts = np.bincount([one["category_id"] for one in there if not one["iscrowd"]], minlength=len(names))
    classes = tuple(
        ClassPrecision(name, int(n), _mean(precision_TRK[0, :, k]), _mean(precision_TRK[:, :, k]))
        for k, (name, n) in enumerate(zip(names, counts, strict=True))
    )
    held = [one for one in classes if one.n]
    if not held:
        return Precision(math.nan, math.nan, classes)
    return Precision(float(np.mean([one.ap50 for one in held])), float(np.mean([one.ap for one in held])), classes)


def _mean(precision: NDArray[np.float64]) -> float:
    return float(np.mean(precision)) if (precision >= 0).all() else math.nan  # -1: there is none of the class


def _true_entries(image: int, truth: Truth, classes: int) -> Iterator[dict[str, Any]]:
    _check(image, truth.boxes, truth.labels, truth.crowd, classes)
    for box, label, crowd in zip(_xywh(truth.boxes), truth.labels, truth.crowd, strict=True):
        yield _entry(image, box, int(label)) | {"iscrowd": int(crowd)}


def _found_entries(image: int, found: Found, classes: int) -> Iterator[dict[str, Any]]:
    _check(image, found.boxes, found.labels, found.scores, classes)
    for box, label, score in zip(_xywh(found.boxes), found.labels, found.scores, strict=True):
        yield _entry(image, box, int(label)) | {"score": float(score)}


def _entry(image: int, box: list[float], label: int) -> dict[str, Any]:
    return {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3]}


def _xywh(boxes: NDArray[np.float32]) -> list[list[float]]:
    corners = np.array(boxes, np.float64)
    corners[:, 2:] -= corners[:, :2]
    return [[float(value) for value in box] for box in corners]


def _check(image: int, boxes: NDArray[Any], labels: NDArray[Any], values: NDArray[Any], classes: int) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) == len(labels) == len(values):
        raise DataError(f"picture {image}: boxes {boxes.shape}, labels {labels.shape} and {values.shape} do not fit")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(f"picture {image}: labels {labels.min()} to {labels.max()} for {classes} names")
    if not (np.isfinite(boxes).all() and np.isfinite(values).all()):
        raise DataError(f"picture {image}: a box or a score is no number")
