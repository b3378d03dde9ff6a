"""Which places learn which box, and the losses of boxes.

Task-aligned (TOOD, Feng et al. 2021, arXiv:2108.07755): of the places inside a box those learn it at which the net is already
best at both, by t = score^ALPHA IoU^BETA. They are to score t, scaled so that the best of a box scores its IoU.

Legend of shapes: B batch, A places, M true boxes of a picture (padded), K classes, N chosen places, R bins; boxes are left,
top, right and bottom in pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA, BETA = 0.5, 6.0
"""Weight of the score and of the overlap (YOLOv8's; the paper has 1 and 6)."""
LEAST = 1e-7
"""Kept from zero in divisors and logarithms."""


class Assignment(NamedTuple):
    """What each place is to learn."""

    chosen: Tensor
    """(B, A): whether it learns a box at all."""
    truth: Tensor
    """(B, A): which of the picture's boxes; of any value where it learns none."""
    score: Tensor
    """(B, A): how sure it is to be of that box's class; 0 where it learns none."""


@torch.no_grad()
def assign(
    scores_BKA: Tensor, boxes_BA4: Tensor, places_2A: Tensor, truth_BM5: Tensor, *, most: int, smallest: float
) -> Assignment:
    """Choose for every true box the `most` best places.

    Args:
        scores_BKA: 0 to 1.
        boxes_BA4: what the places propose.
        places_2A: their middles, in pixels.
        truth_BM5: boxes and labels; -1 is padding.
        most: places a box; a place between two boxes learns the one that it overlaps more.
        smallest: side in pixels that a box is taken to have at least, so that the smallest have places inside, too.
    """
    boxes_BM4, labels_BM = truth_BM5[..., :4], truth_BM5[..., 4].long()
    sides_BM2 = (boxes_BM4[..., 2:] - boxes_BM4[..., :2]).clamp_min(smallest)
    off_BMA2 = places_2A.T - (boxes_BM4[:, :, None, :2] + boxes_BM4[:, :, None, 2:]) / 2
    inside_BMA = (off_BMA2.abs() < sides_BM2[:, :, None] / 2).all(3) & (labels_BM >= 0)[:, :, None]
    rows_BMA = labels_BM.clamp_min(0)[:, :, None].expand(-1, -1, places_2A.shape[1])
    overlap_BMA = overlap(boxes_BM4[:, :, None], boxes_BA4[:, None]) * inside_BMA
    fit_BMA = scores_BKA.gather(1, rows_BMA).pow(ALPHA) * overlap_BMA.pow(BETA)
    best_BMN = fit_BMA.topk(min(most, fit_BMA.shape[2]), dim=2).indices
    asked_BMA = torch.zeros_like(inside_BMA).scatter_(2, best_BMN, value=True) & (fit_BMA > 0)
    truth_BA = (overlap_BMA * asked_BMA).argmax(1)
    own_BMA = asked_BMA & F.one_hot(truth_BA, boxes_BM4.shape[1]).transpose(1, 2).bool()
    fit_BMA, overlap_BMA = fit_BMA * own_BMA, overlap_BMA * own_BMA
    scale_BM1 = overlap_BMA.amax(2, keepdim=True) / fit_BMA.amax(2, keepdim=True).clamp_min(1e-30)
    return Assignment(own_BMA.any(1), truth_BA, (fit_BMA * scale_BM1).amax(1))


def overlap(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4) one by one, (...)."""
    shared_N = (torch.minimum(a_N4[..., 2:], b_N4[..., 2:]) - torch.maximum(a_N4[..., :2], b_N4[..., :2])).clamp_min(0)
    return shared_N.prod(-1) / (_area(a_N4) + _area(b_N4) - shared_N.prod(-1) + LEAST)


def ciou(found_N4: Tensor, truth_N4: Tensor) -> Tensor:
    """Complete IoU (Zheng et al. 2020, arXiv:1911.08287): IoU - d^2 / c^2 - alpha v, (N,), 1 at best.

    d is the distance of the middles, c the diagonal of the box around both, v = 4 / pi^2 (difference of the angles whose
    tangents are width / height)^2, alpha = v / (1 - IoU + v), through which no gradient flows.
    """
    iou_N = overlap(found_N4, truth_N4)
    around_N2 = torch.maximum(found_N4[..., 2:], truth_N4[..., 2:]) - torch.minimum(
        found_N4[..., :2], truth_N4[..., :2]
    )
    apart_N2 = (found_N4[..., :2] + found_N4[..., 2:] - truth_N4[..., :2] - truth_N4[..., 2:]) / 2
    v_N = 4 / math.pi**2 * (_angle(found_N4) - _angle(truth_N4)).pow(2)
    with torch.no_grad():
        alpha_N = v_N / (1 - iou_N + v_N + LEAST)
    return iou_N - apart_N2.pow(2).sum(-1) / (around_N2.pow(2).sum(-1) + LEAST) - alpha_N * v_N


def distribution_focal(logits_NR: Tensor, distance_N: Tensor) -> Tensor:
    """Distribution focal loss (Li et al. 2020, arXiv:2006.04388): cross entropy with the two bins around a distance, (N,).

    A distance of 2.3 is to be bin 2 by 0.7 and bin 3 by 0.3; one beyond the last bin is taken for it.
    """
    last = logits_NR.shape[1] - 1
    distance_N = distance_N.clamp(0, last)
    lower_N = distance_N.long().clamp_max(last - 1)
    share_N = distance_N - lower_N
    log_NR = logits_NR.log_softmax(1)
    below_N, above_N = (log_NR.gather(1, bins[:, None])[:, 0] for bins in (lower_N, lower_N + 1))
    return -((1 - share_N) * below_N + share_N * above_N)


def around(places_2A: Tensor, reach_B4A: Tensor) -> Tensor:
    """Boxes (B, A, 4) of distances in pixels from places to the left, top, right and bottom edge."""
    return torch.cat([places_2A - reach_B4A[:, :2], places_2A + reach_B4A[:, 2:]], dim=1).transpose(1, 2)


def _area(boxes_N4: Tensor) -> Tensor:
    return (boxes_N4[..., 2:] - boxes_N4[..., :2]).prod(-1)


def _angle(boxes_N4: Tensor) -> Tensor:
    sides_N2 = boxes_N4[..., 2:] - boxes_N4[..., :2]
    return torch.atan(sides_N2[..., 0] / (sides_N2[..., 1] + LEAST))
