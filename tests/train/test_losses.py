"""Losses against their formulas, written with loops over numpy values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeattn.train.losses import dkd, kd, soft_cross_entropy

B, K, T = 5, 4, 3.0


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    student, teacher = (torch.from_numpy(rng.normal(0, 2, (B, K))) for _ in range(2))
    return student, teacher, torch.tensor([0, 3, 1, 1, 2])


def test_kd_is_the_softened_divergence_times_t_squared(logits: tuple[torch.Tensor, ...]) -> None:
    student, teacher, _ = logits
    total = 0.0
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        p, q = softmax(t / T), softmax(s / T)
        total += sum(p[k] * np.log(p[k] / q[k]) for k in range(K))
    assert float(kd(student, teacher, T)) == pytest.approx(T * T * total / B, rel=1e-9)
    assert float(kd(teacher, teacher, T)) == pytest.approx(0.0, abs=1e-12)


def test_dkd_is_target_and_non_target_divergence(logits: tuple[torch.Tensor, ...]) -> None:
    student, teacher, label = logits
    total = 0.0
    for s, t, y in zip(student.numpy(), teacher.numpy(), label.numpy(), strict=True):
        p, q = softmax(t / T), softmax(s / T)
        tckd = p[y] * np.log(p[y] / q[y]) + (1 - p[y]) * np.log((1 - p[y]) / (1 - q[y]))
        p_rest, q_rest = softmax(np.delete(t, y) / T), softmax(np.delete(s, y) / T)
        nckd = sum(a * np.log(a / b) for a, b in zip(p_rest, q_rest, strict=True))
        total += 1.0 * tckd + 8.0 * nckd
    assert float(dkd(student, teacher, label, temperature=T)) == pytest.approx(T * T * total / B, rel=1e-9)


def test_kd_is_dkd_with_the_teachers_own_weight(logits: tuple[torch.Tensor, ...]) -> None:
    # The paper's equation 7: KD = TCKD + (1 - p_target) NCKD.
    student, teacher, label = (x[:1] for x in logits)
    p_target = float((teacher / T).softmax(1)[0, label[0]])
    assert float(dkd(student, teacher, label, beta=1 - p_target, temperature=T)) == pytest.approx(
        float(kd(student, teacher, T)), rel=1e-9
    )


def test_cross_entropy_with_smoothing_equals_torchs(logits: tuple[torch.Tensor, ...]) -> None:
    student, _, label = logits
    target = torch.nn.functional.one_hot(label, K).double()
    for smoothing in (0.0, 0.1):
        expected = torch.nn.functional.cross_entropy(student, label, label_smoothing=smoothing)
        assert torch.allclose(soft_cross_entropy(student, target, smoothing), expected)
