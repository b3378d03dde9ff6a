"""A model that stands ready: its bundle, the engine that runs it, and why that one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.bundle import Bundle
from edgeattn.engines import Engine, open_engine
from edgeattn.engines.certify import Certificate, open_certified
from edgeattn.engines.choose import choose
from edgeattn.errors import EngineError
from edgeattn.imaging import prepare
from edgeattn.spec import Spec, Thresholds


@dataclass(frozen=True)
class Model:
    """What runs."""

    bundle: Bundle
    """The model's files and contract."""
    engine: Engine
    """Runs one of them."""
    line: str
    """What runs and why, for people."""
    certificate: Certificate | None = None
    """What the device answered; None: the CPU."""
    thresholds: Thresholds | None = None
    """Which boxes a detector tells; None: as its bundle says."""

    @property
    def spec(self) -> Spec:
        """The bundle's contract, with the thresholds that were asked for."""
        held = self.bundle.spec
        return held if self.thresholds is None else replace(held, thresholds=self.thresholds)


def open_model(
    bundle: Bundle,
    *,
    engine: str | None = None,
    precision: str | None = None,
    device: str = "CPU",
    threads: int | None = None,
    maps: bool = False,
    confidence: float | None = None,
    iou: float | None = None,
) -> Model:
    """Open a bundle to run it; for the parameters see `Pipeline`.

    Raises:
        BundleError: the bundle holds no such artefact.
        EngineError: nothing in it can be run here.
        SpecError: a threshold outside of 0 to 1.
    """
    thresholds = asked_thresholds(bundle.spec, confidence, iou)
    if device != "CPU":
        if engine not in (None, "openvino"):
            raise EngineError(f"{device} is reached by openvino, not by {engine}; leave out --engine")
        opened, certificate, line = open_certified(bundle, device, precision=precision, maps=maps)
        return Model(bundle, opened, line, certificate, thresholds)
    options: dict[str, Any] = {"threads": threads, "maps": maps}
    line = ""
    if engine is None or precision is None:
        choice = choose(bundle, engine=engine, precision=precision, **options)
        engine, precision, line = choice.engine, choice.precision, choice.line
    running = open_engine(bundle, engine=engine, precision=precision, **options)
    return Model(bundle, running, line or described(running), thresholds=thresholds)


def asked_thresholds(spec: Spec, confidence: float | None, iou: float | None) -> Thresholds | None:
    """A detector's thresholds where other ones were asked for; None: those of its spec hold.

    Raises:
        SpecError: one of them lies outside of 0 to 1.
    """
    if spec.task != "detect" or (confidence is None and iou is None):
        return None
    told = spec.thresholds or Thresholds()
    return replace(
        told,
        confidence=told.confidence if confidence is None else confidence,
        iou=told.iou if iou is None else iou,
    )


def described(engine: Engine, why: str = "as asked") -> str:
    """What an engine runs, in one line for people."""
    return f"{engine.name} {engine.precision} ({why}), {engine.threads} threads, executes {engine.executed_precision}"


def blank_input(spec: Spec) -> NDArray[Any]:
    """A black picture as the model's input, for warming up."""
    return prepare(np.zeros((spec.input.height, spec.input.width, 3), np.uint8), spec.input)
