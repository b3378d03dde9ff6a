"""The climb: rung by rung from the bottom of the ladder, for one engine after the other.

    all int8            everything that the engine can, the attention too
    branch float        the attention's elementwise and reducing part and its small layers in float: the default recipe
    first layers float  the first layer and a depthwise one behind it, where ONNX Runtime is quicker so
    full bias           biases corrected layer by layer, which takes no time of the net, where nothing is farther from float then
    histogram ranges    of activations where their error is least, likewise (OpenVINO)
    SmoothQuant         range moved from activations to weights, alpha 0.15 and 0.5 (OpenVINO)
    branch of the head  of a detector the box branch, then the class branch, of a segmenter the head, where the answers are off
    attention float     the whole attention of the blocks that are off
    block float         these blocks as a whole
    QAT                 the weights fine-tuned with the rounding in the way
What does not bring a try nearer to its bounds is not kept; the climb ends when the bounds are kept and the maps' gates are sure
of it, or the time is up. Then branches and blocks are taken back to int8, the mildest first, as long as that is as sure and pays
in time. Fine-tuning is for bounds that are not kept.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import onnx
from rich.progress import Progress

from edgeattn.deploy.ladder import SURE, Ladder, Made, Step
from edgeattn.deploy.recipes.plan import RUNGS, Plan
from edgeattn.timing.bar import progress_bar

TIE = 0.95
"""A net this much faster, as a fraction of the other's time, is worth the change; nearer than that they are equally fast."""
GAIN = 0.98
"""What is off must shrink below this fraction of itself for a change to be kept."""
ALPHAS = (0.15, 0.5)
"""SmoothQuant's strengths that are tried."""
ENOUGH = "inside its bounds"
"""Why a climb ends well."""


def climb(
    ladder: Ladder,
    minutes: float,
    tune: Callable[[], onnx.ModelProto] | None = None,
    *,
    engines: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Made]:
    """Climb for each engine (default: all that there are) in about `minutes`, of which each has its share.

    `tune` makes the last rung's weights. Fine-tuning that was begun is finished, however long it takes, and what came of it is
    measured for each engine that needs it; where no time is left to begin, the ladder's notes say so.

    Raises:
        EdgeAttnError: a toolchain failed on the default recipe.
    """
    started, engines = time.monotonic(), engines or ladder.engines
    chosen: dict[str, Made] = {}
    with progress_bar(progress, a_second=2) as bar:
        for i, engine in enumerate(engines):
            left = 60.0 * minutes - (time.monotonic() - started)
            best = _Climb(ladder, engine, max(0.0, left) / (len(engines) - i), tune, bar).run()
            chosen[engine] = ladder.finished(engine, best)
    return chosen


class _OutOfTimeError(Exception):
    """The next try would not end in time."""


class _Climb:
    """One engine's way up."""

    def __init__(
        self, ladder: Ladder, engine: str, seconds: float, tune: Callable[[], onnx.ModelProto] | None, bar: Progress
    ) -> None:
        self.ladder, self.engine, self.seconds, self.tune, self.bar = ladder, engine, seconds, tune, bar
        self.began, self.took_s = time.monotonic(), 0.0
        self.tuned, self.has_tuned = False, False
        self.task = bar.add_task(engine, total=seconds, note="")
        self.best = self._keep(self._try("branch float", ladder.start))

    def run(self) -> Step:
        """The best that was found in time."""
        try:
            if self.ladder.blocks:  # without them it is the same file
                whole = self._try("all int8", replace(self.ladder.start, others="int8"))
                better, as_good = (
                    whole.standing > self.best.standing,
                    whole.is_inside and whole.standing == self.best.standing,
                )
                if better or (as_good and whole.time_ratio <= TIE * self.best.time_ratio):
                    self._keep(whole)
            self._enter()
            self._come_nearer("full bias", bias="full")
            if self.engine == "openvino":
                self._come_nearer("histogram ranges", ranges="histogram")
            self._up()
            self._fine_tune()
            if self.tuned:  # else these rungs were measured
                self._up()
            self._down()
        except _OutOfTimeError:
            if self.ladder.is_tuned:  # for another engine
                self._fine_tune()
            elif self.tune is not None and not self.best.is_inside:
                self.ladder.notes.append(f"{self.engine}: QAT left out: no time; give more with --minutes")
        self.bar.update(self.task, completed=self.seconds, note=_said(self.best))
        return self.best

    def _fine_tune(self) -> None:
        """The last rung, where it is needed; what was fine-tuned is measured even when the time is up."""
        if self.best.is_inside or self.tune is None or self.has_tuned:
            return
        self.bar.update(self.task, note="QAT")
        self.ladder.tuned_by(self.tune)
        self.has_tuned = self.tuned = True
        self._keep_better(self._try("QAT", self.best.plan, in_any_case=True))
        self.tuned = self.best.tuned

    def _enter(self) -> None:
        """The first layers in float, where that is faster, or as fast and more answers are float's, and takes nothing away."""
        layers = self.ladder.entrance(self.engine)
        if layers:
            plan = replace(self.best.plan, layers=(*self.best.plan.layers, *layers))
            step = self._try("first layers float", plan)
            nearer = TIE * step.time_ratio <= self.best.time_ratio and step.agreement > self.best.agreement
            if self._takes_nothing_away(step) and (nearer or step.time_ratio < self.best.time_ratio):
                self._keep(step)

    def _come_nearer(self, rung: str, **changes: Any) -> None:
        """What takes no time of the net, where as many answers are float's, and all is as near to its bounds."""
        step = self._try(rung, replace(self.best.plan, **changes))
        as_near = step.agreement >= self.best.agreement and step.pull <= self.best.pull
        if as_near and self._takes_nothing_away(step):
            self._keep(step)

    def _takes_nothing_away(self, step: Step) -> bool:
        return step.verdict == "passed" if self.best.verdict == "passed" else step.pull <= self.best.pull

    def _up(self) -> None:
        """Rung by rung, until the bounds are kept for sure."""
        if self.engine == "openvino":
            for alpha in ALPHAS:
                self._climb_to(f"SmoothQuant {alpha}", smooth=alpha)
        for name, layers in self.ladder.heads.items():
            if self.best.loss > 1.0:
                self._climb_to(f"{name} float", [name], layers=(*self.best.plan.layers, *layers))
        # Those that are off; where that does not do, or the answers are off, the worse half of the blocks: what reaches a map
        # is rounded before it, too.
        for half, rung in itertools.product((False, True), ("attention", "block")):
            if self.best.standing == SURE:
                return
            worst = sorted(self.best.off, key=lambda block: -self.best.off[block])
            count = sum(off > 1.0 for off in self.best.off.values())
            if half or not count:
                count = max(count, math.ceil(len(worst) / 2))
            plan = self.best.plan
            lower = [block for block in worst[:count] if plan.rung(self.ladder.in_graph(block)) < RUNGS.index(rung)]
            rungs = {**plan.rungs, **{self.ladder.in_graph(block): rung for block in lower}}
            self._climb_to(f"{rung} float", lower, rungs=rungs)

    def _climb_to(self, rung: str, blocks: Sequence[str] = (), **changes: Any) -> None:
        """Try a change of the best plan, where it is needed and new."""
        plan = replace(self.best.plan, **changes)
        tried = [step.plan for step in self.ladder.steps if (step.engine, step.tuned) == (self.engine, self.tuned)]
        if self.best.standing < SURE and plan not in tried:
            self._keep_better(self._try(rung, plan, blocks))

    def _down(self) -> None:
        """Branches of the head, then blocks, the mildest first, back to integers, where that saves time and keeps the bounds."""
        for name, layers in self.ladder.heads.items():
            kept = tuple(layer for layer in self.best.plan.layers if layer not in layers)
            if self.best.is_inside and len(kept) < len(self.best.plan.layers):
                back = self._try("taken back", replace(self.best.plan, layers=kept), [name])
                self._keep_quicker(back)
        off = next(step.off for step in self.ladder.steps if step.engine == self.engine)
        for block in sorted(off, key=lambda name: off[name]):
            path = self.ladder.in_graph(block)
            if not self.best.is_inside or path not in self.best.plan.rungs:
                continue
            rungs = {at: rung for at, rung in self.best.plan.rungs.items() if at != path}
            back = self._try("taken back", replace(self.best.plan, rungs=rungs), [block])
            self._keep_quicker(back)

    def _try(self, rung: str, plan: Plan, blocks: Sequence[str] = (), *, in_any_case: bool = False) -> Step:
        """Measure one more; the first try needs no time left."""
        spent = time.monotonic() - self.began
        if spent + self.took_s > self.seconds and self.took_s and not in_any_case:
            raise _OutOfTimeError
        self.bar.update(self.task, completed=spent, note=rung)
        step = self.ladder.attempt(self.engine, plan, rung, blocks, tuned=self.tuned)
        self.took_s = time.monotonic() - self.began - spent
        return step

    def _keep_better(self, step: Step) -> None:
        """Go on from a step that is worth it: of a better standing, or of the same and nearer to float."""
        nearer = step.standing == self.best.standing and step.pull <= GAIN * self.best.pull
        if nearer or step.standing > self.best.standing:
            self._keep(step)

    def _keep_quicker(self, step: Step) -> None:
        """Go on from a step that takes no more time and stands as well."""
        if step.standing >= self.best.standing and step.time_ratio <= self.best.time_ratio:
            self._keep(step)

    def _keep(self, step: Step) -> Step:
        self.best = replace(step, kept=True)
        self.ladder.steps[self.ladder.steps.index(step)] = self.best
        return self.best


def _said(step: Step) -> str:
    sure = ", of the maps it is not sure" if step.is_doubtful else ""
    return f"{step.rung}: {ENOUGH + sure if step.is_inside else f'{step.excess:.1f} times its bounds'}"
