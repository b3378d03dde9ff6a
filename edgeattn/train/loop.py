"""The one training loop: data -> augment -> student, teacher without gradients -> named loss terms -> step.

A run's folder (see `runs`) holds the last checkpoint, from which a killed run resumes bit for bit. Started by `torchrun`, every
process works on its part of each batch, and the first one writes: what one process writes that accumulates the same parts, but
for what is drawn in the net (dropout, the places that `mgd` blanks) and what quantization-aware training counts.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from edgeattn.errors import EdgeAttnError, SpecError
from edgeattn.imaging import Picture
from edgeattn.tasks import FIGURES
from edgeattn.timing.bar import progress_bar
from edgeattn.timing.environment import usable_cores
from edgeattn.train.loader import Batch, Loader, TrainingData, normalise
from edgeattn.train.losses import is_known
from edgeattn.train.machine import (
    TRIAL,
    accelerator,
    compile_steps,
    fastest_workers,
    keep_freed_memory,
    random_state,
    set_random_state,
)
from edgeattn.train.objective import Objective
from edgeattn.train.qat import rounded, unrounded
from edgeattn.train.ranks import Statistics
from edgeattn.train.recipe import Recipe
from edgeattn.train.runs import (
    CHECKPOINT,
    METRICS,
    WEIGHTS,
    Trained,
    build,
    check_parents,
    clear,
    load_run,
    resumed,
    save_weights,
    start_from,
    write_about,
)
from edgeattn.train.sources import open_data
from edgeattn.train.tasks import training_task
from edgeattn.train.tasks.base import Mixed
from edgeattn.train.teachers import Remembered, open_teacher

CHECKPOINT_EVERY_S = 20.0
"""Least time between checkpoints: what a kill can cost, beside the epoch that it falls into."""


def train(
    recipe: Recipe, folder: str | Path, *, data: TrainingData | None = None, resume: bool = False, progress: bool = True
) -> Trained:
    """Train as `recipe` says and leave everything in `folder`.

    Args:
        recipe: every knob.
        folder: the run's folder; made when missing.
        data: pictures in place of those that `recipe.data` names.
        resume: go on from the folder's checkpoint, with another learning rate if need be, or load the finished run.
        progress: show a bar with the time left.

    Raises:
        DataError: pictures, or a teacher, that cannot be trained on; or a run of another recipe is to be resumed.
        SpecError: `recipe` is wrong, or builds on the run that it would write over.
        EdgeAttnError: the loss, its gradient or a weight is no longer a number; the last checkpoint stands.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_parents(recipe, folder)
    if resume:
        recipe = resumed(recipe, folder)
        if (folder / WEIGHTS).is_file():
            return load_run(folder)
    data = data or open_data(recipe, folder)
    teacher = open_teacher(recipe, data.labels) if recipe.teacher != "none" else None
    run = _Run(recipe, folder, data, teacher, resume=resume)
    recipe = run.recipe
    if run.accelerator.is_main_process:  # not before all is open: what is refused leaves an earlier run as it is
        if not resume:
            clear(folder)
        write_about(recipe, data.labels, folder)
    metrics = run.fit(resume=resume, progress=progress)
    run.check_weights()
    model = run.averaged.cpu().eval()
    if recipe.qat:
        model = unrounded(model)
    if run.accelerator.is_main_process:
        save_weights(model, folder)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    run.accelerator.wait_for_everyone()
    return Trained(folder, recipe, data.labels, model, metrics)


class _Run:
    def __init__(
        self, recipe: Recipe, folder: Path, data: TrainingData, teacher: nn.Module | None, *, resume: bool = False
    ) -> None:
        keep_freed_memory()
        self.accelerator = accelerator(recipe.precision)
        ranks = self.accelerator.num_processes
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.data, self.task = recipe, folder, data, training_task(recipe.task)
        device = self.accelerator.device
        model = build(recipe, len(data.labels))
        start_from(recipe.start, model)
        if recipe.qat:
            model = rounded(model, recipe.imgsz)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged: nn.Module = copy.deepcopy(self.model).requires_grad_(False)
        if teacher is not None:
            teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = Objective(recipe, self.model, teacher).to(device)
        self.wrapped: nn.Module = self.objective
        self.remembered = self._remembered(resume=resume)
        self.step = self.steps = 0
        cores = usable_cores() // ranks
        if recipe.workers < 0:
            self.recipe = recipe = replace(recipe, workers=self._fastest_workers(recipe.batch_size, cores))
        if "LOCAL_WORLD_SIZE" not in os.environ:
            # A core a worker: threads that wait for one another and for a busy core are slower than fewer threads.
            torch.set_num_threads(max(1, cores - recipe.workers))
        if recipe.compile:
            compile_steps(self.model)
        self.loader = Loader(
            data.train, batch_size=recipe.batch_size, seed=recipe.seed, workers=recipe.workers,
            part=(self.accelerator.process_index, ranks), kept=recipe.views_kept, stack=self.task.stack,
        )  # fmt: skip
        smallest = self.loader.batch_size // ranks // recipe.accumulate
        if "rkd" in self.objective.methods and smallest < 2:
            raise SpecError(
                f"distill={recipe.distill} compares pictures with each other, and of {self.loader.batch_size} a part has "
                f"{max(1, smallest)} (processes: {ranks}, accumulate={recipe.accumulate}); raise batch_size, or accumulate less"
            )
        self.statistics = Statistics(self.model, self.accelerator.process_index, ranks)
        self.steps = recipe.epochs * len(self.loader)
        self.peak_lr = recipe.lr * self.loader.batch_size / 64
        groups = _groups(self.objective, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=self.peak_lr, betas=(0.9, 0.99), fused=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        self._averages, self._sources = _floats(self.averaged), _floats(self.model)

    def _remembered(self, *, resume: bool) -> Remembered | None:
        """The teacher's answers on disk, where every epoch asks it for the same views and for nothing else."""
        file = self.folder / f"teacher-{self.accelerator.process_index}.npy"
        if not resume:
            file.unlink(missing_ok=True)
        kept = self.recipe.views_kept or int(getattr(self.data.train, "is_fixed", False))
        kept *= self.recipe.task == "classify"  # whose answers are a row a picture
        if not (kept and self.objective.teacher_answers_alone and self.objective.teacher) or self.recipe.mixup:
            return None
        return Remembered(self.objective.teacher, file, kept * len(self.data.train), len(self.data.labels))

    def _fastest_workers(self, batch_size: int, cores: int) -> int:
        """How many cores should make pictures, by the time that a few pictures and a step on them take."""
        if cores < 2:
            return 0
        keep, drawn = copy.deepcopy(self.objective.state_dict()), random_state(self.accelerator.device)
        loader = Loader(
            self.data.train, batch_size=min(TRIAL, batch_size), seed=self.recipe.seed, workers=0, stack=self.task.stack
        )
        views_s: list[float] = []
        step_s: dict[int, list[float]] = {cores: [], cores - 1: []}
        self.objective.train()
        for turn in range(8):  # the first ones fill caches and choose kernels
            threads = cores - turn % 2
            torch.set_num_threads(threads)
            began = time.perf_counter()
            batch = next(loader.epoch(0)).to(self.accelerator.device)
            made = time.perf_counter()
            loss = torch.stack(list(self._terms(batch).values())).sum()
            torch.autograd.backward(loss)
            loss.item()  # waits for the device
            views_s.append(made - began)
            step_s[threads].append(time.perf_counter() - made)
        self.objective.zero_grad(set_to_none=True)
        self.objective.load_state_dict(keep)
        set_random_state(drawn, self.accelerator.device)
        return fastest_workers(min(views_s), min(step_s[cores]), min(step_s[cores - 1]), cores)

    def fit(self, *, resume: bool, progress: bool) -> dict[str, float]:
        first = self._restore() if resume and (self.folder / CHECKPOINT).is_file() else 0
        metrics_file = self.folder / METRICS
        kept = metrics_file.read_text().splitlines()[:first] if first else []
        if self.accelerator.is_main_process:
            metrics_file.write_text("".join(f"{line}\n" for line in kept))
        metrics: dict[str, float] = {}
        saved_at = time.monotonic()
        with progress_bar(progress and self.accelerator.is_main_process) as bar:
            task = bar.add_task("training", total=self.steps, completed=self.step, note="")
            for epoch in range(first, self.recipe.epochs):
                last = epoch + 1 == self.recipe.epochs
                metrics = {"epoch": epoch} | self._epoch(epoch, bar, task)
                if last or epoch % max(1, self.recipe.epochs // 10) == 0:
                    metrics |= {f"validation_{name}": value for name, value in self._validate().items()}
                    bar.update(task, note=told(self.recipe, metrics))
                if not self.accelerator.is_main_process:
                    continue
                with metrics_file.open("a") as stream:
                    stream.write(json.dumps(metrics) + "\n")
                if time.monotonic() - saved_at > CHECKPOINT_EVERY_S and not last:
                    self._checkpoint(epoch + 1)
                    saved_at = time.monotonic()
        return metrics

    def _validate(self) -> dict[str, float]:
        return self.task.figures(self.averaged, self.data.validation, self.recipe, self.data.labels)

    def _epoch(self, epoch: int, bar: Progress, task: Any) -> dict[str, float]:
        self.objective.train()
        sums: dict[str, float] = {}
        began, waited_s = time.perf_counter(), 0.0
        batches = self.loader.epoch(epoch)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited_s += time.perf_counter() - asked
            if batch is None:
                break
            for name, value in self.advance(batch.to(self.accelerator.device)).items():
                sums[name] = sums.get(name, 0.0) + value
            bar.advance(task)
        own = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.accelerator.device) / len(self.loader)
        means = self.accelerator.reduce(own, "mean").tolist()  # over the processes
        told = dict(zip(sums, means, strict=True)) | {"lr": self._lr()}
        took_s = time.perf_counter() - began
        return told | {"data_wait": waited_s / took_s, "seconds": round(took_s, 1)}

    def advance(self, batch: Batch) -> dict[str, float]:
        """One step; returns the named loss terms of this process's part."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.optimizer.zero_grad()
        self.statistics.keep()
        parts = batch.parts(self.recipe.accumulate)
        sums: dict[str, float] = {}
        for i, part in enumerate(parts):
            last = i + 1 == len(parts)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                terms = self._terms(part)
                loss = torch.stack(list(terms.values())).sum()
                self._check_finite(loss, terms)
                self.accelerator.backward(loss / len(parts))
            for name, value in (terms | {"loss": loss}).items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(parts)
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), 5.0)
        if not math.isfinite(norm):  # one step with it would leave no weight a number
            raise self._broken("the gradient is", "the loss still is one")
        self.optimizer.step()
        self.step += 1
        self.statistics.share()
        self._average()
        if self.recipe.supervise != "none":
            sums["told_where"] = float(is_known(batch.where).float().mean())
        return sums

    def _terms(self, part: Batch) -> dict[str, Tensor]:
        """The named loss terms of a part of a batch."""
        rng = np.random.default_rng((self.recipe.seed, 0x6D69, self.step))
        seen = Mixed(normalise(part.pictures), part.truths, part.where)
        mixed = self.task.mix(seen, len(self.data.labels), self.recipe.mixup, rng)
        told_NK = self.remembered.answer(mixed.pictures, part.places) if self.remembered else None
        return self.wrapped(*mixed, progress=self.step / max(1, self.steps), told_NK=told_NK)  # type: ignore[no-any-return]

    def _check_finite(self, loss: Tensor, terms: dict[str, Tensor]) -> None:
        if torch.isfinite(loss):
            return
        worst = [name for name, value in terms.items() if not torch.isfinite(value)] or list(terms)
        all_terms = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
        raise self._broken("the loss is", f"{' and '.join(worst)} ({all_terms})")

    def check_weights(self) -> None:
        """See that everything that is kept of the nets is a number.

        Raises:
            EdgeAttnError: something is not; what was kept before stands.
        """
        for net in (self.objective, self.averaged):
            for name, value in net.state_dict().items():
                if not torch.isfinite(value).all():
                    raise self._broken("the net is", f"its {name.removeprefix('model.')}")

    def _broken(self, what: str, where: str) -> EdgeAttnError:
        """The error of a training that cannot go on."""
        lower = f"a lower learning rate (--set lr={self.recipe.lr / 4:g})"
        if (self.folder / CHECKPOINT).is_file():
            remedy = f"the last checkpoint stands; go on from it with --resume and {lower}"
        else:
            remedy = f"there was no checkpoint yet; train anew with {lower}"
        return EdgeAttnError(f"{what} no longer a number at step {self.step}: {where}; {remedy}")

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
        self.check_weights()
        state = {
            "epoch": epoch,
            "step": self.step,
            "objective": self.objective.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **random_state(self.accelerator.device),
        }
        partial = self.folder / f".{CHECKPOINT}"
        torch.save(state, partial)
        os.replace(partial, self.folder / CHECKPOINT)  # noqa: PTH105  one step: a kill leaves the old or the new one

    def _restore(self) -> int:
        state = torch.load(self.folder / CHECKPOINT, weights_only=True)
        self.objective.load_state_dict(state["objective"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(state, self.accelerator.device)
        self.step = state["step"]
        return int(state["epoch"])


def figure(model: nn.Module, pictures: Sequence[tuple[Picture, Any]], recipe: Recipe, labels: Sequence[str]) -> float:
    """The figure that a run is judged by, 0 to 1; `nan` when there are no pictures."""
    return training_task(recipe.task).figures(model, pictures, recipe, labels)[FIGURES[recipe.task].key]


def told(recipe: Recipe, metrics: Mapping[str, float]) -> str:
    """The figure that a run is judged by, in words."""
    judged = FIGURES[recipe.task]
    return f"validation {judged.name} {metrics[f'validation_{judged.key}']:.1%}"


def views_per_second(recipe: Recipe, data: TrainingData, folder: Path, steps: int = 6) -> tuple[float, int]:
    """Training speed on this machine, by a few steps of a run that is thrown away, and the number of workers it had."""
    teacher = open_teacher(recipe, data.labels) if recipe.teacher != "none" else None
    trial = _Run(replace(recipe, epochs=1000), folder, data, teacher)
    trial.objective.train()
    batches = (batch for epoch in range(1000) for batch in trial.loader.epoch(epoch))
    started = 0.0
    for step, batch in enumerate(batches):
        if step == 2:  # the first steps start workers and choose kernels
            started = time.monotonic()
        trial.advance(batch.to(trial.accelerator.device))
        if step == 1 + steps:
            break
    return steps * trial.loader.batch_size / (time.monotonic() - started), trial.recipe.workers


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    others = [p for p in model.parameters() if p.ndim <= 1 and p.requires_grad]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _floats(model: nn.Module) -> list[Tensor]:
    return [value.detach() for value in model.state_dict().values() if value.is_floating_point()]
