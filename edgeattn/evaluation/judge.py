"""How answers are judged, a class a task: what is kept of a picture, what a set's figure is, and whether int8 loses by it.

What is kept of a picture are its marks: the label and the answer, the true boxes and those found, or counts of pixels.

Legend of shapes: K classes, P pictures, B sets drawn from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import DataError
from edgeattn.evaluation import classify, segment
from edgeattn.evaluation.detect import (
    RIGHT,
    WRONG,
    ClassPrecision,
    Finding,
    Masked,
    Truth,
    average_precision,
    drawn_map50,
    mask_precision,
    package,
    rightness,
    run_lengths,
)
from edgeattn.evaluation.significance import Gate, fall_gate, loss_gate
from edgeattn.spec import Spec, Task, Thresholds
from edgeattn.tasks import FIGURES, Classification, Figure, decode, detect
from edgeattn.tasks.classify import with_index
from edgeattn.tasks.detect import Detections
from edgeattn.tasks.segment import Regions
from edgeattn.tasks.segment import decode as decode_regions

Outputs = Mapping[str, NDArray[Any]]
ClassFigures = tuple[classify.ClassScore, ...] | tuple[ClassPrecision, ...] | tuple[segment.ClassOverlap, ...]

BROKEN = -2
"""The answer of an artefact whose outputs are not finite; never right."""
SAME = 0.95
"""Least agreement of two answers to a picture that are the same: less is a flip."""
FAINTEST = 0.001
"""Score that a box must exceed to count for average precision, which looks at all of them."""
PART = 0.1
"""Of float's figure, most that may be lost where the bound is not wider itself: of a figure of nearly nothing a point is all."""
DRAWN = 1000
"""Sets of pictures that an interval is drawn from."""


class Judge(Protocol):
    """One task's. Labelled pictures come with a label's place, or an object with boxes or a `class_map()`."""

    @property
    def figure(self) -> Figure:
        """By what a set is judged."""

    def truth(self, told: Any, picture: NDArray[np.uint8]) -> Any:
        """The truth of a picture in the form that `marks` takes.

        Raises:
            DataError: it does not fit the labels or the picture; says how.
        """

    def answer(self, outputs: Outputs, size: tuple[int, int]) -> Any:
        """What the outputs (batch of one) say of a frame of this height and width."""

    def agreement(self, given: Any, wanted: Any) -> float:
        """How far two answers to a picture are the same, 0 to 1."""

    def score(self, answer: Any) -> float:
        """How sure an answer is, 0 to 1."""

    def marks(self, truth: Any, answer: Any) -> Any:
        """What of a picture the figures are made of; an answer of None is one that is not finite."""

    def worth(self, marks: Any) -> float:
        """How good the answer to one picture is, 0 to 1."""

    def told(self, marks: Any) -> str:
        """The same in words."""

    def shown(self, truth: Any) -> Any:
        """The truth as an answer that can be drawn, its score not a number."""

    def figures(self, marks: Sequence[Any]) -> dict[str, float]:
        """The set's figure by its key, then others."""

    def classes(self, marks: Sequence[Any]) -> ClassFigures:
        """Figures class by class."""

    def loss(self, before: Sequence[Any], after: Sequence[Any], bound: float) -> Gate:
        """Test that the second model's figure is at most `bound` below the first's, on the same pictures."""


def judge_of(spec: Spec) -> Judge:
    """Who judges a model's answers."""
    kinds: dict[Task, type[ClassifyJudge | DetectJudge | SegmentJudge]] = {
        "classify": ClassifyJudge, "detect": DetectJudge, "segment": SegmentJudge
    }  # fmt: skip
    return kinds[spec.task](spec)


@dataclass(frozen=True)
class _OfSpec:
    """What is the same for all."""

    spec: Spec

    @property
    def figure(self) -> Figure:
        """As `Judge.figure`."""
        return FIGURES[self.spec.task]

    def score(self, answer: Classification | Detections | Regions) -> float:
        """As `Judge.score`."""
        return answer.score


class ClassifyJudge(_OfSpec):
    """Marks are the label and the answer, as places in the labels; -1 is none of them."""

    def truth(self, told: int, picture: NDArray[np.uint8]) -> int:
        """As `Judge.truth`."""
        if not (0 <= told < len(self.spec.labels) or (told == -1 and self.spec.rejection)):
            raise DataError(f"it has label {told}; the bundle knows 0 to {len(self.spec.labels) - 1}")
        return told

    def answer(self, outputs: Outputs, size: tuple[int, int]) -> Any:
        """As `Judge.answer`."""
        return decode(outputs, self.spec)

    def agreement(self, given: Classification | None, wanted: Classification | None) -> float:
        """As `Judge.agreement`."""
        return float(_index(given) == _index(wanted))

    def marks(self, truth: int, answer: Classification | None) -> tuple[int, int]:
        """As `Judge.marks`."""
        return truth, _index(answer)

    def worth(self, marks: tuple[int, int]) -> float:
        """As `Judge.worth`."""
        return float(marks[0] == marks[1])

    def told(self, marks: tuple[int, int]) -> str:
        """As `Judge.told`."""
        return "right" if self.worth(marks) else "wrong"

    def shown(self, truth: int) -> Any:
        """As `Judge.shown`."""
        return with_index(np.full(len(self.spec.labels), np.nan), truth, self.spec)

    def figures(self, marks: Sequence[tuple[int, int]]) -> dict[str, float]:
        """As `Judge.figures`."""
        return {self.figure.key: float(np.mean([self.worth(each) for each in marks]))}

    def classes(self, marks: Sequence[tuple[int, int]]) -> tuple[classify.ClassScore, ...]:
        """As `Judge.classes`."""
        truth, answers = np.array(marks, np.int64).T
        counts = classify.confusion(truth, np.where(answers == BROKEN, -1, answers), len(self.spec.labels))
        return tuple(classify.per_class(counts, self.spec.labels))

    def loss(self, before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]], bound: float) -> Gate:
        """As `Judge.loss`: Tango's interval."""
        float_right, int8_right = (np.array([self.worth(each) > 0 for each in marks]) for marks in (before, after))
        return loss_gate(float_right, int8_right, bound)


def _index(answer: Classification | None) -> int:
    return answer.index if answer else BROKEN


class DetectJudge(_OfSpec):
    """Marks are the true boxes and those found, with their masks where the model gives some and the truth has outlines."""

    @property
    def kept(self) -> Thresholds:
        """Which boxes are told."""
        return self.spec.thresholds or Thresholds()

    def truth(self, told: Truth, picture: NDArray[np.uint8]) -> Truth:
        """As `Judge.truth`.

        Raises:
            ExtraMissingError: what measures mAP is not installed.
        """
        package()
        if len(told.labels) and not 0 <= told.labels.min() <= told.labels.max() < len(self.spec.labels):
            raise DataError(f"it has label {told.labels.max()}; the bundle knows 0 to {len(self.spec.labels) - 1}")
        outlines = getattr(told, "masks", None) if self.spec.prototypes else None
        return told if outlines is None else _masked(told, outlines)

    def answer(self, outputs: Outputs, size: tuple[int, int]) -> Detections:
        """As `Judge.answer`, with the faint boxes that average precision wants."""
        low = dataclasses.replace(self.kept, confidence=min(FAINTEST, self.kept.confidence))
        return detect.decode(outputs, dataclasses.replace(self.spec, thresholds=low), size)

    def agreement(self, given: Detections | None, wanted: Detections | None) -> float:
        """As `Judge.agreement`: 1 or 0, by the boxes that are told."""
        if given is None or wanted is None:
            return float(given is wanted)
        told = [found.chosen(found.scores > self.kept.confidence) for found in (given, wanted)]
        return float(detect.agree(*told))

    def marks(self, truth: Truth, answer: Detections | None) -> tuple[Truth, Finding]:
        """As `Judge.marks`."""
        if answer is None:
            return truth, Finding(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
        masks = run_lengths(answer.masks.each()) if answer.masks and isinstance(truth, Masked) else ()
        return truth, Finding(answer.boxes, answer.indices, answer.scores, masks)

    def worth(self, marks: tuple[Truth, Finding]) -> float:
        """As `Judge.worth`: F1 of the boxes that are told; 1 where nothing is there and nothing found."""
        right, wrong, there = self._counted(marks)
        return 2 * right / (right + wrong + there) if wrong + there else 1.0

    def told(self, marks: tuple[Truth, Finding]) -> str:
        """As `Judge.told`."""
        right, wrong, there = self._counted(marks)
        return f"{right} of {there} found" + (f", {wrong} wrong" if wrong else "")

    def shown(self, truth: Truth) -> Detections:
        """As `Judge.shown`."""
        boxes = np.asarray(truth.boxes, np.float32)
        return Detections(boxes, np.full(len(boxes), np.nan, np.float32), truth.labels, self.spec.labels)

    def _counted(self, marks: tuple[Truth, Finding]) -> tuple[int, int, int]:
        """Of the boxes that are told, how many are right and how many wrong; and how many there are."""
        truth, found = marks
        told = found.scores > self.kept.confidence
        what = rightness(truth, Finding(found.boxes[told], found.labels[told], found.scores[told]))
        return int((what == RIGHT).sum()), int((what == WRONG).sum()), int((~truth.crowd).sum())

    def figures(self, marks: Sequence[tuple[Truth, Finding]]) -> dict[str, float]:
        """As `Judge.figures`: mAP50, and mAP over the IoUs 0.5 to 0.95; of masks too, where all pictures have some."""
        truths, found = _columns(marks)
        precision = average_precision(truths, found, self.spec.labels)
        boxes = {"map50": precision.map50, "map": precision.map}
        masked = [truth for truth in truths if isinstance(truth, Masked)]
        if len(masked) < len(truths):
            return boxes
        masks = mask_precision(masked, found, self.spec.labels)
        return boxes | {"mask_map50": masks.map50, "mask_map": masks.map}

    def classes(self, marks: Sequence[tuple[Truth, Finding]]) -> tuple[ClassPrecision, ...]:
        """As `Judge.classes`, of those that occur."""
        return tuple(one for one in average_precision(*_columns(marks), self.spec.labels).classes if one.n)

    def loss(
        self, before: Sequence[tuple[Truth, Finding]], after: Sequence[tuple[Truth, Finding]], bound: float
    ) -> Gate:
        """As `Judge.loss`, by mAP50."""
        weights_BP, classes = _weights(len(before)), len(self.spec.labels)
        float_B, int8_B = (drawn_map50(*_columns(marks), weights_BP, classes) for marks in (before, after))
        objects = sum(int((~truth.crowd).sum()) for truth, _ in before)
        if not objects:
            raise DataError("there are no boxes on the labelled pictures to judge a detector by; give some that have")
        return _fall(float_B, int8_B, bound, len(before), objects)


def _masked(told: Truth, outlines: Any) -> Masked:
    """The objects of a picture with their masks, drawn by `datasets.annotated.Outlines`."""
    drawn, undrawn = outlines.instances(), np.array([outline is None for outline in outlines.outlines], bool)
    for i in np.flatnonzero(undrawn):
        left, top, right, low = np.rint(told.boxes[i]).astype(int)
        drawn[i, top:low, left:right] = True
    return Masked(told.boxes, told.labels, told.crowd, run_lengths(drawn), undrawn)


def _fall(float_B: NDArray[np.float64], int8_B: NDArray[np.float64], bound: float, n: int, objects: int = 0) -> Gate:
    """The gate of two figures, each of all pictures and then of sets drawn from them."""
    falls_B = float_B - int8_B
    bound = min(bound, max(PART, bound) * float(float_B[0]))
    return fall_gate(float(falls_B[0]), falls_B[1:][np.isfinite(falls_B[1:])], bound, n, objects=objects)


def _columns(marks: Sequence[tuple[Truth, Finding]]) -> tuple[list[Truth], list[Finding]]:
    return [truth for truth, _ in marks], [found for _, found in marks]


def _weights(pictures: int) -> NDArray[np.int64]:
    """How often each picture is in each set, (1 + B, P): once in the first, then drawn with replacement."""
    drawn = np.random.default_rng(0).multinomial(pictures, np.full(pictures, 1 / pictures), DRAWN)
    return np.concatenate([np.ones((1, pictures), np.int64), drawn])


class SegmentJudge(_OfSpec):
    """Marks are counts of pixels, and how well boundaries are met."""

    def truth(self, told: Any, picture: NDArray[np.uint8]) -> segment.Labels:
        """As `Judge.truth`."""
        classes_HW: segment.Labels = told.class_map()
        if classes_HW.shape != picture.shape[:2]:
            raise DataError(f"its map of classes is {classes_HW.shape}, the picture {picture.shape[:2]}")
        known = classes_HW[classes_HW != segment.IGNORE]
        if known.size and known.max() >= len(self.spec.labels):
            raise DataError(f"it has label {known.max()}; the bundle knows 0 to {len(self.spec.labels) - 1}")
        return classes_HW

    def answer(self, outputs: Outputs, size: tuple[int, int]) -> Regions:
        """As `Judge.answer`."""
        return decode_regions(outputs, self.spec, size)

    def agreement(self, given: Regions | None, wanted: Regions | None) -> float:
        """As `Judge.agreement`: the share of pixels."""
        if given is None or wanted is None:
            return float(given is wanted)
        return float(np.mean(given.class_map == wanted.class_map))

    def marks(self, truth: segment.Labels, answer: Regions | None) -> segment.Marks:
        """As `Judge.marks`; what is not finite is taken for the next class throughout, what is not seen counts neither way."""
        classes = len(self.spec.labels)
        if answer is None:
            given = np.where(truth == segment.IGNORE, 0, (truth.astype(np.int64) + 1) % classes)
        else:
            given = answer.class_map
            truth = np.where(given == segment.IGNORE, segment.IGNORE, truth)
        return segment.marks_of(truth, given, classes)

    def worth(self, marks: segment.Marks) -> float:
        """As `Judge.worth`: the picture's own mIoU; 1 where no pixel counts."""
        iou = float(_mean_iou(marks.counts[None])[0])
        return iou if math.isfinite(iou) else 1.0

    def told(self, marks: segment.Marks) -> str:
        """As `Judge.told`."""
        return f"{self.figure.name} {100 * self.worth(marks):.0f} %"

    def shown(self, truth: segment.Labels) -> Regions:
        """As `Judge.shown`."""
        shares = np.bincount(truth.ravel(), minlength=segment.IGNORE + 1)[: len(self.spec.labels)] / truth.size
        return Regions(truth.astype(np.uint8), shares, math.nan, self.spec.labels)

    def figures(self, marks: Sequence[segment.Marks]) -> dict[str, float]:
        """As `Judge.figures`: mIoU, the share of right pixels, and the boundaries' F1."""
        overlap = self._overlap(marks)
        return {"miou": overlap.miou, "pixel_accuracy": overlap.accuracy, "boundary_f1": overlap.boundary_f1}

    def classes(self, marks: Sequence[segment.Marks]) -> tuple[segment.ClassOverlap, ...]:
        """As `Judge.classes`, of those that occur or are answered."""
        return tuple(one for one in self._overlap(marks).classes if not math.isnan(one.iou))

    def loss(self, before: Sequence[segment.Marks], after: Sequence[segment.Marks], bound: float) -> Gate:
        """As `Judge.loss`, by mIoU."""
        weights_BP = _weights(len(before))
        float_B, int8_B = (
            _mean_iou(np.tensordot(weights_BP, np.array([one.counts for one in marks], np.int64), 1))
            for marks in (before, after)
        )
        if not math.isfinite(float_B[0]):
            raise DataError("no pixel of the labelled pictures counts; give some that have classes")
        return _fall(float_B, int8_B, bound, len(before))

    def _overlap(self, marks: Sequence[segment.Marks]) -> segment.Overlap:
        seen = segment.Segmentation(self.spec.labels)
        for one in marks:
            seen.take(one)
        return seen.overlap()


def _mean_iou(counts_BKK: NDArray[Any]) -> NDArray[np.float64]:
    """mIoU of sets by their counts, (B,), over the classes that occur or are answered; NaN where none does."""
    right_BK = np.diagonal(counts_BKK, axis1=1, axis2=2)
    either_BK = counts_BKK.sum(1) + counts_BKK.sum(2) - right_BK
    occurs_BK = either_BK > 0
    iou_BK = right_BK / np.maximum(either_BK, 1)
    return np.asarray(np.where(occurs_BK, iou_BK, 0.0).sum(1) / np.where(occurs_BK.any(1), occurs_BK.sum(1), np.nan))
