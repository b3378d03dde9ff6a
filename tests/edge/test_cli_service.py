"""`edgeattn service` and the settings that it writes; the unit is shown to systemd itself, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgeattn.bundle import Bundle
from edgeattn.cli import app
from edgeattn.cli.settings import tomllib
from edgeattn.errors import EdgeAttnError, NameNotFoundError


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def parts(printed: str) -> tuple[str, str]:
    """The unit and the settings."""
    unit, _, settings = printed.partition("# /etc/edgeattn/")
    return unit, settings.partition("\n")[2]


def test_the_printed_settings_are_the_options(tiny_bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "now.edgeattn"
    link.symlink_to(tiny_bundle.path)
    unit, settings = parts(
        call("service", link, "--source", "env:CAMERA", "--policy", "fresh", "--shadow", 30, "--fallback", "--sink", "jsonl",
             "--out", "seen.jsonl", "--max-fps", "12.5", "--no-maps")
    )  # fmt: skip
    assert tomllib.loads(settings) == {
        "bundle": str(link), "source": "env:CAMERA", "policy": "fresh", "shadow": 30.0, "fallback": True, "sink": "jsonl",
        "out": "seen.jsonl", "max-fps": 12.5, "maps": False,
    }  # fmt: skip
    lines = unit.splitlines()
    for line in ("Type=notify", "WatchdogSec=30", "Restart=always", "NoNewPrivileges=yes", "ProtectSystem=strict",
                 "SupplementaryGroups=video", "ExecReload=/bin/kill -HUP $MAINPID",
                 "EnvironmentFile=-/etc/edgeattn/edgeattn-tiny.env"):  # fmt: skip
        assert line in lines
    program = next(line for line in lines if line.startswith("ExecStart="))
    assert program.endswith("run --settings /etc/edgeattn/edgeattn-tiny.toml")


def test_several_cameras(tiny_bundle: Bundle) -> None:
    unit, settings = parts(call("service", tiny_bundle.path, "--source", "env:DOOR", "--source", "env:GATE"))
    assert tomllib.loads(settings)["source"] == ["env:DOOR", "env:GATE"]
    assert "Description=edgeattn tiny on env:DOOR, env:GATE" in unit.splitlines()


def test_without_a_sink_nothing_fills_the_disk(tiny_bundle: Bundle) -> None:
    settings = tomllib.loads(parts(call("service", tiny_bundle.path))[1])
    assert settings["sink"] == "none"


def test_a_login_is_kept_out(tiny_bundle: Bundle) -> None:
    with pytest.raises(EdgeAttnError, match="write --source env:CAMERA"):
        call("service", tiny_bundle.path, "--source", "rtsp://me:secret@camera/1")
    with pytest.raises(EdgeAttnError, match="write --source env:CAMERA"):
        call("service", tiny_bundle.path, "--source", "rtsp://camera/user=me_password=secret_channel=1")
    with pytest.raises(EdgeAttnError, match="write --mqtt env:BROKER"):
        call("service", tiny_bundle.path, "--mqtt", "mqtt://me:secret@broker/door")
    with pytest.raises(EdgeAttnError, match="write --token env:TOKEN"):
        call("service", tiny_bundle.path, "--web", "0.0.0.0:8080", "--token", "secret-enough-for-all")
    assert "No such option" in call("service", tiny_bundle.path, "--sorce", "0")
    with pytest.raises(EdgeAttnError, match="letters, digits"):
        call("service", tiny_bundle.path, "--name", "my camera")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize(
    "options", [[], ["--user", "root", "--out", '/srv/my runs/50% "of" it.jsonl', "--device", "NPU"]]
)
def test_systemd_takes_the_unit(tiny_bundle: Bundle, tmp_path: Path, options: list[str]) -> None:
    said = call("service", tiny_bundle.path, "--into", tmp_path, *options)
    assert "systemctl enable --now edgeattn-tiny" in said
    unit = tmp_path / "edgeattn-tiny.service"
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    tomllib.loads((tmp_path / "edgeattn-tiny.toml").read_text(encoding="utf-8"))


def test_a_file_of_settings_runs_and_the_command_line_wins(tiny_bundle: Bundle, tmp_path: Path) -> None:
    file, report = tmp_path / "run.toml", tmp_path / "run.json"
    file.write_text(
        f"""
        bundle = "{tiny_bundle.path}"
        source = "test"
        sink = "none"        # one value, or several
        engine = "onnxruntime"
        precision = "float"
        max-frames = 300
        json = "{report}"
        """,
        encoding="utf-8",
    )
    assert "3 frames" in call("run", "--settings", file, "--max-frames", 3)
    assert '"engine": "onnxruntime"' in report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("max-fsp = 3", NameNotFoundError, r"as .*bad.toml asks for,.* 'max-fsp'. Did you mean 'max-fps'\?"),
        ("settings = 'x'", NameNotFoundError, "no option of `run`"),
        ("source = 0\nsource = 1", EdgeAttnError, "is not TOML"),
        ("policy = ['a', 'b']", EdgeAttnError, "takes one value, not a list"),
        ("[run]\nsource = 'a'", NameNotFoundError, "'run'"),
        ("[source]\na = 'a'", EdgeAttnError, "takes one value, not a table"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    with pytest.raises(error, match=said):
        call("run", "--settings", tmp_path / "bad.toml")


def test_settings_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(EdgeAttnError, match="the settings cannot be read"):
        call("run", "--settings", tmp_path / "absent.toml")
    assert "Missing argument" in call("run", "--source", "test")


def test_what_shadow_asks_for(tiny_bundle: Bundle) -> None:
    bundle = str(tiny_bundle.path)
    with pytest.raises(EdgeAttnError, match="add --shadow"):
        call("run", bundle, "--source", "test", "--sink", "none", "--fallback")
    forced = ("--engine", "onnxruntime", "--precision", "float")
    with pytest.raises(EdgeAttnError, match="leave it out with --precision float"):
        call("run", bundle, "--source", "test", "--sink", "none", "--shadow", 1, *forced)
    said = call(
        "run", bundle, "--source", "test", "--sink", "none", "--shadow", 1, "--max-frames", 2, "--engine", "onnxruntime"
    )
    assert "nothing to watch for drift: float runs" in said


def test_the_help_of_service_lists_the_options_of_run() -> None:
    said = call("service", "--help")
    assert "--shadow" in said
    assert "--into" in said
