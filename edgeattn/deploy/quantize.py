"""Int8 for every engine that runs the float model: by a recipe or up the ladder, gated on the saved files."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from edgeattn.bundle import Bundle, extend
from edgeattn.deploy.calibration import check
from edgeattn.deploy.climb import climb
from edgeattn.deploy.ladder import Bounds, Ladder, Step
from edgeattn.deploy.recipes import Plan
from edgeattn.deploy.results import Report, gates
from edgeattn.deploy.verify import verify
from edgeattn.engines import held
from edgeattn.engines.openvino import computes_bf16
from edgeattn.errors import DataError
from edgeattn.imaging import Picture, prepare
from edgeattn.spec import Artefact
from edgeattn.timing.environment import adds_bytes_exactly


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A bundle with its int8 artefacts, and what was measured on them."""

    bundle: Bundle
    """The bundle, on disk."""
    report: Report
    """Every artefact's accuracy, agreement, attention fidelity and speed on the validation pictures."""
    steps: tuple[Step, ...] = ()
    """What was tried on the ladder, in order; empty: the default recipe was taken as it is."""


def quantize(
    bundle: Bundle,
    calibration: Sequence[Picture],
    validation: Sequence[tuple[Picture, int]],
    *,
    source: onnx.ModelProto | None = None,
    provenance: Mapping[str, Any] | None = None,
    max_loss: float = 0.01,
    minutes: float = 0.0,
    tune: Callable[[], onnx.ModelProto] | None = None,
    memory: Path | None = None,
    portable: bool = False,
    progress: bool = False,
) -> Quantized:
    """Quantize for the engines that run the float model, measure the saved files, add them to the bundle with their verdicts.

    Where the processor computes in bf16, the float file executed so is measured beside them, and is one of the bundle's
    artefacts if it passes: a rung that needs no file.

    Args:
        bundle: holds a float artefact; engines without one get no int8.
        calibration: pictures of any size, (H, W, 3) BGR bytes.
        validation: labelled pictures outside the calibration set.
        source: the float graph to take the weights from, as `export.to_onnx` makes it; None: the bundle's own. What is
            measured is compared with the bundle's own in either case.
        provenance: what bundle.json is to say of the calibration set.
        max_loss: greatest loss of top-1 against float, as a fraction, that passes the gate.
        minutes: time to spend on the ladder (see `ladder`), both engines together; 0: the default recipe alone.
        tune: the ladder's last rung: fine-tunes for int8 and returns the graph with the new weights, as `source`.
        memory: a file that keeps what was measured on the ladder, so that it goes on where it was interrupted.
        portable: give weights seven bits, which hold on every processor; False: eight where this one computes them exactly.
        progress: show a bar with the time left on the ladder.

    Raises:
        DataError: no pictures, or a calibration set that int8's ranges must not be taken from (see `calibration.check`).
        EdgeAttnError: a toolchain failed; the bundle is as it was.
    """
    if not len(calibration) or not len(validation):
        raise DataError("quantize needs calibration and validation pictures; give a folder with --data")
    check(calibration, (picture for picture, _ in validation))
    inputs = [prepare(picture, bundle.spec.input) for picture in calibration]
    with tempfile.TemporaryDirectory() as scratch:
        start = Plan(weight_bits=7 if portable or not adds_bytes_exactly() else 8)
        ladder = Ladder(bundle, inputs, validation, Path(scratch), source, Bounds(loss=max_loss), memory, start)
        made = (
            {engine: ladder.default(engine) for engine in ladder.engines}
            if not minutes
            else climb(ladder, minutes, tune, progress=progress)
        )
        artefacts = tuple(artefact for artefact, _ in made.values())
        files = {name: content for _, held in made.values() for name, content in held.items()}
        extra = _in_bf16(bundle)
        trial = extend(bundle, artefacts + extra, files, path=Path(scratch) / "trial")
        report = verify(trial, validation, max_loss=max_loss)
        passed = {(r.engine, r.precision) for r in report.results if r.verdict == "passed"}
        extra = tuple(a for a in extra if (a.engine, a.precision) in passed)
        report = dataclasses.replace(
            report, results=tuple(r for r in report.results if r.precision != "bf16" or r.verdict == "passed")
        )
        measured = {(r.engine, r.precision): gates(r) for r in report.results}
        gated = tuple(dataclasses.replace(a, gates=measured[a.engine, a.precision]) for a in artefacts + extra)
        return Quantized(extend(bundle, gated, files, provenance=provenance), report, tuple(ladder.steps))


def _in_bf16(bundle: Bundle) -> tuple[Artefact, ...]:
    floats = held(bundle, ["openvino"], ["float"]) if computes_bf16() else []
    return tuple(dataclasses.replace(a, precision="bf16", recipe={"executed": "bf16"}, gates={}) for a in floats)
