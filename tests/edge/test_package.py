from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import edgeattn
from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle

TRAINING = {"torch", "nncf", "accelerate", "sklearn", "skimage", "matplotlib", "onnxscript", "pandas"}
HEAVY = TRAINING | {"cv2", "numpy", "onnx", "onnxruntime", "openvino", "rich", "typer"}


def python(code: str) -> dict[str, object]:
    """Run `code` in a new interpreter; it prints JSON in its last line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def loaded_after(code: str) -> set[str]:
    """Top-level packages that are loaded after `code`."""
    report = python(f"{code}\nimport json, sys\nprint(json.dumps({{'modules': sorted(sys.modules)}}))")
    return {str(name).partition(".")[0] for name in list(report["modules"])}  # type: ignore[call-overload]


def test_root_names() -> None:
    assert edgeattn.__all__ == [
        "Bundle",
        "Camera",
        "EdgeAttnError",
        "Folder",
        "Pipeline",
        "Spec",
        "Video",
        "load",
        "open_engine",
        "profile",
    ]
    for name in edgeattn.__all__:
        assert getattr(edgeattn, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'train_all'"):
        _ = edgeattn.train_all


def test_import_loads_nothing_heavy() -> None:
    assert not loaded_after("import edgeattn") & HEAVY


def test_edge_side_never_loads_the_training_half() -> None:
    names = ", ".join(edgeattn.__all__)
    assert not loaded_after(f"from edgeattn import {names}\nimport edgeattn.deploy.verify") & TRAINING


def test_command_starts_light() -> None:
    assert not loaded_after("import edgeattn.cli") & (TRAINING | {"cv2", "onnx", "onnxruntime", "openvino"})


@pytest.mark.parametrize("verb", ["run --source {folder} --sink none", "profile --samples 8 --source {folder}"])
def test_verbs_of_the_edge_never_load_the_training_half(tiny_bundle: Bundle, tmp_path: Path, verb: str) -> None:
    for i, (picture, _) in enumerate(tiny.pictures(2)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture)
    name, *options = verb.format(folder=tmp_path).split()
    arguments = ["edgeattn", name, str(tiny_bundle.path), *options]
    code = f"import sys, edgeattn.cli\nsys.argv = {arguments}\n"
    code += "try: edgeattn.cli.main()\nexcept SystemExit as end: assert not end.code"
    loaded = loaded_after(code)
    assert loaded & {"onnxruntime", "openvino"}  # it did run, on whichever was the faster here
    assert not loaded & TRAINING


def test_import_times_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for code in ("import edgeattn", f"from edgeattn import {', '.join(edgeattn.__all__)}"):
        timed = f"import json, time; start = time.perf_counter(); {code}; took = time.perf_counter() - start"
        times_s = [float(str(python(timed + "; print(json.dumps({'s': took}))")["s"])) for _ in range(3)]
        with capsys.disabled():  # a figure for the log, not a bound: the machine may be busy
            print(f"\n{code}: {1000 * min(times_s):.1f} ms")
        assert min(times_s) > 0


def test_base_install_needs_nothing_of_training() -> None:
    requirements = importlib.metadata.requires("edgeattn") or []
    base = {re.split(r"[^\w.-]", line)[0] for line in requirements if "extra ==" not in line}
    assert {"numpy", "onnxruntime", "openvino"} <= base
    forbidden = {"torch", "torchvision", "timm", "nncf", "scikit-learn", "scikit-image", "matplotlib", "accelerate"}
    assert not base & forbidden
    assert not any(name.startswith("opencv") for name in base)  # both of its wheels own cv2: the user names one


def test_version_and_help() -> None:
    for arguments, expected in [(["--version"], edgeattn.__version__), (["--help"], "profile")]:
        command = [sys.executable, "-m", "edgeattn", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert expected in done.stdout
