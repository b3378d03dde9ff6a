"""The slot of one and the thread that fills it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
from scripted import BLACK, Live

from edgeattn.camera import Frame
from edgeattn.camera.capture import Capture
from edgeattn.camera.slot import CAUSES, QUEUE, Policy, Rhythm, Slot
from edgeattn.errors import SourceError


def frame(index: int) -> Frame:
    return Frame(BLACK, index, index, "received")


def test_only_the_latest_frame_is_given_and_drops_are_counted() -> None:
    slot = Slot()
    for index in range(5):
        slot.put(frame(index))
    taken = slot.take()
    assert taken is not None
    assert taken.index == 4
    assert slot.dropped == 4
    slot.put(frame(5))
    slot.end()
    last = slot.take()
    assert last is not None, "what was put before the end is still given"
    assert last.index == 5
    assert slot.take() is None
    assert slot.dropped == 4


PERIOD_NS = 36_000_000
FRAMES = 9
LAST_NS = (FRAMES - 1) * PERIOD_NS


def fed(policy: Policy, taken_at_ns: int) -> Slot:
    """A slot to which frames came evenly, by a clock that stands at the time of taking from then on."""
    times = iter([i * PERIOD_NS for i in range(FRAMES)])
    slot = Slot(policy, clock=lambda: next(times, taken_at_ns))
    for index in range(FRAMES):
        slot.put(frame(index))
    return slot


@pytest.mark.parametrize(
    ("since", "most"), [(0.0, 0.0), (0.82, 0.0), (0.84, 0.25), (1.0, 1 / 12), (1.07, 0.02), (1.09, 0.0), (5.0, 0.0)]
)
def test_a_frame_is_waited_for_when_it_is_all_but_there(since: float, most: float) -> None:
    """`since`: periods since the last frame."""
    rhythm = Rhythm()
    for index in range(FRAMES):
        assert rhythm.patience_s(round((index - 0.01) * PERIOD_NS)) == 0.0, "nothing is known yet"
        rhythm.came(index * PERIOD_NS + (PERIOD_NS // 2 if index == 3 else 0))  # one was late
    patience_s = rhythm.patience_s(LAST_NS + round(since * PERIOD_NS))
    assert patience_s * 1e9 <= most * PERIOD_NS
    assert (patience_s > 0) == (most > 0)


def test_the_latest_is_the_next_one_where_that_is_all_but_there() -> None:
    slot = fed("latest", LAST_NS + round(0.9 * PERIOD_NS))
    threading.Timer(0.001, lambda: slot.put(frame(FRAMES))).start()
    taken = slot.take()
    assert taken is not None
    assert taken.index == FRAMES
    assert slot.drops["replaced"] == FRAMES


def test_a_frame_that_was_due_and_does_not_come_is_not_waited_for() -> None:
    taken = fed("latest", LAST_NS + PERIOD_NS).take()
    assert taken is not None
    assert taken.index == FRAMES - 1


@pytest.mark.parametrize(("policy", "since"), [("latest", 0.5), ("every", 0.9)])
def test_a_frame_in_hand_is_taken(policy: Policy, since: float) -> None:
    """Taking does not wait: what another thread needs a second to put is not seen."""
    slot = fed(policy, LAST_NS + round(since * PERIOD_NS))
    late = threading.Timer(1.0, lambda: slot.put(frame(FRAMES)))
    late.start()
    taken = slot.take()
    late.cancel()
    assert taken is not None
    assert taken.index == (0 if policy == "every" else FRAMES - 1)


def test_fresh_waits_for_a_frame_that_comes_after_it_was_asked_for() -> None:
    slot = Slot("fresh")
    slot.put(frame(0))
    threading.Timer(0.05, lambda: slot.put(frame(1))).start()
    taken = slot.take()
    assert taken is not None
    assert taken.index == 1
    assert slot.drops == dict.fromkeys(CAUSES, 0) | {"stale": 1}


def test_every_keeps_all_until_its_queue_is_full() -> None:
    slot = Slot("every")
    for index in range(QUEUE + 3):
        slot.put(frame(index))
    slot.end()
    assert [f.index for f in slot] == list(range(3, QUEUE + 3))
    assert slot.drops["queue"] == slot.dropped == 3


@pytest.mark.parametrize(
    ("camera_fps", "max_fps", "least", "most"), [(30, 10, 98, 101), (30, 30, 300, 300), (25, 20, 190, 201)]
)
def test_a_pace_holds_on_average_in_spite_of_jitter(camera_fps: int, max_fps: int, least: int, most: int) -> None:
    """Ten seconds of frames, each up to 4 ms early or late."""
    chance, slot = random.Random(0), Slot("every", max_fps)
    for index in range(10 * camera_fps):
        captured_ns = round(1e9 + index * 1e9 / camera_fps + chance.uniform(-4e6, 4e6))
        slot.put(Frame(BLACK, index, captured_ns, "received"))
    passed = 10 * camera_fps - slot.drops["rate"]
    assert least <= passed <= most


def test_while_there_is_no_frame_the_taker_is_told() -> None:
    calls: list[int] = []
    assert Slot().take(lambda: len(calls) == 2 or bool(calls.append(1))) is None
    assert len(calls) == 2


def test_take_waits_for_a_frame() -> None:
    slot = Slot()
    taken: list[Frame | None] = []
    reader = threading.Thread(target=lambda: taken.append(slot.take()))
    reader.start()
    slot.put(frame(7))
    reader.join(20)
    assert [f.index for f in taken if f] == [7]


def test_what_the_source_raises_comes_after_its_last_frame() -> None:
    with Capture(Live([[0.0]], SourceError("the camera went away"))) as capture:
        frames = iter(capture.slot)
        assert next(frames).index == 0
        with pytest.raises(SourceError, match="went away"):
            next(frames)


class Absent(Live):
    def __enter__(self) -> Absent:
        raise SourceError("camera 7 does not open")


def test_a_source_that_does_not_open_says_so_at_once() -> None:
    with pytest.raises(SourceError, match="camera 7"), Capture(Absent([[0.0]])):
        pass


def test_closing_ends_the_thread_and_releases_the_source() -> None:
    before = threading.active_count()
    source = Live([[0.0], [1.0]])
    with Capture(source) as capture:
        assert next(iter(capture.slot)).index == 0
        source._wanted[1].set()  # the reader comes back from `read` ...
    assert source.released.wait(20), "... and then releases the source itself"
    assert threading.active_count() == before


class Stuck(Live):
    """Hangs in `read` until let go."""

    def __init__(self) -> None:
        super().__init__([[0.0]])
        self.let_go = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        yield frame(0)
        self.let_go.wait(20)
        yield frame(1)


def test_a_stuck_reader_is_left_behind() -> None:
    source = Stuck()
    capture = Capture(source).__enter__()
    assert next(iter(capture.slot)).index == 0
    capture.close(patience_s=0.0)
    assert not source.released.is_set()
    source.let_go.set()
    assert source.released.wait(20), "it ends by itself when the driver lets go"
    capture._thread.join(20)
    assert capture.slot.take() is None, "its late frame went nowhere"
