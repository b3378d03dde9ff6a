"""A classifier that somebody else exported to ONNX becomes a bundle: what its input wants is read, told, or found by trying.

Nothing of the graph is changed but what engines need: shapes made static, nodes named, a last softmax cut off (a bundle gives
logits). Normalisation stays outside of the graph, as `imaging.prepare` does it: folding it into a first convolution that pads
would change the borders.
"""

from __future__ import annotations

import ast
import contextlib
import csv
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
OPSET = 13
"""Least opset: int8 with a scale a channel needs it."""
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
    model = _read(file)
    told = metadata(model)
    names = tuple(labels) or told.labels
    if not names:
        raise DataError(f"{file} does not name its classes; give them with --labels (a file, a line each)")
    spec_input, nhwc = _input(model, file, imgsz or told.imgsz)
    spec = Spec("classify", replace(spec_input, crop=crop), names, output=_output(model, file, len(names)))
    _static(model, file)
    if nhwc:
        _channels_first(model)
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
            _swap_channels(model, spec)
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


@dataclass(frozen=True)
class Metadata:
    """What a file says of itself; empty where it is silent."""

    labels: tuple[str, ...] = ()
    """Names of the classes."""
    normalisation: str = ""
    """How pictures are normalised."""
    channels: str = ""
    """Their order."""
    imgsz: int | None = None
    """Side of its input."""


def metadata(model: onnx.ModelProto) -> Metadata:
    """Read what ultralytics and OpenVINO Model API write into `metadata_props`.

    Raises:
        DataError: it is a model for another task.
    """
    held = {entry.key: entry.value for entry in model.metadata_props}
    if {"task", "names", "imgsz"} <= held.keys():
        if held["task"] != "classify":
            raise DataError(f"this is a model of ultralytics to {held['task']}; this version imports classifiers")
        names = ast.literal_eval(held["names"])
        return Metadata(tuple(names[i] for i in sorted(names)), "0..1", "rgb", ast.literal_eval(held["imgsz"])[0])
    api = {key.removeprefix("model_info "): value for key, value in held.items() if key.startswith("model_info ")}
    if api.get("model_type", "Classification") != "Classification":
        raise DataError(f"this is a model for {api['model_type']}; this version imports classifiers")
    return Metadata(tuple(api.get("labels", "").split()))


def _read(file: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(file)
        held = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        if held < OPSET:
            model = onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise DataError(f"{file} cannot be read as ONNX ({reason[0] if reason else type(error).__name__})") from error
    return model


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """Sizes, 0 where they are left open."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _given(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _input(model: onnx.ModelProto, file: Path, imgsz: int | None) -> tuple[InputSpec, bool]:
    """The input, its sizes filled in, and whether its channels come last."""
    given = _given(model)
    shapes = ", ".join(f"{value.name} {_shape(value)}" for value in given)
    if len(given) != 1 or len(_shape(given[0])) != 4:
        raise DataError(f"{file} takes {shapes}; a classifier of pictures takes one input of four dimensions")
    kind = onnx.TensorProto.DataType.Name(given[0].type.tensor_type.elem_type)
    if kind != "FLOAT":
        raise DataError(f"{file} takes numbers of type {kind}; export it with float32 inputs")
    shape = _shape(given[0])
    nhwc = shape[3] == 3 and shape[1] != 3
    if not nhwc and shape[1] not in (0, 3):
        raise DataError(f"{file} takes {shapes}; pictures have three channels")
    if shape[0] > 1:
        raise DataError(f"{file} takes {shape[0]} pictures at once; export it for a batch of one, or a dynamic one")
    sides = [1, 2] if nhwc else [2, 3]
    if not all(shape[side] for side in sides):
        if imgsz is None:
            raise DataError(f"{file} leaves the size of its pictures open ({shapes}); choose it with --imgsz")
        for side in sides:
            shape[side] = shape[side] or imgsz
    full = [1, *((shape[1], shape[2], 3) if nhwc else (3, shape[2], shape[3]))]
    for dim, size in zip(given[0].type.tensor_type.shape.dim, full, strict=True):
        dim.dim_value = size
    return InputSpec(shape[sides[0]], shape[sides[1]], "nchw_f32", name=given[0].name), nhwc


def _output(model: onnx.ModelProto, file: Path, classes: int) -> str:
    """Name of the output that holds the logits; a softmax before it is cut off."""
    found = [value for value in model.graph.output if np.prod(_shape(value)[1:] or [0]) == classes]
    if not found and len(model.graph.output) == 1 and 0 in _shape(model.graph.output[0])[1:]:
        found = [model.graph.output[0]]  # checked when it is run
    if len(found) != 1:
        held = ", ".join(f"{value.name} {_shape(value)}" for value in model.graph.output)
        raise DataError(f"{file} gives {held}: {'none' if not found else 'more than one'} fits {classes} labels")
    name: str = found[0].name
    for value in [value for value in model.graph.output if value.name != name]:
        model.graph.output.remove(value)
    last = next((node for node in model.graph.node if name in node.output), None)
    if last is not None and last.op_type in ("Softmax", "LogSoftmax"):
        model.graph.node.remove(last)
        source = last.input[0]
        for node in model.graph.node:
            node.input[:] = [name if held == source else held for held in node.input]
            node.output[:] = [name if held == source else held for held in node.output]
    return name


def _static(model: onnx.ModelProto, file: Path) -> None:
    """Work out all sizes from the input's.

    Raises:
        DataError: they hang on more than the input's size.
    """
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:
        raise DataError(f"{file}: its shapes cannot be worked out ({str(error).splitlines()[0]})") from error
    model.graph.CopyFrom(inferred.graph)


def _channels_first(model: onnx.ModelProto) -> None:
    """Let it take (1, 3, H, W) in place of (1, H, W, 3)."""
    (given,) = _given(model)
    inner = f"{given.name}_nhwc"
    for node in model.graph.node:
        node.input[:] = [inner if name == given.name else name for name in node.input]
    turned = onnx.helper.make_node("Transpose", [given.name], [inner], name="-/Transpose_input", perm=[0, 2, 3, 1])
    model.graph.node.insert(0, turned)
    _, height, width, channels = _shape(given)
    for dim, size in zip(given.type.tensor_type.shape.dim, (1, channels, height, width), strict=True):
        dim.dim_value = size


def _swap_channels(model: onnx.ModelProto, spec: Spec) -> None:
    """Let it take RGB where it was made for BGR: the first convolution's weights are turned, else the input is."""
    readers = [node for node in model.graph.node if spec.input.name in node.input]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    if [node.op_type for node in readers] == ["Conv"] and readers[0].input[1] in weights:
        tensor = weights[readers[0].input[1]]
        turned = onnx.numpy_helper.to_array(tensor)[:, ::-1].copy()
        tensor.CopyFrom(onnx.numpy_helper.from_array(turned, tensor.name))
        return
    inner = f"{spec.input.name}_bgr"
    for node in readers:
        node.input[:] = [inner if name == spec.input.name else name for name in node.input]
    order = onnx.numpy_helper.from_array(np.array([2, 1, 0]), "channel_order")
    model.graph.initializer.append(order)
    model.graph.node.insert(
        0, onnx.helper.make_node("Gather", [spec.input.name, order.name], [inner], name="-/Gather_input", axis=1)
    )


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


def read_labels(told: str) -> tuple[str, ...]:
    """Labels from a file with a name a line (a table's column `name` or `label`), or from names joined by commas.

    Raises:
        DataError: the file is empty.
    """
    file = Path(told)
    if not file.is_file():
        return tuple(name.strip() for name in told.split(",") if name.strip())
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{file} names no classes; write a name a line")
    if file.suffix != ".csv":
        return tuple(line.strip() for line in lines)
    rows = list(csv.DictReader(lines))
    column = next((name for name in ("label", "name") if name in rows[0]), None)
    if column is None:
        raise DataError(f"{file} has no column 'label' or 'name'")
    names = [row[column] for row in rows]
    # Names that occur twice (ImageNet has two cranes) are told apart by their place.
    return tuple(f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names))
