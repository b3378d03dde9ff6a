"""The command as a user types it: the whole way on a small folder, and what bad input gets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import discs
import numpy as np
import pytest

from edgeattn import cli
from edgeattn._cv2 import cv2
from edgeattn.bundle import load
from edgeattn.datasets.folder import Sample
from edgeattn.deploy import calibration

Typed = tuple[int, str, str]


def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> Typed:
    """Exit code, standard output and standard error of `edgeattn WORDS`."""
    monkeypatch.setattr(sys, "argv", ["edgeattn", *map(str, words)])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return discs.write(tmp_path_factory.mktemp("set") / "discs", 30)


QUICK = ("--imgsz", "32", "--set", "start=none", "--set", "workers=0")


def test_make_from_pictures_to_a_bundle_that_runs(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "red" / "cut.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((50, 50, 3), np.uint8))[1].tobytes()[:300])
    out, report = tmp_path / "out", tmp_path / "report.json"
    words = ("make", photos, "--out", out, "--teacher", "none", "--minutes", "1.3", "--json", report, *QUICK)
    code, printed, _ = typed(capsys, monkeypatch, *words)
    (photos / "red" / "cut.jpg").unlink()
    assert code == 0
    assert "cut.jpg" in printed
    assert "cut off" in printed
    assert f"edgeattn run {out / 'discs.edgeattn'} --source 0" in printed
    assert f"edgeattn lint {out / 'discs.edgeattn'} --target all" in printed
    told = json.loads(report.read_text())
    assert told["schema"] == "edgeattn.make/1"
    assert told["test_top1"] >= 0.8
    bundle = load(out / "discs.edgeattn")
    assert {(a.engine, a.precision) for a in bundle.artefacts} >= {("openvino", "int8"), ("onnxruntime", "float")}
    assert (out / "calibration.toml").is_file()
    assert bundle.provenance["calibration"]["pictures"] >= 32

    code, printed, _ = typed(
        capsys, monkeypatch, "run", bundle.path, "--source", photos / "red", "--sink", "none", "--maps"
    )
    assert code == 0
    assert "ms" in printed
    manifest = ("quantize", bundle.path, "--run", out / "student", "--calibration", out / "calibration.toml")
    code, printed, _ = typed(capsys, monkeypatch, *manifest, "--minutes", "0.2", "--json", report)
    assert code == 3, "45 pictures cannot tell"
    assert "the ladder" in printed
    assert "branch float" in printed
    assert {step["engine"] for step in json.loads(report.read_text())["ladder"]} == {"onnxruntime", "openvino"}
    assert (out / "student" / "ladder.jsonl").is_file()
    assert json.loads(report.read_text())["bundle"] == str(bundle.path)
    assert "quantized layers are executed on integers here" in printed
    assert "int8 cannot tell (loss): about " in printed
    assert "edgeattn run" in printed
    words = ("sensitivity", bundle.path, "--run", out / "student", "--engine", "onnxruntime", "--minutes", "0.05")
    code, printed, _ = typed(capsys, monkeypatch, *words, "--json", report, "--html", tmp_path / "page.html")
    assert code == 0
    assert "rows measured: more --minutes" in printed
    assert json.loads(report.read_text())["results"][0]["rows"][0]["signal_to_error_db"] < 40
    assert (tmp_path / "page.html").read_text().count("<rect") > 20
    tuned = ("quantize", bundle.path, "--run", out / "student", "--qat", "1", "--minutes", "0")
    code, printed, _ = typed(capsys, monkeypatch, *tuned)
    assert code == 3
    assert "the ladder" not in printed
    told = load(bundle.path).provenance["qat"]["recipe"]
    assert (told["qat"], told["epochs"], told["start"]) == (True, 1, str(out / "student"))
    assert load(bundle.path).artefacts[0].verdict == "passed"


def test_int8_that_is_ruined_says_why_and_what_works(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By calibration on grey pictures. The epochs are told: how many minutes would give depends on the machine."""
    run, bundle = tmp_path / "run", tmp_path / "run.edgeattn"
    words = ("train", photos, "--out", run, "--epochs", "20", "--attention", "coord", "--set", "lr=0.01", *QUICK)
    assert typed(capsys, monkeypatch, *words)[0] == 0
    assert typed(capsys, monkeypatch, "export", run)[0] == 0
    for i in range(32):
        (tmp_path / "grey" / f"{i}.png").parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "grey" / f"{i}.png"), np.full((70 + i, 90, 3), 128, np.uint8))
    grey = [Sample(path, 0) for path in sorted((tmp_path / "grey").iterdir())]
    calibration.draw(grey, ["grey"], tmp_path / "grey").write(tmp_path / "grey.toml")
    ruined = ("quantize", bundle, "--run", run, "--calibration", tmp_path / "grey.toml")
    code, printed, _ = typed(capsys, monkeypatch, *ruined, "--minutes", "0")
    assert code == 1
    assert "onnxruntime int8 failed: it loses " in printed
    assert f"this one works: edgeattn run {bundle} --engine onnxruntime --precision float" in printed
    assert f"next:  edgeattn quantize {bundle} --run {run} --qat 4 --minutes 10" in printed


def test_train_export_step_by_step(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    code, printed, _ = typed(
        capsys, monkeypatch, "train", photos, "--out", run, "--epochs", "2", "--attention", "cbam", *QUICK
    )
    assert code == 0
    assert f"edgeattn export {run}" in printed
    (told,) = re.findall(
        r"recall ([\d.]+), F1 ([\d.]+) % \(macro\), calibration error ([\d.]+) points", " ".join(printed.split())
    )
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for value, name in zip(told, ("recall", "f1", "calibration_error"), strict=True):
        assert float(value) == pytest.approx(100 * last[f"validation_{name}"], abs=0.051)
    code, printed, _ = typed(capsys, monkeypatch, "export", run, "--target", "rockchip")
    assert code == 0
    assert "differs from torch by" in printed
    lint = f"edgeattn lint {tmp_path / 'run.edgeattn'} --target rockchip"
    assert f"lint: rules of NPU compilers broken: 1; {lint}\n" in printed  # CBAM's maximum over channels
    assert [a.recipe["opset"] for a in load(tmp_path / "run.edgeattn").artefacts] == [19, 19]
    assert load(tmp_path / "run.edgeattn").spec.labels == ("blue", "green", "red")
    code, printed, err = typed(capsys, monkeypatch, "quantize", tmp_path / "run.edgeattn")
    assert (code, "--run RUN" in err, "--data" in err) == (2, True, True)
    outside = (
        "quantize",
        tmp_path / "run.edgeattn",
        "--data",
        photos,
        "--minutes",
        "0",
    )  # as for a bundle from elsewhere
    shutil.copyfile(photos / "red" / "60.png", photos / "red" / "copy.png")
    code, printed, _ = typed(capsys, monkeypatch, *outside)
    (photos / "red" / "copy.png").unlink()
    assert code in (1, 3), "two epochs teach nothing, and 58 pictures cannot tell"
    assert "1 pictures are copies of others: left out" in printed
    assert len(calibration.read(tmp_path / "run.int8" / "calibration.toml")) == 32
    assert load(tmp_path / "run.edgeattn").provenance["calibration"]["pictures"] == 32


def bad(photos: Path, tmp_path: Path, case: str) -> tuple[tuple[str | Path, ...], str]:
    """Words to type, and what the one line must say."""
    empty, one = tmp_path / "empty", tmp_path / "one"
    empty.mkdir()
    shutil.copytree(photos / "red", one / "red")
    torn = tmp_path / "torn"
    for name in ("a", "b"):
        (torn / name).mkdir(parents=True)
        (torn / name / "x.jpg").write_bytes(b"\xff\xd8\xff")
    heic = tmp_path / "heic"
    for name in ("a", "b"):
        (heic / name).mkdir(parents=True)
        (heic / name / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    return {
        "empty": (("make", empty), "empty"),
        "missing": (("make", tmp_path / "none"), "none"),
        "one class": (("make", one), "one class"),
        "all torn": (("make", torn), "cut off"),
        "heic": (("make", heic), "heif-convert"),
        "attention": (("make", photos, "--attention", "coordd"), "mean 'coord'"),
        "model": (("train", photos, "--out", tmp_path / "r", "--model", "picco"), "mean 'pico'"),
        "setting": (("train", photos, "--out", tmp_path / "r", "--set", "epoch=3"), "mean 'epochs'"),
        "range": (("train", photos, "--out", tmp_path / "r", "--epochs", "0"), "epochs=0 is out of range"),
        "manifest": (("quantize", "sign", "--run", tmp_path / "r", "--calibration", tmp_path / "no.toml"), "sign"),
        "zoo quantize": (("quantize", "sign-digits", "--data", photos), "name a copy of it: cp -r"),
        "zoo compile": (("compile", "sign-digits", "--target", "intel"), "name a copy of it: cp -r"),
        "bundle": (("run", tmp_path / "no.edgeattn"), "no.edgeattn"),
        "run": (("export", tmp_path / "no-run"), "holds no finished run"),
        "target": (("export", tmp_path / "no-run", "--target", "rockship"), "mean 'rockchip'"),
    }[case]


CASES = [
    "empty",
    "missing",
    "one class",
    "all torn",
    "heic",
    "attention",
    "model",
    "setting",
    "range",
    "target",
    "manifest",
    "zoo quantize",
    "zoo compile",
    "bundle",
    "run",
]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_line_and_exit_2(
    case: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    words, said = bad(photos, tmp_path, case)
    code, _, err = typed(capsys, monkeypatch, *words)
    assert code == 2
    assert said in err
    assert err.startswith("edgeattn: ")
    assert err.count("\n") == 1
    assert not list(work.rglob("*.edgeattn"))
    assert not list(work.rglob("metrics.jsonl")), "nothing was trained before the mistake was said"


def test_a_missing_extra_names_the_pip_line(tmp_path: Path) -> None:
    # Torch is hidden from a real process, as on an edge box.
    hide = "import sys; sys.modules['torch'] = None\nfrom importlib import util\nreal = util.find_spec\n"
    hide += "util.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a)\n"
    code = hide + "sys.argv = ['edgeattn', 'make', 'x']\nfrom edgeattn.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 2
    assert "pip install 'edgeattn[train]'" in done.stderr


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed, _ = typed(capsys, monkeypatch, "--help")
    assert code == 0
    for verb in (
        "demo",
        "make",
        "train",
        "export",
        "quantize",
        "sensitivity",
        "verify",
        "run",
        "profile",
        "lint",
        "info",
        "doctor",
    ):
        assert verb in printed
