"""Teachers: anything that answers for the same classes, opened by name.

runs/teacher            a finished run's folder
signs.edgeattn          a bundle: its float.onnx
model.onnx              any ONNX classifier: u8 NHWC pictures as they are, float NCHW normalised by (x - 128) / 128
timm:NAME@FILE          a model of timm with the weights of a checkpoint for these classes
package.module:function called as f(classes)
a,b,c                   several: the mean of their probabilities
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeattn.errors import DataError, SpecError
from edgeattn.nn.detector import Detector
from edgeattn.nn.model import build_model
from edgeattn.nn.pretrained import TIMM
from edgeattn.train.distill import freeze
from edgeattn.train.recipe import RECIPE
from edgeattn.train.runs import WEIGHTS, load_run


def open_teacher(name: str, labels: tuple[str, ...]) -> nn.Module:
    """Open a teacher for these classes, frozen.

    Raises:
        DataError: there is no such teacher, or it knows other classes.
        NameNotFoundError: no such model or function.
        SpecError: it is no model; or several detectors.
    """
    if "," in name:
        members = [open_teacher(part, labels) for part in name.split(",")]
        if any(isinstance(member, Detector) for member in members):
            raise SpecError(f"the boxes of several detectors ({name}) have no mean; name one teacher")
        return Ensemble(members)
    path = Path(name)
    if path.suffix == ".onnx" or (path / "bundle.json").is_file():
        return _onnx(path, labels)
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
    _check_labels(name, run.labels, labels)
    return freeze(run.model)


def _check_labels(name: str, knows: tuple[str, ...], labels: tuple[str, ...]) -> None:
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

    def __init__(self, file: Path, classes: int, output: str | None = None) -> None:
        """Open it; `output` is the name of the logits, else the first output.

        Raises:
            DataError: it cannot be opened, takes something else than one picture, or has other classes.
        """
        super().__init__()
        import onnxruntime

        try:
            self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        except Exception as error:
            raise DataError(f"{file} cannot be opened as a teacher ({str(error).splitlines()[0]})") from error
        asked = self.session.get_inputs()
        if len(asked) != 1 or len(asked[0].shape) != 4:
            raise DataError(f"{file} takes {[i.shape for i in asked]}; a teacher takes one batch of pictures")
        self.input, self.file, self.output = asked[0], file, output or self.session.get_outputs()[0].name
        self.is_bytes = self.input.type == "tensor(uint8)"
        self.one_by_one = self.input.shape[0] == 1
        shape = self.input.shape
        sides = shape[1:3] if self.is_bytes else shape[2:]
        self.side = sides[0] if isinstance(sides[0], int) else None
        probe = self(torch.zeros(2, 3, self.side or 64, self.side or 64))
        if probe.shape != (2, classes):
            raise DataError(
                f"the teacher {file} has {probe.shape[-1]} classes, the data {classes}; take another, or export it anew"
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        if self.side and x_BCHW.shape[-1] != self.side:
            raise DataError(
                f"the teacher {self.file} takes pictures of {self.side}, the recipe has {x_BCHW.shape[-1]}; --imgsz"
            )
        x: NDArray[Any] = x_BCHW.detach().float().cpu().numpy()
        if self.is_bytes:
            x = np.rint(x * 128.0 + 128.0).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        batches = [x[i : i + 1] for i in range(len(x))] if self.one_by_one else [x]
        rows = [self.session.run([self.output], {self.input.name: batch})[0] for batch in batches]
        return torch.from_numpy(np.concatenate(rows)).to(x_BCHW.device)


def _onnx(path: Path, labels: tuple[str, ...]) -> OnnxTeacher:
    if path.suffix == ".onnx":
        if not path.is_file():
            raise DataError(f"there is no teacher {path}; name an .onnx file")
        return OnnxTeacher(path, len(labels))
    from edgeattn.bundle import load

    bundle = load(path)
    _check_labels(str(path), bundle.spec.labels, labels)
    return OnnxTeacher(bundle.file(bundle.artefact("onnxruntime", "float")), len(labels), bundle.spec.output)


class Remembered:
    """A teacher whose answers are kept on disk, for views that are the same in every epoch."""

    def __init__(self, teacher: nn.Module, file: Path, count: int, classes: int) -> None:
        """Open or begin the file: (count, classes) logits, NaN where it was not asked yet."""
        self.teacher = teacher
        if file.is_file():
            self.logits = np.load(file, mmap_mode="r+")
        else:
            np.save(file, np.full((count, classes), np.nan, np.float32))
            self.logits = np.load(file, mmap_mode="r+")
        if self.logits.shape != (count, classes):
            raise SpecError(f"{file} holds {self.logits.shape} answers, not {(count, classes)}; remove it")

    def answer(self, x_BCHW: Tensor, index_B: Tensor) -> Tensor:
        """Its logits (B, K), from the file where they are known."""
        index = index_B.cpu().numpy()
        unknown = np.isnan(self.logits[index]).any(axis=1)
        if unknown.any():
            with torch.no_grad():
                found: Tensor = self.teacher(x_BCHW[torch.from_numpy(unknown)])
            self.logits[index[unknown]] = found.cpu().numpy()
        return torch.from_numpy(np.array(self.logits[index])).to(x_BCHW.device)
