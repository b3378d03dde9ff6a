"""A classifier that somebody else exported to ONNX becomes a bundle: what its input wants is read, told, or found by trying.

Nothing of the graph is changed but what engines need: shapes made static, nodes named, a last softmax cut off (a bundle gives
logits). Normalisation stays outside of the graph, as `imaging.prepare` does it: folding it into a first convolution that pads
would change the borders.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeattn.bundle import GOLDEN, SUFFIX, Bundle, sha256, write
from edgeattn.deploy.foreign import (
    channels_first,
    input_of,
    make_static,
    metadata,
    output_of,
    read_graph,
    swap_channels,
)
from edgeattn.engines import open_engine
from edgeattn.engines.base import Engine
from edgeattn.errors import DataError, EngineError, GateError, NameNotFoundError
from edgeattn.imaging import Picture, prepare
from edgeattn.spec import Artefact, InputSpec, Spec

ENGINES = ("onnxruntime", "openvino")
GOLDEN_PICTURES = 50
TRIED = 100
"""Labelled pictures on which normalisations are tried."""
PARITY = 1e-3
"""Greatest difference between the engines, as a fraction of the range of the logits."""
NORMALISATIONS: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "0..1": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "-1..1": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "0..255": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""RGB mean and divisor on the 0-255 scale, by name: torchvision's and timm's, ultralytics', TensorFlow's, none."""
CHANNELS = ("rgb", "bgr")

Labelled = Sequence[tuple[Picture, int]]


@dataclass(frozen=True)
class Tried:
    """One way to prepare pictures, tried on labelled ones."""

    normalisation: str
    """Its name in `NORMALISATIONS`."""
    channels: str
    """rgb or bgr."""
    top1: float
    """Share of right answers."""
    certainty: float
    """Mean log-probability of the right answer; the more the better."""


@dataclass(frozen=True)
class Imported:
    """A bundle, and how its input was found out."""

    bundle: Bundle
    """The bundle, on disk."""
    tried: tuple[Tried, ...] = ()
    """What was tried, the best first; empty: it was told, or the file says it."""
    failures: Mapping[str, str] | None = None
    """Engines that cannot run the file, and why."""


def import_onnx(
    file: Path,
    path: Path,
    pictures: Labelled,
    *,
    labels: Sequence[str] = (),
    normalisation: str = "",
    channels: str = "",
    imgsz: int | None = None,
    crop: float = 1.0,
    provenance: Mapping[str, Any] | None = None,
) -> Imported:
    """Make a bundle of a classifier's ONNX file and check it through both engines.

    Args:
        file: one input of one picture, (1, 3, H, W) or (1, H, W, 3), float; one output (1, K) among its outputs. Sizes that
            are left open need `imgsz`.
        path: the bundle's folder; its name gets the ending `.edgeattn` where it lacks one.
        pictures: labelled pictures, (H, W, 3) BGR bytes; a label's place is that in `labels`. The first ones become golden.
        labels: names of the classes; empty: the file's metadata tell (ultralytics, Model API).
        normalisation: of `NORMALISATIONS`; empty: what the metadata tell, else what gives the most right answers.
        channels: rgb or bgr; likewise.
        imgsz: side of the square input where the file leaves it open.
        crop: side of the central crop as a fraction of the largest one.
        provenance: what bundle.json says of data, weights, licence.

    Raises:
        DataError: the file is no classifier that can be run, or the labels do not fit; says what is missing.
        GateError: the engines give different answers; nothing is written.
    """
    model = read_graph(file)
    told = metadata(model)
    names = tuple(labels) or told.labels
    if not names:
        raise DataError(f"{file} does not name its classes; give them with --labels (a file, a line each)")
    spec_input, nhwc = input_of(model, file, imgsz or told.imgsz)
    spec = Spec("classify", replace(spec_input, crop=crop), names, output=output_of(model, file, len(names)))
    make_static(model, file)
    if nhwc:
        channels_first(model)
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"-/{node.op_type}_{i}"
    path = path if path.name.endswith(SUFFIX) else path.with_name(path.name + SUFFIX)
    chosen, order = normalisation or told.normalisation, channels or told.channels
    if order not in ("", *CHANNELS):
        raise NameNotFoundError("order of channels", order, CHANNELS)
    tried: tuple[Tried, ...] = ()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        if not chosen:
            opened, _ = _open(spec, model, Path(scratch) / "tried", stack)
            tried = _try_all(next(iter(opened.values())), spec, pictures[:TRIED], order)
            chosen, order = tried[0].normalisation, tried[0].channels
        spec = replace(spec, input=_normalised(spec.input, chosen))
        if order == "bgr":
            swap_channels(model, spec)
        inputs = np.concatenate([prepare(picture, spec.input) for picture, _ in pictures[:GOLDEN_PICTURES]])
        opened, failures = _open(spec, model, Path(scratch) / "final", stack)
        answers = {name: _logits(engine, spec, inputs) for name, engine in opened.items()}
    expected, gates = _gates(file, answers)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, inputs=inputs, **{spec.output: expected})  # type: ignore[arg-type]
    files = {"float.onnx": model.SerializeToString(), GOLDEN: buffer.getvalue()}
    artefacts = tuple(Artefact("float.onnx", e, "float", gates={"parity": gate}) for e, gate in gates.items())
    about = {
        "imported": {
            "file": file.name,
            "sha256": sha256(file),
            "normalisation": chosen,
            "channels": order or "rgb",
        }
    }
    bundle = write(Bundle(path, spec, artefacts, about | dict(provenance or {})), files)
    return Imported(bundle, tried, failures)


def _try_all(engine: Engine, spec: Spec, pictures: Labelled, channels: str) -> tuple[Tried, ...]:
    """Every normalisation, in the order of channels that is told or in both, the best first."""
    truth = np.array([label for _, label in pictures])
    found = []
    for name, order in itertools.product(NORMALISATIONS, [channels] if channels else CHANNELS):
        own = _normalised(spec.input, name)
        x_N3HW = np.concatenate([prepare(picture, own) for picture, _ in pictures])
        x_N3HW = x_N3HW if order == "rgb" else np.ascontiguousarray(x_N3HW[:, ::-1])
        logits_NK = _logits(engine, spec, x_N3HW).astype(np.float64)
        logits_NK -= logits_NK.max(1, keepdims=True)
        certain = logits_NK[np.arange(len(truth)), truth] - np.log(np.exp(logits_NK).sum(1))
        found.append(Tried(name, order, float(np.mean(logits_NK.argmax(1) == truth)), float(certain.mean())))
    return tuple(sorted(found, key=lambda one: (-one.top1, -one.certainty)))


def _normalised(spec: InputSpec, normalisation: str) -> InputSpec:
    """The input with a normalisation of this name.

    Raises:
        NameNotFoundError: there is none.
    """
    if normalisation not in NORMALISATIONS:
        raise NameNotFoundError("normalisation", normalisation, NORMALISATIONS)
    mean, std = NORMALISATIONS[normalisation]
    return replace(spec, mean=mean, std=std)


def _open(
    spec: Spec, model: onnx.ModelProto, path: Path, stack: contextlib.ExitStack
) -> tuple[dict[str, Engine], dict[str, str]]:
    """The engines that run a model, and why others do not.

    Raises:
        DataError: none of them does.
    """
    artefacts = tuple(Artefact("float.onnx", engine, "float") for engine in ENGINES)
    trial = write(Bundle(path, spec, artefacts), {"float.onnx": model.SerializeToString()})
    opened: dict[str, Engine] = {}
    failures: dict[str, str] = {}
    for name in ENGINES:
        try:
            opened[name] = open_engine(trial, engine=name, precision="float")
        except EngineError as error:
            failures[name] = str(error)
        else:
            stack.callback(opened[name].close)
    if not opened:
        raise DataError(f"no engine runs it: {'; '.join(failures.values())}")
    return opened, failures


def _logits(engine: Engine, spec: Spec, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    """(N, K), picture by picture.

    Raises:
        DataError: the output is no list of logits.
    """
    given = [engine.infer(inputs[i : i + 1])[spec.output] for i in range(len(inputs))]
    if given[0].size != len(spec.labels):
        raise DataError(f"the output '{spec.output}' has {given[0].size} numbers for {len(spec.labels)} labels")
    return np.concatenate([value.reshape(1, -1) for value in given]).astype(np.float32)


def _gates(
    file: Path, answers: Mapping[str, NDArray[np.float32]]
) -> tuple[NDArray[np.float32], dict[str, dict[str, Any]]]:
    """The first engine's logits, which are the golden ones, and for each engine how far it is from them.

    Raises:
        GateError: one of them gives other answers.
    """
    reference, expected = next(iter(answers.items()))
    gates = {}
    for engine, given in answers.items():
        difference = float(np.abs(given - expected).max() / max(float(np.ptp(expected)), 1e-6))
        if not difference <= PARITY:  # not a number is no agreement either
            raise GateError(
                f"{file}: {engine} answers otherwise than {reference} (by {difference:.1e} of the logits' range, "
                f"allowed {PARITY:.0e}); nothing was written. One of them computes an operator wrongly: try another opset"
            )
        gates[engine] = {
            "verdict": "passed", "difference": difference, "allowed": PARITY, "against": reference, "n": len(given)
        }  # fmt: skip
    return expected, gates
