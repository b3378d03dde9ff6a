"""What training and the edge agree on: the input, the outputs, the labels, the task and the attention maps.

Legend of shapes: B batch, H W height and width, C channels, K classes, h w height and width of an attention map.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union

from edgeattn.errors import SpecError

Task = Literal["classify", "detect", "segment"]
Layout = Literal["nhwc_u8", "nchw_f32"]
Interpolation = Literal["auto", "linear", "area"]
Fit = Literal["crop", "letterbox"]

VERDICTS = ("passed", "failed", "cannot tell")
"""How a gate can end."""

T = TypeVar("T")


@dataclass(frozen=True)
class InputSpec:
    """How a frame becomes the model's input; `imaging.prepare` reads it, in training as on the box."""

    height: int
    """Rows of the model's input, in pixels."""
    width: int
    """Columns of the model's input, in pixels."""
    layout: Layout = "nhwc_u8"
    """`nhwc_u8`: (B, H, W, 3) RGB bytes, normalised inside the model; `nchw_f32`: (B, 3, H, W), normalised outside."""
    interpolation: Interpolation = "auto"
    """`auto` takes area averaging when a picture shrinks to less than half, linear otherwise."""
    crop: float = 1.0
    """Side of the central crop (of the input's aspect ratio) as a fraction of the largest one that fits."""
    mean: tuple[float, float, float] = (128.0, 128.0, 128.0)
    """RGB mean on the 0-255 scale; for `nhwc_u8` a record of what the model itself subtracts."""
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    """RGB divisor on the 0-255 scale; for `nhwc_u8` a record of what the model itself divides by."""
    name: str = "image"
    """Name of the graph's input."""
    fit: Fit = "crop"
    """`crop` fills the input with the middle of the frame; `letterbox` shows all of it, between grey bars."""

    def __post_init__(self) -> None:
        for side in ("height", "width"):
            if not 8 <= getattr(self, side) <= 4096:
                raise SpecError(f"input.{side} is {getattr(self, side)}; it must lie in 8 to 4096 pixels")
        if not 0.1 <= self.crop <= 1.0:
            raise SpecError(f"input.crop is {self.crop}; it must lie in 0.1 to 1")
        if self.fit == "letterbox" and self.crop != 1.0:
            raise SpecError(f"input.crop is {self.crop}, and a letterboxed frame is shown whole; leave it at 1")
        if not all(value > 0 for value in self.std):
            raise SpecError(f"input.std is {self.std}; a divisor must be above 0")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of one prepared frame, batch of one."""
        return (1, self.height, self.width, 3) if self.layout == "nhwc_u8" else (1, 3, self.height, self.width)


@dataclass(frozen=True)
class MapSpec:
    """One attention map: a graph output of shape (B, h, w), raw and non-negative."""

    output: str
    """Name of the graph's output."""
    block: str
    """The attention block's path in the torch module, as in `stages.2.blocks.0.attention`."""
    mechanism: str
    """Name of the attention mechanism."""


@dataclass(frozen=True)
class Rejection:
    """When a classifier answers `none of these` instead of a class."""

    threshold: float
    """Least probability of the best class for it to be the answer."""
    label: str = "none of these"
    """What is answered instead."""
    index: int | None = None
    """The output that stands for "none" itself, where the model was trained with one; it is no entry of `labels`."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise SpecError(f"rejection.threshold is {self.threshold}; it must lie in 0 to 1")


@dataclass(frozen=True)
class Thresholds:
    """Which of a detector's boxes are told."""

    confidence: float = 0.25
    """Score that a box must exceed."""
    iou: float = 0.45
    """Overlap with a better box of its class beyond which a box is another one of the same thing; 1: none is, since the model
    proposes one box for each thing."""
    most: int = 300
    """Most boxes of a frame, the best of them."""

    def __post_init__(self) -> None:
        for name in ("confidence", "iou"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SpecError(f"thresholds.{name} is {getattr(self, name)}; it must lie in 0 to 1")
        if self.most < 1:
            raise SpecError(f"thresholds.most is {self.most}; it must be 1 at least")


@dataclass(frozen=True)
class Spec:
    """A model's contract with whoever runs it."""

    task: Task
    """What the outputs mean."""
    input: InputSpec
    """How a frame becomes the input."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits, or of a detector's scores."""
    output: str = "logits"
    """Name of the graph's output: (B, K) logits, a detector's boxes (see `tasks.detect`), or (B, K, h, w) logits."""
    maps: tuple[MapSpec, ...] = ()
    """Attention maps that the graph gives, from the first block to the last."""
    rejection: Rejection | None = None
    """When the answer is `none of these`; None: never."""
    thresholds: Thresholds | None = None
    """Which boxes are told; None: of a detector, by the defaults."""
    prototypes: str = ""
    """Name of a second output, of a detector that gives masks too (see `tasks.instances`): (B, P, h, w)."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs that the task reads."""
        return (self.output, self.prototypes) if self.prototypes else (self.output,)

    def __post_init__(self) -> None:
        if self.task not in typing.get_args(Task):
            raise SpecError(f"task is {self.task!r}; this version knows {', '.join(typing.get_args(Task))}")
        if len(self.labels) < 2 and self.task != "detect":
            raise SpecError(f"labels has {len(self.labels)} entries; a model to {self.task} needs two at least")
        if not self.labels:
            raise SpecError("labels is empty; a detector needs one at least")
        if (self.task != "detect" and self.thresholds) or (self.task != "classify" and self.rejection):
            raise SpecError(f"{'thresholds' if self.thresholds else 'rejection'} has no meaning for task {self.task}")
        if len(set(self.labels)) != len(self.labels):
            raise SpecError("labels holds the same name twice")
        outputs = [self.output, *(m.output for m in self.maps)]
        if len(set(outputs)) != len(outputs):
            raise SpecError(f"two of the outputs have the same name: {', '.join(outputs)}")
        if self.rejection and not 0 <= (self.rejection.index or 0) <= len(self.labels):
            raise SpecError(f"rejection.index is {self.rejection.index}; it must lie in 0 to {len(self.labels)}")

    def must_classify(self, what: str) -> None:
        """Stop where `what` is done to classifiers alone.

        Raises:
            SpecError: it is a model for another task.
        """
        if self.task != "classify":
            raise SpecError(
                f"{what} takes classifiers only, and this is a model to {self.task}; verify, quantize, run and profile take it"
            )


@dataclass(frozen=True)
class Artefact:
    """One file of a bundle, ready for one engine."""

    file: str
    """File name inside the bundle."""
    engine: str
    """Engine that it was checked with: `onnxruntime` or `openvino`."""
    precision: Literal["float", "bf16", "int8"]
    """Precision of the file (bf16: a float one, executed in bfloat16); what an engine executes is recorded when it runs."""
    target: str = "cpu"
    """Kind of device that it is made for."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How it was made."""
    toolchain: Mapping[str, str] = field(default_factory=dict)
    """Versions of what made it."""
    gates: Mapping[str, Any] = field(default_factory=dict)
    """What was measured on it: a mapping from a gate's name to its figures and `verdict`."""

    def __post_init__(self) -> None:
        for name, gate in self.gates.items():
            if not isinstance(gate, Mapping) or gate.get("verdict") not in VERDICTS:
                raise SpecError(f"gate '{name}' of {self.file} has no verdict; it must be one of {', '.join(VERDICTS)}")

    @property
    def verdict(self) -> str:
        """The worst verdict of its gates: `passed`, `failed` or `cannot tell`; without gates `cannot tell`."""
        verdicts = {gate["verdict"] for gate in self.gates.values()}
        if "failed" in verdicts:
            return "failed"
        return "passed" if verdicts == {"passed"} else "cannot tell"


def weight_bits(recipe: Mapping[str, Any]) -> int:
    """Bits of an int8 artefact's weights, 7 or 8, by its recipe."""
    return 8 if str(recipe.get("weights", "")).startswith("s8") else 7


def to_json(value: Any) -> Any:
    """Turn a frozen dataclass (nested) into plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[T], value: Any, where: str = "") -> T:
    """Build the frozen dataclass `cls` from plain JSON values, strictly.

    Raises:
        SpecError: an unknown or missing field, or a value of another type; names the field.
    """
    if not isinstance(value, Mapping):
        raise SpecError(f"{where or cls.__name__} must be an object, not {type(value).__name__}")
    hints = typing.get_type_hints(cls)
    unknown = set(value) - set(hints)
    if unknown:
        raise SpecError(
            f"{where or cls.__name__} has an unknown field '{sorted(unknown)[0]}'; known: {', '.join(hints)}"
        )
    parsed = {key: parse(hints[key], item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    try:
        return cls(**parsed)
    except TypeError as error:
        raise SpecError(f"{where or cls.__name__}: {error}") from error


def parse(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against the type `hint` and return it as that type (lists become tuples, objects dataclasses).

    Raises:
        SpecError: the value is of another type; names `where`.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return parse(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise SpecError(f"{where} is {value!r}; choose one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SpecError(f"{where} must be a list, not {type(value).__name__}")
        kinds = arguments[:1] * len(value) if len(arguments) == 2 and arguments[1] is ... else arguments
        if len(kinds) != len(value):
            raise SpecError(f"{where} must have {len(kinds)} entries, not {len(value)}")
        return tuple(
            parse(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast("type[Any]", hint), value, where)
    plain = origin or hint
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted: type = dict if plain is Mapping or plain.__name__ == "Mapping" else plain
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise SpecError(f"{where} must be of type {wanted.__name__}, not {type(value).__name__} ({value!r})")
    return value


def block_of(path: str) -> str | None:
    """The attention block in whose branch a path lies, as bundle.json names it; None for a path outside of branches."""
    head, found, _ = f"{path}.".partition(".attention.")
    return head if found else None


def path_of(name: str) -> str:
    """The path of the module that an operator of this name comes from; the exporter names it PATH/OPERATOR_NUMBER."""
    return name.split("/", 1)[0]
