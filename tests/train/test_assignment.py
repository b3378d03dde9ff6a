"""Which places learn which box, by cases worked out by hand; CIoU and distribution focal loss against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeattn.nn.detector import places
from edgeattn.train.assignment import Assignment, assign, ciou, distribution_focal, overlap

PLACES = places([(4, 4)], (8,))[0]
"""Middles at 4, 12, 20 and 28."""


def boxed(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float32)


def chosen(
    truth: Tensor, boxes: Tensor | None = None, scores: Tensor | None = None, *, most: int = 3, smallest: float = 8.0
) -> Assignment:
    """By default every place proposes the first true box, at a score of 0.5 for each of two classes."""
    boxes = truth[:, :1, :4].expand(-1, 16, -1) if boxes is None else boxes
    scores = torch.full((len(truth), 2, 16), 0.5) if scores is None else scores
    return assign(scores, boxes, PLACES, truth, most=most, smallest=smallest)


def at(given: Assignment) -> list[int]:
    return given.chosen[0].nonzero()[:, 0].tolist()


def test_only_places_inside_a_box_learn_it() -> None:
    assert at(chosen(boxed((7, 7, 25, 17, 0)), most=10)) == [5, 6]  # middles (12, 12) and (20, 12)


def test_of_the_places_inside_the_best_at_score_and_overlap_learn_it() -> None:
    truth = boxed((0, 0, 32, 32, 1))
    boxes = torch.zeros(1, 16, 4)
    for i in range(16):
        boxes[0, i] = torch.tensor([0.0, 0.0, 32.0, 17.0 + i])  # IoU (17 + i) / 32
    scores = torch.full((1, 2, 16), 0.5)
    assert at(chosen(truth, boxes, scores)) == [13, 14, 15]
    scores[0, 1, 13], scores[0, 1, 9] = 1e-6, 1.0  # 9: (26/32)^6, against (29/32)^6 sqrt(0.5) of place 12
    assert at(chosen(truth, boxes, scores, most=2)) == [14, 15]
    assert at(chosen(truth, boxes, scores)) == [12, 14, 15]
    scores[0, 0] = 1.0  # another class's score counts for nothing
    assert at(chosen(truth, boxes, scores)) == [12, 14, 15]


def test_the_best_place_is_to_score_its_overlap_and_the_others_in_proportion() -> None:
    truth = boxed((0, 0, 32, 32, 1))
    boxes = torch.tensor([0.0, 0.0, 32.0, 16.0]).repeat(1, 16, 1)
    boxes[0, 3, 3], boxes[0, 7, 3] = 28.0, 24.0
    given = chosen(truth, boxes, most=2)
    assert at(given) == [3, 7]
    assert given.score[0, 3] == pytest.approx(28 / 32, abs=1e-5)
    assert given.score[0, 7] == pytest.approx(28 / 32 * (24 / 28) ** 6, abs=1e-5)
    assert given.score.sum() == pytest.approx(float(given.score[0, 3] + given.score[0, 7]))


def test_a_place_in_two_boxes_learns_the_one_that_it_overlaps_more() -> None:
    truth = boxed((0, 0, 16, 16, 0), (0, 0, 24, 24, 1))
    boxes = torch.tensor([0.0, 0.0, 17.0, 17.0]).repeat(1, 16, 1)
    boxes[0, 5] = torch.tensor([0.0, 0.0, 24.0, 24.0])
    given = chosen(truth, boxes, most=16)
    assert given.truth[0, [0, 1, 4]].tolist() == [0, 0, 0]
    assert given.truth[0, 5] == 1
    assert at(given) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert given.truth[0, [2, 6, 8, 9, 10]].tolist() == [1] * 5


def test_padding_and_pictures_without_boxes_teach_the_background() -> None:
    truth = torch.cat([boxed((0, 0, 32, 32, 1), (0, 0, 0, 0, -1)), boxed((0, 0, 0, 0, -1), (0, 0, 0, 0, -1))])
    given = chosen(truth, torch.tensor([0.0, 0.0, 30.0, 30.0]).expand(2, 16, 4), torch.full((2, 2, 16), 0.5))
    assert given.chosen.sum(1).tolist() == [3, 0]
    assert given.score[1].sum() == 0


def test_a_box_between_the_places_is_learnt_by_the_nearest() -> None:
    truth = boxed((14, 14, 17, 17, 0))
    assert at(chosen(truth, most=1, smallest=0.0)) == []
    assert at(chosen(truth, most=1)) == [5]


def plain_ciou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The paper's formulas (4), (7), (10) to (12), a number at a time."""
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    sizes = [(box[2] - box[0], box[3] - box[1]) for box in (a, b)]
    iou = shared / (sizes[0][0] * sizes[0][1] + sizes[1][0] * sizes[1][1] - shared)
    apart = sum(((a[i] + a[i + 2] - b[i] - b[i + 2]) / 2) ** 2 for i in (0, 1))
    diagonal = sum((max(a[i + 2], b[i + 2]) - min(a[i], b[i])) ** 2 for i in (0, 1))
    v = 4 / math.pi**2 * (math.atan(sizes[1][0] / sizes[1][1]) - math.atan(sizes[0][0] / sizes[0][1])) ** 2
    return iou - apart / diagonal - (v / (1 - iou + v) * v if v else 0.0)


def test_ciou_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (40, 2, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 60, (40, 2, 2))], axis=2)
    boxes[0, 1] = boxes[0, 0]
    found, truth = torch.from_numpy(boxes).unbind(1)
    assert ciou(found, truth).tolist() == pytest.approx(
        [plain_ciou(tuple(a), tuple(b)) for a, b in boxes.tolist()], abs=1e-5
    )
    assert ciou(found, truth)[0] == pytest.approx(1.0, abs=1e-6)
    assert (overlap(found, truth) == 0).any()  # such boxes still are drawn together
    far = torch.tensor([[0.0, 0.0, 4.0, 4.0]], requires_grad=True)
    ciou(far, torch.tensor([[20.0, 0.0, 24.0, 4.0]])).sum().backward()
    assert far.grad is not None
    assert (far.grad[0, [0, 2]] > 0).any()


def test_distribution_focal_is_least_where_the_two_bins_around_share_by_distance() -> None:
    wanted = torch.tensor([2.3, 0.0, 15.0, 99.0])
    bins = torch.full((4, 16), 1e-9)
    bins[0, 2], bins[0, 3], bins[1, 0], bins[2, 15], bins[3, 15] = 0.7, 0.3, 1.0, 1.0, 1.0
    best = distribution_focal(bins.log(), wanted)
    entropy = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    assert best.tolist() == pytest.approx([entropy, 0, 0, 0], abs=1e-5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = distribution_focal((bins + 0.1 * torch.rand(4, 16, generator=generator)).log(), wanted)
        assert (other > best).all()
