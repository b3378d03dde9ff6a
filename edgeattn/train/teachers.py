"""Teachers: anything that answers for the same classes, opened by name.

runs/teacher            a finished run's folder
signs.edgeattn          a bundle: its float.onnx
model.onnx              any ONNX classifier: u8 NHWC pictures as they are, float NCHW normalised by (x - 128) / 128; batches of
                        any size, or of one
timm:NAME@FILE          a model of timm with the weights of a checkpoint for these classes
package.module:function called as f(classes)
a,b,c                   several: the mean of their probabilities
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeattn.errors import DataError, SpecError
from edgeattn.nn.model import build_model
from edgeattn.nn.pretrained import TIMM
from edgeattn.spec import Task
from edgeattn.train.distill import freeze, methods, needs
from edgeattn.train.recipe import RECIPE, Recipe
from edgeattn.train.runs import WEIGHTS, load_run

DIMENSIONS: dict[Task, int] = {"classify": 2, "detect": 3, "segment": 4}
"""Of an answer: logits (B, K), edges and scores (B, 4 + K, A), logits (B, K, h, w)."""
EDGES = 4
"""Values before a place's scores."""


def open_teacher(recipe: Recipe, labels: tuple[str, ...]) -> nn.Module:
    """Open the teacher that a recipe names, for these classes, frozen, and ask it once.

    Raises:
        DataError: there is no such teacher, it knows other classes or another task, or does not answer as one.
        NameNotFoundError: no such model or function.
        SpecError: it is no model; or several detectors.
    """
    names = recipe.teacher.split(",")
    if len(names) > 1 and recipe.task == "detect":
        raise SpecError(f"the boxes of several detectors ({recipe.teacher}) have no mean; name one teacher")
    members = []
    for name in names:
        members.append(_open(name, recipe, labels))
        _try(name, members[-1], recipe, len(labels))
    return Ensemble(members) if len(members) > 1 else members[0]


def _open(name: str, recipe: Recipe, labels: tuple[str, ...]) -> nn.Module:
    path = Path(name)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise DataError(f"there is no teacher {path}; name an .onnx file")
        return OnnxTeacher(path)
    if (path / "bundle.json").is_file():
        return _bundle(path, recipe, labels)
    if name.startswith(TIMM) and "@" not in name:
        raise DataError(f"the teacher {name} has learnt nothing; name its checkpoint for these classes: {name}@FILE")
    if name.startswith(TIMM) or (":" in name and not path.exists()):
        return freeze(build_model(name, len(labels)))
    if not path.is_dir():
        raise DataError(
            f"there is no teacher {name}; name a finished run's folder, a bundle, an .onnx file, timm:NAME@FILE or "
            "package.module:function"
        )
    if not (path / WEIGHTS).is_file() and not (path / RECIPE).is_file():
        raise DataError(f"{name} holds neither a run nor a bundle; train a teacher with: edgeattn train --out {name}")
    run = load_run(path)
    _check_known(name, (run.recipe.task, run.labels), recipe, labels)
    return freeze(run.model)


def _bundle(path: Path, recipe: Recipe, labels: tuple[str, ...]) -> nn.Module:
    from edgeattn.bundle import load

    bundle = load(path)
    _check_known(str(path), (bundle.spec.task, bundle.spec.labels), recipe, labels)
    return OnnxTeacher(bundle.file(bundle.artefact("onnxruntime", "float")), bundle.spec.output)


def _try(name: str, teacher: nn.Module, recipe: Recipe, classes: int) -> None:
    """Ask a teacher for two pictures of the recipe's size; by features or maps alone, whatever it answers will do.

    Raises:
        DataError: it fails, has other classes, or gives something else than logits.
    """
    height, width = recipe.input.height, recipe.input.width
    try:
        with torch.no_grad():
            found = teacher(torch.zeros(2, 3, height, width))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the teacher {name} fails on two pictures (2, 3, {height}, {width}): {textwrap.shorten(str(error), 200)}; "
            "export it anew for such pictures, or take another"
        ) from error
    if not _is_asked(recipe):
        return
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if not isinstance(found, Tensor) or found.ndim != DIMENSIONS[recipe.task]:
        raise DataError(
            f"the teacher {name} gives {shape} for two pictures, which is no answer to {recipe.task}; take another"
        )
    if found.shape[:2] != (2, classes + EDGES * (recipe.task == "detect")):
        raise DataError(
            f"the teacher {name} gives {shape} for two pictures, and the data has {classes} classes; train it on them, "
            "or take another"
        )
    sums = found.float().sum(1)
    if recipe.task != "detect" and bool((found >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise DataError(f"the teacher {name} gives probabilities; leave out its softmax, since it teaches by logits")


def _is_asked(recipe: Recipe) -> bool:
    """Whether a teacher's answers are compared, not its features or maps alone."""
    return needs(methods(recipe.distill), "logits")


def _check_known(name: str, of: tuple[Task, tuple[str, ...]], recipe: Recipe, labels: tuple[str, ...]) -> None:
    """See that a teacher's task and classes are those of the data; by features a classifier teaches a detector, too."""
    does, knows = of
    if does != recipe.task and _is_asked(recipe):
        raise DataError(
            f"the teacher {name} has learnt to {does}, and its answers are to teach to {recipe.task}; take another, or "
            "distil from its features: cwd or mgd"
        )
    if knows == labels:
        return
    if sorted(knows) == sorted(labels):
        raise DataError(
            f"the teacher {name} has the classes in another order: {_listed(knows)}; the data {_listed(labels)}"
        )
    missing, extra = sorted(set(labels) - set(knows)), sorted(set(knows) - set(labels))
    parts = [f"does not know {_listed(missing)}"] * bool(missing) + [f"knows {_listed(extra)} besides"] * bool(extra)
    raise DataError(f"the teacher {name} {' and '.join(parts)}; train it on these pictures")


def _listed(labels: Any) -> str:
    shown = ", ".join(map(str, list(labels)[:8]))
    return shown + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")


class Ensemble(nn.Module):
    """Several teachers as one: the logarithm of the mean of their probabilities."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        freeze(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        logs_MBK = torch.stack([member(x_BCHW).log_softmax(1) for member in self.members])
        return torch.logsumexp(logs_MBK, 0) - float(np.log(len(self.members)))


class OnnxTeacher(nn.Module):
    """An ONNX classifier that ONNX Runtime runs: pictures normalised by (x - 128) / 128, (B, 3, H, W), -> logits (B, K)."""

    def __init__(self, file: Path, output: str | None = None) -> None:
        """Open it; `output` is the name of the logits, else the first output. Of a last softmax the logarithm is taken.

        Raises:
            DataError: it cannot be opened, or takes something else than pictures.
        """
        super().__init__()
        import onnxruntime

        try:
            self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            nodes = onnx.load(file, load_external_data=False).graph.node
        except Exception as error:
            raise DataError(f"{file} cannot be opened as a teacher ({str(error).splitlines()[0]})") from error
        asked = self.session.get_inputs()
        if len(asked) != 1 or len(asked[0].shape) != 4:
            raise DataError(f"{file} takes {[i.shape for i in asked]}; a teacher takes one batch of pictures")
        self.input, self.file, self.output = asked[0], file, output or self.session.get_outputs()[0].name
        self.is_bytes = self.input.type == "tensor(uint8)"
        self.one_by_one = self.input.shape[0] == 1
        self.sides = tuple(self.input.shape[1:3] if self.is_bytes else self.input.shape[2:])
        self.ends_in_softmax = any(node.op_type == "Softmax" and self.output in node.output for node in nodes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        height, width = x_BCHW.shape[2:]
        if any(isinstance(own, int) and own != side for own, side in zip(self.sides, (height, width), strict=True)):
            raise DataError(
                f"the teacher {self.file} takes pictures of {self.sides[1]} x {self.sides[0]}, the recipe has {width} x "
                f"{height}; train at its size (--imgsz, --set height), or export it anew"
            )
        x: NDArray[Any] = x_BCHW.detach().float().cpu().numpy()
        if self.is_bytes:
            x = np.rint(x * 128.0 + 128.0).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        batches = [x[i : i + 1] for i in range(len(x))] if self.one_by_one else [x]
        rows = [self.session.run([self.output], {self.input.name: batch})[0] for batch in batches]
        found = torch.from_numpy(np.concatenate(rows)).to(x_BCHW.device)
        return found.clamp_min(torch.finfo(found.dtype).tiny).log() if self.ends_in_softmax else found


class Remembered:
    """A teacher whose answers are kept on disk, for views that are the same in every epoch."""

    def __init__(self, teacher: nn.Module, file: Path, count: int, classes: int) -> None:
        """Open or begin the file: (count, classes) logits, NaN where it was not asked yet.

        Raises:
            SpecError: the file was cut off, or holds answers to something else.
        """
        self.teacher = teacher
        if not file.is_file():
            partial = file.with_name(f".{file.name}")
            np.save(partial, np.full((count, classes), np.nan, np.float32))
            partial.replace(file)
        try:
            held = np.load(file, mmap_mode="r").shape  # to write, numpy would fill up with zeros what is missing
        except (ValueError, OSError, EOFError) as error:
            raise SpecError(f"{file} was cut off; remove it, and the teacher is asked anew") from error
        if held != (count, classes):
            raise SpecError(f"{file} holds {held} answers, not {(count, classes)}; remove it")
        self.logits = np.load(file, mmap_mode="r+")

    def answer(self, x_BCHW: Tensor, index_B: Tensor) -> Tensor:
        """Its logits (B, K), from the file where they are known."""
        index = index_B.cpu().numpy()
        unknown = np.isnan(self.logits[index]).any(axis=1)
        if unknown.any():
            with torch.no_grad():
                found: Tensor = self.teacher(x_BCHW[torch.from_numpy(unknown)])
            self.logits[index[unknown]] = found.cpu().numpy()
        return torch.from_numpy(np.array(self.logits[index])).to(x_BCHW.device)
