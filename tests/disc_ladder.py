"""Ladders on a bundle that knows discs, for the tests of `deploy`."""

from __future__ import annotations

from pathlib import Path

import discs

from edgeattn.bundle import Bundle
from edgeattn.deploy.ladder import Bounds, Ladder
from edgeattn.imaging import prepare

CALIBRATION = [picture for picture, _ in discs.pictures(11, seed=1)]
VALIDATION = discs.pictures(10, seed=3)


def a_ladder(bundle: Bundle, scratch: Path, bounds: Bounds | None = None, memory: Path | None = None) -> Ladder:
    """A ladder whose tries lie in `scratch`, which is made."""
    inputs = [prepare(picture, bundle.spec.input) for picture in CALIBRATION]
    scratch.mkdir()
    return Ladder(bundle, inputs, VALIDATION, scratch, None, bounds or Bounds(), memory)
