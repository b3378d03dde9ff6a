"""Losses: pure functions of tensors to a scalar, the mean over the batch.

Legend of shapes: B batch, N pixels or pictures, K classes, C channels, H W a feature map, h w an attention map or where to look.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(logits_BK: Tensor, target_BK: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy against target distributions, smoothed towards the even one (Szegedy et al. 2016)."""
    classes = logits_BK.shape[1]
    smoothed_BK = target_BK * (1.0 - smoothing) + smoothing / classes
    return -(smoothed_BK * F.log_softmax(logits_BK, dim=1)).sum(1).mean()


def enet_weights(label_N: Tensor, classes: int) -> Tensor:
    """Weights (K,) that lift the classes that are rare among these labels: 1 / log(1.02 + share), 1.4 to 50.

    Paper: ENet (Paszke et al. 2016, arXiv:1606.02147), there with the shares of the whole set.
    """
    share_K = torch.bincount(label_N, minlength=classes).float() / max(1, len(label_N))
    return 1.0 / (1.02 + share_K).log()


def lovasz_softmax(logits_NK: Tensor, label_N: Tensor) -> Tensor:
    """The Lovasz extension of the Jaccard loss, mean over the classes that occur (Berman et al. 2018, arXiv:1705.08790).

    With the errors of a class, 1 - p where it is and p elsewhere, from the greatest to the least, each is weighed by how
    much 1 - IoU grows when its pixel too is taken for wrong. 0 where everything is right, 1 where everything is wrong.
    """
    is_KN = label_N == torch.arange(logits_NK.shape[1], device=label_N.device)[:, None]
    error_KN = (is_KN.float() - logits_NK.softmax(1).T).abs()
    order_KN = _falling(error_KN.detach())
    missed_KN = is_KN.gather(1, order_KN).float().cumsum(1)
    count_K1 = missed_KN[:, -1:]
    taken_N = torch.arange(1, len(label_N) + 1, device=label_N.device)
    jaccard_KN = 1.0 - (count_K1 - missed_KN) / (count_K1 + taken_N - missed_KN)
    growth_KN = torch.diff(jaccard_KN, dim=1, prepend=torch.zeros_like(count_K1))
    occurs_K = count_K1[:, 0] > 0
    return ((error_KN.gather(1, order_KN) * growth_KN).sum(1) * occurs_K).sum() / occurs_K.sum().clamp_min(1)


def _falling(values_KN: Tensor) -> Tensor:
    """Places (K, N) of each row's values, which are not negative, from the greatest to the least.

    On a CPU numpy sorts whole numbers, the value above its place, twenty times as fast as torch sorts values with places.
    """
    if values_KN.device.type != "cpu":
        return values_KN.argsort(1, descending=True)
    bits_KN = values_KN.float().contiguous().numpy().view(np.int32).astype(np.int64)
    keys_KN = np.sort(-(bits_KN << 32) + np.arange(values_KN.shape[1]), axis=1)
    return torch.from_numpy(keys_KN & 0xFFFFFFFF)


def kd(student_BK: Tensor, teacher_BK: Tensor, temperature: float = 4.0) -> Tensor:
    """Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531): T^2 KL(teacher || student), mean over the batch.

    The gradient of a softened softmax shrinks with 1 / T^2; the factor keeps its weight independent of T.
    """
    return temperature**2 * _kl(F.log_softmax(teacher_BK / temperature, 1), F.log_softmax(student_BK / temperature, 1))


def dkd(
    student_BK: Tensor,
    teacher_BK: Tensor,
    label_B: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled knowledge distillation (Zhao et al. 2022, arXiv:2203.08679): T^2 (alpha TCKD + beta NCKD), mean over the batch.

    TCKD compares the probability of the target class with that of all others together; NCKD compares how the others share
    theirs, which plain KD weighs down by the teacher's certainty. T^2 as in `kd`.
    """
    mask_BK = F.one_hot(label_B, student_BK.shape[1]).bool()
    s_BK, t_BK = student_BK / temperature, teacher_BK / temperature
    s_log_B2, t_log_B2 = _target_against_rest(s_BK, mask_BK), _target_against_rest(t_BK, mask_BK)
    tckd = _kl(t_log_B2, s_log_B2)
    others = student_BK.shape[1] - 1
    s_rest_BR = s_BK[~mask_BK].view(-1, others).log_softmax(1)
    t_rest_BR = t_BK[~mask_BK].view(-1, others).log_softmax(1)
    return temperature**2 * (alpha * tckd + beta * _kl(t_rest_BR, s_rest_BR))


def dist(
    student_BK: Tensor, teacher_BK: Tensor, *, inter: float = 2.0, intra: float = 2.0, temperature: float = 4.0
) -> Tensor:
    """Distillation from a stronger teacher (DIST, Huang et al. 2022, arXiv:2205.10536): correlations, not values.

    T^2 (inter (1 - rho over the classes of a picture) + intra (1 - rho over the pictures of a class)), rho Pearson's of the
    softened probabilities. A strong teacher's exact probabilities are out of a small student's reach; their order is not.
    """
    s_BK, t_BK = (student_BK / temperature).softmax(1), (teacher_BK / temperature).softmax(1)
    rows, columns = 1.0 - _pearson(s_BK, t_BK).mean(), 1.0 - _pearson(s_BK.T, t_BK.T).mean()
    return temperature**2 * (inter * rows + intra * columns)


def rkd(student_BC: Tensor, teacher_BC: Tensor, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Relational knowledge distillation (Park et al. 2019, arXiv:1904.05068) of pooled features of any two widths.

    Huber distance between the batch's pairwise distances (each net's in units of its mean), and between the angles of its
    triplets. A net's own scale and axes do not matter.
    """
    d_s, d_t = _distances(student_BC), _distances(teacher_BC)
    a_s, a_t = _angles(student_BC), _angles(teacher_BC)
    return distance * F.smooth_l1_loss(d_s, d_t) + angle * F.smooth_l1_loss(a_s, a_t)


def at(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Attention transfer (Zagoruyko and Komodakis 2017, arXiv:1612.03928): mean squared distance of activation maps.

    A map is the mean over channels of x^2, scaled to norm 1; the larger is averaged down to the smaller. Between unlike
    nets it can harm.
    """
    size = _smaller(student_BCHW, teacher_BCHW)
    s_BN, t_BN = (
        F.normalize(F.adaptive_avg_pool2d(x.pow(2).mean(1, keepdim=True), size).flatten(1), dim=1)
        for x in (student_BCHW, teacher_BCHW)
    )
    return (s_BN - t_BN).pow(2).mean()


def cwd(student_BCHW: Tensor, teacher_BCHW: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Channel-wise distillation (Shu et al. 2021, arXiv:2011.13256): T^2 / C sum_c KL(teacher_c || student_c).

    Each channel is a softened distribution over the places; both have the same channels and the same size.
    """
    s_BCN, t_BCN = ((x / temperature).flatten(2).log_softmax(2) for x in (student_BCHW, teacher_BCHW))
    return temperature**2 * (t_BCN.exp() * (t_BCN - s_BCN)).sum(2).mean()


def mgd(generated_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Masked generative distillation (Yang et al. 2022, arXiv:2205.01529): summed squares, mean over the batch.

    `generated` is what a small block makes of the student's features with some of the places blanked.
    """
    return (generated_BCHW - teacher_BCHW).pow(2).sum((1, 2, 3)).mean()


LEAST = 1e-8
"""Kept from zero in logarithms and divisors."""


def map_kl(map_Bhw: Tensor, target_Bhw: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(target || map) of maps scaled to sum 1, softened by T (p^(1/T)), mean over the pictures whose target is known.

    Args:
        map_Bhw: raw maps, not negative.
        target_Bhw: where to look, not negative, of the map's size; all zero where it is not known.
        temperature: above 1, the weakly marked places count for more.
    """
    known_B = is_known(target_Bhw)
    p_BN, q_BN = _softened(target_Bhw, temperature), _softened(map_Bhw, temperature)
    terms_B = (p_BN * ((p_BN + LEAST).log() - (q_BN + LEAST).log())).sum(1)
    return _mean_of(terms_B, known_B)


def map_cross_entropy(map_Bhw: Tensor, target_Bhw: Tensor) -> Tensor:
    """-sum target log map, of maps scaled to sum 1; `map_kl` and the target's own entropy, so its gradient. As there."""
    terms_B = -(_softened(target_Bhw, 1.0) * (_softened(map_Bhw, 1.0) + LEAST).log()).sum(1)
    return _mean_of(terms_B, is_known(target_Bhw))


def map_binary_cross_entropy(map_Bhw: Tensor, target_Bhw: Tensor) -> Tensor:
    """Binary cross entropy at each place of gates between 0 and 1 against a target whose greatest value is 1. As `map_kl`."""
    gate_Bhw = map_Bhw.clamp(1e-4, 1.0 - 1e-4)
    full_Bhw = target_Bhw / target_Bhw.amax((1, 2), keepdim=True).clamp_min(LEAST)
    terms_B = F.binary_cross_entropy(gate_Bhw, full_Bhw, reduction="none").mean((1, 2))
    return _mean_of(terms_B, is_known(target_Bhw))


def map_cosine(map_Bhw: Tensor, target_Bhw: Tensor) -> Tensor:
    """1 - cosine between map and target, which need no common scale. As `map_kl`."""
    terms_B = 1.0 - F.cosine_similarity(map_Bhw.flatten(1), target_Bhw.flatten(1), dim=1, eps=LEAST)
    return _mean_of(terms_B, is_known(target_Bhw))


def is_known(target_Bhw: Tensor) -> Tensor:
    """Which pictures have a target at all, (B,): an empty mask teaches nothing and is left out."""
    return target_Bhw.flatten(1).sum(1) > 0


def _mean_of(terms_B: Tensor, known_B: Tensor) -> Tensor:
    return (terms_B * known_B).sum() / known_B.sum().clamp_min(1)


def _softened(map_Bhw: Tensor, temperature: float) -> Tensor:
    """Maps to rows that sum to 1; an all-zero one is uniform."""
    flat_BN = map_Bhw.flatten(1).clamp_min(0.0) + LEAST
    if temperature != 1.0:
        flat_BN = (flat_BN / flat_BN.amax(1, keepdim=True)).pow(1.0 / temperature)
    return flat_BN / flat_BN.sum(1, keepdim=True)


def _pearson(a_RN: Tensor, b_RN: Tensor) -> Tensor:
    return F.cosine_similarity(a_RN - a_RN.mean(1, keepdim=True), b_RN - b_RN.mean(1, keepdim=True), dim=1, eps=LEAST)


def _distances(x_BC: Tensor) -> Tensor:
    square_B = x_BC.pow(2).sum(1)
    d_BB = (square_B[:, None] + square_B[None] - 2 * x_BC @ x_BC.T).clamp_min(1e-12).sqrt()
    apart = ~torch.eye(len(x_BC), dtype=torch.bool, device=x_BC.device)
    return d_BB * apart / d_BB[apart].mean().clamp_min(LEAST)


def _angles(x_BC: Tensor) -> Tensor:
    e_BBC = F.normalize(x_BC[None] - x_BC[:, None], dim=2)
    return torch.bmm(e_BBC, e_BBC.transpose(1, 2))


def _smaller(a_BCHW: Tensor, b_BCHW: Tensor) -> tuple[int, int]:
    return min(a_BCHW.shape[2], b_BCHW.shape[2]), min(a_BCHW.shape[3], b_BCHW.shape[3])


def _target_against_rest(scaled_BK: Tensor, mask_BK: Tensor) -> Tensor:
    log_BK = scaled_BK.log_softmax(1)
    rest_B = log_BK.masked_fill(mask_BK, float("-inf")).logsumexp(1)
    return torch.stack([log_BK[mask_BK], rest_B], dim=1)


def _kl(log_p_BK: Tensor, log_q_BK: Tensor) -> Tensor:
    return (log_p_BK.exp() * (log_p_BK - log_q_BK)).sum(1).mean()
