"""An engine that computes nothing: it sleeps as long as told and gives the outputs it was given. For tests and rigs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from edgeattn.engines.base import Array, Counted, Grouping, Layer, check_image
from edgeattn.errors import EngineError
from edgeattn.spec import Spec


class FakeEngine:
    """Gives scripted outputs after a scripted delay."""

    name = "fake"

    def __init__(
        self,
        outputs: Mapping[str, Any] | Iterable[Mapping[str, Any]],
        delay_ms: float | Iterable[float] = 0.0,
        *,
        spec: Spec | None = None,
        precision: str = "float",
        threads: int = 1,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Script an engine.

        Args:
            outputs: the outputs by name, the same at every call, or a series of them, one a call.
            delay_ms: what each call takes, or a series of delays, one a call.
            spec: check inputs against it; None: take any.
            precision: what it says its file's precision is.
            threads: what it says it computes with.
            sleep: sleeps for a number of seconds.
        """
        self.precision, self.threads = precision, threads
        self.executed_precision = "int8" if precision == "int8" else "f32"
        self.layers: tuple[Layer, ...] = ()
        self.nodes: Mapping[str, Mapping[str, int]] = {}
        self.integer_layers: frozenset[str] = frozenset()
        self.inside_ms: float | None = None
        self.details: Mapping[str, Any] = {"version": "fake", "device": "none"}
        self.calls = 0
        self.closed = False
        self._outputs: Iterator[Mapping[str, Any]]
        self._outputs = itertools.repeat(outputs) if isinstance(outputs, Mapping) else iter(outputs)
        self._delays: Iterator[float]
        self._delays = itertools.repeat(delay_ms) if isinstance(delay_ms, int | float) else iter(delay_ms)
        self._spec, self._sleep = spec, sleep

    def infer(self, image: Array) -> dict[str, Array]:
        """Sleep and give copies of the next outputs; see `base.Engine.infer`."""
        if self._spec:
            check_image(image, self._spec.input)
        if self.closed:
            raise EngineError("the fake engine was closed; open it again")
        self.calls += 1
        try:
            outputs, delay_ms = next(self._outputs), next(self._delays)
        except StopIteration:
            raise EngineError(f"the fake engine's script ended before call {self.calls}; give it more") from None
        if delay_ms > 0:
            self._sleep(delay_ms / 1000)
        return {name: np.array(value) for name, value in outputs.items()}

    def count(self, image: Array, grouping: Grouping) -> Counted:
        """It has no nodes to count.

        Raises:
            EngineError: always.
        """
        raise EngineError("a fake engine has no nodes; profile a real one")

    def close(self) -> None:
        """Refuse further calls."""
        self.closed = True
