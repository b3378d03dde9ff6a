"""A label that does not flicker: probabilities averaged over frames, and a change of mind only for a clear lead."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import SpecError
from edgeattn.spec import Spec
from edgeattn.tasks import classify
from edgeattn.tasks.classify import Classification


class Smoother:
    """Exponential average of class probabilities with hysteresis.

    average = average + weight (new - average). Another answer takes over only when its score exceeds that of the
    current one by `margin` of what the current one lacks to 1: relative, so that "none of these", whose score is the
    rejection's threshold and may lie near 1, can be left as well.
    """

    def __init__(self, spec: Spec, *, weight: float = 0.4, margin: float = 0.1) -> None:
        if not 0.0 < weight <= 1.0:
            raise SpecError(f"the smoothing weight is {weight}; it must lie above 0 and up to 1 (1: no averaging)")
        if not 0.0 <= margin < 1.0:
            raise SpecError(f"the smoothing margin is {margin}; it must lie in 0 to below 1")
        self._spec, self._weight, self._margin = spec, weight, margin
        self._average: NDArray[np.float64] | None = None
        self._current = -1

    def update(self, prediction: Classification) -> Classification:
        """Take in the next frame's result and give the steady one, whose `probabilities` are the average."""
        if self._average is None:
            self._average = prediction.probabilities.copy()
            self._current = int(np.argmax(classify.scores(self._average, self._spec)))
        else:
            self._average += self._weight * (prediction.probabilities - self._average)
            scores = classify.scores(self._average, self._spec)
            best = int(np.argmax(scores))
            if scores[best] > scores[self._current] + self._margin * (1.0 - scores[self._current]):
                self._current = best
        return classify.with_index(self._average.copy(), self._current, self._spec)
