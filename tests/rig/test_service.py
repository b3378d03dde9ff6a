"""A run as a service: a real process, a real notify socket, a camera that fails, signals, and an inference that hangs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from calm import in_calm
from manager import Manager, listening
from mjpeg import MjpegCamera

from edgeattn.bundle import Bundle

pytestmark = pytest.mark.rig

QUICK = ("--engine", "onnxruntime", "--sink", "none")
GERMAN = dataclasses.replace(tiny.SPEC, labels=("rot", "gruen", "blau"))
START = "import sys; from edgeattn.cli import command; command()"
HANGING = """
import sys, threading
from edgeattn.engines.onnxruntime import OnnxRuntimeEngine
infer, calls = OnnxRuntimeEngine.infer, []
def hang(self, image):
    calls.append(1)
    if len(calls) == 60: threading.Event().wait()
    return infer(self, image)
OnnxRuntimeEngine.infer = hang
from edgeattn.cli import command; command()
"""


@contextlib.contextmanager
def service(
    manager: Manager, *arguments: object, watchdog_s: float | None = None, code: str = START
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, "run", *map(str, arguments)]
    with subprocess.Popen(
        command, env=manager.environment(watchdog_s), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def test_it_is_ready_and_alive_without_a_camera_and_says_what_the_camera_does(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with MjpegCamera() as camera, listening(tmp_path) as manager:
        camera.refuse(4)
        options = (tiny_bundle.path, "--source", camera.url, *QUICK, "--precision", "float")
        with service(manager, *options, watchdog_s=0.8) as process:
            ready = manager.wait_for(lambda message: "READY" in message)
            assert ready["STATUS"].startswith(("connecting", "down"))
            alive = len(manager.told)
            time.sleep(1.5)
            assert sum("WATCHDOG" in message for _, message in manager.told[alive:]) >= 4
            manager.wait_for(lambda message: message.get("STATUS", "").startswith("running; tiny on http://"))
            told = len(manager.told)
            camera.refuse(60)
            manager.wait_for(lambda message: message.get("STATUS", "").startswith("down ("), since=told)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        manager.wait_for(lambda message: "STOPPING" in message)
        assert manager.all("READY") == ["1"]


def test_an_inference_that_hangs_is_not_called_alive(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with listening(tmp_path) as manager:
        options = (tiny_bundle.path, "--source", "test", *QUICK, "--precision", "float")
        with service(manager, *options, watchdog_s=0.8, code=HANGING) as process:
            manager.wait_for(lambda message: "READY" in message)
            deadline = time.monotonic() + 20
            while time.monotonic() - max(at for at, message in manager.told if "WATCHDOG" in message) < 1.6:
                assert time.monotonic() < deadline, "it is called alive still"
                time.sleep(0.05)
            assert process.poll() is None
            process.send_signal(signal.SIGABRT)  # as systemd does then
            said, _ = process.communicate(timeout=10)
        assert "in hang" in said, "it says where it stood"


def test_sighup_takes_a_new_bundle_and_refuses_a_spoilt_one(tmp_path: Path) -> None:
    first = tiny.bundle(tmp_path / "first.edgeattn", int8=tiny.int8_model())
    spoilt = tiny.bundle(tmp_path / "spoilt.edgeattn", int8=tiny.spoilt_int8_model())
    last = tiny.bundle(tmp_path / "last.edgeattn", int8=tiny.int8_model(), spec=GERMAN)
    settings, report = tmp_path / "run.toml", tmp_path / "run.json"
    settings.write_text(
        f'bundle = "{first.path}"\nsource = "test"\nprecision = "int8"\njson = "{report}"\n', encoding="utf-8"
    )
    with listening(tmp_path) as manager, service(manager, "--settings", settings, *QUICK) as process:
        manager.wait_for(lambda message: "READY" in message)
        for bundle in (spoilt, last):
            told = len(manager.told)
            settings.write_text(settings.read_text().replace(settings.read_text().split('"')[1], str(bundle.path)))
            process.send_signal(signal.SIGHUP)
            assert manager.wait_for(lambda message: "RELOADING" in message, since=told)["MONOTONIC_USEC"].isdecimal()
            manager.wait_for(lambda message: "READY" in message, since=told)
            state = manager.wait_for(lambda message: "STATUS" in message, since=told)["STATUS"]
            assert ("reload refused: " in state) == (bundle is spoilt)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert (
        f"reload refused, first runs on as it was: {spoilt.path}: onnxruntime int8 gives the maker's answer on 33 %"
        in said
    )
    assert "reload: last (" in said
    seen = json.loads(report.read_text(encoding="utf-8"))
    assert [change["outcome"] for change in seen["changes"]] == ["refused", "taken"]
    assert (seen["bundle"], seen["precision"]) == ("last", "int8")


def test_a_terminal_that_closes_ends_it_and_one_that_stands_does_not(tiny_bundle: Bundle, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    report = tmp_path / "run.json"
    command = [sys.executable, "-c", START, "run", tiny_bundle.path, "--source", "test", *QUICK, "--precision", "float"]
    with listening(tmp_path) as manager:
        process = subprocess.Popen(
            [*map(str, command), "--json", str(report)], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env=manager.environment(),
        )  # fmt: skip
        os.close(theirs)
        manager.wait_for(lambda message: "READY" in message)
        told = len(manager.told)
        process.send_signal(signal.SIGHUP)
        manager.wait_for(lambda message: "READY" in message, since=told)
        assert process.poll() is None
        os.close(ours)  # as when the connection breaks off
        process.send_signal(signal.SIGHUP)
        assert process.wait(10) == 0
    assert json.loads(report.read_text(encoding="utf-8"))["changes"][0]["outcome"] == "unchanged"


def test_the_watch_for_drift_and_reloads_age_no_frame(tmp_path: Path) -> None:
    """At 30 fps, with four float inferences a second beside, and now and then a bundle that takes over."""
    link = tmp_path / "now.edgeattn"
    bundles = [
        tiny.bundle(tmp_path / f"{name}.edgeattn", int8=tiny.int8_model(), spec=spec)
        for name, spec in (("english", tiny.SPEC), ("german", GERMAN))
    ]

    def run(*options: object, reloads: int = 0) -> dict[str, Any]:
        report = tmp_path / "run.json"
        with MjpegCamera(fps=30) as camera, listening(tmp_path, abstract=True) as manager:
            link.unlink(missing_ok=True)
            link.symlink_to(bundles[0].path)
            arguments = (link, "--source", camera.url, *QUICK, "--precision", "int8", "--json", report, *options)
            with service(manager, *arguments) as process:
                manager.wait_for(lambda message: "READY" in message)
                for second in range(3):
                    time.sleep(0.7)
                    if second < reloads:
                        link.unlink()
                        link.symlink_to(bundles[(second + 1) % 2].path)
                        process.send_signal(signal.SIGHUP)
                process.send_signal(signal.SIGTERM)
                assert process.wait(10) == 0
        return json.loads(report.read_text(encoding="utf-8"))

    def check() -> None:
        alone, watched, reloaded = run(), run("--shadow", 0.25), run(reloads=2)
        for name, seen in (("alone", alone), ("watched", watched), ("reloaded", reloaded)):
            print(
                f"{name}: {seen['frames']} frames, age p50 {seen['age_ms']['p50']:.2f}, max {seen['age_ms']['max']:.2f} ms"
            )
            assert seen["frames"] > 40
            assert seen["age_ms"]["p50"] < alone["age_ms"]["p50"] + 1.0
            assert seen["age_ms"]["max"] < alone["age_ms"]["max"] + 20.0
        assert watched["shadow"]["checked"] + watched["shadow"]["same"] >= 6
        assert [change["outcome"] for change in reloaded["changes"]] == ["taken", "taken"]

    in_calm(check)
