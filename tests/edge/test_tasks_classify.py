"""Classification: the answer that logits give, and that drawing it alters nothing it should not."""

from __future__ import annotations

import numpy as np
import pytest

from edgeattn.errors import SpecError
from edgeattn.spec import InputSpec, Rejection, Spec
from edgeattn.tasks import Classification, classify, decode, draw

LABELS = ("cup", "fork", "Löffel")


def spec(rejection: Rejection | None = None) -> Spec:
    return Spec("classify", InputSpec(32, 32), LABELS, rejection=rejection)


def logits(*probabilities: float) -> dict[str, np.ndarray]:
    return {"logits": np.log(np.array([probabilities], np.float32))}


def test_softmax_and_best_class() -> None:
    answer = decode(logits(0.1, 0.7, 0.2), spec())
    assert (answer.label, answer.index, answer.rejected, answer.labels) == ("fork", 1, False, LABELS)
    assert answer.score == pytest.approx(0.7, abs=1e-6)
    np.testing.assert_allclose(answer.probabilities, [0.1, 0.7, 0.2], atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    answer = decode({"logits": np.array([[9e4, 0.0, -9e4]], np.float32)}, spec())
    assert answer.label == "cup"
    assert answer.score == 1.0


@pytest.mark.parametrize(("best", "rejected"), [(0.59, True), (0.61, False)])
def test_threshold_rejects(best: float, rejected: bool) -> None:
    answer = decode(logits(best, 1 - best - 0.1, 0.1), spec(Rejection(0.6)))
    assert answer.rejected is rejected
    assert answer.label == ("none of these" if rejected else "cup")
    assert answer.index == (-1 if rejected else 0)
    assert answer.score == pytest.approx(1 - best if rejected else best, abs=1e-6)


@pytest.mark.parametrize("column", [0, 1, 3])
def test_none_column_is_no_label(column: int) -> None:
    """The labels name the other columns in order, and "none" wins where it is the likeliest."""
    seen = spec(Rejection(0.2, "nothing", index=column))
    row = np.insert([0.2, 0.1, 0.4], column, 0.3)
    answer = decode(logits(*row), seen)
    assert (answer.label, answer.index) == ("Löffel", 2)
    np.testing.assert_allclose(answer.probabilities, [0.2, 0.1, 0.4], atol=1e-6)
    answer = decode(logits(*np.insert([0.2, 0.1, 0.3], column, 0.4)), seen)
    assert (answer.label, answer.index, answer.rejected) == ("nothing", -1, True)
    assert answer.score == pytest.approx(0.7, abs=1e-6)


def test_outputs_that_do_not_fit_are_named() -> None:
    with pytest.raises(SpecError, match="no output 'logits' but scores"):
        decode({"scores": np.zeros((1, 3))}, spec())
    with pytest.raises(SpecError, match="holds 4 logits; the spec's labels ask for 3"):
        decode({"logits": np.zeros((1, 4))}, spec())


@pytest.mark.parametrize("shape", [(480, 640, 3), (96, 96, 3), (720, 200, 3), (1, 1, 3)])
def test_draw_gives_a_new_picture_of_the_same_size(shape: tuple[int, int, int]) -> None:
    picture = np.full(shape, 90, np.uint8)
    drawn = draw(picture, decode(logits(0.1, 0.7, 0.2), spec()))
    assert drawn.shape == shape
    assert drawn.dtype == np.uint8
    assert (picture == 90).all(), "the frame itself must stay clean"
    assert (drawn != 90).any()
    assert (drawn[: shape[0] // 2] == 90).all(), "the upper half shows the frame"


def test_bar_is_as_long_as_the_score() -> None:
    picture = np.zeros((480, 640, 3), np.uint8)
    low, high = (draw(picture, decode(logits(p, (1 - p) / 2, (1 - p) / 2), spec())) for p in (0.5, 0.9))
    rows = slice(398, 402)  # above the letters of the answer's row
    filled = [int((drawn[rows, :, 1] > 80).all(axis=0).sum()) for drawn in (low, high)]
    assert filled == pytest.approx([320, 576], abs=2)


def test_rejected_answer_is_grey() -> None:
    picture = np.zeros((480, 640, 3), np.uint8)
    answer = Classification("none of these", -1, 0.9, np.array([0.1, 0.0, 0.0]), True, LABELS)
    blue, green, red = classify.draw(picture, answer)[400, 20]
    assert blue == green == red
