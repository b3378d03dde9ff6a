"""What is told of results: changes of the answer that have held."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from scripted import BLACK, Clock, write_video

from edgeattn.bundle import Bundle
from edgeattn.camera import Frame, Result
from edgeattn.camera.lines import Changes
from edgeattn.camera.model import Model
from edgeattn.cli.run import run
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import EdgeAttnError
from edgeattn.spec import Rejection
from edgeattn.tasks import decode

SPEC = replace(tiny.SPEC, rejection=Rejection(0.6, "none of these"))
MODEL = Model(Bundle(Path("nowhere.edgeattn"), SPEC, ()), FakeEngine({}), "")
LOGITS = {"r": [9.0, 0, 0], "g": [0, 9.0, 0], "b": [0, 0, 9.0], "-": [0, 0, 0]}
SCRIPT = Path(__file__).parents[2] / "tools" / "run_camera.py"


def events(answers: str, hold_s: float, *, every_ms: int = 100, fps: float | None = None) -> list[dict[str, Any]]:
    """What is told of answers given by their first letters (`-`: none of these), a tenth of a second each."""
    clock = Clock()
    clock.advance_ms(5000)
    changes, told = Changes(hold_s, fps=fps, clock=clock), []
    for index, letter in enumerate(answers):
        answer = decode({"logits": np.array([LOGITS[letter]], np.float32)}, SPEC)
        frame = Frame(BLACK, index, clock(), "received")
        clock.advance_ms(30)
        event = changes(Result(frame, answer, answer, {}, 30.0, 20.0, {}, 0, MODEL))
        clock.advance_ms(every_ms - 30)
        if event:
            told.append(event)
    return told


def test_an_answer_is_told_once_it_has_held() -> None:
    told = events("rrrrrr" + "gg" + "rrrr" + "gggggggg" + "------", 0.5)
    assert [(e["from"], e["to"], e["index"]) for e in told] == [
        (None, "red", 0), ("red", "green", 12), ("green", "none of these", 20),
    ], "two frames of green are too few"  # fmt: skip
    assert [e["held_s"] for e in told] == [0.5] * 3
    assert [e["before_s"] for e in told] == [None, 1.2, 0.8]
    assert [e["rejected"] for e in told] == [False, False, True]
    assert told[0]["score"] > 0.99


def test_a_flicker_between_two_new_answers_is_not_told() -> None:
    assert [e["to"] for e in events("rrrrrr" + "gb" * 20, 0.3)] == ["red"]
    assert [e["to"] for e in events("rgbrr", 0.0)] == ["red", "green", "blue", "red"], "0: every change at once"


def test_times_are_the_walls_when_live_and_the_films_in_a_file() -> None:
    (event,) = events("rrrrrr", 0.5)
    assert "at_s" not in event
    told = datetime.fromisoformat(event["time"])
    assert told.tzinfo is not None
    ago = datetime.now(timezone.utc) - told
    assert timedelta(seconds=0.5) < ago < timedelta(seconds=20), "when the answer began, not when it was told"
    first, second = events("r" * 20 + "g" * 20, 0.5, every_ms=1, fps=10.0)
    assert (first["at_s"], second["at_s"], second["before_s"]) == (0.0, 2.0, 2.0)
    assert "time" not in first


def test_a_time_below_nothing_says_so() -> None:
    with pytest.raises(EdgeAttnError, match=r"as --on-change 0\.5"):
        Changes(-1)


def test_run_tells_changes_on_the_screen(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Twenty frames a colour at 20 fps, held for half a second, through a real engine."""
    shown = [picture for picture, label in tiny.pictures(9) if label == 0][:1] * 20
    shown += [picture for picture, label in tiny.pictures(9) if label == 2][:1] * 20
    video = write_video(tmp_path / "clip.mp4", shown, fps=20)
    command = [sys.executable, str(SCRIPT), str(tiny_bundle.path), "--engine", "onnxruntime", "--precision", "float"]
    done = subprocess.run(
        [*command, "--source", str(video), "--on-change", "0.5"],
        capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path,
    )  # fmt: skip
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(e["from"], e["to"]) for e in told] == [(None, "red"), ("red", "blue")]
    assert 1.0 <= told[1]["at_s"] <= 1.3, "smoothing follows a few frames later"
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"], "no video is written unasked"


def test_pictures_of_a_folder_have_no_changes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    from edgeattn._cv2 import cv2

    cv2.imwrite(str(tmp_path / "one.png"), tiny.pictures(1)[0][0])
    with pytest.raises(EdgeAttnError, match="do not follow each other"):
        run(str(tiny_bundle.path), source=[str(tmp_path)], on_change=0.5)
