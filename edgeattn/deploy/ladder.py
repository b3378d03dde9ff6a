"""The ladder: the fastest int8 that keeps accuracy and attention within their bounds, for each engine, by measuring.

From the bottom, for one engine after the other:
    all int8            everything that the engine can, the attention too
    branch float        the attention's elementwise and reducing part and its small layers in float: the default recipe
    full bias           NNCF's bias correction layer by layer (OpenVINO)
    SmoothQuant         range moved from activations to weights, alpha 0.15 and 0.5 (OpenVINO)
    attention float     the whole attention of the blocks that are off
    block float         these blocks as a whole
    QAT                 the weights fine-tuned with the rounding in the way
Each try is a saved file that `verify` measures: accuracy, agreement, maps block by block, time. What does not bring it nearer
to its bounds is not kept; the climb ends when the bounds are kept, or the time is up. Then blocks are taken back to int8, the
mildest first, as long as the bounds are still kept and it pays in time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from rich.progress import Progress

from edgeattn.bundle import Bundle, extend, sha256
from edgeattn.deploy.export import versions
from edgeattn.deploy.names import block_of, path_of
from edgeattn.deploy.recipes import (
    ATTENTION_ORT,
    ATTENTION_OV,
    DEFAULT_PLAN,
    FILES,
    SMALL_MACS,
    TOOLS,
    Input,
    Plan,
    quantize_for,
)
from edgeattn.deploy.structure import node_names
from edgeattn.deploy.verify import LEAST_RANK, MAX_LOSS, MAX_MAP_JS, verify
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import Picture
from edgeattn.spec import Artefact, from_json, to_json
from edgeattn.timing.bar import progress_bar

TIE = 0.95
"""A net this much faster, as a fraction of the other's time, is worth the change; nearer than that they are equally fast."""
GAIN = 0.98
"""What is off must shrink below this fraction of itself for a change to be kept."""
ALPHAS = (0.15, 0.5)
"""SmoothQuant's strengths that are tried."""
ENOUGH = "inside its bounds"
"""Why a climb ends well."""

Made = tuple[Artefact, dict[str, Path | bytes]]
"""An artefact and its files."""


@dataclass(frozen=True)
class Bounds:
    """What int8 must keep."""

    loss: float = MAX_LOSS
    """Greatest loss of top-1."""
    map_js: float = MAX_MAP_JS
    """Greatest relative divergence of the maps."""
    rank: float = LEAST_RANK
    """Least rank correlation of the maps."""


@dataclass(frozen=True)
class Step:
    """One try: a saved file, and what was measured on it."""

    engine: str
    """Its engine."""
    rung: str
    """What is new in it."""
    blocks: tuple[str, ...]
    """The attention blocks that it is new in; empty: all."""
    plan: Plan
    """How it was quantized."""
    tuned: bool
    """Whether its weights were fine-tuned for int8."""
    excess: float = math.inf
    """The worst of its gates: the figure over its bound; at most 1 is inside."""
    pull: float = math.inf
    """The loss over its bound, and the mean over the blocks of how far the maps are off over their bound."""
    off: Mapping[str, float] = field(default_factory=dict)
    """By block: how far its map is off over its bound."""
    verdict: str = "failed"
    """The worst verdict of its gates."""
    top1: float = 0.0
    """Its share of right answers."""
    agreement: float = 0.0
    """Its share of answers that are float's."""
    map_js: float | None = None
    """Relative divergence of its maps; None: no maps."""
    map_rank: float | None = None
    """Rank correlation of its maps."""
    time_ratio: float = math.inf
    """Its time over the float file's, in the same engine, both in turns."""
    float_ms: float = math.inf
    """The float file's time, in milliseconds."""
    seconds: float = 0.0
    """What the try took."""
    kept: bool = False
    """Whether the climb went on from it."""
    failure: str = ""
    """Why there is no file to measure."""

    @property
    def is_inside(self) -> bool:
        """Whether all figures keep their bounds; whether that is proven, `verdict` tells."""
        return self.excess <= 1.0

    def json(self) -> dict[str, Any]:
        """As other programs read it: what there is no figure for is null, since JSON knows no infinity."""
        told = to_json(self)
        return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in told.items()}


@dataclass
class Ladder:
    """The tries on one bundle, and how they are made."""

    bundle: Bundle
    """Holds a float artefact for each engine that is quantized for."""
    inputs: Sequence[Input]
    """Calibration inputs."""
    validation: Sequence[tuple[Picture, int]]
    """Labelled pictures outside of the calibration set."""
    scratch: Path
    """A folder for the tries."""
    source: onnx.ModelProto | None = None
    """Weights other than the bundle's."""
    bounds: Bounds = field(default_factory=Bounds)
    """What is to be kept."""
    memory: Path | None = None
    """Keeps what was measured."""
    start: Plan = DEFAULT_PLAN
    """The default recipe."""
    steps: list[Step] = field(default_factory=list)
    """What was tried, in order."""

    def __post_init__(self) -> None:
        self._tuned: Path | None = None
        self._source: Path | None = None
        if self.source is not None:
            self._source = self.scratch / "source.onnx"
            onnx.save(self.source, self._source)
        paths = [path_of(name) for name in node_names(self._float(self.engines[0]))]
        self._blocks = list(dict.fromkeys(block for path in paths if (block := block_of(path)) is not None))
        self._calibrated_on = hashlib.sha256(b"".join(value.tobytes() for value in self.inputs)).hexdigest()

    def default(self, engine: str) -> Made:
        """The default recipe, as it is."""
        return self._make(engine, self.start, tuned=False)

    def climb(
        self,
        minutes: float,
        tune: Callable[[], onnx.ModelProto] | None = None,
        *,
        engines: Sequence[str] = (),
        progress: bool = False,
    ) -> dict[str, Made]:
        """Climb for each engine (default: all that there are) in about `minutes`, of which each has its share.

        `tune` makes the last rung's weights.

        Raises:
            EdgeAttnError: a toolchain failed on the default recipe.
        """
        started, engines = time.monotonic(), engines or self.engines
        chosen: dict[str, Made] = {}
        with progress_bar(progress, a_second=2) as bar:
            for i, engine in enumerate(engines):
                left = 60.0 * minutes - (time.monotonic() - started)
                best = _Climb(self, engine, max(0.0, left) / (len(engines) - i), tune, bar).run()
                chosen[engine] = self._finished(engine, best)
        return chosen

    def attempt(
        self, engine: str, plan: Plan, rung: str, blocks: Sequence[str] = (), *, tuned: bool = False, turn: int = 0
    ) -> Step:
        """Quantize and measure, or remember what was measured; each `turn` is measured anew."""
        began = time.monotonic()
        key = self._key(engine, plan, tuned, turn)
        if (kept := self._remembered(key)) is not None:
            step = replace(kept, rung=rung, blocks=tuple(blocks), kept=False)
        else:
            step = self._measure(Step(engine, rung, tuple(blocks), plan, tuned))
            step = replace(step, seconds=time.monotonic() - began)
            self._remember(key, step)
        self.steps.append(step)
        return step

    def knows(self, engine: str, plan: Plan) -> bool:
        """Whether an attempt would only be remembered."""
        return self._remembered(self._key(engine, plan, tuned=False, turn=0)) is not None

    def tuned_by(self, tune: Callable[[], onnx.ModelProto]) -> None:
        """Take the fine-tuned weights, once."""
        if self._tuned is None:
            self._tuned = self.scratch / "tuned.onnx"
            onnx.save(tune(), self._tuned)

    def in_graph(self, block: str) -> str:
        """The path in the graph of a block of bundle.json."""
        return next((path for path in self._blocks if f".{path}".endswith(f".{block}")), block)

    def files(self, engine: str, plan: Plan) -> tuple[Path, Path]:
        """The float file and what an engine opens of the int8 made of it by `plan`, in the scratch folder."""
        _, files = self._make(engine, plan, tuned=False)
        return self._float(engine), Path(str(files[FILES[engine][0]]))

    @property
    def blocks(self) -> tuple[str, ...]:
        """The attention blocks, by their paths in the graph."""
        return tuple(self._blocks)

    @property
    def engines(self) -> tuple[str, ...]:
        """Those with a float artefact: an IR from elsewhere has none for ONNX Runtime.

        Raises:
            BundleError: there are none.
        """
        held = {a.engine for a in self.bundle.artefacts if a.precision == "float" and a.target == "cpu"}
        if not held:
            self.bundle.artefact("onnxruntime", "float")
        return tuple(engine for engine in FILES if engine in held)

    def _float(self, engine: str, *, tuned: bool = False) -> Path:
        """The file that an engine's int8 is made of."""
        own = self._tuned if tuned else self._source
        return own or self.bundle.file(self.bundle.artefact(engine, "float"))

    def _make(self, engine: str, plan: Plan, tuned: bool) -> Made:
        folder = self.scratch / engine
        folder.mkdir(exist_ok=True)
        artefact, files = quantize_for(engine, self._float(engine, tuned=tuned), folder, self.inputs, plan)
        own = tuned or self.source is not None
        return replace(artefact, recipe={**artefact.recipe, "tuned": own}), files

    def _measure(self, step: Step) -> Step:
        """The step with its figures, or with the reason why it has none."""
        try:
            artefact, files = self._make(step.engine, step.plan, step.tuned)
        except EdgeAttnError as error:
            if step.plan == self.start:
                raise
            return replace(step, failure=str(error))
        trial = extend(self.bundle, (artefact,), files, path=self.scratch / "trial.edgeattn")
        report = verify(
            trial, self.validation, engines=[step.engine], max_loss=self.bounds.loss, max_map_js=self.bounds.map_js,
            least_rank=self.bounds.rank,
        )  # fmt: skip
        by = {result.precision: result for result in report.results}
        int8, reference = by["int8"], by["float"]
        figures = {name: gate for name, gate in int8.gates.items() if "bound" in gate}
        broken = any(gate["verdict"] == "failed" for name, gate in int8.gates.items() if name not in figures)
        over = {name: gate["value"] / gate["bound"] for name, gate in figures.items()}
        off = {
            block.block: max(block.js / self.bounds.map_js, (1.0 - block.rank) / (1.0 - self.bounds.rank))
            for block in int8.blocks
        }
        answers = max(0.0, over.get("loss", over.get("flips", 0.0)))
        mean_off = sum(off.values()) / len(off) if off else 0.0
        return replace(
            step,
            excess=math.inf if broken else max(over.values(), default=0.0),
            pull=math.inf if broken else answers + mean_off,
            off=off,
            verdict=int8.verdict,
            top1=int8.top1 or 0.0,
            agreement=int8.agreement or 0.0,
            map_js=int8.map_js,
            map_rank=int8.map_rank,
            time_ratio=(int8.latency_ms or math.inf) / (reference.latency_ms or math.inf),
            float_ms=reference.latency_ms or math.inf,
        )

    def _finished(self, engine: str, best: Step) -> Made:
        """The chosen try's files, with the climb in its recipe."""
        artefact, files = self._make(engine, best.plan, best.tuned)
        told = [step.json() for step in self.steps if step.engine == engine]
        return replace(artefact, recipe={**artefact.recipe, "ladder": told}), files

    def _key(self, engine: str, plan: Plan, tuned: bool, turn: int) -> str:
        """What a measurement depends on."""
        source = self._float(engine, tuned=tuned)
        weights = {"weights": sha256(source.with_suffix(".bin"))} if source.suffix == ".xml" else {}
        what: Mapping[str, Any] = weights | {
            "source": sha256(source),
            "calibration": self._calibrated_on,
            "validation": [len(self.validation), [label for _, label in self.validation]],
            "engine": engine,
            "turn": turn,
            "tools": versions(*TOOLS[engine]),
            "plan": asdict(plan),
            "bounds": asdict(self.bounds),
            "recipes": [ATTENTION_ORT, ATTENTION_OV, SMALL_MACS],
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _remembered(self, key: str) -> Step | None:
        if self.memory is None or not self.memory.is_file():
            return None
        for line in self.memory.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(
                ValueError, KeyError, EdgeAttnError
            ):  # cut off by a kill, or older: measured again
                held = json.loads(line)
                if held["key"] == key:
                    return from_json(Step, held["step"])
        return None

    def _remember(self, key: str, step: Step) -> None:
        if self.memory is not None:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            with self.memory.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, "step": to_json(step)}) + "\n")


class _OutOfTimeError(Exception):
    """The next try would not end in time."""


class _Climb:
    """One engine's way up."""

    def __init__(
        self, ladder: Ladder, engine: str, seconds: float, tune: Callable[[], onnx.ModelProto] | None, bar: Progress
    ) -> None:
        self.ladder, self.engine, self.seconds, self.tune, self.bar = ladder, engine, seconds, tune, bar
        self.began, self.took_s, self.tuned = time.monotonic(), 0.0, False
        self.task = bar.add_task(engine, total=seconds, note="")
        self.best = self._keep(self._try("branch float", ladder.start))

    def run(self) -> Step:
        """The best that was found in time."""
        with contextlib.suppress(_OutOfTimeError):
            whole = self._try("all int8", replace(self.ladder.start, others="int8"))
            if whole.is_inside and (not self.best.is_inside or whole.time_ratio <= TIE * self.best.time_ratio):
                self._keep(whole)
            self._up()
            if not self.best.is_inside and self.tune is not None:
                self.bar.update(self.task, note="QAT")
                self.ladder.tuned_by(self.tune)
                self.tuned = True
                self._keep_better(self._try("QAT", self.best.plan))
                self.tuned = self.best.tuned
                if self.tuned:  # else these rungs were measured
                    self._up()
            self._down()
        self.bar.update(self.task, completed=self.seconds, note=_said(self.best))
        return self.best

    def _up(self) -> None:
        """Rung by rung, until the bounds are kept."""
        if self.engine == "openvino":
            self._climb_to("full bias", bias="full")
            for alpha in ALPHAS:
                self._climb_to(f"SmoothQuant {alpha}", smooth=alpha)
        for rung in ("attention", "block"):
            if self.best.is_inside or not self.best.off:
                return
            # Those that are off; where none is, the answers are, and the worse half of the blocks is tried.
            worst = sorted(self.best.off, key=lambda block: -self.best.off[block])
            blocks = [block for block in worst if self.best.off[block] > 1.0] or worst[: math.ceil(len(worst) / 2)]
            rungs = {**self.best.plan.rungs, **{self.ladder.in_graph(block): rung for block in blocks}}
            self._climb_to(f"{rung} float", blocks, rungs=rungs)

    def _climb_to(self, rung: str, blocks: Sequence[str] = (), **changes: Any) -> None:
        """Try a change of the best plan, where it is needed and is one."""
        plan = replace(self.best.plan, **changes)
        if not self.best.is_inside and plan != self.best.plan:
            self._keep_better(self._try(rung, plan, blocks))

    def _down(self) -> None:
        """Blocks back to integers, the mildest first, where that saves time and keeps the bounds."""
        off = next(step.off for step in self.ladder.steps if step.engine == self.engine)
        for block in sorted(off, key=lambda name: off[name]):
            path = self.ladder.in_graph(block)
            if not self.best.is_inside or path not in self.best.plan.rungs:
                continue
            rungs = {at: rung for at, rung in self.best.plan.rungs.items() if at != path}
            back = self._try("taken back", replace(self.best.plan, rungs=rungs), [block])
            if back.is_inside and back.time_ratio <= self.best.time_ratio:
                self._keep(back)

    def _try(self, rung: str, plan: Plan, blocks: Sequence[str] = ()) -> Step:
        """Measure one more; the first try needs no time left."""
        spent = time.monotonic() - self.began
        if spent + self.took_s > self.seconds and self.took_s:
            raise _OutOfTimeError
        self.bar.update(self.task, completed=spent, note=rung)
        step = self.ladder.attempt(self.engine, plan, rung, blocks, tuned=self.tuned)
        self.took_s = time.monotonic() - self.began - spent
        return step

    def _keep_better(self, step: Step) -> None:
        """Go on from a step that is worth it: inside where the best is not, or nearer to the bounds."""
        if (step.is_inside and not self.best.is_inside) or step.pull <= GAIN * self.best.pull:
            self._keep(step)

    def _keep(self, step: Step) -> Step:
        self.best = replace(step, kept=True)
        self.ladder.steps[self.ladder.steps.index(step)] = self.best
        return self.best


def _said(step: Step) -> str:
    return f"{step.rung}: {ENOUGH if step.is_inside else f'{step.excess:.1f} times its bounds'}"
