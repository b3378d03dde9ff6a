"""`edgeattn attentions` as it is typed: the list, a check of one's own, bundles for the price list."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small
import torch
from torch import Tensor, nn

from edgeattn import attentions as zoo
from edgeattn import cli
from edgeattn.bundle import load
from edgeattn.nn.attention import ATTENTIONS


def typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str | Path
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["edgeattn", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "200")
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


def test_every_attention_is_listed_with_its_source() -> None:
    found = zoo.mechanisms()
    assert [m.name for m in found] == list(ATTENTIONS)
    assert all(m.what for m in found)
    own = {"channel_spatial", "channel_then_spatial", "dw5", "multiscale", "none", "region", "wide"}
    assert {m.name for m in found if not m.paper} == own
    se = next(m for m in found if m.name == "se")
    assert (se.family, "Hu et al. 2018" in se.paper) == ("channel", True)


class Own(nn.Module):
    """A gate from a 1 x 1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, 1, 1)
        nn.init.constant_(self.gate.bias, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).sigmoid()


class Halved(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Deaf(Own):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.unused = nn.Parameter(torch.zeros(3))


MINE = """
from torch import Tensor, nn


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, 1, 1)
        nn.init.constant_(self.gate.bias, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).sigmoid()
"""


@pytest.mark.slow
def test_a_check_from_shape_to_int8(tmp_path: Path) -> None:
    """In a process of its own: a data-loading worker's end must not meet the other tests' libraries."""
    (tmp_path / "mine.py").write_text(MINE)
    quick = "from edgeattn import attentions, cli; attentions.CHECK_VIEWS = 2000; cli.command()"  # of 8,000
    words = (sys.executable, "-c", quick, "attentions", "--check", "mine:Gate", "--json", "check.json")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    checks = {c["check"]: c for c in json.loads((tmp_path / "check.json").read_text())["checks"]}
    assert list(checks) == [
        "shape", "gradient", "map", "training", "export", "int8 onnxruntime", "int8 openvino", "lint",
    ]  # fmt: skip
    for name in ("shape", "gradient", "map", "training", "export", "lint"):
        assert checks[name]["verdict"] == "passed", checks[name]
    assert "of float's time" in checks["int8 openvino"]["found"]
    assert "fit for int8" in done.stdout


def test_checks_fail_where_they_should(tmp_path: Path) -> None:
    first = next(iter(zoo.check(f"{__name__}:Halved", tmp_path)))
    assert (first.name, first.verdict) == ("shape", "failed")
    assert "it must stay" in first.found
    steps = zoo.check(f"{__name__}:Deaf", tmp_path)
    assert next(steps).verdict == "passed"
    gradient = next(steps)
    assert (gradient.verdict, gradient.found) == ("failed", "unused")


def test_bundles_for_the_price_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("attentions", "--build", tmp_path, "--only", "se", "--model", "pico", "--imgsz", "32")
    with small.five_blocks():
        code, printed, err = typed(capsys, monkeypatch, *words)
    assert (code, err) == (0, "")
    assert f"edgeattn profile {tmp_path}" in printed
    bundles = {name: load(tmp_path / f"{name}.edgeattn") for name in ("none", "se")}
    costs = {name: bundle.provenance["priced"] for name, bundle in bundles.items()}
    assert costs["se"]["parameters"] > costs["none"]["parameters"]
    assert {(a.engine, a.precision) for a in bundles["se"].artefacts if a.precision != "bf16"} == {
        (engine, precision) for engine in ("onnxruntime", "openvino") for precision in ("float", "int8")
    }
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.edgeattn/bundle.json")}
    typed(capsys, monkeypatch, *words)
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.edgeattn/bundle.json")}


def test_an_unknown_name_is_said_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = typed(capsys, monkeypatch, "attentions", "--build", tmp_path / "zoo", "--only", "cbamm")
    assert code == 2
    assert "mean 'cbam'" in err
    assert not (tmp_path / "zoo").exists()
