"""Figures of a classifier. Truths and answers are label indices; -1 stands for `none of these` on both sides.

Legend of shapes: N pictures, K labels.
"""

from __future__ import annotations

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
