"""The watch for drift: what it counts, when it judges, and what it does to a loop."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from edgeattn import imaging
from edgeattn.bundle import Bundle
from edgeattn.camera import Frame, Result
from edgeattn.camera.drift import LEAST, WINDOW, Drift, golden_apart, maps_of
from edgeattn.camera.model import Model, open_model
from edgeattn.camera.shadow import NICE, Shadow, open_reference, watchable
from edgeattn.engines import open_engine
from edgeattn.engines.fake import FakeEngine
from edgeattn.imaging import Picture
from edgeattn.tasks import Prediction, decode

BLOCK = "stages.2.attention"


def answer(index: int) -> Prediction:
    logits = np.zeros((1, 3), np.float32)
    logits[0, index] = 4
    return decode({"logits": logits}, tiny.SPEC)


def a_map(place: int) -> dict[str, np.ndarray]:
    raw = np.full((4, 4), 0.1, np.float32)
    raw.flat[place % 16] = 1.0
    return {BLOCK: raw}


def fill(drift: Drift, differ: int, n: int, seed: int = 0) -> None:
    for i, (picture, _) in enumerate(tiny.pictures(n, seed)):
        drift.add(picture, answer(1 if i < differ else 0), answer(0), a_map(0), a_map(0))


def test_a_bound_is_judged_by_its_interval() -> None:
    drift = Drift(Bundle(Path("nowhere"), tiny.SPEC, ()))
    fill(drift, LEAST - 1, LEAST - 1)
    assert (drift.verdict, drift.gates) == ("cannot tell", {}), "too few for anything"
    drift.add(tiny.pictures(1, 7)[0][0], answer(1), answer(0), {}, {})
    assert drift.verdict == "failed"
    assert drift.reason().startswith(
        "20 of the latest 20 different pictures are answered otherwise than by float (with 99.9 %"
    )
    assert drift.reason().endswith("5 % are allowed): 'green' for 'red' 20 times")
    few = Drift(Bundle(Path("nowhere"), tiny.SPEC, ()))
    fill(few, 4, 40)
    assert few.verdict == "cannot tell", "10 % of 40 may be chance"
    none = Drift(Bundle(Path("nowhere"), tiny.SPEC, ()))
    fill(none, 0, WINDOW)
    assert none.verdict == "passed"


def test_a_late_drift_is_found_as_soon_as_an_early_one() -> None:
    drift = Drift(Bundle(Path("nowhere"), tiny.SPEC, ()))
    fill(drift, 0, 3 * WINDOW)
    fill(drift, 40, 40, seed=1)
    report = drift.report()
    assert (report["verdict"], report["window"], report["checked"], report["differed"]) == ("failed", 200, 640, 40)
    assert report["pairs"] == [{"given": "green", "float": "red", "n": 40}]
    fill(drift, 0, WINDOW, seed=2)
    assert drift.verdict == "passed"


def test_a_scene_that_stands_still_counts_once() -> None:
    drift, rng = Drift(Bundle(Path("nowhere"), tiny.SPEC, ())), np.random.default_rng(0)
    scene = tiny.pictures(1)[0][0].repeat(4, axis=0).repeat(4, axis=1).astype(np.int16)
    for _ in range(30):  # with a camera's noise
        noisy = np.clip(scene + rng.integers(-6, 7, scene.shape), 0, 255).astype(np.uint8)
        drift.add(noisy, answer(1), answer(0), a_map(0), a_map(0))
    assert (drift.checked, drift.same, drift.verdict) == (1, 29, "cannot tell")


def test_maps_are_related_to_those_of_different_pictures(tiny_bundle: Bundle) -> None:
    apart = golden_apart(tiny_bundle)
    assert apart.keys() == {BLOCK}
    raw = tiny_bundle.golden()["map_0"]
    drift = Drift(tiny_bundle)
    for i, (picture, _) in enumerate(tiny.pictures(LEAST)):
        drift.add(picture, answer(0), answer(0), {BLOCK: raw[(i + 1) % 24]}, {BLOCK: raw[i % 24]})
    report = drift.report()
    assert 0.5 < report["map_js"] < 2.0, "maps of other pictures: about 1 by definition"
    assert (report["verdict"], report["gates"]["answers"]["verdict"], report["gates"]["maps"]["verdict"]) == (
        "failed", "cannot tell", "failed",
    )  # fmt: skip
    assert "the attention diverges from float's by" in drift.reason()


def test_without_golden_maps_the_pictures_tell_how_far_maps_are_apart() -> None:
    drift = Drift(Bundle(Path("nowhere"), tiny.SPEC, ()))
    for i, (picture, _) in enumerate(tiny.pictures(LEAST + 1)):
        drift.add(picture, answer(0), answer(0), a_map(i), a_map(i))
    report = drift.report()
    assert (report["map_js"], report["map_rank"]) == (0.0, 1.0)
    assert report["gates"]["maps"]["n"] == LEAST


@pytest.fixture(scope="module")
def drifting(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its int8 answers wrongly on two pictures of three."""
    return tiny.bundle(tmp_path_factory.mktemp("drift") / "drifting.edgeattn", int8=tiny.spoilt_int8_model())


def results(model: Model, pictures: list[Picture]) -> list[Result]:
    spec, found = model.bundle.spec, []
    for i, picture in enumerate(pictures):
        outputs = model.engine.infer(imaging.prepare(picture, spec.input))
        answered = decode(outputs, spec)
        frame = Frame(picture, i, time.monotonic_ns(), "received")
        found.append(Result(frame, answered, answered, maps_of(outputs, spec), 1.0, 1.0, {}, 0, model))
    return found


def offer_all(shadow: Shadow, offered: list[Result]) -> None:
    for result in offered:
        shadow.offer(result)
        until(lambda: not shadow._busy)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_spoilt_int8_is_found_and_a_sound_one_is_not(drifting: Bundle, tiny_int8_bundle: Bundle) -> None:
    pictures = [picture for picture, _ in tiny.pictures(60, seed=3)]
    for bundle, expected in ((drifting, "failed"), (tiny_int8_bundle, "passed")):
        model = open_model(bundle, engine="onnxruntime", precision="int8", maps=True)
        said: list[str] = []
        broken: list[tuple[Model, str]] = []
        shadow = Shadow(1e-9, say=said.append, broken=lambda *what, broken=broken: broken.append(what))
        offer_all(shadow, results(model, pictures))
        report = shadow.report()
        shadow.close()
        model.engine.close()
        assert (report["checked"], report["failed"], report["reference"]) == (60, None, "onnxruntime float")
        if expected == "passed":
            assert (report["differed"], said, broken) == (0, [], [])
            assert report["map_js"] < 0.05
        else:
            assert report["verdict"] == "failed"
            assert len(said) == len(broken) == 1, "said once"
            assert said[0].startswith("drift: onnxruntime int8: ")
            assert broken[0][0] is model


def test_the_loop_never_waits_and_what_comes_meanwhile_is_skipped(
    tiny_int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, priorities = threading.Event(), []

    def held(seconds: float) -> None:
        if sys.platform == "linux":
            priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        let_go.wait(10)

    outputs = {"logits": np.eye(3, dtype=np.float32)[:1], "map_0": np.ones((1, 4, 4), np.float32)}
    slow = FakeEngine(outputs, 1.0, sleep=held)
    monkeypatch.setattr("edgeattn.camera.shadow.open_reference", lambda bundle, maps: slow)
    model = open_model(tiny_int8_bundle, engine="onnxruntime", precision="int8", maps=True)
    shadow = Shadow(1e-9)
    (result,) = results(model, [tiny.pictures(1)[0][0]])
    shadow.offer(result)
    until(lambda: slow.calls == 1)
    begin = time.monotonic()
    for _ in range(100):
        shadow.offer(result)
    assert time.monotonic() - begin < 0.1
    assert shadow.report()["skipped"] == 100
    let_go.set()
    until(lambda: shadow.report()["checked"] == 1)
    if sys.platform == "linux":
        assert set(priorities) == {NICE}
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 0, "the loop's own is as it was"
    shadow.close()
    model.engine.close()
    assert slow.closed


def test_one_in_so_many_seconds(tiny_int8_bundle: Bundle) -> None:
    now_ns = [0]
    model = open_model(tiny_int8_bundle, engine="onnxruntime", precision="int8")
    shadow = Shadow(30, clock=lambda: now_ns[0])
    offered = results(model, [picture for picture, _ in tiny.pictures(5)])
    for second, result in zip((0, 1, 29, 31, 60), offered, strict=True):
        now_ns[0] = round(second * 1e9)
        offer_all(shadow, [result])
    assert shadow.report()["checked"] == 2, "at the start, and after 31 s"
    shadow.close()
    model.engine.close()


def test_what_there_is_to_watch(tiny_bundle: Bundle, tiny_int8_bundle: Bundle) -> None:
    for precision, expected in (("float", False), ("int8", True)):
        model = Model(tiny_int8_bundle, open_engine(tiny_int8_bundle, engine="onnxruntime", precision=precision), "")
        assert watchable(model) is expected
        model.engine.close()
    reference = open_reference(tiny_bundle, maps=True)
    assert (reference.name, reference.precision, reference.threads) == ("onnxruntime", "float", 1)
    reference.close()


def test_a_watch_that_fails_says_so_and_ends(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    bundle = dataclasses.replace(tiny_int8_bundle, path=tmp_path / "gone.edgeattn")
    model = Model(bundle, FakeEngine({}, precision="int8"), "")
    said: list[str] = []
    shadow = Shadow(1e-9, say=said.append)
    frame = Frame(tiny.pictures(1)[0][0], 0, 0, "received")
    shadow.offer(Result(frame, answer(0), answer(0), {}, 1.0, 1.0, {}, 0, model))
    until(lambda: bool(said))
    assert said[0].startswith("the watch for drift has ended: ")
    assert "gone.edgeattn" in shadow.report()["failed"]
    shadow.close()
