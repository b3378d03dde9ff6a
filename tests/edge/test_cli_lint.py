"""`edgeattn lint`: what it says, and with which exit code it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgeattn.bundle import Bundle
from edgeattn.cli import app
from edgeattn.cli.lint import say_broken
from edgeattn.deploy.lint import Finding
from edgeattn.errors import NameNotFoundError


def typed(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_all_targets_are_advice(tmp_path: Path) -> None:
    code, printed = typed("lint", "sign-digits", "--json", tmp_path / "l.json")
    assert code == 0
    assert "opset 19 at most" in printed
    assert "export RUN --target rockchip" in printed  # how to mend it
    assert "none of this was run on a device" in printed
    told = json.loads((tmp_path / "l.json").read_text())
    assert told["schema"] == "edgeattn.lint/1"
    (opset,) = (row for row in told["rules"] if row["rule"] == "opset 19 at most")
    assert (opset["target"], opset["block"], opset["evidence"]) == ("rockchip", None, "measured")
    assert (opset["mend"], opset["level"]) == ("edgeattn export RUN --target rockchip", "refused")


def test_each_target_and_block_is_a_row_of_the_report() -> None:
    found = Finding("r", ("intel", "rockchip"), "slow", "why", "measured", "mend", "float.onnx", ("a", "b"))
    rows = found.json()
    assert [(row["target"], row["block"]) for row in rows] == [
        ("intel", "a"), ("intel", "b"), ("rockchip", "a"), ("rockchip", "b"),
    ]  # fmt: skip
    assert set(rows[0]) == {"rule", "target", "block", "level", "reason", "evidence", "mend", "file"}


def test_other_verbs_say_it_in_one_line(tiny_int8_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    say_broken(tiny_int8_bundle, "rockchip")
    told = f"lint: rules of NPU compilers broken: 2; edgeattn lint {tiny_int8_bundle.path} --target rockchip\n"
    assert capsys.readouterr().out == told
    say_broken(tiny_int8_bundle, "qualcomm")
    assert capsys.readouterr().out == ""


def test_a_target_that_refuses_the_bundle_fails(tiny_int8_bundle: Bundle) -> None:
    assert typed("lint", tiny_int8_bundle.path, "--target", "rockchip")[0] == 1
    code, printed = typed("lint", tiny_int8_bundle.path, "--target", "qualcomm")
    assert code == 0
    assert "no rule is broken for Qualcomm HTP" in printed


def test_a_wrong_target_is_named(tiny_int8_bundle: Bundle) -> None:
    with pytest.raises(NameNotFoundError, match=r"qualcom.*qualcomm"):
        typed("lint", tiny_int8_bundle.path, "--target", "qualcom")
