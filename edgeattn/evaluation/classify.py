"""Figures of a classifier. Truths and answers are label indices; -1 stands for `none of these` on both sides.

Legend of shapes: N pictures, K labels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.integer]

NONE = "none of these"
"""Name of the row and column of index -1."""
MOST_COLUMNS = 12
"""Most labels of which the whole confusion matrix is written; beyond, only what is confused most."""


@dataclass(frozen=True)
class ClassScore:
    """How well one class is recognised; a figure over nothing is 0."""

    label: str
    """Name of the class."""
    n: int
    """Pictures of it."""
    precision: float
    """Share of the answers naming it that are right."""
    recall: float
    """Share of its pictures that are recognised."""
    f1: float
    """Harmonic mean of both."""


def top1(truth_N: Indices, answer_N: Indices) -> float:
    """Share of pictures whose answer is right; NaN without pictures."""
    return float(np.mean(np.equal(truth_N, answer_N))) if len(truth_N) else float("nan")


def confusion(truth_N: Indices, answer_N: Indices, classes: int) -> NDArray[np.int64]:
    """Counts (K, K), or (K + 1, K + 1) where -1 occurs: row = truth, column = answer, the last of both for -1."""
    truth, answer = np.asarray(truth_N, np.int64), np.asarray(answer_N, np.int64)
    size = classes + bool((truth < 0).any() or (answer < 0).any())
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (np.where(truth < 0, classes, truth), np.where(answer < 0, classes, answer)), 1)
    return counts


def per_class(counts: NDArray[np.int64], labels: Sequence[str]) -> list[ClassScore]:
    """Scores of every class (and of `none of these`, where it has a row) from a confusion matrix."""
    right, pictures, answers = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    scores = []
    for i, label in enumerate(_names(counts, labels)):
        precision = float(right[i] / answers[i]) if answers[i] else 0.0
        recall = float(right[i] / pictures[i]) if pictures[i] else 0.0
        f1 = 2 * precision * recall / (precision + recall) if right[i] else 0.0
        scores.append(ClassScore(label, int(pictures[i]), precision, recall, f1))
    return scores


@dataclass(frozen=True)
class Macro:
    """Means over the classes that occur, each counting the same."""

    precision: float
    """Mean precision."""
    recall: float
    """Mean recall: the balanced accuracy."""
    f1: float
    """Mean F1."""


def macro(scores: Sequence[ClassScore]) -> Macro:
    """Means over the classes that have pictures; NaN where none has."""
    held = [score for score in scores if score.n]
    if not held:
        return Macro(math.nan, math.nan, math.nan)
    return Macro(*(float(np.mean([getattr(s, name) for s in held])) for name in ("precision", "recall", "f1")))


@dataclass(frozen=True)
class Calibration:
    """Whether an answer given with 80 % is right in 80 % of the cases (Guo et al. 2017, arXiv:1706.04599)."""

    error: float
    """Expected calibration error: mean gap between confidence and accuracy over the bins, by their pictures."""
    confidence: tuple[float, ...]
    """Mean confidence of each bin that holds pictures."""
    accuracy: tuple[float, ...]
    """Share of right answers in each."""
    n: tuple[int, ...]
    """Pictures in each."""


def calibration(confidence_N: NDArray[np.floating], right_N: NDArray[np.bool_], bins: int = 15) -> Calibration:
    """Calibration over `bins` equal ranges of the answer's probability; the error is NaN without pictures."""
    confidence, right = np.asarray(confidence_N, np.float64), np.asarray(right_N, bool)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    held = [place == i for i in range(bins) if (place == i).any()]
    means = tuple(float(confidence[chosen].mean()) for chosen in held)
    shares = tuple(float(right[chosen].mean()) for chosen in held)
    counts = tuple(int(chosen.sum()) for chosen in held)
    gaps = [n * abs(c - a) for n, c, a in zip(counts, means, shares, strict=True)]
    return Calibration(sum(gaps) / len(right) if len(right) else math.nan, means, shares, counts)


def figures(
    truth_N: Indices, answer_N: Indices, confidence_N: NDArray[np.floating], labels: Sequence[str]
) -> dict[str, float]:
    """What a classifier is told by: `top1`, the means over the classes and `calibration_error`; NaN without pictures."""
    means = macro(per_class(confusion(truth_N, answer_N, len(labels)), labels))
    error = calibration(confidence_N, np.equal(truth_N, answer_N)).error
    return {"top1": top1(truth_N, answer_N)} | dataclasses.asdict(means) | {"calibration_error": error}


def confusion_text(counts: NDArray[np.int64], labels: Sequence[str]) -> str:
    """The matrix as text, truth downwards and answers across; with many labels, what is confused most instead."""
    names = _names(counts, labels)
    if len(names) > MOST_COLUMNS:
        return _worst_text(counts, names)
    wide = max(len(name) for name in names)
    columns = [max(len(name), len(str(counts[:, i].max()))) for i, name in enumerate(names)]
    head = "  ".join([" " * wide, *(f"{name:>{w}}" for name, w in zip(names, columns, strict=True))])
    rows = [
        "  ".join([f"{name:<{wide}}", *(f"{count:>{w}}" for count, w in zip(row, columns, strict=True))])
        for name, row in zip(names, counts, strict=True)
    ]
    return "\n".join([head, *rows])


def _worst_text(counts: NDArray[np.int64], names: Sequence[str]) -> str:
    wrong = counts - np.diag(np.diag(counts))
    worst = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:MOST_COLUMNS]]
    lines = [f"{names[t]} taken for {names[a]}: {wrong[t, a]} of {counts[t].sum()}" for t, a in worst if wrong[t, a]]
    return "\n".join(lines) or "nothing is confused"


def _names(counts: NDArray[np.int64], labels: Sequence[str]) -> list[str]:
    return [*labels, NONE][: len(counts)]
