"""The contract of an engine: `infer` and `close`, and a record of what is executed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


class Engine(Protocol):
    """Runs one artefact. Not thread-safe: one thread calls `infer`."""

    name: str
    """`onnxruntime`, `openvino` or `fake`."""
    precision: str
    """Precision of the file: `float` or `int8`."""
    executed_precision: str
    """What the engine executes, as far as it says: `f32`, `bf16`, `int8+f32`, ..."""
    threads: int
    """Threads that compute one inference."""
    details: Mapping[str, Any]
    """Version, device and whatever else is worth a line in a report."""

    def infer(self, image: Array) -> dict[str, Array]:
        """Run one batch of shape `spec.input.shape` and return the outputs by name.

        Raises:
            EngineError: the input has another shape, or the engine failed.
        """

    def close(self) -> None:
        """Free what the engine holds; a second call does nothing."""
