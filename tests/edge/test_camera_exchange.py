"""Another model in place of the one that runs: real bundles and engines under a loop that turns."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from manager import listening

from edgeattn.bundle import Bundle, load
from edgeattn.camera import Frame, Pipeline
from edgeattn.camera.controls import Collector
from edgeattn.camera.exchange import Exchange
from edgeattn.camera.live import Live
from edgeattn.camera.notify import Notifier
from edgeattn.camera.pipeline import Result
from edgeattn.errors import EngineError
from edgeattn.imaging import Picture

GERMAN = dataclasses.replace(tiny.SPEC, labels=("rot", "gruen", "blau"))
WITHOUT_MAPS = dataclasses.replace(tiny.SPEC, maps=())


class Pictures:
    """Frames of red, green and blue in turn, until stopped: live ones, or a file's."""

    fps, name = 200.0, "pictures"

    def __init__(self, *, live: bool = True) -> None:
        self.live = live
        self.stopped = threading.Event()
        self._pictures = [picture for picture, _ in tiny.pictures(3)]

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while not self.stopped.wait(0.005):
            yield Frame(self._pictures[index % 3], index, time.monotonic_ns(), "received")
            index += 1


class Seen:
    """A sink that keeps what it is given."""

    name, waiting, draws = "seen", 16, "nothing"

    def __init__(self) -> None:
        self.results: list[Result] = []

    def write(self, result: Result, picture: Picture | None) -> None:
        self.results.append(result)

    def close(self) -> None:
        pass


class Running:
    def __init__(self, pipeline: Pipeline, exchange: Exchange, live: Live, seen: Seen, said: list[str]) -> None:
        self.pipeline, self.exchange, self.live, self.seen, self.said = pipeline, exchange, live, seen, said

    def wait_for_frames(self, more: int = 3) -> list[Result]:
        """That many further results, and one of which the beginning may have been earlier."""
        begin = len(self.seen.results)
        until(lambda: len(self.seen.results) > begin + more)
        return self.seen.results[begin + 1 :]

    def reload(self) -> dict[str, object]:
        changes = len(self.exchange.changes)
        self.exchange.reload()
        until(lambda: len(self.exchange.changes) > changes)
        return self.exchange.changes[-1]


@contextlib.contextmanager
def running(
    path: Path, *, precision: str = "float", live: bool = True, maps: bool = True, notifier: Notifier | None = None
) -> Iterator[Running]:
    source, seen, said = Pictures(live=live), Seen(), []
    options = {"engine": "onnxruntime", "precision": precision, "maps": maps, "smooth": True}
    with (
        Pipeline(load(path), source, **options) as pipeline,
        Exchange(pipeline, lambda: str(path), notifier=notifier, say=said.append) as exchange,
    ):
        loop = Live(pipeline, [seen], collector=Collector(path.parent, tiny.LABELS), exchange=exchange, say=said.append)
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            until(lambda: len(seen.results) > 2)
            yield Running(pipeline, exchange, loop, seen, said)
        finally:
            loop.controls.quit = True
            source.stopped.set()
            thread.join(10)
            loop.close()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("exchange")
    return {
        "english": tiny.bundle(folder / "english.edgeattn", int8=tiny.int8_model()),
        "german": tiny.bundle(folder / "german.edgeattn", int8=tiny.int8_model(), spec=GERMAN),
        "spoilt": tiny.bundle(folder / "spoilt.edgeattn", int8=tiny.spoilt_int8_model(), spec=GERMAN),
        "float": tiny.bundle(folder / "float.edgeattn"),
        "mapless": tiny.bundle(folder / "mapless.edgeattn", spec=WITHOUT_MAPS),
    }


@pytest.fixture
def link(tmp_path: Path, bundles: dict[str, Bundle]) -> Path:
    link = tmp_path / "current.edgeattn"
    link.symlink_to(bundles["english"].path)
    return link


def turn(link: Path, bundle: Bundle) -> None:
    link.unlink()
    link.symlink_to(bundle.path)


def test_a_new_bundle_takes_over_between_two_frames(tmp_path: Path, link: Path, bundles: dict[str, Bundle]) -> None:
    with listening(tmp_path) as manager, running(link, notifier=Notifier({"NOTIFY_SOCKET": manager.address})) as run:
        before = run.pipeline.engine
        turn(link, bundles["german"])
        change = run.reload()
        assert (change["what"], change["outcome"], change["reason"]) == ("reload", "taken", "")
        assert {result.prediction.label for result in run.wait_for_frames()} <= {"rot", "gruen", "blau"}
        assert {result.smoothed.label for result in run.wait_for_frames()} <= {"rot", "gruen", "blau"}
        assert run.live.status()["bundle"] == "german"
        assert run.live._collector.labels == GERMAN.labels
        assert manager.wait_for(lambda message: "RELOADING" in message)["MONOTONIC_USEC"].isdecimal()
        manager.wait_for(lambda message: "READY" in message)
        assert run.said[-1].startswith(
            f"reload: german ({bundles['german'].digest()}) has taken over: onnxruntime float"
        )
        with pytest.raises(EngineError, match="closed"):
            before.infer(tiny.inputs(1))
        assert run.reload()["outcome"] == "unchanged"
        assert run.exchange.counts == {"reload taken": 1, "reload unchanged": 1}


def test_no_frame_is_left_out_meanwhile(link: Path, bundles: dict[str, Bundle]) -> None:
    """Of a file every frame is answered; exactly one model stands before, and one after."""
    with running(link, live=False) as run:
        turn(link, bundles["german"])
        assert run.reload()["outcome"] == "taken"
        run.wait_for_frames()
    results = run.seen.results
    assert [result.frame.index for result in results] == list(range(len(results)))
    names = [result.model.bundle.name for result in results]
    switched = names.index("german")
    assert names == ["english"] * switched + ["german"] * (len(names) - switched)
    for result in results:
        assert result.prediction.index == result.frame.index % 3, "answered rightly by both"
        assert result.prediction.labels == result.model.bundle.spec.labels


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("spoilt", "gives the maker's answer on 33 % of the golden inputs here, 90 % are wanted"),
        ("without int8", "holds no int8 artefact"),
        ("altered", "was altered since it was made"),
        ("absent", "no bundle is named"),
    ],
)
def test_what_is_wrong_is_refused_and_the_old_one_runs_on(
    link: Path, bundles: dict[str, Bundle], tmp_path: Path, fault: str, reason: str
) -> None:
    with running(link, precision="int8") as run:
        running_model = run.pipeline.model
        if fault == "altered":
            altered = tiny.bundle(tmp_path / "altered.edgeattn", int8=tiny.int8_model(), spec=GERMAN)
            (altered.path / "int8.onnx").write_bytes(b"not a model")
            turn(link, altered)
        elif fault == "absent":
            link.unlink()
        else:
            turn(link, bundles["spoilt" if fault == "spoilt" else "float"])
        change = run.reload()
        assert change["outcome"] == "refused"
        assert reason in str(change["reason"])
        assert run.said[-1].startswith("reload refused, english runs on as it was: ")
        assert run.pipeline.model is running_model
        assert {result.prediction.label for result in run.wait_for_frames()} <= set(tiny.LABELS)
        link.unlink(missing_ok=True)
        link.symlink_to(bundles["german"].path)
        assert run.reload()["outcome"] == "taken", "once it is mended"


def test_the_view_follows_a_model_without_maps(link: Path, bundles: dict[str, Bundle]) -> None:
    with running(link) as run:
        assert run.live.controls.blocks == ("stages.2.attention",)
        run.live.controls.view = dataclasses.replace(run.live.controls.view, block="stages.2.attention")
        turn(link, bundles["mapless"])
        assert run.reload()["outcome"] == "taken"
        assert all(not result.maps for result in run.wait_for_frames())
        assert (run.live.controls.blocks, run.live.controls.view.block) == ((), None)
        turn(link, bundles["german"])
        assert run.reload()["outcome"] == "taken"
        assert all(result.maps for result in run.wait_for_frames())
        assert run.live.controls.blocks == ("stages.2.attention",)
        assert run.live.controls.view.attention


def test_float_takes_over_and_a_reload_goes_back(link: Path) -> None:
    with running(link, precision="int8") as run:
        drifting = run.pipeline.model
        run.exchange.fall_back(drifting, "9 of 20 answers are not float's")
        until(lambda: bool(run.exchange.changes))
        assert {result.model.engine.precision for result in run.wait_for_frames()} == {"float"}
        status = run.live.status()
        assert (status["precision"], status["fallback"]) == ("float", "9 of 20 answers are not float's")
        assert status["change_counts"] == {"fall back taken": 1}
        run.exchange.fall_back(drifting, "again")
        until(lambda: len(run.exchange.changes) == 2)
        assert run.exchange.changes[-1]["outcome"] == "too late", "that model runs no more"
        assert run.reload()["outcome"] == "taken"
        assert {result.model.engine.precision for result in run.wait_for_frames()} == {"int8"}
        assert run.live.status()["fallback"] is None


def test_only_the_float_file_that_was_opened_takes_over(tmp_path: Path) -> None:
    """Other files of the folder may have changed by now, and nobody was told."""
    path = tiny.bundle(tmp_path / "signs.edgeattn", int8=tiny.int8_model()).path
    whole = (path / "float.onnx").read_bytes()
    with running(path, precision="int8") as run:
        (path / "float.onnx").write_bytes(whole + b"\0")
        (path / "int8.onnx").write_bytes(b"spoilt meanwhile")
        run.exchange.fall_back(run.pipeline.model, "drift")
        until(lambda: bool(run.exchange.changes))
        assert run.exchange.changes[-1]["outcome"] == "refused"
        assert "float.onnx is not what it was when the bundle was opened" in run.exchange.changes[-1]["reason"]
        (path / "float.onnx").write_bytes(whole)
        run.exchange.fall_back(run.pipeline.model, "drift")
        until(lambda: len(run.exchange.changes) == 2)
        assert run.exchange.changes[-1]["outcome"] == "taken"
        assert {result.model.engine.precision for result in run.wait_for_frames()} == {"float"}


def test_while_no_frame_comes_a_bundle_is_taken_too(link: Path, bundles: dict[str, Bundle]) -> None:
    with running(link) as run:
        run.pipeline.source.stopped.set()
        turn(link, bundles["german"])
        assert run.reload()["outcome"] == "taken"
        assert run.live.status()["bundle"] == "german"
