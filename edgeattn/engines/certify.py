"""A device other than the processor is used once its answers are known to be right.

Compilers of NPUs accept models that they then compute wrongly, and say nothing. So before a device's first frame its answers
on the bundle's golden inputs are held against the processor's, of the same file; the certificate is kept, and made anew when
the model, the device, its driver or OpenVINO changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.bundle import Bundle
from edgeattn.engines import held, open_artefact
from edgeattn.engines.base import Engine, infer_all, wanted_outputs
from edgeattn.engines.kept import keep, recall
from edgeattn.errors import BundleError, EngineError
from edgeattn.spec import Artefact
from edgeattn.tasks import agreeing, parts

BOUND = 0.03
"""Greatest relative error of any output that passes: half precision stays far below, a wrong operator far above."""
LEAST_AGREEMENT = 0.9
"""Least share of golden inputs with the same answer that passes, of models that tell where things are."""
KEPT = "certificates"
"""Folder of the cache."""

OpenOn = Callable[[Bundle, Artefact, str, bool], Engine]
"""Opens an artefact on a device, with its maps or without."""


@dataclass(frozen=True)
class Certificate:
    """What a device answered."""

    device: str
    """Name that it goes by, as in NPU."""
    name: str
    """Its full name."""
    driver: str
    """Its driver's version; empty where it tells none."""
    precision: str
    """Precision of the file."""
    errors: Mapping[str, float]
    """By output (see `tasks.parts`): length of the difference to the processor's answers over their length."""
    agreement: float
    """Share of golden inputs with the same answer."""
    n: int
    """Golden inputs."""
    verdict: str
    """passed or failed."""

    @property
    def worst(self) -> tuple[str, float]:
        """The output that differs most, and how much."""
        return max(self.errors.items(), key=lambda item: item[1])


def open_certified(
    bundle: Bundle, device: str, *, precision: str | None = None, maps: bool = False, open_on: OpenOn | None = None
) -> tuple[Engine, Certificate, str]:
    """Open a bundle on a device, if its answers there are right; return the engine, the certificate and a line for people.

    Args:
        bundle: with golden inputs.
        device: OpenVINO's name, as in NPU or GPU.
        precision: `float` or `int8`; None: the file made for the device, else int8 if it passed its gates, else float.
        maps: give the attention maps.
        open_on: opens an artefact on the device; for tests and devices of other makers.

    Raises:
        BundleError: no such artefact, or no golden inputs to prove it on.
        EngineError: the device is not there, does not take the model, or answers wrongly.
    """
    artefact = artefact_for(bundle, device, precision)
    golden = bundle.golden()
    if not golden:
        raise BundleError(
            f"{bundle.path} has no golden inputs to check {device} on; export it anew, or run it on the CPU"
        )
    with contextlib.ExitStack() as stack:
        opened = (open_on or _open_openvino)(bundle, artefact, device, maps)
        stack.callback(opened.close)
        key = _key(bundle, artefact, opened, maps)
        certificate, when = recall(KEPT, key, Certificate), "as it did before"
        if certificate is None:
            certificate, when = _compare(bundle, artefact, opened, golden["inputs"], maps), "checked now"
            keep(KEPT, key, certificate)
        output, worst = certificate.worst
        told = f"{device} ({certificate.name}) differs from the CPU by {100 * worst:.2g} % on {certificate.n} golden inputs"
        if certificate.agreement < 1.0:
            told += f" and answers as it on {certificate.agreement:.0%} of them"
        if certificate.verdict != "passed":
            raise EngineError(
                f"{bundle.path}: {told} ('{output}'; {100 * BOUND:.0f} % is allowed): it computes {artefact.file} wrongly. "
                "Run it with --device CPU, or try another driver"
            )
        stack.pop_all()
    return opened, certificate, f"openvino {artefact.precision} on {told}, {when}{_compiled(opened)}"


def artefact_for(bundle: Bundle, device: str, precision: str | None = None) -> Artefact:
    """The artefact that a device is given: the one made for it, else int8 if it passed its gates, else float.

    Raises:
        BundleError: the bundle holds none for OpenVINO, or none of this precision.
    """
    own = [a for a in bundle.artefacts if a.engine == "openvino" and a.target == device.lower()]
    others = held(bundle, ["openvino"], ["float", "int8"])
    order = sorted(others, key=lambda a: not (a.precision == "int8" and a.verdict == "passed"))
    for artefact in [*own, *order]:
        if precision in (None, artefact.precision):
            return artefact
    raise BundleError(f"{bundle.path} holds no OpenVINO file{f' in {precision}' if precision else ''} for {device}")


def relative_error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Length of the difference over the length of what was wanted; argmax agrees even at a quarter."""
    error = np.linalg.norm(found.astype(np.float64) - wanted) / max(float(np.linalg.norm(wanted)), 1e-12)
    return float(error) if np.isfinite(error) else float("inf")


def _open_openvino(bundle: Bundle, artefact: Artefact, device: str, maps: bool) -> Engine:
    return open_artefact(bundle, replace(artefact, target=device.lower()), maps=maps)


def _compare(
    bundle: Bundle, artefact: Artefact, opened: Engine, inputs: NDArray[np.generic], maps: bool
) -> Certificate:
    processor = open_artefact(bundle, replace(artefact, target="cpu"), maps=maps)
    try:
        found, wanted = infer_all(opened, inputs), infer_all(processor, inputs)
    finally:
        processor.close()
    names, spec, told = wanted_outputs(bundle.spec, maps=maps), bundle.spec, opened.details
    given, right = (parts({name: outputs[name] for name in names}, spec) for outputs in (found, wanted))
    errors = {name: relative_error(given[name], right[name]) for name in right}
    agreement = agreeing(found, wanted, spec)
    least = 0.0 if spec.task == "classify" else LEAST_AGREEMENT  # a classifier's best two may be near one another
    return Certificate(
        device=str(told["device"]),
        name=str(told.get("device_name") or told["device"]),
        driver=str(told.get("driver", "")),
        precision=artefact.precision,
        errors=errors,
        agreement=agreement,
        n=len(inputs),
        verdict="passed" if max(errors.values()) <= BOUND and agreement >= least else "failed",
    )


def _compiled(engine: Engine) -> str:
    if "compile_ms" not in engine.details:
        return ""
    how = "taken from the cache" if engine.details.get("from_cache") else "compiled"
    return f"; {how} in {engine.details['compile_ms']:.0f} ms"


def _key(bundle: Bundle, artefact: Artefact, engine: Engine, maps: bool) -> dict[str, Any]:
    """What an answer depends on: the model, the device, its driver and OpenVINO."""
    told = {key: str(engine.details.get(key, "")) for key in ("device", "device_name", "driver", "version")}
    return {"bundle": bundle.digest(), "file": artefact.file, "maps": maps, "bound": BOUND, **told}
