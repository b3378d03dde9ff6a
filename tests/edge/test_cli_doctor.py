from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from edgeattn import _cv2
from edgeattn.cli.doctor import Finding, _camera_name, _cameras, _cores, _governor, _heat, _int8, _load, doctor, examine
from edgeattn.cli.v4l2 import formats
from edgeattn.timing import environment
from edgeattn.timing.sensors import Sensors


def found(about: str) -> Finding:
    return next(finding for finding in examine(environment()) if finding.about == about)


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(doctor)
    return app


def test_this_box_can_run_bundles(app: typer.Typer, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["--json", str(tmp_path / "doctor.json")])
    assert outcome.exit_code == 0, outcome.output
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert written["schema"] == "edgeattn.doctor/1"
    states = {finding["about"]: finding["state"] for finding in written["findings"]}
    assert states["onnxruntime"] == states["openvino"] == states["OpenCV"] == "good"
    assert all(finding["help"] for finding in written["findings"] if finding["state"] != "good")


def test_engine_that_is_missing_is_broken(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    outcome = CliRunner().invoke(app)
    assert outcome.exit_code == 1
    assert "bad  openvino: cannot be used" in outcome.output
    assert "pip install --force-reinstall openvino" in outcome.output


def test_two_builds_of_opencv_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cv2, "installed_wheels", lambda: ["opencv-python 5.0.0", "opencv-python-headless 5.0.0"])
    finding = found("OpenCV")
    assert finding.state == "broken"
    assert "pip uninstall -y opencv-python opencv-python-headless" in finding.help


def test_display_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert found("display").state == "note"
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert (found("display").state, found("display").seen) == ("good", "wayland-0")


def test_hardware_and_load() -> None:
    assert _int8(["avx2", "fma"]).state == "note"
    assert _int8(["avx512_vnni", "avx2"]) == Finding("int8 in hardware", "good", "avx512_vnni")
    assert _int8([]).state == "note"
    assert _governor("powersave").state == "note"
    assert _governor("performance").state == _governor("unavailable").state == "good"
    assert _load(40.0).state == "note"
    assert _load(1.0).state == _load("unavailable").state == "good"
    assert _cores(2, 8).seen.startswith("2 of 8")


def test_cameras(tmp_path: Path) -> None:
    assert _cameras([]).state == "note"
    device = tmp_path / "video0"
    device.touch()
    assert _cameras([device]).seen == f"{device} (films nothing)"
    assert "video" in _cameras([tmp_path / "gone"]).help


def test_heat_and_what_the_firmware_holds_back_are_told() -> None:
    cool = Sensors(0, {"cpu": 51.4}, 1800.0, {}, {}, {}, None)
    assert _heat(cool) == Finding("temperature and clock", "good", "51 C, 1800 MHz")
    assert _heat(replace(cool, temperatures_c={"cpu": 51.4, "soc": 88.0})).state == "note"
    held = _heat(replace(cool, throttled="under-voltage"))
    assert (held.state, held.seen) == ("note", "51 C, 1800 MHz, under-voltage")
    assert "power supply" in held.help
    assert _heat(replace(cool, temperatures_c={}, frequency_mhz=None)).seen == "unavailable"


def test_what_is_no_camera_films_nothing(tmp_path: Path) -> None:
    (tmp_path / "video7").touch()
    assert formats(tmp_path / "video7") == []
    assert _camera_name(tmp_path / "video7") == f"{tmp_path / 'video7'} (films nothing)"
    assert _camera_name(tmp_path / "video8") == str(tmp_path / "video8")
