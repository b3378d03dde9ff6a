"""Intel's NPU: an int8 OpenVINO file as it likes it, in the bundle with target `npu`.

OpenVINO compiles it on the device itself, when it is first opened there; `engines.certify` then holds its answers against the
processor's before it is used. What is checked here is what it computes on the processor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeattn.bundle import Bundle, extend
from edgeattn.deploy.calibration import FEWEST
from edgeattn.deploy.recipes import quantize_for
from edgeattn.engines import open_artefact
from edgeattn.engines.base import Array, infer_all
from edgeattn.engines.certify import relative_error
from edgeattn.engines.choose import AGREEMENT, golden_agreement
from edgeattn.errors import DataError
from edgeattn.spec import Artefact

TARGET = "npu"
FILES = ("npu.xml", "npu.bin")
WHERE = "executed on a processor, not measured on the NPU; checked there when it is first opened"


@dataclass(frozen=True)
class Prepared:
    """What came of it."""

    bundle: Bundle
    """The bundle, with the artefact where it passed."""
    artefact: Artefact
    """The quantized model; in the bundle where its gate is passed."""


def prepare_intel(bundle: Bundle, calibration: Sequence[Array]) -> Prepared:
    """Quantize a bundle's float model for Intel's NPU; keep it in the bundle if a processor gives float's answers with it.

    Args:
        bundle: with golden inputs, whose float answers are the truth.
        calibration: inputs as the model takes them; not the golden ones.

    Raises:
        DataError: too few inputs, or no golden ones.
        EdgeAttnError: the toolchain failed.
    """
    golden = bundle.golden()
    if not golden or len(calibration) < FEWEST:
        raise DataError(
            f"{bundle.path}: Intel's NPU wants golden inputs and {FEWEST} others to calibrate on; "
            "name them with --calibration RUN/calibration.toml"
        )
    with tempfile.TemporaryDirectory() as scratch:
        source = bundle.file(bundle.artefact("openvino", "float"))
        made, files = quantize_for("openvino", source, Path(scratch), calibration)
        content = {name: Path(scratch) / name for name in FILES}
        for name, written in zip(FILES, files.values(), strict=True):
            Path(str(written)).rename(content[name])
        on_cpu = replace(made, file=FILES[0])
        trial = extend(bundle, (on_cpu,), dict(content), path=Path(scratch) / "trial.edgeattn")
        engine = open_artefact(trial, on_cpu)
        try:
            agreement = golden_agreement(engine, golden, bundle.spec)
            answers = infer_all(engine, golden["inputs"])[bundle.spec.output]
        finally:
            engine.close()
        verdict = "passed" if agreement >= AGREEMENT else "failed"
        gate = {
            "verdict": verdict,
            "golden_agreement": agreement,
            "relative_error": relative_error(answers, golden[bundle.spec.output]),
            "bound": AGREEMENT,
            "n": len(golden["inputs"]),
            "where": WHERE,
        }
        artefact = replace(on_cpu, target=TARGET, gates={"golden": gate})
        if verdict == "failed":
            return Prepared(bundle, artefact)
        return Prepared(extend(bundle, (artefact,), dict(content)), artefact)
