"""What the sweep over the zoo keeps: a line a mechanism, and the log of one that is not green, fit to be published."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeattn.train import TrainingData

TOOLS = Path(__file__).parents[2] / "tools"
LOG = """2026-11-22 07:02:53.456 [W:onnxruntime:, qnn.cc:565 Create] \x1b[0;93m/home/someone/box/model.onnx is refused\x1b[m
see https://onnxruntime.ai/docs/quantization.html

the same line
the same line
"""


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    import npu_sweep

    return npu_sweep


def test_a_kept_log_names_no_machine(sweep: Any) -> None:
    assert sweep.trimmed(LOG) == (
        "[W:onnxruntime:, qnn.cc:565 Create] model.onnx is refused\n"
        "see https://onnxruntime.ai/docs/quantization.html\n"
        "the same line\n"
    )
    assert len(sweep.trimmed("\n".join(map(str, range(1000)))).splitlines()) == sweep.LOG_LINES


def test_only_what_is_not_there_is_measured(
    sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(name: str, _: object, options: Any) -> tuple[dict[str, Any], str]:
        asked.append(name)
        green = name == "se" or len(asked) > 3
        told = {"verdict": "passed", "error": 0.012, "maps": 0.004, "weights": "s16", "compile_s": 0.5}
        return sweep.key(options, name) | (told if green else {"verdict": "failed", "reason": "a | b"}), LOG

    monkeypatch.setattr(sweep, "measure", measure)
    monkeypatch.setattr(sweep, "open_data", lambda recipe, folder: TrainingData((), [], range(1000)))
    file = tmp_path / "evidence" / "qualcomm.jsonl"
    log = tmp_path / "evidence" / "qualcomm" / "eca-pico-64.log"

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["npu_sweep.py", "--results", str(file), *arguments])
        sweep.main()
        return capsys.readouterr().out

    told = run("--only", "se,eca")
    assert "| se | pico 64 | passed | 1.20 | 0.40 | s16 | 0.5 |  |" in told
    assert "| eca | pico 64 | failed | - | - | - | - | a ; b |" in told
    assert "pico at 64: 1 of 2 green; simulated on a PC, not measured on hardware" in told
    assert "model.onnx is refused" in log.read_text()
    run("--only", "se,eca,coord")
    assert asked == ["se", "eca", "coord"]
    # Measured again, its line takes the place of the old one, and the log of one that is green now goes.
    assert "2 of 3 green" in run("--only", "eca", "--again")
    assert [json.loads(line)["attention"] for line in file.read_text().splitlines()] == ["se", "coord", "eca"]
    assert not log.exists()
