"""Figures of a detector: average precision as COCO defines it (Lin et al. 2014, arXiv:1405.0312), by faster-coco-eval.

A box found is right where it overlaps a box of its class that no surer one has taken, by an IoU of at least a threshold.
Average precision is the mean of the precision (made falling) at 101 recalls; `ap50` takes the threshold 0.5, `ap` is the
mean over 0.5, 0.55, ..., 0.95. What lies in crowds counts neither way; of each picture and class the surest 100 count.
Masks are judged in the same way, by the IoU of their pixels.

Legend of shapes: N boxes of a picture, M boxes found in it, H W the picture, P pictures, B sets drawn from them, D boxes found
in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import DataError, ExtraMissingError
from edgeattn.tasks.detect import overlap

MOST = (1, 10, 100)
"""Boxes found that count, per picture and class; the figures here are for the last."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""At which precision is taken."""


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


RunLengths = dict[str, Any]
"""A mask over its picture, (H, W), as COCO packs it."""


class Finding(NamedTuple):
    """A picture's boxes found: `Found`."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: tuple[RunLengths, ...] = ()
    """One a box, where masks are judged."""


@dataclass(frozen=True, eq=False)
class Masked:
    """The objects of a picture with their masks: `Truth`."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    masks: tuple[RunLengths, ...]
    """One an object."""
    undrawn: NDArray[np.bool_]
    """(N,): objects whose outline nobody has drawn; their masks are their boxes, and count neither way, as crowds."""


def run_lengths(masks: Iterable[NDArray[np.bool_]]) -> tuple[RunLengths, ...]:
    """Masks, each (H, W), packed.

    Raises:
        ExtraMissingError: faster-coco-eval is not installed.
    """
    encode = package().mask.encode
    return tuple(encode(np.asfortranarray(mask, np.uint8)) for mask in masks)


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
    there = [entry for i, truth in enumerate(truths, 1) for entry in _true_entries(i, truth, len(names))]
    answers = [entry for i, one in enumerate(found, 1) for entry in _found_entries(i, one, len(names))]
    return _judged(there, answers, _pictures(truths, found), names, "bbox")


def mask_precision(truths: Sequence[Masked], found: Sequence[Finding], names: Sequence[str]) -> Precision:
    """As `average_precision`, by masks."""
    there = [
        entry | {"segmentation": mask, "iscrowd": int(entry["iscrowd"] or undrawn)}
        for i, one in enumerate(truths, 1)
        for entry, mask, undrawn in zip(_true_entries(i, one, len(names)), one.masks, one.undrawn, strict=True)
    ]
    answers = [
        entry | {"segmentation": mask}
        for i, one in enumerate(found, 1)
        for entry, mask in zip(_found_entries(i, one, len(names)), one.masks, strict=True)
    ]
    return _judged(there, answers, _pictures(truths, found), names, "segm")


def _pictures(truths: Sequence[Truth], found: Sequence[Found]) -> int:
    if len(truths) != len(found) or not truths:
        raise DataError(f"{len(found)} results for {len(truths)} pictures; give one for each, and one at least")
    return len(truths)


def _judged(
    there: list[dict[str, Any]],
    answers: list[dict[str, Any]],
    pictures: int,
    names: Sequence[str],
    by: Literal["bbox", "segm"],
) -> Precision:
    """What COCO's evaluation says of the entries of so many pictures, and of the answers to them."""
    coco = package()
    true = coco.COCO(
        {
            # of masks it asks for sizes, and needs none: they are packed already
            "images": [{"id": i, "height": 0, "width": 0} for i in range(1, pictures + 1)],
            "annotations": [{**entry, "id": i} for i, entry in enumerate(there, 1)],  # an id of 0 means not matched
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        }
    )
    judge = coco.COCOeval_faster(true, true.loadRes(answers), by)
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


def package() -> Any:
    """faster-coco-eval.

    Raises:
        ExtraMissingError: it is not installed.
    """
    try:
        import faster_coco_eval
    except ImportError as error:
        raise ExtraMissingError("faster-coco-eval", "detect", "the precision of a detector") from error
    return faster_coco_eval


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


RIGHT, WRONG, EXCUSED = 1, 0, -1
"""What a box found is: right, wrong, or on a crowd."""
CELLS = 4_000_000
"""Boxes times sets that are counted at once."""


def rightness(truth: Truth, found: Found, iou: float = 0.5) -> NDArray[np.int8]:
    """What each box found in a picture is, (M,): the surest first takes the truest box of its class that is left.

    Beyond the surest 100 of a class they are `EXCUSED`, too.
    """
    what = np.full(len(found.labels), EXCUSED, np.int8)
    for label in np.unique(found.labels):
        own = np.flatnonzero(found.labels == label)
        own = own[np.argsort(-found.scores[own], kind="stable")][: MOST[-1]]
        there = truth.labels == label
        single, crowd = truth.boxes[there & ~truth.crowd], truth.boxes[there & truth.crowd]
        overlaps = overlap(found.boxes[own], single)
        excused = (_inside(found.boxes[own], crowd) >= iou).sum(1)
        for place, row, excuse in zip(own, overlaps, excused, strict=True):
            best = int(row.argmax()) if row.size else -1
            if best >= 0 and row[best] >= iou:
                what[place] = RIGHT
                overlaps[:, best] = -1.0
            else:
                what[place] = EXCUSED if excuse else WRONG
    return what


def drawn_map50(
    truths: Sequence[Truth], found: Sequence[Found], weights_BP: NDArray[Any], classes: int
) -> NDArray[Any]:
    """mAP50 of sets of pictures, (B,): each picture as often as its weight says. With weights of 1 that of `average_precision`."""
    picture_D = np.repeat(np.arange(len(found)), [len(one.scores) for one in found])
    label_D, score_D = (np.concatenate([getattr(one, name) for one in found]) for name in ("labels", "scores"))
    what_D = np.concatenate([rightness(truth, one) for truth, one in zip(truths, found, strict=True)])
    there_PK = np.array([np.bincount(one.labels[~one.crowd], minlength=classes) for one in truths])
    total_B, held_B = np.zeros(len(weights_BP)), np.zeros(len(weights_BP))
    for k in np.flatnonzero(there_PK.sum(0)):
        own = np.flatnonzero((label_D == k) & (what_D != EXCUSED))
        own = own[np.argsort(-score_D[own], kind="stable")]
        right_D = what_D[own] == RIGHT
        last = np.flatnonzero(right_D)[-1:] + 1  # what comes after it changes no precision that counts
        own, right_D = own[: last.sum()], right_D[: last.sum()]
        there_B = weights_BP @ there_PK[:, k]
        step = max(1, CELLS // max(1, len(own)))
        for start in range(0, len(weights_BP), step):
            part = slice(start, start + step)
            weight_BD = weights_BP[part][:, picture_D[own]]
            total_B[part] += _precision(weight_BD, right_D, there_B[part])
        held_B += there_B > 0
    return total_B / np.where(held_B > 0, held_B, np.nan)


def _precision(weight_BD: NDArray[Any], right_D: NDArray[np.bool_], there_B: NDArray[Any]) -> NDArray[np.float64]:
    """Average precision of one class, (B,); 0 where a set has none of it."""
    found_BD = np.cumsum(weight_BD, axis=1)[:, right_D]
    hits_BD = np.cumsum(weight_BD[:, right_D], axis=1)
    precision_BD = hits_BD / np.maximum(found_BD, 1)
    falling_BD = np.maximum.accumulate(precision_BD[:, ::-1], axis=1)[:, ::-1]
    scores_B = np.zeros(len(there_B))
    for b in np.flatnonzero(there_B):
        places = np.searchsorted(hits_BD[b] / there_B[b], RECALLS, side="left")
        held = places[places < hits_BD.shape[1]]
        scores_B[b] = falling_BD[b, held].sum() / len(RECALLS)
    return scores_B


def _inside(a_N4: NDArray[Any], b_M4: NDArray[Any]) -> NDArray[np.float64]:
    """(N, M): the part of each box a that lies in each box b."""
    a, b = a_N4.astype(np.float64)[:, None], b_M4.astype(np.float64)[None]
    shared = np.maximum(0.0, np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).prod(-1)
    return np.asarray(shared / np.maximum((a[..., 2:] - a[..., :2]).prod(-1), 1e-9))
