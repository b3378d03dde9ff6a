"""Small nets for tests: whatever exports, rounds or rebuilds a graph takes time by its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from edgeattn.nn.backbone import SIZES

DEPTHS = (1, 1, 2, 1)
"""Blocks of each stage."""
BLOCKS = sum(DEPTHS)


@contextlib.contextmanager
def five_blocks() -> Iterator[None]:
    """Inside it a pico has five blocks in place of twelve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "pico", replace(SIZES["pico"], depths=DEPTHS))
        yield
