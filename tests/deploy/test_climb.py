"""The climb by itself: what it tries and says, on a ladder whose tries are told and take no time of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from edgeattn.deploy import climb as module
from edgeattn.deploy.climb import climb
from edgeattn.deploy.ladder import Step
from edgeattn.deploy.recipes.plan import Plan

FIRST = "first layers float"


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1.0

    def monotonic(self) -> float:
        return self.now


class Told:
    """A ladder of one block that is off however it is quantized, each try a little less; a try takes `takes` seconds."""

    def __init__(self, clock: Clock, takes: float = 1.0, engines: Sequence[str] = ("onnxruntime",)) -> None:
        self.clock, self.takes, self.engines = clock, takes, engines
        self.start, self.blocks, self.heads = Plan(), ("a",), dict[str, Any]()
        self.firsts: tuple[str, ...] = ()
        self.off = {"a": 2.0}
        self.told: dict[str, tuple[float, float, str]] = {}
        self.inside: dict[str, bool] = {}
        """By rung: whether it is sure of the maps; the others are outside their bounds."""
        self.steps, self.notes, self.is_tuned = list[Step](), list[str](), False

    def attempt(self, engine: str, plan: Plan, rung: str, blocks: Sequence[str] = (), *, tuned: bool = False) -> Step:
        self.clock.now += self.takes
        pull = 3.0 - 0.1 * len(self.steps)
        ratio, agreement, verdict = self.told.get(rung, (0.5, 0.98, "passed"))
        step = Step(engine, rung, tuple(blocks), plan, tuned, excess=2.0, pull=pull, off=self.off, verdict=verdict)
        if rung in self.inside:
            step = replace(step, excess=0.9, is_doubtful=not self.inside[rung])
        self.steps.append(replace(step, time_ratio=ratio, agreement=agreement))
        return self.steps[-1]

    def entrance(self, engine: str) -> tuple[str, ...]:
        return self.firsts

    def in_graph(self, block: str) -> str:
        return block

    def tuned_by(self, tune: Callable[[], object]) -> None:
        if not self.is_tuned:
            tune()
            self.is_tuned = True

    def finished(self, engine: str, best: Step) -> Step:
        return best


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(module, "time", fake)
    return fake


def rungs(ladder: Told, engine: str = "onnxruntime") -> list[str]:
    return [step.rung for step in ladder.steps if step.engine == engine]


def test_fine_tuning_that_there_is_no_time_for_is_said(clock: Clock) -> None:
    ladder, asked = Told(clock), list[int]()
    climb(ladder, 2.5 / 60, lambda: asked.append(1))  # type: ignore[arg-type, return-value]
    assert (rungs(ladder), asked) == (["branch float", "all int8"], [])
    assert ladder.notes == ["onnxruntime: QAT left out: no time; give more with --minutes"]


def test_without_fine_tuning_nothing_is_said_of_it(clock: Clock) -> None:
    ladder = Told(clock)
    climb(ladder, 2.5 / 60)  # type: ignore[arg-type]
    assert ladder.notes == []


def test_fine_tuning_that_was_begun_is_finished_and_measured_for_every_engine(clock: Clock) -> None:
    ladder, asked = Told(clock, engines=("onnxruntime", "openvino")), list[int]()

    def tune() -> None:
        asked.append(1)
        clock.now += 600.0

    climb(ladder, 10.5 / 60, tune)  # type: ignore[arg-type]
    assert rungs(ladder) == ["branch float", "all int8", "full bias", "attention float", "block float", "QAT"]
    assert rungs(ladder, "openvino") == ["branch float", "QAT"]
    assert [step.rung for step in ladder.steps if step.tuned] == ["QAT", "QAT"]
    assert (len(asked), ladder.notes) == (1, [])


@pytest.mark.parametrize(
    ("ratio", "agreement", "verdict", "kept"),
    [
        (0.49, 0.98, "passed", True),
        (0.51, 0.98, "passed", False),
        (0.51, 0.99, "passed", True),
        (0.54, 0.99, "passed", False),
        (0.49, 0.99, "cannot tell", False),
    ],
    ids=["faster", "slower", "as fast and nearer to float", "nearer but slower", "proven no more"],
)
def test_first_layers_stay_in_float_where_that_pays(
    clock: Clock, ratio: float, agreement: float, verdict: str, kept: bool
) -> None:
    ladder = Told(clock)
    ladder.firsts, ladder.told = ("stem", "depthwise"), {FIRST: (ratio, agreement, verdict)}
    climb(ladder, 1.0)  # type: ignore[arg-type]
    assert rungs(ladder)[:3] == ["branch float", "all int8", FIRST]
    assert ladder.steps[2].plan.layers == ("stem", "depthwise")
    assert ladder.steps[2].kept is kept
    assert {step.plan.layers for step in ladder.steps[3:]} == {("stem", "depthwise") if kept else ()}


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ((0.6, 0.99, "passed"), True), ((0.6, 0.98, "passed"), True), ((0.6, 0.97, "passed"), False),
        ((0.6, 0.99, "cannot tell"), False),
    ],
    ids=["nearer to float", "as near", "farther", "proven no more"],
)  # fmt: skip
@pytest.mark.parametrize(
    "tried",
    [
        ("onnxruntime", "full bias", {"bias": "full"}),
        ("openvino", "full bias", {"bias": "full"}),
        ("openvino", "histogram ranges", {"ranges": "histogram"}),
    ],
    ids=lambda tried: " ".join(tried[:2]),
)
def test_what_takes_no_time_is_kept_where_nothing_is_farther_from_float_then(
    clock: Clock, tried: Any, told: Any, kept: bool
) -> None:
    engine, rung, change = tried
    ladder = Told(clock, engines=(engine,))
    ladder.told = {rung: told}
    climb(ladder, 1.0)  # type: ignore[arg-type]
    assert rungs(ladder, engine)[:3] == ["branch float", "all int8", "full bias"]
    assert ("histogram ranges" in rungs(ladder, engine)) is (engine == "openvino")
    place = rungs(ladder, engine).index(rung)
    assert ladder.steps[place].kept is kept
    assert {replace(step.plan, **change) == step.plan for step in ladder.steps[place + 1 :]} == {kept}


def test_where_the_blocks_that_are_off_do_not_do_the_worse_half_is_tried(clock: Clock) -> None:
    """And none of them gets back what is float already."""
    ladder = Told(clock)
    ladder.off = {"a": 2.0, "b": 0.3, "c": 0.5, "d": 0.4}
    best = climb(ladder, 1.0)["onnxruntime"]  # type: ignore[arg-type]
    assert [(step.rung, step.blocks) for step in ladder.steps[3:]] == [
        ("attention float", ("a",)), ("block float", ("a",)), ("attention float", ("c",)), ("block float", ("c",)),
    ]  # fmt: skip
    assert best.plan.rungs == {"a": "block", "c": "block"}  # type: ignore[attr-defined]


def test_where_the_figures_are_inside_and_the_maps_not_sure_it_goes_on_until_they_are(clock: Clock) -> None:
    """And nothing is taken back or fine-tuned for it."""
    ladder, asked = Told(clock), list[int]()
    ladder.off = {"a": 0.9, "b": 0.3, "c": 0.5}
    ladder.inside = {"branch float": False, "all int8": False, "full bias": False, "attention float": True}
    best = climb(ladder, 1.0, lambda: asked.append(1))["onnxruntime"]  # type: ignore[arg-type, return-value]
    assert [(step.rung, step.blocks) for step in ladder.steps[3:]] == [
        ("attention float", ("a", "c")), ("taken back", ("c",)), ("taken back", ("a",)),
    ]  # fmt: skip
    assert best.plan.rungs == {"a": "attention", "c": "attention"}  # type: ignore[attr-defined]
    assert asked == []


def test_where_the_maps_are_sure_nothing_more_is_tried(clock: Clock) -> None:
    ladder = Told(clock)
    ladder.inside = dict.fromkeys(("branch float", "all int8", "full bias"), True)
    climb(ladder, 1.0)  # type: ignore[arg-type]
    assert rungs(ladder) == ["branch float", "all int8", "full bias"]


def test_what_does_not_make_the_maps_sure_is_taken_back_where_that_is_as_quick(clock: Clock) -> None:
    ladder = Told(clock)
    names = ("branch float", "all int8", "full bias", "attention float", "block float", "taken back")
    ladder.inside = dict.fromkeys(names, False)
    best = climb(ladder, 1.0)["onnxruntime"]  # type: ignore[arg-type]
    assert rungs(ladder) == list(names)
    assert best.plan.rungs == {}  # type: ignore[attr-defined]


def test_all_integers_are_not_taken_for_their_speed_where_they_are_less_sure(clock: Clock) -> None:
    ladder = Told(clock)
    ladder.told = {"all int8": (0.3, 0.98, "cannot tell")}
    ladder.inside = {"branch float": True, "all int8": False, "full bias": True}
    best = climb(ladder, 1.0)["onnxruntime"]  # type: ignore[arg-type]
    assert best.plan.others == Plan().others  # type: ignore[attr-defined]
