"""The ladder: tries at int8 on one bundle, each a saved file that `verify` measures: accuracy, agreement, maps, time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import onnx

from edgeattn.bundle import Bundle, extend, sha256
from edgeattn.deploy import heads
from edgeattn.deploy.calibration import picture_digest
from edgeattn.deploy.export import versions
from edgeattn.deploy.recipes import FILES, TOOLS, quantize_for
from edgeattn.deploy.recipes.onnxruntime import ATTENTION_ORT, STEM_CHANNELS, entrance
from edgeattn.deploy.recipes.openvino import ATTENTION_OV
from edgeattn.deploy.recipes.plan import DEFAULT_PLAN, SMALL_MACS, Plan
from edgeattn.deploy.structure import node_names
from edgeattn.deploy.verify import LEAST_RANK, MAX_LOSS, MAX_MAP_JS, verify
from edgeattn.engines import default_threads, held
from edgeattn.engines.base import Array
from edgeattn.engines.openvino import layer_name
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import Picture
from edgeattn.spec import Artefact, Task, block_of, from_json, path_of, to_json
from edgeattn.timing.environment import processor_key

Made = tuple[Artefact, dict[str, Path | bytes]]
"""An artefact and its files."""


_TOLD: dict[Task, Callable[[Any], Any]] = {
    "classify": lambda label: label,
    "detect": lambda truth: [truth.labels.tolist(), truth.boxes.tolist()],
    "segment": lambda truth: hashlib.sha256(truth.class_map().tobytes()).hexdigest(),
}
"""Truths as plain values."""


SURE = 2
"""The standing of a try that needs no other."""
TINY = 1e-9
"""Stands for a bound of zero, as of a figure of which float has nothing."""


@dataclass(frozen=True)
class Bounds:
    """What int8 must keep."""

    loss: float = MAX_LOSS
    """Greatest loss of the task's figure."""
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
    """The attention blocks, or the branches of the head, that it is new in; empty: all blocks."""
    plan: Plan
    """How it was quantized."""
    tuned: bool
    """Whether its weights were fine-tuned for int8."""
    excess: float = math.inf
    """The worst of its gates: the figure over its bound; at most 1 is inside."""
    pull: float = math.inf
    """The loss over its bound, and the mean over the blocks of how far the maps are off over their bound."""
    loss: float = 0.0
    """The loss (or the changed answers) over its bound."""
    off: Mapping[str, float] = field(default_factory=dict)
    """By block: how far its map is off over its bound."""
    verdict: str = "failed"
    """The worst verdict of its gates."""
    is_doubtful: bool = False
    """Whether a gate of its maps cannot tell, which smaller errors may mend; the answers' gate wants more pictures."""
    figure: float = 0.0
    """By what its task is judged: top-1, mAP50 or mIoU."""
    key: str = "top1"
    """What that figure is called in JSON."""
    agreement: float = 0.0
    """Its share of answers that are float's."""
    map_js: float | None = None
    """Relative divergence of its maps in the worst block; None: no maps."""
    map_rank: float | None = None
    """Rank correlation of its maps in the worst block."""
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

    @property
    def standing(self) -> int:
        """0: a figure is off its bound; 1: all are inside, of the maps it is not sure; 2: `SURE`."""
        return 0 if not self.is_inside else SURE - self.is_doubtful

    def json(self) -> dict[str, Any]:
        """As other programs read it: what there is no figure for is null, since JSON knows no infinity."""
        told = to_json(self)
        told[told.pop("key")] = told.pop("figure")
        return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in told.items()}


@dataclass
class Ladder:
    """The tries on one bundle, and how they are made."""

    bundle: Bundle
    """Holds a float artefact for each engine that is quantized for."""
    inputs: Sequence[Array]
    """Calibration inputs."""
    validation: Sequence[tuple[Picture, Any]]
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
    notes: list[str] = field(default_factory=list)
    """What the user should know of the climb."""

    def __post_init__(self) -> None:
        self._tuned: Path | None = None
        self._source: Path | None = None
        if self.source is not None:
            self._source = self.scratch / "source.onnx"
            onnx.save(self.source, self._source)
        paths = [path_of(name) for name in node_names(self._float(self.engines[0]))]
        self._blocks = list(dict.fromkeys(block for path in paths if (block := block_of(path)) is not None))
        nodes = heads.read(self._float(self.engines[0]))
        branches = heads.branches(nodes, self.bundle.spec)
        self._heads = {name: tuple(dict.fromkeys(map(layer_name, own))) for name, own in branches.items()}

    def default(self, engine: str) -> Made:
        """The default recipe, as it is."""
        return self._make(engine, self.start, tuned=False)

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

    @property
    def is_tuned(self) -> bool:
        """Whether there are fine-tuned weights."""
        return self._tuned is not None

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

    def entrance(self, engine: str) -> tuple[str, ...]:
        """Names of the first layers that may be quicker in float, see `entrance`; of ONNX Runtime alone."""
        return entrance(onnx.load(self._float(engine))) if engine == "onnxruntime" else ()

    @property
    def heads(self) -> Mapping[str, tuple[str, ...]]:
        """The branches of the head, each with the names of its nodes in the graph."""
        return self._heads

    @property
    def engines(self) -> tuple[str, ...]:
        """Those with a float artefact: an IR from elsewhere has none for ONNX Runtime.

        Raises:
            BundleError: there are none.
        """
        floats = {artefact.engine for artefact in held(self.bundle, precisions=["float"])}
        if not floats:
            self.bundle.artefact("onnxruntime", "float")
        return tuple(engine for engine in FILES if engine in floats)

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
        over = {name: gate["value"] / max(gate["bound"], TINY) for name, gate in figures.items()}
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
            loss=math.inf if broken else answers,
            off=off,
            verdict=int8.verdict,
            is_doubtful=any(int8.gates.get(name, {}).get("verdict") == "cannot tell" for name in ("maps", "ranks")),
            figure=int8.figure or 0.0,
            key=report.measured.key,
            agreement=int8.agreement or 0.0,
            map_js=int8.map_js,
            map_rank=int8.map_rank,
            time_ratio=(int8.latency_ms or math.inf) / (reference.latency_ms or math.inf),
            float_ms=reference.latency_ms or math.inf,
        )

    def finished(self, engine: str, best: Step) -> Made:
        """The chosen try's files, with the climb in its recipe."""
        artefact, files = self._make(engine, best.plan, best.tuned)
        told = [step.json() for step in self.steps if step.engine == engine]
        return replace(artefact, recipe={**artefact.recipe, "ladder": told}), files

    @functools.cached_property
    def _pictures(self) -> dict[str, Any]:
        """What tells the pictures apart from others."""
        told = _TOLD[self.bundle.spec.task]
        return {
            "calibration": hashlib.sha256(b"".join(value.tobytes() for value in self.inputs)).hexdigest(),
            "validation": [[picture_digest(picture), told(truth)] for picture, truth in self.validation],
        }

    def _key(self, engine: str, plan: Plan, tuned: bool, turn: int) -> str:
        """What a measurement depends on."""
        source = self._float(engine, tuned=tuned)
        weights = {"weights": sha256(source.with_suffix(".bin"))} if source.suffix == ".xml" else {}
        what: Mapping[str, Any] = {
            **weights,
            **self._pictures,
            "source": sha256(source),
            "engine": engine,
            "turn": turn,
            "tools": versions(*TOOLS[engine]),
            "processor": processor_key(),
            "threads": default_threads(),
            "plan": asdict(plan),
            "bounds": asdict(self.bounds),
            "measured": [each.name for each in fields(Step)],
            "recipes": [
                ATTENTION_ORT,
                ATTENTION_OV,
                SMALL_MACS,
                STEM_CHANNELS,
                "answers unrounded, ranges per tensor, biases by what is let through",
            ],
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _remembered(self, key: str) -> Step | None:
        if self.memory is None or not self.memory.is_file():
            return None
        for line in self.memory.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(
                ValueError, KeyError, EdgeAttnError
            ):  # cut off by a kill, or older: measured again
                known = json.loads(line)
                if known["key"] == key:
                    return from_json(Step, known["step"])
        return None

    def _remember(self, key: str, step: Step) -> None:
        if self.memory is not None:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            with self.memory.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, "step": to_json(step)}) + "\n")
