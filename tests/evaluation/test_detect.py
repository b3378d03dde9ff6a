"""Average precision against numbers from paper, a naive reference, and faster-coco-eval on JSON files of its own."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn._cv2 import cv2
from edgeattn.datasets.cards import Cards
from edgeattn.datasets.coco import read_coco
from edgeattn.errors import DataError, ExtraMissingError
from edgeattn.evaluation.detect import average_precision, drawn_map50


@dataclass
class Seen:
    """Boxes of a picture, there or found."""

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


def there(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> Seen:
    return Seen(np.array(boxes, np.float32), np.array(labels), crowd=np.array(crowd or [False] * len(labels), bool))


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Seen:
    return Seen(np.array(boxes, np.float32), np.array(labels), np.array(scores, np.float32))


FIRST, SECOND, FAR = [0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]


def test_by_hand() -> None:
    # Sorted by score: right, wrong, right. Precision 1 up to recall 1/2, 2/3 up to 1: 51 and 50 of the 101 recalls.
    answer = found([FIRST, FAR, SECOND], [0, 0, 0], [0.9, 0.8, 0.7])
    scores = average_precision([there([FIRST, SECOND], [0, 0])], [answer], ["a"])
    assert scores.map50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert scores.map == pytest.approx(scores.map50)


def test_the_iou_decides_at_which_thresholds_a_box_is_right() -> None:
    # 10 x 10 against 10 x 8 inside it: an IoU of 0.8, right at 0.5 to 0.8, seven of the ten thresholds.
    scores = average_precision([there([FIRST], [0])], [found([[0, 0, 10, 8]], [0], [0.5])], ["a"])
    assert (scores.map50, scores.map) == (pytest.approx(1.0), pytest.approx(0.7))


def test_classes_are_apart_and_those_that_do_not_occur_do_not_count() -> None:
    truths = [there([FIRST, SECOND], [0, 2]), there([], [])]
    truths[1] = Seen()
    scores = average_precision(truths, [found([FIRST, SECOND], [0, 1], [0.9, 0.9]), Seen()], ["a", "b", "c"])
    assert [one.n for one in scores.classes] == [1, 0, 1]
    assert [one.ap50 for one in scores.classes] == [1.0, pytest.approx(math.nan, nan_ok=True), 0.0]
    assert scores.map50 == 0.5
    nothing = average_precision([Seen()], [Seen()], ["a"])
    assert math.isnan(nothing.map50)
    assert math.isnan(nothing.map)


def test_what_lies_in_a_crowd_counts_neither_way() -> None:
    truth = there([FIRST, [40, 40, 80, 80]], [0, 0], [False, True])
    answer = found([FAR, [45, 45, 52, 52], FIRST], [0, 0, 0], [0.9, 0.8, 0.7])
    scores = average_precision([truth], [answer], ["a"])
    assert scores.map50 == 1.0
    assert scores.classes[0].n == 1


def naive_ap(truths: list[Seen], answers: list[Seen], label: int, threshold: float) -> float:
    """Average precision of one class, step by step, without crowds."""
    ranked = sorted(
        (
            (float(s), i, box)
            for i, a in enumerate(answers)
            for s, box, k in zip(a.scores, a.boxes, a.labels, strict=True)
            if k == label
        ),
        key=lambda each: -each[0],
    )
    taken: set[tuple[int, int]] = set()
    right = []
    for _, i, box in ranked:
        best, chosen = threshold, None
        for j, (other, k) in enumerate(zip(truths[i].boxes, truths[i].labels, strict=True)):
            if k == label and (i, j) not in taken and (overlap := iou(box, other)) >= best:
                best, chosen = overlap, (i, j)
        right.append(chosen is not None)
        if chosen is not None:
            taken.add(chosen)
    n = sum(int((truth.labels == label).sum()) for truth in truths)
    hits = np.cumsum(right)
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / n
    at = [precision[recall >= r].max() if (recall >= r).any() else 0.0 for r in np.linspace(0, 1, 101)]
    return float(np.mean(at))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inner = max(0.0, width) * max(0.0, height)
    return float(inner / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner))


def scene(rng: np.random.Generator) -> tuple[Seen, Seen]:
    """Random boxes and what a middling detector finds of them."""
    n = int(rng.integers(1, 7))
    corner, size = rng.uniform(0, 80, (n, 2)), rng.uniform(5, 40, (n, 2))
    boxes, labels = np.hstack([corner, corner + size]), rng.integers(0, 3, n)
    kept = rng.random(n) < 0.8
    moved = boxes[kept] + rng.normal(0, 2, (kept.sum(), 4))
    wrong = np.hstack([corner, corner + size[::-1]])[: n // 2] + 15
    answers = np.vstack([moved, wrong])
    of = np.concatenate([np.where(rng.random(kept.sum()) < 0.9, labels[kept], 0), labels[: n // 2]])
    truth = Seen(boxes.astype(np.float32), labels, crowd=np.zeros(n, bool))
    return truth, Seen(
        answers.astype(np.float32), of, rng.permutation(len(of)).astype(np.float32) + rng.random(1, np.float32)
    )


def test_against_a_naive_reference() -> None:
    rng = np.random.default_rng(5)
    truths, answers = map(list, zip(*(scene(rng) for _ in range(25)), strict=True))
    scores = average_precision(truths, answers, ["a", "b", "c"])
    for label, one in enumerate(scores.classes):
        at = [naive_ap(truths, answers, label, threshold) for threshold in np.linspace(0.5, 0.95, 10)]
        assert (one.ap50, one.ap) == (pytest.approx(at[0], abs=1e-6), pytest.approx(np.mean(at), abs=1e-6))
    assert 0.2 < scores.map < scores.map50 < 0.95


def test_a_coco_folder_through_our_reader_scores_as_its_own_json_does(tmp_path: Path) -> None:
    from faster_coco_eval import COCO, COCOeval_faster

    rng = np.random.default_rng(8)
    categories = [{"id": i, "name": f"name {i}"} for i in (1, 18, 90)]  # with gaps, as COCO's
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    answers = []
    for i in range(12):
        truth, answer = scene(rng)
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": 160, "height": 150})
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((150, 160, 3), np.uint8))
        for k, (box, label) in enumerate(zip(truth.boxes.astype(float), truth.labels, strict=True)):
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            common = {"image_id": 100 + i, "category_id": categories[label]["id"], "bbox": [x, y, w, h], "area": w * h}
            annotations.append({"id": len(annotations) + 1, "iscrowd": int(k == 4), **common})
        for box, label, score in zip(answer.boxes.astype(float), answer.labels, answer.scores, strict=True):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            found_one = {"category_id": categories[label]["id"], "bbox": bbox, "score": float(score)}
            results.append({"image_id": 100 + i, **found_one})
        answers.append(answer)
    held = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances_val.json").write_text(json.dumps(held))
    (tmp_path / "results.json").write_text(json.dumps(results))
    true = COCO(str(tmp_path / "instances_val.json"))
    judge = COCOeval_faster(true, true.loadRes(str(tmp_path / "results.json")), "bbox")
    judge.run()
    read = read_coco(tmp_path)
    scores = average_precision(read.pictures, answers, read.names)
    assert sum(one.crowd.sum() for one in read.pictures) == sum(one["iscrowd"] for one in annotations) > 0
    assert (scores.map, scores.map50) == (
        pytest.approx(judge.stats[0], abs=1e-6),
        pytest.approx(judge.stats[1], abs=1e-6),
    )
    assert scores.map50 > 0.2


def with_crowds(n: int, seed: int) -> tuple[list[Seen], list[Seen]]:
    rng = np.random.default_rng(seed)
    truths, answers = map(list, zip(*(scene(rng) for _ in range(n)), strict=True))
    for truth in truths:
        truth.crowd = rng.random(len(truth.labels)) < 0.2
    return truths, answers


@pytest.mark.parametrize("seed", range(4))
def test_drawn_sets_are_those_that_the_package_would_judge(seed: int) -> None:
    truths, answers = with_crowds(15, seed)
    drawn = np.random.default_rng(seed).multinomial(15, np.full(15, 1 / 15), 5)
    weights = np.concatenate([np.ones((1, 15), np.int64), drawn])
    for figure, weight in zip(drawn_map50(truths, answers, weights, 3), weights, strict=True):
        places = np.repeat(np.arange(15), weight)
        wanted = average_precision([truths[i] for i in places], [answers[i] for i in places], ["a", "b", "c"])
        assert figure == pytest.approx(wanted.map50, abs=1e-6)


def test_nothing_found_and_nothing_there_are_figures_too() -> None:
    truths, answers = with_crowds(6, 9)
    weights = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 6]])
    assert drawn_map50(truths, [Seen()] * 6, weights, 3).tolist() == [0.0, 0.0]
    truths[5] = Seen()
    assert math.isnan(drawn_map50(truths, answers, weights, 3)[1])


def test_rendered_cards_are_truths() -> None:
    samples = [Cards("test", seed=1, size=48).sample(i) for i in range(4)]
    answers = [Seen(one.boxes, one.labels, np.ones(1, np.float32)) for one in samples]
    scores = average_precision(samples, answers, Cards.labels)
    assert scores.map == pytest.approx(1.0)
    assert sum(one.n for one in scores.classes) == 4


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([], "0 results for 1 pictures"),
        ([found([FIRST], [3], [0.5])], "labels 3 to 3 for 1 names"),
        ([found([FIRST], [0], [math.nan])], "no number"),
        ([found([FIRST], [0, 0], [0.5])], "do not fit"),
    ],
)
def test_what_does_not_fit_is_said(answers: list[Seen], said: str) -> None:
    with pytest.raises(DataError, match=said):
        average_precision([there([FIRST], [0])], answers, ["a"])


def test_without_the_package_its_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ExtraMissingError, match=r"faster-coco-eval.*pip install 'edgeattn\[detect\]'"):
        average_precision([Seen()], [Seen()], ["a"])
