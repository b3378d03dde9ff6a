"""Several cameras with one model: turns, pictures side by side, reports of each."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from scripted import BLACK, Clock, File, Live, read_video
from typer.testing import CliRunner

from edgeattn.bundle import Bundle
from edgeattn.camera import Frame, Pipeline
from edgeattn.camera.canvas import Draws
from edgeattn.camera.live import Live as Loop
from edgeattn.camera.slot import Policy, Slot, Turns
from edgeattn.cli import app
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import SourceError

RED = {"logits": np.array([[4.0, 0.0, 0.0]], np.float32), "map_0": np.eye(4, dtype=np.float32)[None]}
BUNDLE = Bundle(Path("nowhere.edgeattn"), tiny.SPEC, ())


def frame(index: int = 0) -> Frame:
    return Frame(BLACK, index, index, "received")


def slots(count: int, policy: Policy = "latest") -> list[Slot]:
    changed = threading.Condition()
    return [Slot(policy, None, changed) for _ in range(count)]


def places(turns: Turns, count: int) -> list[int]:
    taken = [turns.take() for _ in range(count)]
    return [each[0] for each in taken if each is not None]


def test_a_quick_camera_does_not_starve_a_slow_one() -> None:
    quick, slow, quiet = slots(3, "every")
    for index in range(6):
        quick.put(frame(index))
    slow.put(frame())
    slow.put(frame())
    assert places(Turns((quick, slow, quiet)), 8) == [0, 1, 0, 1, 0, 0, 0, 0]


@contextlib.contextmanager
def putting(slots: Sequence[Slot]) -> Iterator[None]:
    """Puts a frame into each, one after the other, every few milliseconds."""
    ended = threading.Event()

    def put() -> None:
        while not ended.wait(0.002):
            for slot in tuple(slots):
                slot.put(frame())

    thread = threading.Thread(target=put)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("policy", ["latest", "fresh"])
def test_cameras_of_one_rate_have_equal_shares(policy: Policy) -> None:
    """The first one's frames come always before the second one's: that must not give it all the turns."""
    both = slots(2, policy)
    with putting(both):
        taken = places(Turns(both), 100)
    assert 45 <= sum(taken) <= 55


def test_a_camera_that_is_away_is_not_waited_for_every_round() -> None:
    here, away = slots(2, "fresh")
    turns, giving = Turns((here, away)), [here]
    with putting(giving):
        began = time.monotonic()
        assert places(turns, 30) == [0] * 30
        assert time.monotonic() - began < 1.5, "waited for it once, for a tenth of a second, and not 30 times"
        giving.append(away)
        assert 1 in places(turns, 10), "and has its turn when it is back"


def test_the_others_go_on_when_one_ends_and_its_error_comes_last() -> None:
    first, second = slots(2)
    first.end(SourceError("camera 0 has been away for 60 s"))
    turns = Turns((first, second))
    second.put(frame())
    assert places(turns, 1) == [1]
    second.end()
    with pytest.raises(SourceError, match="camera 0"):
        turns.take()


class Kept:
    """A sink that keeps pictures."""

    name, waiting = "kept", 64
    draws: Draws | None = "all"

    def __init__(self) -> None:
        self.pictures: list[np.ndarray] = []
        self.cameras: list[int] = []

    def write(self, result: Any, picture: np.ndarray | None) -> None:
        assert picture is not None
        self.pictures.append(picture)
        self.cameras.append(result.camera)

    def close(self) -> None:
        """Nothing to do."""


def test_pictures_stand_side_by_side_and_every_camera_has_its_own_figures() -> None:
    cameras = [Live([[0.0]]), Live([[0.0]]), Live([[0.0]])]
    cameras[1].name = "rtsp://door/1?key=secret"
    sink = Kept()
    with Pipeline(BUNDLE, cameras, maps=True, smooth=True, opened_engine=FakeEngine(RED)) as pipeline:
        loop = Loop(pipeline, (sink,), say=lambda line: None)
        loop.run()
        loop.close()
        status, told = loop.status(), loop.by_source()
    assert sorted(sink.cameras) == [0, 1, 2]
    whole = sink.pictures[-1]
    assert whole.shape == (2 * 48, 2 * 64, 3)
    assert whole[48:, 64:].max() == 0, "the fourth place is empty"
    for top, left in ((0, 0), (0, 64), (48, 0)):
        assert whole[top : top + 48, left : left + 64].max() > 0
    assert [each["frames"] for each in told] == [1, 1, 1]
    assert loop.record.frames == 3
    assert "secret" not in json.dumps(status)
    assert [each["source"] for each in status["cameras"]] == ["scripted camera", "rtsp://door/1", "scripted camera"]


def test_a_file_is_none_of_several() -> None:
    with pytest.raises(SourceError, match=r"scripted file: several sources must all be live"):
        Pipeline(BUNDLE, [File(1, Clock()), Live([[0]])])


def test_the_command_takes_several(tiny_bundle: Bundle, tmp_path: Path) -> None:
    told, video = tmp_path / "run.json", tmp_path / "both.mp4"
    arguments = ["run", str(tiny_bundle.path), "--source", "test", "--source", "test", "--max-frames", "12"]
    done = CliRunner().invoke(
        app, [*arguments, "--max-fps", "15", "--sink", "mp4", "--out", str(video), "--json", str(told)]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(told.read_text())
    counts = [each["frames"] for each in report["sources"]]
    assert sum(counts) == 12
    assert min(counts) >= 4
    assert report["dropped"] == sum(each["dropped"] for each in report["sources"])
    height, width = read_video(video)[0].shape[:2]
    assert width == 2 * height * 640 / 480
    refused = CliRunner().invoke(app, [*arguments, "--collect", str(tmp_path)])
    assert refused.exit_code != 0
    assert "--collect saves one camera's frames" in str(refused.exception) + refused.output
