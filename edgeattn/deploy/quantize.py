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
from edgeattn.deploy.recipes.plan import Plan
from edgeattn.deploy.results import Report, gates
from edgeattn.deploy.verify import verify
from edgeattn.engines import held
from edgeattn.engines.openvino import computes_bf16
from edgeattn.errors import DataError
from edgeattn.evaluation import significance
from edgeattn.evaluation.significance import Verdict
from edgeattn.imaging import Picture, prepare
from edgeattn.spec import Artefact
from edgeattn.timing.environment import adds_bytes_exactly


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A bundle with its int8 artefacts, and what was measured on them."""

    bundle: Bundle
    """The bundle, on disk."""
    report: Report
    """The accuracy, agreement, attention fidelity and speed of every file that was made, on the validation pictures."""
    steps: tuple[Step, ...] = ()
    """What was tried on the ladder, in order; empty: the default recipe was taken as it is."""
    notes: tuple[str, ...] = ()
    """What the user should know of it: what there was no time for, files that are not in the bundle, and why."""

    @property
    def verdict(self) -> Verdict:
        """The worst of the report's results; bf16, which nobody asked for, counts where it has passed."""
        counted = [r.verdict for r in self.report.results if r.precision != "bf16" or r.verdict == "passed"]
        return significance.worst(counted)


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
    artefacts if it passes: a rung that needs no file. Int8 that has not passed does not replace what has.

    Args:
        bundle: holds a float artefact; engines without one get no int8.
        calibration: pictures of any size, (H, W, 3) BGR bytes.
        validation: labelled pictures outside the calibration set.
        source: the float graph to take the weights from, as `export.to_onnx` makes it; None: the bundle's own. What is
            measured is compared with the bundle's own in either case.
        provenance: what bundle.json is to say of the calibration set.
        max_loss: greatest loss of top-1 against float, as a fraction, that passes the gate.
        minutes: time to spend on the ladder (see `climb`), both engines together; fine-tuning that was begun is finished
            beyond it. 0: the default recipe alone.
        tune: the ladder's last rung: fine-tunes for int8 and returns the graph with the new weights, as `source`.
        memory: a file that keeps what was measured on the ladder, so that it goes on where it was interrupted.
        portable: give weights seven bits, which hold on every processor; False: eight where this one computes them exactly.
        progress: show a bar with the time left on the ladder.

    Raises:
        DataError: no pictures, or a calibration set that int8's ranges must not be taken from (see `calibration.check`);
            copies in it are left out.
        EdgeAttnError: a toolchain failed; the bundle is as it was.
    """
    if not len(calibration) or not len(validation):
        raise DataError("quantize needs calibration and validation pictures; give a folder with --data")
    different, told = check(calibration, (picture for picture, _ in validation)), []
    if copies := len(calibration) - len(different):
        told.append(f"{copies} of the {len(calibration)} calibration pictures are copies of others: left out")
    inputs = [prepare(calibration[place], bundle.spec.input) for place in different]
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
        candidates = artefacts + _in_bf16(bundle)
        trial = extend(bundle, candidates, files, path=Path(scratch) / "trial")
        report = verify(trial, validation, max_loss=max_loss)
        measured = {(r.engine, r.precision): gates(r) for r in report.results}
        gated = [dataclasses.replace(a, gates=measured[a.engine, a.precision]) for a in candidates]
        taken, notes = _taken(bundle, gated)
        new = [artefact.engine for artefact in taken if artefact.precision == "int8"]
        files = {name: content for engine in new for name, content in made[engine][1].items()}
        grown = extend(bundle, taken, files, provenance=provenance if new else None)
    report = dataclasses.replace(report, bundle=str(grown.path), digest=grown.digest())
    return Quantized(grown, report, tuple(ladder.steps), (*told, *ladder.notes, *notes))


def _taken(bundle: Bundle, made: Sequence[Artefact]) -> tuple[tuple[Artefact, ...], tuple[str, ...]]:
    """Those that go into the bundle, and what is to be said of the others."""
    passed = {(a.engine, a.precision) for a in held(bundle) if a.verdict == "passed"}
    taken, notes = [], []
    for artefact in made:
        told = f"{artefact.engine} {artefact.precision}: {artefact.verdict}, "
        if artefact.verdict == "passed":
            taken.append(artefact)
        elif (artefact.engine, artefact.precision) in passed:
            notes.append(f"{told}so the bundle keeps the one of before, which has passed")
        elif artefact.precision == "bf16":
            notes.append(f"{told}so it is left out of the bundle")
        else:
            taken.append(artefact)
    return tuple(taken), tuple(notes)


def _in_bf16(bundle: Bundle) -> tuple[Artefact, ...]:
    floats = held(bundle, ["openvino"], ["float"]) if computes_bf16() else []
    return tuple(dataclasses.replace(a, precision="bf16", recipe={"executed": "bf16"}, gates={}) for a in floats)
