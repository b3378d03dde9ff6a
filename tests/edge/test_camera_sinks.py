"""Where results go: video files, lines of JSON, and the loop that feeds them and minds the keys."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from scripted import Clock, File, Live, read_video

from edgeattn.bundle import Bundle
from edgeattn.camera import Frame, Pipeline, Result
from edgeattn.camera.canvas import Draws, View, annotated, under_attention
from edgeattn.camera.controls import Collector
from edgeattn.camera.live import Live as Loop
from edgeattn.camera.model import Model
from edgeattn.camera.sinks import JsonLines, VideoFile
from edgeattn.camera.window import WindowLostError, display_problem
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import EdgeAttnError, NameNotFoundError, SourceError, SpecError
from edgeattn.imaging import Picture, read_picture
from edgeattn.tasks import decode
from edgeattn.timing import NS_PER_MS

RED = {"logits": np.array([[4.0, 0.0, 0.0]], np.float32), "map_0": np.eye(4, dtype=np.float32)[None]}
BUNDLE = Bundle(Path("nowhere.edgeattn"), tiny.SPEC, ())


def result(index: int = 0, captured_ms: float = 0.0, picture: Picture | None = None) -> Result:
    frame = Frame(
        np.full((48, 64, 3), 90, np.uint8) if picture is None else picture,
        index,
        round(captured_ms * NS_PER_MS),
        "received",
    )
    answer = decode(RED, tiny.SPEC)
    maps = {"stages.2.attention": RED["map_0"][0]}
    return Result(frame, answer, answer, maps, 12.3456, 10.0, {"infer": 10.0}, 3, Model(BUNDLE, FakeEngine(RED), ""))


def brightness(pictures: list[np.ndarray]) -> list[int]:
    return [round(float(p.mean()) / 10) * 10 for p in pictures]


def test_video_file_of_a_file_has_every_picture_once(tmp_path: Path) -> None:
    sink = VideoFile(tmp_path / "new" / "out.mp4", fps=30)
    for i in range(6):
        sink.write(result(i, captured_ms=1000 * i), np.full((48, 64, 3), 40 * i, np.uint8))
    sink.close()
    assert brightness(read_video(sink.path)) == [0, 40, 80, 120, 160, 200]


def test_video_file_of_a_live_source_runs_at_the_worlds_speed(tmp_path: Path) -> None:
    """At 10 fps: a picture stands until the next came, a second one within the same tenth is left out."""
    sink = VideoFile(tmp_path / "out.mp4", fps=10, hold=True)
    for captured_ms, level in ((1000, 0), (1110, 40), (1140, 80), (1400, 120), (61400, 200)):
        sink.write(result(captured_ms=captured_ms), np.full((48, 64, 3), level, np.uint8))
    sink.close()
    seen = brightness(read_video(sink.path))
    assert seen[:5] == [0, 40, 40, 40, 120]
    assert seen[5:] == [120] * 20 + [200], "a minute of silence is cut to two seconds"


@pytest.mark.parametrize("shape", [(49, 65, 3), (1, 1, 3), (7, 300, 3)])
def test_video_file_takes_any_size(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    sink = VideoFile(tmp_path / "out.mp4")
    for _ in range(2):
        sink.write(result(), np.full(shape, 200, np.uint8))
    sink.close()
    pictures = read_video(sink.path)
    assert len(pictures) == 2
    assert all(side % 2 == 0 and side >= 16 for side in pictures[0].shape[:2])


def test_video_file_fits_pictures_of_other_sizes(tmp_path: Path) -> None:
    """As a folder gives them: scaled into the first one's size, the rest black."""
    sink = VideoFile(tmp_path / "out.avi")
    for shape in ((48, 64, 3), (96, 64, 3), (480, 640, 3)):
        sink.write(result(), np.full(shape, 200, np.uint8))
    sink.close()
    first, tall, large = read_video(sink.path)
    assert first.shape == tall.shape == large.shape == (48, 64, 3)
    assert large.mean() > 190
    assert tall[:, 20:44].mean() > 180
    assert tall[:, :12].mean() < 20


def test_video_file_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out.mp4", tmp_path / "out.xyz"):
        with pytest.raises(EdgeAttnError, match="choose another --out"):
            VideoFile(path).write(result(), np.zeros((48, 64, 3), np.uint8))


def test_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = JsonLines(tmp_path / "new" / "out.jsonl")
    sink.write(result(5), None)
    lines = sink.path.read_text(encoding="utf-8").splitlines() if sink.path else []
    sink.close()
    assert len(lines) == 1, "a line is there as soon as it is written"
    line = json.loads(lines[0])
    assert {k: line[k] for k in ("index", "age_ms", "label", "smoothed", "rejected", "dropped", "truth")} == {
        "index": 5, "age_ms": 12.346, "label": "red", "smoothed": "red", "rejected": False, "dropped": 3, "truth": None,
    }  # fmt: skip
    to_screen = JsonLines(None)
    to_screen.write(result(), None)
    to_screen.close()
    assert json.loads(capsys.readouterr().out)["label"] == "red"
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeAttnError, match="choose another --out"):
        JsonLines(tmp_path / "file" / "out.jsonl")


def test_without_a_display_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert display_problem() is not None
    monkeypatch.setenv("DISPLAY", ":4711")  # set, but nobody is there: OpenCV would abort the process
    assert display_problem() is not None


def test_painting_shows_attention_only_when_on_and_leaves_the_frame_clean() -> None:
    seen = result()
    plain, overlaid = (annotated(under_attention(seen, tiny.SPEC, View(on)), seen) for on in (False, True))
    assert (seen.frame.picture == 90).all()
    upper = slice(0, 20)
    assert (plain[upper] == 90).all()
    assert (overlaid[upper, 10:54] != 90).any()
    lines = annotated(seen.frame.picture, seen, lines=("age 12 ms",))
    assert (lines[upper] != 90).any()
    tiny_frame = result(picture=np.zeros((1, 1, 3), np.uint8))
    assert annotated(under_attention(tiny_frame, tiny.SPEC, View()), tiny_frame, ("age",)).shape == (1, 1, 3)


class Screen:
    """Stands in for the window: keeps what was shown, and types what it was given, a key a picture."""

    def __init__(self, keys: str) -> None:
        self.keys: Iterator[str] = iter(keys)
        self.shown: list[Picture] = []

    def show(self, picture: Picture) -> int:
        self.shown.append(picture)
        key = next(self.keys, ".")
        return -1 if key == "." else ord(key)

    def close(self) -> None:
        pass


class Kept:
    """Keeps what it is given."""

    name, waiting = "kept", 1

    def __init__(self, *, draws: Draws = "nothing") -> None:
        self.draws: Draws | None = draws
        self.taken: list[tuple[int, Picture | None]] = []

    def write(self, result: Result, picture: Picture | None) -> None:
        self.taken.append((result.frame.index, picture))

    def close(self) -> None:
        pass


def play(keys: str, *, frames: int = 4, collector: Collector | None = None) -> tuple[Loop, Screen, list[str], Kept]:
    said: list[str] = []
    clock, screen, kept = Clock(), Screen(keys), Kept()
    source = File(frames, clock)
    with Pipeline(BUNDLE, source, clock=clock, maps=True, opened_engine=FakeEngine(RED)) as pipeline:
        loop = Loop(pipeline, [kept], window=screen, collector=collector, say=said.append)  # type: ignore[arg-type]
        with contextlib.closing(loop):
            loop.run()
    return loop, screen, said, kept


def test_attention_key_changes_the_picture() -> None:
    _, screen, _, _ = play(".a..")
    middle = [picture[30:34, 20:44] for picture in screen.shown]
    assert (middle[0] == middle[1]).all()
    assert (middle[1] != middle[2]).any()
    assert (middle[2] == middle[3]).all()


def test_quit_ends_the_run() -> None:
    loop, screen, _, kept = play(".q..")
    assert (loop.record.frames, len(screen.shown), len(kept.taken)) == (2, 2, 2)


def test_pause_stays_with_its_frame_and_keys_still_work() -> None:
    loop, screen, _, kept = play(". ..a. .")
    assert loop.record.frames == 4
    assert [index for index, _ in kept.taken] == [0, 1, 2, 3], "sinks take a frame once"
    assert len(screen.shown) == 4 + 5
    assert (screen.shown[3] != screen.shown[6]).any(), "the attention was switched while paused"
    loop, screen, _, _ = play(" ..q")
    assert (loop.record.frames, len(screen.shown)) == (1, 4)


def test_collecting_saves_the_clean_frame(tmp_path: Path) -> None:
    _, _, said, _ = play("2.3.", collector=Collector(tmp_path, tiny.LABELS))
    saved = {path.parent.name: read_picture(path) for path in tmp_path.rglob("*.jpg")}
    assert sorted(saved) == ["blue", "green"]
    assert all((picture == 0).all() for picture in saved.values()), "nothing is drawn on it"
    assert [line.split("/")[-2] for line in said] == ["green", "blue"]


def test_keys_that_cannot_be_obeyed_say_why(tmp_path: Path) -> None:
    _, _, said, _ = play("1")
    assert said == ["start with --collect PHOTOS to save frames for training"]
    loop, _, said, _ = play("9", collector=Collector(tmp_path, tiny.LABELS))
    assert said == ["key 9 stands for no class: there are 3"]
    assert loop.record.frames == 4, "the run goes on"


def test_snapshot_saves_what_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, screen, said, _ = play(".s")
    (path,) = tmp_path.glob("*.png")
    assert said == [f"saved {path.name}"]
    np.testing.assert_array_equal(read_picture(path), screen.shown[1])


def feed(source: File | Live, *sinks: Kept, max_frames: int | None = None) -> tuple[Loop, list[str]]:
    said: list[str] = []
    with (
        Pipeline(BUNDLE, source, opened_engine=FakeEngine(RED), maps=True) as pipeline,
        contextlib.closing(Loop(pipeline, sinks, say=said.append)) as loop,
    ):
        loop.run(max_frames)
    return loop, said


def test_nothing_is_painted_for_sinks_that_do_not_draw() -> None:
    plain, drawing = Kept(), Kept(draws="all")
    loop, _ = feed(File(2, Clock()), plain)
    assert [picture for _, picture in plain.taken] == [None, None]
    assert "draw" not in loop.record.stages.stages
    feed(File(2, Clock()), drawing)
    assert all(picture is not None for _, picture in drawing.taken)


def test_sinks_share_a_drawing() -> None:
    first, second, bare = Kept(draws="all"), Kept(draws="all"), Kept(draws="attention")
    loop, _ = feed(File(3, Clock()), first, second, bare)
    assert [id(picture) for _, picture in first.taken] == [id(picture) for _, picture in second.taken]
    assert loop.record.stages.count("draw") == loop.record.stages.count("attention") == 3
    assert all(a[1] is not b[1] for a, b in zip(first.taken, bare.taken, strict=True))


class Slow(Kept):
    """Stands still until released."""

    def __init__(self, *, waiting: int = 1) -> None:
        super().__init__()
        self.waiting, self.released = waiting, threading.Event()

    def write(self, result: Result, picture: Picture | None) -> None:
        assert self.released.wait(20)
        super().write(result, picture)


@pytest.mark.parametrize("waiting", [1, 3])
def test_a_slow_sink_holds_up_nobody_and_its_drops_are_counted(waiting: int) -> None:
    source, slow, quick = Live([[0.0], *([float(i)] for i in range(1, 8))]), Slow(waiting=waiting), Kept()
    with (
        Pipeline(BUNDLE, source, opened_engine=FakeEngine(RED)) as pipeline,
        contextlib.closing(Loop(pipeline, [slow, quick])) as loop,
    ):
        for result in pipeline:
            for each in loop.feeds:
                each.put(loop._painting(result))
            while len(quick.taken) <= result.frame.index or (result.frame.index == 0 and slow_waits(loop)):
                time.sleep(0.001)
            source.next_batch()
        slow.released.set()
    assert [index for index, _ in quick.taken] == list(range(8))
    assert [index for index, _ in slow.taken] == [0, *range(8 - waiting, 8)]
    assert [each.dropped for each in loop.feeds] == [7 - waiting, 0]


def slow_waits(loop: Loop) -> bool:
    """The first sink has not taken out its first result yet."""
    return bool(loop.feeds[0]._waiting._queue)


def test_a_file_waits_for_a_slow_sink() -> None:
    slow = Slow()
    threading.Timer(0.2, slow.released.set).start()
    loop, _ = feed(File(6, Clock()), slow)
    assert [index for index, _ in slow.taken] == list(range(6))
    assert loop.feeds[0].dropped == 0


class Failing(Kept):
    """Takes one result, then the disk is full."""

    name = "failing"
    closed = False

    def write(self, result: Result, picture: Picture | None) -> None:
        if self.taken:
            raise OSError(28, "No space left on device")
        super().write(result, picture)

    def close(self) -> None:
        self.closed = True


def test_a_sink_that_fails_is_reported_and_closed_and_the_loop_goes_on() -> None:
    failing, kept = Failing(), Kept()
    loop, said = feed(File(6, Clock()), failing, kept)
    assert len(kept.taken) == 6
    assert failing.closed
    assert said == ["failing stopped: [Errno 28] No space left on device"]
    assert loop.feeds[0].written == 1
    assert loop.feeds[0].written + loop.feeds[0].dropped + 1 == 6, "all but the one it failed at are accounted for"


def test_a_run_with_nowhere_left_to_go_ends() -> None:
    failing = Failing()
    loop, _ = feed(File(10_000, Clock()), failing)
    assert loop.record.frames < 10_000


class HeldScreen(Screen):
    """Shows no picture before something is `over`."""

    over: Callable[[], bool]

    def show(self, picture: Picture) -> int:
        assert any(self.over() or time.sleep(0.01) for _ in range(1000)), "held up by the window"
        return super().show(picture)


def test_a_slow_window_ages_no_frame_of_a_live_source() -> None:
    """The loop has turned over all frames while the window, in the main thread, shows its first one."""
    source, screen = Live([[float(i)] for i in range(6)]), HeldScreen("")
    threading.Thread(target=lambda: [source.next_batch() or time.sleep(0.01) for _ in range(5)], daemon=True).start()
    with Pipeline(BUNDLE, source, opened_engine=FakeEngine(RED)) as pipeline:
        loop = Loop(pipeline, window=screen)  # type: ignore[arg-type]
        screen.over = lambda: loop.record.frames + pipeline_drops(loop) == 6
        loop.run()
    assert 1 <= len(screen.shown) < 6


class LostScreen(Screen):
    """Its display goes away under the second picture."""

    closed = False

    def show(self, picture: Picture) -> int:
        if self.shown:
            raise WindowLostError("the display :0 has gone")
        return super().show(picture)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("live", [False, True])
def test_a_run_with_another_sink_goes_on_when_its_window_is_lost(live: bool) -> None:
    source = Live([[float(i)] for i in range(6)]) if live else File(6, Clock())
    screen, kept, said = LostScreen(""), Kept(), []

    def film() -> None:
        for seen in (lambda: screen.shown, lambda: screen.closed, *[lambda: True] * 3):
            assert any(seen() or time.sleep(0.01) for _ in range(1000))
            source.next_batch()

    if live:
        threading.Thread(target=film, daemon=True).start()
    with Pipeline(BUNDLE, source, opened_engine=FakeEngine(RED)) as pipeline:
        loop = Loop(pipeline, [kept], window=screen, say=said.append)  # type: ignore[arg-type]
        loop.run()
        loop.close()
    assert said == ["window stopped: the display :0 has gone"]
    assert screen.closed
    assert loop.record.frames + pipeline_drops(loop) == 6
    assert loop.feeds[0].written == loop.record.frames > 1


def test_a_run_that_had_a_window_alone_ends_with_it() -> None:
    with Pipeline(BUNDLE, File(10_000, Clock()), opened_engine=FakeEngine(RED)) as pipeline:
        loop = Loop(pipeline, window=LostScreen(""))  # type: ignore[arg-type]
        loop.run()
    assert loop.record.frames == 2


def pipeline_drops(loop: Loop) -> int:
    return loop.record.report()["dropped"]


def test_the_window_hears_keys_while_the_camera_is_silent() -> None:
    source, screen = Live([[0.0], [1.0]]), Screen("....q")
    with Pipeline(BUNDLE, source, opened_engine=FakeEngine(RED)) as pipeline:
        Loop(pipeline, window=screen).run()  # type: ignore[arg-type]
        source._wanted[1].set()
    assert len(screen.shown) == 5


def test_an_error_of_the_loop_reaches_the_window_thread() -> None:
    source = Live([[0.0]], error=SourceError("camera gone"))
    with Pipeline(BUNDLE, source, opened_engine=FakeEngine(RED)) as pipeline, pytest.raises(SourceError, match="gone"):
        Loop(pipeline, window=Screen("")).run()  # type: ignore[arg-type]


def test_view_says_what_it_takes() -> None:
    with pytest.raises(SpecError, match="opacity"):
        View(opacity=1.5)
    with pytest.raises(NameNotFoundError, match="turbo"):
        View(colours="rainbow")


def test_a_block_of_its_own_and_colours_change_the_picture() -> None:
    seen = result()
    corner = np.zeros((4, 4), np.float32)
    corner[0, 0] = 1
    two = dataclasses.replace(seen, maps={**seen.maps, "stages.3.attention": corner})
    views = [View(), View(block="stages.3.attention"), View(colours="grey"), View(opacity=0.9), View(block="absent")]
    pictures = [under_attention(two, tiny.SPEC, view) for view in views]
    assert all((pictures[0] != other).any() for other in pictures[1:4])
    assert (pictures[0] == pictures[4]).all(), "a block that is not there shows the mean"


def test_max_frames_ends_a_live_source() -> None:
    source = Live([[0.0], [1.0]])
    with Pipeline(BUNDLE, source, opened_engine=FakeEngine(RED)) as pipeline:
        loop = Loop(pipeline)
        loop.run(max_frames=1)
        source._wanted[1].set()
    assert loop.record.frames == 1
