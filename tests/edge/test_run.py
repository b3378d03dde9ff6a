"""`edgeattn run` as a user starts it: in a process of its own, without a display."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from scripted import read_video, write_video

from edgeattn.bundle import Bundle
from edgeattn.cli.run import run
from edgeattn.errors import EdgeAttnError, ExtraMissingError, NameNotFoundError, SourceError
from edgeattn.imaging import Picture

SCRIPT = Path(__file__).parents[2] / "tools" / "run_camera.py"
QUICK = ["--engine", "onnxruntime", "--precision", "float"]


@pytest.fixture
def pictures() -> list[Picture]:
    return [picture for picture, _ in tiny.pictures(24, height=96, width=128)]


@pytest.fixture
def video(tmp_path: Path, pictures: list[Picture]) -> Path:
    return write_video(tmp_path / "clip.mp4", pictures)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def start(bundle: Bundle, *options: str | Path, **popen: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(bundle.path), *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)


def test_without_a_display_a_video_is_written_and_said(tiny_bundle: Bundle, video: Path) -> None:
    process = start(tiny_bundle, "--source", video.name, "--json", "run.json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("tiny: ")
    assert "timed on this machine" in lines[0], "the choice is said first"
    assert lines[1].startswith("no window, ")
    assert lines[2] == "writing edgeattn-clip.mp4"
    assert lines[3].startswith("24 frames, ")
    assert len(lines) == 4
    assert len(read_video(Path("edgeattn-clip.mp4"))) == 24
    report = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert report["schema"] == "edgeattn.run/1"
    assert (report["frames"], report["dropped"], report["reconnects"], report["age_from"]) == (24, 0, 0, "received")
    assert report["fps"] > 0
    for name in ("age_ms", "infer_ms"):
        assert report[name]["n"] == 24 - report["warmup_frames"] == 18
        assert 0 < report[name]["p50"] <= report[name]["max"]
        assert report[name]["p90"] is report[name]["p99"] is None
    assert 0 <= report["overhead_ms_p50"] <= report["age_ms"]["max"]
    assert report["rss_mb"] > 20
    assert (report["precision"], report["executed_precision"], report["maps"]) == ("float", "f32", True)
    assert list(report["stages_ms"]) == [
        "capture",
        "resize",
        "infer",
        "decode",
        "hand",
        "attention",
        "draw",
        "write_mp4",
    ]
    assert report["sinks"] == [{"name": "mp4", "written": 24, "dropped": 0, "failed": False}]
    assert report["environment"]["usable_cores"] >= 1


def test_accuracy_on_a_labelled_video(tiny_bundle: Bundle, video: Path) -> None:
    """The fixture's model knows its colours: nearly all labels are right; frames without one do not count."""
    truth = [{"index": i, "label": None if i >= 20 else tiny.LABELS[i % 3]} for i in range(24)]
    video.with_suffix(".truth.jsonl").write_text("\n".join(map(json.dumps, truth)), encoding="utf-8")
    run(
        str(tiny_bundle.path), source=[str(video)], engine="onnxruntime", precision="float", sink=["none"],
        json=Path("run.json"),
    )  # fmt: skip
    report = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert report["labelled_frames"] == 20
    assert report["accuracy"] >= 0.9
    assert report["accuracy_smoothed"] < report["accuracy"], (
        "the label changes with every frame: smoothing cannot follow"
    )
    assert report["maps"] is False
    assert list(report["stages_ms"]) == ["capture", "resize", "infer", "decode", "hand"]
    assert report["sinks"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_leaves_a_playable_video_and_the_report(
    tiny_bundle: Bundle, tmp_path: Path, pictures: list[Picture], number: signal.Signals
) -> None:
    video = write_video(tmp_path / "long.mp4", pictures * 20)
    options = ["--source", video, "--realtime", "--sink", "mp4,jsonl", "--out", "seen.mp4", "--json", "run.json"]
    process = start(tiny_bundle, *QUICK, *options)
    lines = Path("seen.jsonl")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (lines.exists() and lines.read_text().count("\n") >= 15):
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    report = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert 15 <= report["frames"] < 480
    assert report["age_from"] == "due"
    assert f"{report['frames']} frames, " in out
    assert len(read_video(Path("seen.mp4"))) >= 15
    entries = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert abs(len(entries) - report["frames"]) <= 1


def test_lines_go_to_the_screen_and_everything_else_beside(tiny_bundle: Bundle, video: Path) -> None:
    process = start(tiny_bundle, *QUICK, "--source", video, "--sink", "jsonl", "--max-frames", "3")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [json.loads(line)["index"] for line in out.splitlines()] == [0, 1, 2]
    assert err.splitlines()[0].startswith("tiny: onnxruntime float (as asked)")
    assert err.splitlines()[-1].startswith("3 frames")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev")
def test_a_camera_that_is_not_there_ends_with_one_line_and_2(tiny_bundle: Bundle) -> None:
    process = start(tiny_bundle, "--source", "97", "--json", "run.json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.count("\n") == 1
    assert "there is no camera 97 (/dev/video97)" in err
    assert list(Path().iterdir()) == [], "nothing half-written"


def test_the_edge_stays_free_of_training(tiny_bundle: Bundle, video: Path) -> None:
    code = (
        "import sys; from edgeattn.cli.run import run; "
        f"run({str(tiny_bundle.path)!r}, source=[{str(video)!r}], max_frames=2); "
        "print(sorted({'torch', 'nncf', 'matplotlib', 'sklearn', 'skimage', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_folder_with_a_bad_picture(
    tiny_bundle: Bundle, tmp_path: Path, pictures: list[Picture], capsys: pytest.CaptureFixture[str]
) -> None:
    from edgeattn._cv2 import cv2

    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), np.pad(pictures[i], ((0, 10 * i), (0, 0), (0, 0))))
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    run(
        str(tiny_bundle.path), source=[str(folder)], engine="openvino", precision="float", sink=["mp4"],
        out=Path("seen.mp4"), json=Path("run.json"),
    )  # fmt: skip
    report = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert report["frames"] == 3
    assert report["skipped"][0]["path"].endswith("bad.jpg")
    assert "skipped " in capsys.readouterr().out
    assert len(read_video(Path("seen.mp4"))) == 3


def test_bad_options_name_the_choices(tiny_bundle: Bundle, video: Path) -> None:
    bundle = str(tiny_bundle.path)
    with pytest.raises(NameNotFoundError, match=r"no sink is named 'screen'.*jsonl, mp4, none, window"):
        run(bundle, source=[str(video)], sink=["mp4,screen"])
    with pytest.raises(EdgeAttnError, match="is the source itself"):
        run(bundle, source=[str(video)], sink=["mp4"], out=video)
    with pytest.raises(NameNotFoundError, match="no policy is named 'newest'"):
        run(bundle, source=[str(video)], sink=["none"], policy="newest")
    with pytest.raises(SourceError, match="every frame of a file is taken"):
        run(bundle, source=[str(video)], sink=["none"], policy="fresh")
    with pytest.raises(EdgeAttnError, match="must be X,Y,WIDTH,HEIGHT"):
        run(bundle, source=[str(video)], sink=["none"], crop="1,2,3")
    with pytest.raises(SourceError, match="lies outside its pictures of 128x96"):
        run(bundle, source=[str(video)], sink=["none"], crop="500,0,10,10", engine="onnxruntime", precision="float")
    with pytest.raises(SourceError, match="no such file"):
        run(bundle, source=["absent.mp4"])
    with pytest.raises(NameNotFoundError, match="no engine"):
        run(bundle, source=[str(video)], sink=["none"], engine="tensorrt")


def test_an_error_on_the_way_still_leaves_the_report(tiny_bundle: Bundle, video: Path) -> None:
    blocked = Path("blocked")
    blocked.write_text("")
    with pytest.raises(EdgeAttnError, match="cannot be written"):
        run(str(tiny_bundle.path), source=[str(video)], sink=["mp4"], out=blocked / "seen.mp4", json=Path("run.json"),
            engine="onnxruntime", precision="float")  # fmt: skip
    report = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert 1 <= report["frames"] <= 24
    assert report["sinks"][0]["failed"] is True


def test_a_crop_is_what_the_model_sees_and_a_pace_is_kept(tiny_bundle: Bundle, video: Path) -> None:
    begin = time.monotonic()
    run(str(tiny_bundle.path), source=[str(video)], sink=["mp4"], out=Path("seen.mp4"), crop="16,0,64,48", max_fps=20,
        max_frames=10, engine="onnxruntime", precision="float")  # fmt: skip
    assert time.monotonic() - begin > 0.4
    assert read_video(Path("seen.mp4"))[0].shape == (48, 64, 3)


def test_the_test_picture_runs_anywhere(tiny_bundle: Bundle) -> None:
    process = start(
        tiny_bundle, *QUICK, "--source", "test", "--sink", "none", "--max-frames", "15", "--json", "run.json"
    )
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    report = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert (report["frames"], report["age_from"], report["source_status"]["state"]) == (15, "due", "live")


def test_without_paho_the_pip_line_is_said(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgeattn.camera.mqtt", raising=False)
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(ExtraMissingError, match=r"--mqtt needs 'paho-mqtt'.*pip install 'edgeattn\[mqtt\]'"):
        run(str(tiny_bundle.path), source=["test"], mqtt="mqtt://broker/door")


def test_int8_that_drifts_is_found_and_float_takes_over(
    tmp_path: Path, pictures: list[Picture], capsys: pytest.CaptureFixture[str]
) -> None:
    """A spoilt int8 file, asked for by name, over two seconds of different pictures."""
    bundle = tiny.bundle(tmp_path / "drifting.edgeattn", int8=tiny.spoilt_int8_model())
    video = write_video(tmp_path / "clip.mp4", pictures * 3)
    run(
        str(bundle.path), source=[str(video)], realtime=True, engine="onnxruntime", precision="int8", sink=["none"],
        shadow=0.01, fallback=True, json=Path("run.json"),
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "drift: onnxruntime int8: " in said
    assert "different pictures are answered otherwise than by float (with 99.9 % confidence more than" in said
    assert "float has taken over: onnxruntime float (as --fallback asks)" in said
    report = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert (report["precision"], report["executed_precision"]) == ("float", "f32")
    assert report["fallback"] in said
    assert [change["outcome"] for change in report["changes"]] == ["taken"]
    assert report["shadow"]["verdict"] == "failed"
    assert 20 <= report["shadow"]["checked"] < report["frames"], "float itself is not watched"
