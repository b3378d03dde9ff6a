"""Engines that run artefacts: ONNX Runtime, OpenVINO and a fake; `open_engine` opens the right one for a box."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgeattn.bundle import Bundle
from edgeattn.engines.base import Array, Engine, default_threads
from edgeattn.errors import NameNotFoundError
from edgeattn.spec import Artefact

__all__ = ["NAMES", "PRECISIONS", "Array", "Engine", "default_threads", "held", "open_artefact", "open_engine"]

NAMES = ("onnxruntime", "openvino")
"""Engines that run artefacts."""
PRECISIONS = ("float", "bf16", "int8")
"""Precisions of artefacts."""


def open_engine(
    bundle: Bundle,
    *,
    engine: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    maps: bool = False,
) -> Engine:
    """Open a bundle's artefact for an engine at a precision; what is not given is chosen by speed on this machine.

    Args:
        bundle: the model.
        engine: `onnxruntime` or `openvino`.
        precision: `float`, `bf16` or `int8`; asked for by name, an artefact whose gates did not pass is opened too.
        threads: threads that compute one inference; None: the physical cores, at most four.
        maps: give the attention maps among the outputs.

    Raises:
        NameNotFoundError: no engine or precision has that name.
        BundleError: the bundle holds no such artefact.
        EngineError: the engine cannot load the file, or no artefact can be trusted on this machine.
    """
    check_names(engine, precision)
    if engine is None or precision is None:
        from edgeattn.engines.choose import choose

        choice = choose(bundle, engine=engine, precision=precision, threads=threads, maps=maps)
        engine, precision = choice.engine, choice.precision
    return open_artefact(bundle, bundle.artefact(engine, precision), threads=threads, maps=maps)


def open_artefact(
    bundle: Bundle, artefact: Artefact, *, threads: int | None = None, maps: bool = False, file: Path | None = None
) -> Engine:
    """Open one artefact, or another file in its place, with the engine and on the device that it was made for.

    Raises:
        NameNotFoundError: no engine has the artefact's name.
        EngineError: the engine cannot load the file.
    """
    check_names(artefact.engine, artefact.precision)
    file = file or bundle.file(artefact)
    if artefact.engine == "openvino":
        from edgeattn.engines.openvino import OpenVinoEngine

        device = artefact.target.upper()
        return OpenVinoEngine(
            file, bundle.spec, precision=artefact.precision, threads=threads, maps=maps, device=device,
            hint=_hint(artefact),
        )  # fmt: skip
    from edgeattn.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(file, bundle.spec, precision=artefact.precision, threads=threads, maps=maps)


def held(
    bundle: Bundle, engines: Collection[str] | None = None, precisions: Collection[str] | None = None
) -> list[Artefact]:
    """A bundle's artefacts for this processor, of these engines and precisions (None: all), in the bundle's order.

    Those in bf16 are left out where the processor does not compute it, unless they are asked for.

    Raises:
        NameNotFoundError: no engine or precision has such a name.
    """
    for engine in engines or ():
        check_names(engine, None)
    for precision in precisions or ():
        check_names(None, precision)
    found = [
        a
        for a in bundle.artefacts
        if a.target == "cpu" and (not engines or a.engine in engines) and (not precisions or a.precision in precisions)
    ]
    if precisions or all(a.precision != "bf16" for a in found):
        return found
    from edgeattn.engines.openvino import computes_bf16

    return found if computes_bf16() else [a for a in found if a.precision != "bf16"]


def _hint(artefact: Artefact) -> str:
    if artefact.target != "cpu":
        return "f16"  # NPUs know no other
    return "bf16" if artefact.precision == "bf16" else "f32"


def check_names(engine: str | None, precision: str | None) -> None:
    """Check the names of an engine and a precision where they are given.

    Raises:
        NameNotFoundError: unknown; lists the choices.
    """
    if engine is not None and engine not in NAMES:
        raise NameNotFoundError("engine", engine, NAMES)
    if precision is not None and precision not in PRECISIONS:
        raise NameNotFoundError("precision", precision, PRECISIONS)
