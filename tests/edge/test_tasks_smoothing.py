"""Smoothing: averages, holds a label against flicker, and still lets go of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgeattn.errors import SpecError
from edgeattn.spec import InputSpec, Rejection, Spec
from edgeattn.tasks import classify
from edgeattn.tasks.smoothing import Smoother

SPEC = Spec("classify", InputSpec(32, 32), ("a", "b"))
STRICT = Spec("classify", InputSpec(32, 32), ("a", "b"), rejection=Rejection(0.95))


def steady(spec: Spec, firsts: Sequence[float], **knobs: float) -> str:
    """The labels shown while class `a` has these probabilities; `-` stands for none of these."""
    smoother = Smoother(spec, **knobs)
    answers = [smoother.update(classify.answer(np.array([p, 1 - p]), spec)) for p in firsts]
    return "".join("-" if answer.rejected else answer.label for answer in answers)


def test_average_is_exponential() -> None:
    smoother = Smoother(SPEC, weight=0.25)
    smoother.update(classify.answer(np.array([1.0, 0.0]), SPEC))
    smoother.update(classify.answer(np.array([0.0, 1.0]), SPEC))
    answer = smoother.update(classify.answer(np.array([0.0, 1.0]), SPEC))
    np.testing.assert_allclose(answer.probabilities, [0.5625, 0.4375])
    assert answer.score == pytest.approx(0.5625)


def test_one_odd_frame_changes_nothing_but_a_lasting_change_does() -> None:
    assert steady(SPEC, [0.9, 0.9, 0.1, 0.9, 0.9]) == "aaaaa"
    assert steady(SPEC, [0.9, 0.9, 0.1, 0.1, 0.1, 0.1]) == "aaabbb"


def test_margin_stops_flicker_at_the_boundary() -> None:
    wavering = [0.9] + [0.49, 0.51] * 20
    raw = "".join(classify.answer(np.array([p, 1 - p]), SPEC).label for p in wavering)
    assert raw.count("ab") == 20
    assert steady(SPEC, wavering, weight=1.0, margin=0.0) == raw, "without margin and averaging nothing is held"
    assert steady(SPEC, wavering, weight=1.0, margin=0.1) == "a" * 41


def test_none_of_these_is_entered_and_left_near_one() -> None:
    """A threshold of 0.95 leaves no absolute margin above it: the relative one still lets a sure answer through."""
    leaving = [0.99, 0.99, 0.5, 0.5, 0.5, 0.99, 0.99, 0.99]
    assert steady(STRICT, leaving, weight=0.8) == "aa----aa"
    assert steady(STRICT, [0.99, 0.949, 0.951, 0.949, 0.951], weight=1.0) == "aaaaa"
    assert steady(STRICT, [0.5, 0.949, 0.951, 0.949, 0.951], weight=1.0) == "-----"


def test_without_averaging_and_margin_it_is_the_raw_answer() -> None:
    rng = np.random.default_rng(0)
    smoother = Smoother(STRICT, weight=1.0, margin=0.0)
    for p in rng.random(50):
        raw = classify.answer(np.array([p, 1 - p]), STRICT)
        assert smoother.update(raw).label == raw.label


@pytest.mark.parametrize("knobs", [{"weight": 0.0}, {"weight": 1.1}, {"margin": -0.1}, {"margin": 1.0}])
def test_knobs_have_ranges(knobs: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="must lie"):
        Smoother(SPEC, **knobs)
