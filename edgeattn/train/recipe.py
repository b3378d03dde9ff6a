"""A training recipe: every knob of a run, checked, and kept whole in the run's folder."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeattn.errors import NameNotFoundError, SpecError
from edgeattn.spec import InputSpec, Task, from_json, parse
from edgeattn.train.augment import Augment
from edgeattn.train.distill import methods
from edgeattn.train.supervision import SUPERVISIONS

_CHOICES = {
    "supervise": ("none", *SUPERVISIONS),
    "weighting": ("fixed", "uncertainty"),
    "precision": ("auto", "float32", "bf16"),
}


RECIPE = "recipe.json"
"""The file of a run's folder that keeps it."""
SIZES: dict[Task, int] = {"classify": 96, "detect": 320, "segment": 320}
"""Side of the input that a task takes when nobody says another, in pixels."""
BATCHES: dict[Task, int] = {"classify": 64, "detect": 16, "segment": 16}
"""Pictures a step, likewise."""
RATES: dict[Task, float] = {"classify": 0.008, "detect": 0.016, "segment": 0.012}
"""Greatest learning rate for a batch of 64, likewise."""


@dataclass(frozen=True)
class Recipe:
    """One training. `--set field=value` overrides any field; an unknown field or a value of another type is refused."""

    data: str
    """Class folders, or a folder or file with boxes or masks, as the task wants; `cards` (the built-in set); or
    `package.module:function` giving a `TrainingData`."""
    model: str = "pico"
    """pico, nano, tiny, small, lite, resnet20 (for 32 x 32), efficientnet-lite0, timm:NAME, or `package.module:function`."""
    attention: str = "coord"
    """Attention in every block: a name that `edgeattn attentions` lists, or `package.module:Class`."""
    equal_cost_to: str = ""
    """`plain`: the perceptrons give way until parameters and MACs are those of the net without attention."""
    task: Task = "classify"
    """What the model is to answer: classify, detect (boxes) or segment (the class of every pixel)."""
    imgsz: int = 96
    """Side of the square input, in pixels; its width, where `height` is another."""
    height: int = 0
    """Height of an input that is not square, in pixels; 0: that of `imgsz`."""
    start: str = "none"
    """Weights to start from: `zoo` (those shipped for pico with coord, learnt on hand signs), a run's folder, or none."""
    teacher: str = "none"
    """A run's folder, a bundle, an .onnx file, timm:NAME@FILE, package.module:function, several by commas; `none`: labels alone."""
    distill: str = "kd"
    """What the teacher teaches by: kd, dkd, dist, rkd, at, cwd, mgd, maps; several joined by +, as in dist+maps.

    dkd wants a long training: in 200 steps it harmed, 59 % in place of 80 %.
    """
    supervise: str = "none"
    """How attention is taught where to look: kl, ce, bce, cosine, or none."""
    skip_missing: bool = False
    """Whether annotated pictures that are missing or cannot be read are left out and listed; else they stop the run."""
    targets: str = "none"
    """Where to look: a folder of masks or gaze maps that mirrors the pictures, or a .json of boxes; `cards` know theirs."""
    supervise_weight: float = 0.0
    """Weight of the maps' loss at its height, 10 % into the training; 0: that of the loss (kl and ce 5, bce and cosine 0.5)."""
    supervise_blocks: str = "all"
    """Blocks whose maps are taught: all, last, or their paths by commas."""
    weighting: str = "fixed"
    """How the loss terms are weighed: fixed, or uncertainty, which learns a weight for each."""
    fgsm: float = 0.0
    """Adversarial training: grey levels by which pictures are turned against the model; 0: none. Doubles the time."""
    epochs: int = 40
    """Times that every training picture is seen."""
    views_kept: int = 0
    """Views of a picture that are made once and shown again, epoch after epoch; 0: new ones always. A teacher is then asked
    once for each of them: its answers are kept on disk."""
    views_per_epoch: int = 0
    """Pictures an epoch of `cards`, which have no number of their own; 0: the set's own number."""
    batch_size: int = 64
    """Pictures a step, over all processes."""
    accumulate: int = 1
    """Parts that a step's pictures are cut into, one after the other, where memory is short."""
    precision: str = "auto"
    """float32, bf16 (mixed), or auto: bf16 on CUDA, float32 elsewhere."""
    compile: bool = False
    """Whether torch.compile fuses the net's steps: it takes minutes at the start, and a C++ compiler; long trainings gain.
    Steps that look at attention maps or features run as they are."""
    lr: float = 0.008
    """Greatest learning rate of AdamW, for a batch of 64; scaled linearly with the batch."""
    weight_decay: float = 0.05
    """AdamW's decay of convolution and linear weights; norms and biases are spared."""
    warmup: float = 0.1
    """Part of the training in which the learning rate rises; it then falls as a cosine."""
    label_smoothing: float = 0.1
    """Weight of the even distribution in the target, without a teacher."""
    mixup: float = 0.0
    """Share of batches that are mixed with themselves in reverse order, pictures and targets alike."""
    dropout: float = 0.0
    """Share of features dropped before the last layer."""
    ema: float = 0.05
    """Horizon of the averaged weights, as a fraction of all steps; 0: the last weights count."""
    qat: bool = False
    """Quantization-aware: goes on from a finished run (`start`), with int8's rounding in the way; see `train.qat`."""
    seed: int = 0
    """Seed of the weights, the order and the augmentation; the split has its own."""
    split_seed: int = 0
    """Seed of the split into training, validation and test."""
    workers: int = -1
    """Processes that read and augment; 0: none beside the main one; -1: as many as are fastest here, measured at the start."""
    augment: Augment = field(default_factory=Augment)
    """How far pictures are changed."""

    def __post_init__(self) -> None:
        ranges = {
            "imgsz": (16, 1024),
            "height": (0, 1024),
            "epochs": (1, 100_000),
            "batch_size": (2, 4096),
            "views_per_epoch": (0, 10**7),
        }
        ranges |= {
            "height": (0, 1024),
            "views_kept": (0, 100_000),
            "workers": (-1, 64),
            "seed": (0, 2**31),
            "accumulate": (1, 256),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise SpecError(f"{name}={getattr(self, name)} is out of range: choose {low} to {high}")
        for name in ("weight_decay", "warmup", "label_smoothing", "mixup", "dropout", "ema"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SpecError(f"{name}={getattr(self, name)} is out of range: choose 0 to 1")
        if not 0.0 < self.lr <= 1.0:
            raise SpecError(f"lr={self.lr} is out of range: choose above 0, to 1")
        for name, most in (("supervise_weight", 1000.0), ("fgsm", 64.0)):
            if not 0.0 <= getattr(self, name) <= most:
                raise SpecError(f"{name}={getattr(self, name)} is out of range: choose 0 to {most:g}")
        if self.qat and self.start in ("none", "zoo"):
            raise SpecError("qat goes on from a trained net; name a finished run: --set start=RUN")
        if self.qat and self.compile:
            raise SpecError("compile does not go with qat, which counts on the net's own operations; leave one of them")
        methods(self.distill)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise NameNotFoundError(name, getattr(self, name), choices)

    @property
    def input(self) -> InputSpec:
        """The input that the model is trained for: of a classifier the middle of the picture, otherwise all of it."""
        return InputSpec(self.height or self.imgsz, self.imgsz, fit="crop" if self.task == "classify" else "letterbox")


def load_recipe(folder: Path) -> Recipe:
    """The recipe that a run's folder holds."""
    return from_json(Recipe, json.loads((folder / RECIPE).read_text()))


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """Apply `field=value` settings; `augment.flip=false` reaches into the augmentation.

    Raises:
        SpecError: not of the form field=value, an unknown field, or a value of another type.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise SpecError(f"'{setting}' is no setting; write field=value")
        outer, dot, inner = path.partition(".")
        if dot and outer == "augment":
            recipe = dataclasses.replace(recipe, augment=_set(recipe.augment, inner, text, path))
        else:
            recipe = _set(recipe, path, text, path)
    return recipe


R = typing.TypeVar("R", Recipe, Augment)


def _set(target: R, name: str, text: str, path: str) -> R:
    hints = typing.get_type_hints(type(target))
    if name not in hints:
        raise NameNotFoundError("field", path, hints)
    return dataclasses.replace(target, **{name: parse(hints[name], _value(hints[name], text), path)})


def _value(hint: Any, text: str) -> Any:
    if hint is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
