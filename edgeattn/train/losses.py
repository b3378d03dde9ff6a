"""Losses: pure functions of tensors. Legend: B batch, K classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(logits_BK: Tensor, target_BK: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy against target distributions, smoothed towards the even one (Szegedy et al. 2016)."""
    classes = logits_BK.shape[1]
    smoothed_BK = target_BK * (1.0 - smoothing) + smoothing / classes
    return -(smoothed_BK * F.log_softmax(logits_BK, dim=1)).sum(1).mean()


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


def _target_against_rest(scaled_BK: Tensor, mask_BK: Tensor) -> Tensor:
    log_BK = scaled_BK.log_softmax(1)
    rest_B = log_BK.masked_fill(mask_BK, float("-inf")).logsumexp(1)
    return torch.stack([log_BK[mask_BK], rest_B], dim=1)


def _kl(log_p_BK: Tensor, log_q_BK: Tensor) -> Tensor:
    return (log_p_BK.exp() * (log_p_BK - log_q_BK)).sum(1).mean()
