"""The one training loop: data -> augment -> student, teacher without gradients -> named loss terms -> step.

A run's folder holds the whole recipe (`recipe.json`), the environment, whose weights it came from, metrics as JSON lines,
the weights (`model.safetensors`) and the last checkpoint, from which a killed run resumes bit for bit.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgeattn.errors import DataError, EdgeAttnError
from edgeattn.imaging import Picture
from edgeattn.nn.model import build_model
from edgeattn.nn.pretrained import ATTRIBUTIONS
from edgeattn.spec import to_json
from edgeattn.timing.environment import environment, usable_cores
from edgeattn.train.distill import CROSS_ENTROPY_WEIGHT, METHOD_WEIGHT, freeze, method
from edgeattn.train.loader import Loader, TrainingData, evaluation_batches, normalise
from edgeattn.train.losses import soft_cross_entropy
from edgeattn.train.recipe import Recipe, load_recipe
from edgeattn.train.sources import open_data

CHECKPOINT = "checkpoint.pt"
ATTRIBUTIONS_FILE = "attributions.json"
ZOO_WEIGHTS = Path(__file__).parents[1] / "zoo" / "pico-coord.safetensors"
CHECKPOINT_EVERY_S = 20.0
"""Least time between checkpoints: what a kill can cost, beside the epoch that it falls into."""


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    folder: Path
    """The run's folder."""
    recipe: Recipe
    """How it was trained."""
    labels: tuple[str, ...]
    """Names of the classes."""
    model: nn.Module
    """The trained model, on the CPU, in eval mode."""
    metrics: dict[str, float]
    """The last line of metrics: loss terms, `validation_top1` (fraction), ..."""


def train(
    recipe: Recipe, folder: str | Path, *, data: TrainingData | None = None, resume: bool = False, progress: bool = True
) -> Trained:
    """Train as `recipe` says and leave everything in `folder`.

    Args:
        recipe: every knob.
        folder: the run's folder; made when missing.
        data: pictures in place of those that `recipe.data` names.
        resume: go on from the folder's checkpoint, or load the finished run.
        progress: show a bar with the time left.

    Raises:
        DataError: pictures that cannot be trained on.
        SpecError: the folder holds a run of another recipe, or `recipe` is wrong.
        EdgeAttnError: the loss is no longer a number; the last checkpoint stands.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _keep_recipe(recipe, folder, resume)
    if resume and (folder / "model.safetensors").is_file():
        return load_run(folder)
    teacher = load_run(Path(recipe.teacher)) if recipe.teacher != "none" else None
    data = data or open_data(recipe, folder)
    if teacher is not None and teacher.labels != data.labels:
        raise DataError(
            f"the teacher {recipe.teacher} knows {teacher.labels}, the data {data.labels}; train it on these pictures"
        )
    run = _Run(recipe, folder, data, teacher.model if teacher else None)
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1))
    (folder / "labels.json").write_text(json.dumps(data.labels))
    # Kept with the run: what it came from may be moved away, or be named from another working directory.
    (folder / ATTRIBUTIONS_FILE).write_text(json.dumps(_attributions(recipe), indent=1))
    metrics = run.fit(resume=resume, progress=progress)
    _save_weights(run.averaged, folder / "model.safetensors")
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return Trained(folder, recipe, data.labels, run.averaged.cpu().eval(), metrics)


def load_run(folder: str | Path) -> Trained:
    """Load a finished run.

    Raises:
        DataError: the folder holds no finished run.
    """
    folder = Path(folder)
    if not (folder / "model.safetensors").is_file():
        raise DataError(
            f"{folder} holds no finished run (model.safetensors is missing); train with --out {folder} --resume"
        )
    recipe = load_recipe(folder)
    labels = tuple(json.loads((folder / "labels.json").read_text()))
    model = build(recipe, len(labels))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return Trained(folder, recipe, labels, model.eval(), json.loads(lines[-1]))


def check(recipe: Recipe) -> None:
    """Build the model once and throw it away, so that a wrong name is said before any time is spent.

    Raises:
        NameNotFoundError: no such model or attention.
        SpecError: a class or function of the user's own that builds something else.
        DataError: no such starting weights, or they do not fit.
    """
    start_from(recipe.start, build(recipe, 2))


def build(recipe: Recipe, classes: int) -> nn.Module:
    """Build the model that a recipe names, with fresh weights."""
    return build_model(
        recipe.model,
        classes,
        attention=recipe.attention,
        imgsz=recipe.imgsz,
        dropout=recipe.dropout,
        equal_cost_to=recipe.equal_cost_to,
    )


def start_from(name: str, model: nn.Module) -> None:
    """Load the weights called `name` into `model`, in place, but for the last layer of other classes and another attention.

    Raises:
        DataError: there are no such weights, or they are those of another net.
    """
    if name == "none":
        return
    file = ZOO_WEIGHTS if name == "zoo" else Path(name) / "model.safetensors"
    if not file.is_file():
        raise DataError(f"there are no weights {file} to start from; name a finished run's folder, zoo or none")
    own = model.state_dict()
    fitting = {
        key: value.to(own[key].dtype)
        for key, value in load_file(file).items()
        if key in own and own[key].shape == value.shape
    }
    needed = {key for key in own if ".attention." not in key}
    if len(fitting.keys() & needed) < 0.9 * len(needed):
        raise DataError(
            f"the weights {file} fit {len(fitting)} of the model's {len(own)} tensors; start from the same model, or none"
        )
    model.load_state_dict(fitting, strict=False)


def weights_attributions(folder: str | Path) -> list[dict[str, str]]:
    """Sources and licences of the weights that a run started or learnt from, also by way of the runs that these came from."""
    return list(json.loads((Path(folder) / ATTRIBUTIONS_FILE).read_text()))


def _attributions(recipe: Recipe) -> list[dict[str, str]]:
    found = [ATTRIBUTIONS[recipe.model]] if recipe.model in ATTRIBUTIONS else []
    if recipe.start == "zoo":
        with safe_open(ZOO_WEIGHTS, "pt") as weights:
            found += json.loads(weights.metadata()["attributions"])
    for parent in sorted({recipe.start, recipe.teacher} - {"none", "zoo"}):
        found += weights_attributions(parent)
    return found


class _Run:
    def __init__(self, recipe: Recipe, folder: Path, data: TrainingData, teacher: nn.Module | None) -> None:
        # A core a worker: threads that wait for one another and for a busy core are slower than fewer threads.
        torch.set_num_threads(max(1, usable_cores() - recipe.workers))
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.data = recipe, folder, data
        self.accelerator = Accelerator()
        device = self.accelerator.device
        model = build(recipe, len(data.labels))
        start_from(recipe.start, model)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged: nn.Module = copy.deepcopy(self.model).requires_grad_(False)
        self.teacher = freeze(teacher.to(device, memory_format=torch.channels_last)) if teacher else None  # type: ignore[call-overload]
        self.loader = Loader(data.train, batch_size=recipe.batch_size, seed=recipe.seed, workers=recipe.workers)
        self.steps = recipe.epochs * len(self.loader)
        self.peak_lr = recipe.lr * min(recipe.batch_size, len(data.train)) / 64
        groups = _groups(self.model, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=self.peak_lr, betas=(0.9, 0.99), fused=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self._averages, self._sources = _floats(self.averaged), _floats(self.model)
        self.step = 0

    def fit(self, *, resume: bool, progress: bool) -> dict[str, float]:
        first = self._restore() if resume and (self.folder / CHECKPOINT).is_file() else 0
        metrics_file = self.folder / "metrics.jsonl"
        kept = metrics_file.read_text().splitlines()[:first] if first else []
        metrics_file.write_text("".join(f"{line}\n" for line in kept))
        metrics: dict[str, float] = {}
        saved_at = time.monotonic()
        with _bar(progress) as bar:
            task = bar.add_task("training", total=self.steps, completed=self.step, note="")
            for epoch in range(first, self.recipe.epochs):
                last = epoch + 1 == self.recipe.epochs
                metrics = {"epoch": epoch} | self._epoch(epoch, bar, task)
                if last or epoch % max(1, self.recipe.epochs // 10) == 0:
                    metrics["validation_top1"] = top1(self.averaged, self.data.validation, self.recipe)
                    bar.update(task, note=f"validation top-1 {metrics['validation_top1']:.1%}")
                with metrics_file.open("a") as stream:
                    stream.write(json.dumps(metrics) + "\n")
                if time.monotonic() - saved_at > CHECKPOINT_EVERY_S and not last:
                    self._checkpoint(epoch + 1)
                    saved_at = time.monotonic()
        return metrics

    def _epoch(self, epoch: int, bar: Progress, task: Any) -> dict[str, float]:
        self.model.train()
        sums: dict[str, float] = {}
        for batch_BHW3, label_B in self.loader.epoch(epoch):
            terms = self.advance(batch_BHW3.to(self.accelerator.device), label_B.to(self.accelerator.device))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
            bar.advance(task)
        return {name: value / len(self.loader) for name, value in sums.items()} | {"lr": self._lr()}

    def advance(self, batch_BHW3: Tensor, label_B: Tensor) -> dict[str, float]:
        """One step; returns the named loss terms."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        x_BCHW, target_BK, label_B = self._mix(normalise(batch_BHW3), label_B)
        terms = self.terms(x_BCHW, target_BK, label_B)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            worst = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            raise EdgeAttnError(
                f"the loss is no longer a number at step {self.step} ({worst}); lower lr, then train with --resume"
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        self._average()
        return {name: float(value.detach()) for name, value in terms.items()} | {"loss": float(loss.detach())}

    def terms(self, x_BCHW: Tensor, target_BK: Tensor, label_B: Tensor) -> dict[str, Tensor]:
        """The named loss terms of a batch, weighted."""
        logits_BK = self.wrapped(x_BCHW)
        if self.teacher is None:
            return {"cross_entropy": soft_cross_entropy(logits_BK, target_BK, self.recipe.label_smoothing)}
        with torch.no_grad():
            teacher_BK = self.teacher(x_BCHW)
        name = self.recipe.distill
        return {
            "cross_entropy": CROSS_ENTROPY_WEIGHT[name] * soft_cross_entropy(logits_BK, target_BK),
            name: METHOD_WEIGHT[name]
            * min(1.0, self.step / max(1, self.steps // 10))
            * method(name)(logits_BK, teacher_BK, label_B),
        }

    def _mix(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        target_BK = nn.functional.one_hot(label_B, len(self.data.labels)).float()
        rng = np.random.default_rng((self.recipe.seed, 0x6D69, self.step))
        if rng.random() >= self.recipe.mixup:
            return x_BCHW, target_BK, label_B
        share = rng.beta(0.8, 0.8)
        share = max(share, 1.0 - share)  # the first picture stays the main one: its label is the distillation's target
        return (
            share * x_BCHW + (1 - share) * x_BCHW.flip(0),
            share * target_BK + (1 - share) * target_BK.flip(0),
            label_B,
        )

    def _lr(self) -> float:
        done = self.step / max(1, self.steps)
        if done < self.recipe.warmup:
            return self.peak_lr * (0.04 + 0.96 * done / self.recipe.warmup)
        fall = (done - self.recipe.warmup) / (1.0 - self.recipe.warmup)
        return self.peak_lr * (0.001 + 0.999 * 0.5 * (1.0 + math.cos(math.pi * fall)))

    @torch.no_grad()
    def _average(self) -> None:
        horizon = self.recipe.ema * self.steps
        keep = 0.0 if horizon < 1 else min(1.0 - 1.0 / horizon, self.step / (self.step + 10.0))
        torch._foreach_lerp_(self._averages, self._sources, 1.0 - keep)

    def _checkpoint(self, epoch: int) -> None:
        state = {
            "epoch": epoch,
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        partial = self.folder / f".{CHECKPOINT}"
        torch.save(state, partial)
        os.replace(partial, self.folder / CHECKPOINT)  # noqa: PTH105  one step: a kill leaves the old or the new one

    def _restore(self) -> int:
        state = torch.load(self.folder / CHECKPOINT, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.step = state["step"]
        return int(state["epoch"])


def answers(model: nn.Module, pictures: Sequence[tuple[Picture, int]], recipe: Recipe) -> NDArray[np.int64]:
    """Best class of each picture, (N,)."""
    model.eval()
    device = next(model.parameters()).device
    found = [np.empty(0, np.int64)]
    with torch.inference_mode():
        for batch_BHW3, _ in evaluation_batches(pictures, recipe.input):
            found.append(model(normalise(batch_BHW3.to(device))).argmax(1).cpu().numpy())
    return np.concatenate(found)


def top1(model: nn.Module, pictures: Sequence[tuple[Picture, int]], recipe: Recipe) -> float:
    """Share of right answers; `nan` when there are no pictures."""
    labels = np.array([label for _, label in pictures])
    return float((answers(model, pictures, recipe) == labels).mean()) if len(labels) else math.nan


def views_per_second(recipe: Recipe, data: TrainingData, folder: Path, steps: int = 6) -> float:
    """Training speed on this machine, by a few steps of a run that is thrown away."""
    teacher = load_run(Path(recipe.teacher)).model if recipe.teacher != "none" else None
    trial = _Run(replace(recipe, epochs=1000), folder, data, teacher)
    trial.model.train()
    batches = (batch for epoch in range(1000) for batch in trial.loader.epoch(epoch))
    started = 0.0
    for step, (batch_BHW3, label_B) in enumerate(batches):
        if step == 2:  # the first steps start workers and choose kernels
            started = time.monotonic()
        trial.advance(batch_BHW3.to(trial.accelerator.device), label_B.to(trial.accelerator.device))
        if step == 1 + steps:
            break
    return steps * trial.loader.batch_size / (time.monotonic() - started)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    others = [p for p in model.parameters() if p.ndim <= 1 and p.requires_grad]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _floats(model: nn.Module) -> list[Tensor]:
    return [value.detach() for value in model.state_dict().values() if value.is_floating_point()]


def _save_weights(model: nn.Module, path: Path) -> None:
    partial = path.with_name(f".{path.name}")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial)
    partial.replace(path)


def _keep_recipe(recipe: Recipe, folder: Path, resume: bool) -> None:
    kept = folder / "recipe.json"
    if resume and kept.is_file():
        if replace(load_recipe(folder), workers=recipe.workers) != recipe:
            raise DataError(
                f"{folder} holds a run of another recipe; resume with the same settings, or choose another --out"
            )
    elif not resume:
        for stale in ("model.safetensors", CHECKPOINT, "metrics.jsonl"):
            (folder / stale).unlink(missing_ok=True)
    kept.write_text(json.dumps(to_json(recipe), indent=1))


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        disable=not shown,
    )
