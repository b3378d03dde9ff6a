"""Losses against their formulas, written with loops over numpy values."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from edgeattn.train.losses import (
    at,
    cwd,
    dist,
    dkd,
    is_known,
    kd,
    map_binary_cross_entropy,
    map_cosine,
    map_cross_entropy,
    map_kl,
    mgd,
    rkd,
    soft_cross_entropy,
)

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


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def test_dist_is_one_minus_pearson_over_rows_and_columns(logits: tuple[torch.Tensor, ...]) -> None:
    student, teacher, _ = logits
    p, q = (np.stack([softmax(row / T) for row in z.numpy()]) for z in (student, teacher))
    rows = np.mean([1 - pearson(p[i], q[i]) for i in range(B)])
    columns = np.mean([1 - pearson(p[:, k], q[:, k]) for k in range(K)])
    expected = T * T * (2 * rows + 2 * columns)
    assert float(dist(student, teacher, temperature=T)) == pytest.approx(expected, rel=1e-6)


def test_rkd_is_blind_to_scale_and_turn_but_not_to_shape() -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(6, 3)))
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(3, 3)))[0])
    assert float(rkd(5 * x @ turn, x)) == pytest.approx(0.0, abs=1e-9)
    other = torch.from_numpy(rng.normal(size=(6, 7)))
    d, cosines, total = [], [], 0.0
    for points in (x.numpy(), other.numpy()):
        pairs = np.array([[np.linalg.norm(a - b) for b in points] for a in points])
        d.append(pairs / pairs[~np.eye(6, dtype=bool)].mean())
    for i in range(6):
        for j in range(6):
            gap = abs(d[0][i, j] - d[1][i, j])
            total += 0.5 * gap**2 if gap < 1 else gap - 0.5
    assert float(rkd(x, other, angle=0.0)) == pytest.approx(25 * total / 36, rel=1e-9)

    def cosine(points: np.ndarray, i: int, j: int, k: int) -> float:
        """Of the angle at i between the ways to j and to k; 0 where there is no way."""
        to_j, to_k = points[j] - points[i], points[k] - points[i]
        return float(to_j @ to_k / max(np.linalg.norm(to_j) * np.linalg.norm(to_k), 1e-12))

    for i, j, k in itertools.product(range(6), repeat=3):
        gap = abs(cosine(x.numpy(), i, j, k) - cosine(other.numpy(), i, j, k))
        cosines.append(0.5 * gap**2 if gap < 1 else gap - 0.5)
    assert np.mean(cosines) > 0.05
    assert float(rkd(x, other, distance=0.0)) == pytest.approx(50 * np.mean(cosines), rel=1e-9)
    assert float(rkd(x, other)) == pytest.approx(25 * total / 36 + 50 * np.mean(cosines), rel=1e-9)


def test_attention_transfer_compares_energy_maps_of_any_width() -> None:
    x = torch.randn(2, 4, 6, 6)
    assert float(at(torch.cat([x, x], 1), 3 * x)) == pytest.approx(0.0, abs=1e-9)
    y = torch.randn(2, 9, 3, 3)
    e = [
        torch.nn.functional.avg_pool2d(x.pow(2).mean(1, keepdim=True), 2).flatten(1),
        y.pow(2).mean(1).flatten(1),
    ]
    e = [m / m.norm(dim=1, keepdim=True) for m in e]
    assert float(at(x, y)) == pytest.approx(float(((e[0] - e[1]) ** 2).mean()), rel=1e-5)


def test_cwd_is_a_divergence_over_places_for_each_channel() -> None:
    rng = np.random.default_rng(2)
    s, t = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 4, 5))
    total = 0.0
    for b in range(2):
        for c in range(3):
            p, q = softmax(t[b, c].ravel() / T), softmax(s[b, c].ravel() / T)
            total += (p * np.log(p / q)).sum()
    expected = T * T * total / (2 * 3)
    assert float(cwd(torch.from_numpy(s), torch.from_numpy(t), temperature=T)) == pytest.approx(expected, rel=1e-9)


def test_mgd_sums_squares_over_a_picture() -> None:
    a, b = torch.ones(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)
    assert float(mgd(a, b)) == 60.0


def maps_and_targets() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    return tuple(torch.from_numpy(rng.uniform(0.1, 0.9, (3, 4, 4))) for _ in range(2))  # type: ignore[return-value]


def test_map_losses_by_their_formulas() -> None:
    a, p = maps_and_targets()
    q_, p_ = ((x / x.sum((1, 2), keepdim=True)).numpy() for x in (a, p))
    kl = np.mean([(y * np.log(y / x)).sum() for x, y in zip(q_, p_, strict=True)])
    ce = np.mean([-(y * np.log(x)).sum() for x, y in zip(q_, p_, strict=True)])
    cos = np.mean([1 - (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()) for x, y in zip(q_, p_, strict=True)])
    full = (p / p.amax((1, 2), keepdim=True)).numpy()
    bce = -np.mean(full * np.log(a.numpy()) + (1 - full) * np.log(1 - a.numpy()))
    assert float(map_kl(a, p)) == pytest.approx(kl, abs=1e-5)
    assert float(map_cross_entropy(a, p)) == pytest.approx(ce, abs=1e-5)
    assert float(map_cosine(a, p)) == pytest.approx(cos, abs=1e-6)
    assert float(map_binary_cross_entropy(a, p)) == pytest.approx(bce, abs=1e-5)
    soft = [(x / x.sum((1, 2), keepdims=True)) for x in (q_**0.5, p_**0.5)]
    kl_soft = np.mean([(y * np.log(y / x)).sum() for x, y in zip(*soft, strict=True)])
    assert float(map_kl(a, p, temperature=2.0)) == pytest.approx(kl_soft, abs=1e-5)


@pytest.mark.parametrize("loss", [map_kl, map_cross_entropy, map_cosine, map_binary_cross_entropy])
def test_an_empty_target_teaches_nothing(loss: Callable[..., torch.Tensor]) -> None:
    a, p = maps_and_targets()
    some = p.clone()
    some[1] = 0
    assert float(loss(a, some)) == pytest.approx(float(loss(a[[0, 2]], p[[0, 2]])), abs=1e-6)
    a.requires_grad_()
    loss(a, some).backward()
    assert a.grad is not None
    assert a.grad[1].abs().max() == 0 < a.grad[0].abs().max()
    assert loss(a, 0 * p).item() == 0.0
    assert is_known(some).tolist() == [True, False, True]
