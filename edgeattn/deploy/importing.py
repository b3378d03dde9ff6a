"""A model from elsewhere, ONNX or OpenVINO IR, becomes a bundle: what its input wants is read, told, or found by trying.

Nothing of the graph is changed but what engines need: shapes made static, nodes named, a last softmax cut off (a bundle gives
logits), and what `rewrite` repairs where the answers stay what they were. Normalisation stays outside of the graph, as
`imaging.prepare` does it: folding it into a first convolution that pads would change the borders. A detector is shown its
frames letterboxed, as ultralytics does. An IR's bundle holds `float.xml`, and OpenVINO alone runs it: nothing turns an IR into
ONNX.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.bundle import GOLDEN, SUFFIX, Bundle, sha256, write
from edgeattn.deploy.calibration import some_of
from edgeattn.deploy.foreign import (
    ZERO_TO_ONE,
    Graph,
    Normalisation,
    input_of,
    metadata,
    model_file,
    output_of,
    prototypes_of,
    read_graph,
)
from edgeattn.deploy.verify import difference
from edgeattn.engines import NAMES, open_engine
from edgeattn.engines.base import Engine, infer_all
from edgeattn.errors import DataError, EngineError, GateError, NameNotFoundError, SpecError
from edgeattn.imaging import Picture, prepare
from edgeattn.spec import Artefact, InputSpec, Spec, Task
from edgeattn.tasks import agreeing, decode, parts

GOLDEN_PICTURES = 50
GOLDEN_FRAMES = 10
"""Of detectors and segmenters, whose inputs and outputs are large."""
TRIED = 100
"""Labelled pictures on which normalisations are tried."""
PARITY = 1e-3
"""Greatest difference between the engines, as a fraction of the range of the answers."""
NORMALISATIONS: Mapping[str, Normalisation] = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "0..1": ZERO_TO_ONE,
    "-1..1": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "0..255": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""RGB mean and divisor on the 0-255 scale, by name: torchvision's and timm's, ultralytics', TensorFlow's, none."""
TOLD = "as the file says"
"""Name of a normalisation that is none of these."""
CHANNELS = ("rgb", "bgr")

Labelled = Sequence[tuple[Picture, int]]


@dataclass(frozen=True)
class Tried:
    """One way to prepare pictures, tried on labelled ones."""

    normalisation: str
    """Its name in `NORMALISATIONS`, or `TOLD`."""
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


def import_model(
    model: Path,
    path: Path,
    pictures: Labelled,
    *,
    labels: Sequence[str] = (),
    normalisation: str = "",
    channels: str = "",
    imgsz: int | None = None,
    crop: float = 1.0,
    task: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Imported:
    """Make a bundle of a classifier's, a detector's or a segmenter's file and check it through the engines that read it.

    Args:
        model: `.onnx`, or `.xml` with its `.bin`, or the folder of that: one input of one picture, (1, 3, H, W) or
            (1, H, W, 3), float; among its outputs one of (1, K), of a detector's forms (see `tasks.detect`), or of
            (1, K, h, w). Sizes that are left open need `imgsz`; another size than the file's own is refused.
        path: the bundle's folder; its name gets the ending `.edgeattn` where it lacks one.
        pictures: labelled pictures, (H, W, 3) BGR bytes; a label's place is that in `labels`, and of no account to
            detectors and segmenters. The first ones become golden.
        labels: names of the classes; empty: the file's metadata tell (ultralytics, Model API).
        normalisation: of `NORMALISATIONS`; empty: what the metadata tell, else what gives the most right answers.
        channels: rgb or bgr; likewise.
        imgsz: side of the square input where the file leaves it open.
        crop: side of the central crop as a fraction of the largest one; detectors and segmenters are shown the whole frame.
        task: classify, detect or segment; empty: what the metadata tell, else classify.
        provenance: what bundle.json says of data, weights, licence.

    Raises:
        DataError: the file is no such model that can be run, or the labels do not fit; says what is missing.
        GateError: the engines give different answers; nothing is written.
    """
    if not pictures:
        raise DataError("import checks a model on pictures; give at least one, a folder of them with --data")
    file = model_file(model)
    graph = read_graph(file)
    told = metadata(graph.told)
    names = tuple(labels) or told.labels
    if not names:
        raise DataError(f"{file} does not name its classes; give them with --labels (a file, a line each)")
    spec_input, nhwc = input_of(graph, file, (imgsz, imgsz) if imgsz else told.imgsz)
    if imgsz and (spec_input.height, spec_input.width) != (imgsz, imgsz):
        size = f"{spec_input.width} x {spec_input.height}"
        raise DataError(f"{file} takes pictures of {size} alone; leave out --imgsz {imgsz}, or export it for that size")
    spec_input = replace(spec_input, crop=crop)
    does = _task(task, told.task, file)
    if does != "classify":
        spec_input = replace(spec_input, fit="letterbox", interpolation="linear")
    prototypes = prototypes_of(graph) if does == "detect" else ""
    spec = Spec(does, spec_input, names, output_of(graph, file, len(names), does), prototypes=prototypes)
    places = {name: [port.name for port in graph.outputs].index(name) for name in spec.outputs}
    graph.keep(*spec.outputs)
    graph.fix((1, spec_input.height, spec_input.width, 3) if nhwc else spec_input.shape)
    if nhwc:
        graph.channels_first()
    path = path if path.name.endswith(SUFFIX) else path.with_name(path.name + SUFFIX)
    if channels not in ("", *CHANNELS):
        raise NameNotFoundError("order of channels", channels, CHANNELS)
    ways, known = _ways(normalisation, told.normalisation), channels or told.channels
    orders = (known,) if known else CHANNELS
    chosen, order = next(iter(ways)), orders[0]
    tried: tuple[Tried, ...] = ()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        if len(ways) * len(orders) > 1:
            if does != "classify":
                raise DataError(
                    f"{file} does not say how it wants its pictures; tell it with --normalise and --channels"
                )
            opened, _ = _open(spec, graph, file, Path(scratch) / "tried", stack)
            tried = _try_all(next(iter(opened.values())), spec, pictures[:TRIED], ways, orders)
            chosen, order = tried[0].normalisation, tried[0].channels
        spec = replace(spec, input=_normalised(spec.input, ways[chosen]))
        if order == "bgr":
            graph.swap_channels()
        inputs = np.concatenate([prepare(picture, spec.input) for picture, _ in pictures[:GOLDEN_PICTURES]])
        answers, failures = _ask(spec, graph, inputs, file, Path(scratch) / "final")
        if repaired := graph.repaired():
            with contextlib.suppress(DataError, EngineError):
                answers_then, _ = _ask(spec, repaired, inputs, file, Path(scratch) / "repaired")
                if _agree(answers_then, answers, spec):
                    graph, answers = repaired, answers_then
    if [*answers] == ["openvino"]:  # no second engine to ask: is it still the model that came?
        as_before = inputs[:, ::-1] if order == "bgr" else inputs
        came = _as_it_came(file, places, as_before.transpose(0, 2, 3, 1) if nhwc else as_before)
        given = answers["openvino"]
        if does == "classify":
            came = {spec.output: came[spec.output].reshape(len(inputs), -1)}
            given = {spec.output: _in_kind(given[spec.output], came[spec.output])}
        gates = _gates(file, {"the file as it came": came, "openvino": given}, spec)
    else:
        gates = _gates(file, answers, spec)
    expected = next(iter(answers.values()))
    buffer = io.BytesIO()
    kept = GOLDEN_PICTURES if does == "classify" else GOLDEN_FRAMES
    np.savez_compressed(buffer, inputs=inputs[:kept], **{n: v[:kept] for n, v in expected.items()})  # type: ignore[arg-type]
    files = graph.files()
    artefacts = tuple(Artefact(next(iter(files)), e, "float", gates={"parity": gates[e]}) for e in answers)
    about = {"imported": {"file": file.name, "sha256": sha256(file), "normalisation": chosen, "channels": order}}
    if file.suffix == ".xml":
        about["imported"]["weights_sha256"] = sha256(file.with_suffix(".bin"))
    bundle = write(Bundle(path, spec, artefacts, about | dict(provenance or {})), {**files, GOLDEN: buffer.getvalue()})
    return Imported(bundle, tried, failures)


def _task(asked: str, told: Task | None, file: Path) -> Task:
    """What a model does.

    Raises:
        NameNotFoundError: there is no such task.
        DataError: the file says otherwise.
    """
    tasks = typing.get_args(Task)
    if asked not in ("", *tasks):
        raise NameNotFoundError("task", asked, tasks)
    if asked and told and asked != told:
        raise DataError(f"{file} says that it is a model to {told}; leave out --task {asked}")
    return typing.cast("Task", asked) if asked else told or "classify"


def _ways(asked: str, told: Normalisation | None) -> Mapping[str, Normalisation]:
    """The normalisations that come into question, by name.

    Raises:
        NameNotFoundError: none has the name that was asked for.
    """
    if asked:
        if asked not in NORMALISATIONS:
            raise NameNotFoundError("normalisation", asked, NORMALISATIONS)
        return {asked: NORMALISATIONS[asked]}
    if told is None:
        return NORMALISATIONS
    name = next((name for name, way in NORMALISATIONS.items() if np.allclose(way, told, atol=0.01)), TOLD)
    return {name: told}


def _try_all(
    engine: Engine, spec: Spec, pictures: Labelled, ways: Mapping[str, Normalisation], orders: Sequence[str]
) -> tuple[Tried, ...]:
    """Every normalisation in every order of channels, the best first."""
    truth = np.array([label for _, label in pictures])
    found = []
    for name, order in itertools.product(ways, orders):
        own = _normalised(spec.input, ways[name])
        x_N3HW = np.concatenate([prepare(picture, own) for picture, _ in pictures])
        x_N3HW = x_N3HW if order == "rgb" else np.ascontiguousarray(x_N3HW[:, ::-1])
        logits_NK = _logits(engine, spec, x_N3HW).astype(np.float64)
        logits_NK -= logits_NK.max(1, keepdims=True)
        certain = logits_NK[np.arange(len(truth)), truth] - np.log(np.exp(logits_NK).sum(1))
        found.append(Tried(name, order, float(np.mean(logits_NK.argmax(1) == truth)), float(certain.mean())))
    return tuple(sorted(found, key=lambda one: (-one.top1, -one.certainty)))


def _normalised(spec: InputSpec, way: Normalisation) -> InputSpec:
    mean, std = way
    return replace(spec, mean=mean, std=std)


Answers = Mapping[str, Mapping[str, NDArray[np.float32]]]
"""By engine, by output."""


def _ask(
    spec: Spec, graph: Graph, inputs: NDArray[np.generic], file: Path, path: Path
) -> tuple[Answers, dict[str, str]]:
    """What the engines that run a model answer, and why others do not run it; as `_open`."""
    with contextlib.ExitStack() as stack:
        opened, failures = _open(spec, graph, file, path, stack)
        return {name: _answers(engine, spec, inputs) for name, engine in opened.items()}, failures


def _agree(given: Answers, wanted: Answers, spec: Spec) -> bool:
    """Whether the same engines give the same answers."""
    return given.keys() == wanted.keys() and all(_apart(given[name], wanted[name], spec) <= PARITY for name in wanted)


def _open(
    spec: Spec, graph: Graph, file: Path, path: Path, stack: contextlib.ExitStack
) -> tuple[dict[str, Engine], dict[str, str]]:
    """The engines that run a model, and why others do not; `file` is what the user calls it, `path` is for the trial.

    Raises:
        DataError: none of them does.
    """
    files = graph.files()
    written = next(iter(files))
    trial = write(Bundle(path, spec, tuple(Artefact(written, engine, "float") for engine in graph.engines)), files)
    opened: dict[str, Engine] = {}
    failures = {name: "it does not read OpenVINO's IR" for name in NAMES if name not in graph.engines}
    for name in graph.engines:
        try:
            opened[name] = open_engine(trial, engine=name, precision="float")
        except EngineError as error:
            why = str(error).replace(str(trial.path / written), str(file))
            lacking = f"; it names {some_of(named)}" if (named := graph.named_in(why)) else ""
            failures[name] = f"{why}{lacking}"
        else:
            stack.callback(opened[name].close)
    if not opened:
        raise DataError(f"no engine runs it: {'; '.join(failures[name] for name in graph.engines)}")
    return opened, failures


def _answers(engine: Engine, spec: Spec, inputs: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
    """What an engine gives by output, picture by picture: logits (N, K), or what another task reads (N, ...).

    Raises:
        DataError: the output is none of these.
    """
    if spec.task == "classify":
        return {spec.output: _logits(engine, spec, inputs)}
    given = {name: values.astype(np.float32) for name, values in infer_all(engine, inputs).items()}
    try:
        decode({name: values[:1] for name, values in given.items()}, spec)
    except SpecError as error:
        raise DataError(str(error)) from error
    return given


def _logits(engine: Engine, spec: Spec, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    """(N, K), picture by picture.

    Raises:
        DataError: the output is no list of logits.
    """
    given_NK = infer_all(engine, inputs)[spec.output].reshape(len(inputs), -1)
    if given_NK.shape[1] != len(spec.labels):
        raise DataError(f"the output '{spec.output}' has {given_NK.shape[1]} numbers for {len(spec.labels)} labels")
    return given_NK.astype(np.float32)


def _as_it_came(file: Path, places: Mapping[str, int], inputs: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
    """What OpenVINO gives by the file itself, (N, ...), at these places of its outputs."""
    from edgeattn.engines.openvino import openvino_core

    compiled = openvino_core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given = [compiled(np.ascontiguousarray(inputs[i : i + 1])) for i in range(len(inputs))]
    return {
        name: np.concatenate([np.array(row[place]) for row in given]).astype(np.float32)
        for name, place in places.items()
    }


def _in_kind(logits_NK: NDArray[np.float32], wanted_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits as what is wanted of them: probabilities, their logarithms, or logits as they are."""
    logs_NK = logits_NK - logits_NK.max(1, keepdims=True)
    logs_NK -= np.log(np.exp(logs_NK).sum(1, keepdims=True))
    return min((logits_NK, logs_NK, np.exp(logs_NK)), key=lambda given: float(np.abs(given - wanted_NK).max()))


def _apart(given: Mapping[str, NDArray[np.float32]], wanted: Mapping[str, NDArray[np.float32]], spec: Spec) -> float:
    """How far answers are from what is wanted, as a fraction of its range, the greatest of their parts."""
    own, others = parts(given, spec), parts(wanted, spec)
    worst = max(difference(own[name], others[name]) for name in others)
    if "boxes" in own or spec.task != "detect":
        return worst
    return max(worst, 1.0 - agreeing(given, wanted, spec))


def _gates(file: Path, answers: Answers, spec: Spec) -> dict[str, dict[str, Any]]:
    """How far each one's answers are from the first one's.

    Raises:
        GateError: one of them gives other answers, or none.
    """
    reference, expected = next(iter(answers.items()))
    gates = {}
    for name, given in answers.items():
        if any(np.isnan(values).any() for values in given.values()):
            raise GateError(
                f"{file}: {name} answers with what is no number (nan); nothing was written. Its weights, or a step that divides "
                "by zero, are at fault: export it anew, from a run whose loss stayed a number"
            )
        differs = _apart(given, expected, spec)
        if not differs <= PARITY:  # not a number is no agreement either
            raise GateError(
                f"{file}: {name} answers otherwise than {reference} (by {differs:.1e} of the answers' range, "
                f"allowed {PARITY:.0e}); nothing was written. One of them computes an operator wrongly: try another opset"
            )
        gates[name] = {
            "verdict": "passed", "difference": differs, "allowed": PARITY, "against": reference,
            "n": len(given[spec.output]),
        }  # fmt: skip
    return gates
