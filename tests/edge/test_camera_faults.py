"""What becomes of a run whose engine, disk or install fails: said where and why, with all that was done kept."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper
from scripted import Clock, Live, read_video, write_video

from edgeattn.bundle import GOLDEN, Bundle, write
from edgeattn.camera import Pipeline
from edgeattn.camera.record import Record
from edgeattn.engines.fake import FakeEngine
from edgeattn.spec import Artefact

SCRIPT = Path(__file__).parents[2] / "tools" / "run_camera.py"
QUICK = ["--engine", "onnxruntime", "--precision", "float"]


def bundle_that_fails_on_white(path: Path) -> Bundle:
    """The tiny classifier, which also looks up its picture's mean in a table that ends at 249."""
    model = tiny.float_model()
    (head,) = (node for node in model.graph.node if node.output[0] == "logits")
    head.output[0] = "plain"
    model.graph.node.extend([
        helper.make_node("ReduceMean", ["cast"], ["brightness"], "brightness", keepdims=0),
        helper.make_node("Cast", ["brightness"], ["place"], "place", to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "place"], ["nought"], "lookup"),
        helper.make_node("Add", ["plain", "nought"], ["logits"], "sum"),
    ])  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(250, np.float32), "table"))
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    artefact = Artefact("float.onnx", "onnxruntime", "float", gates=tiny.PASSED)
    return write(Bundle(path, tiny.SPEC, (artefact,)), {"float.onnx": data, GOLDEN: tiny.golden(data)})


def test_an_inference_that_fails_ends_the_run_with_file_reason_and_report(tmp_path: Path) -> None:
    """A real failure of a real engine, at the sixth frame: one line, exit code 2, so that a service starts it again."""
    bundle = bundle_that_fails_on_white(tmp_path / "fails.edgeattn")
    good = [picture for picture, _ in tiny.pictures(5, height=96, width=128)]
    video = write_video(tmp_path / "clip.mp4", [*good, *[np.full((96, 128, 3), 255, np.uint8)] * 5])
    options = ["--source", str(video), "--sink", "mp4", "--out", "seen.mp4", "--json", "run.json"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(bundle.path), *QUICK, *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "float.onnx: onnxruntime failed to run it (" in done.stderr
    assert "lookup" in done.stderr, "the engine's own word for the place"
    assert json.loads((tmp_path / "run.json").read_text())["frames"] == 5
    assert "5 frames, " in done.stdout
    assert len(read_video(tmp_path / "seen.mp4")) == 5


def test_an_inference_of_five_seconds_drops_what_came_meanwhile_and_the_next_frame_is_fresh() -> None:
    """A camera of 30 frames a second; the engine hangs once."""
    clock = Clock()
    during = [round(5000 + 1000 * i / 30, 3) for i in range(1, 151)]  # the 150 frames that come while it hangs
    source = Live([[5000.0], during, [10010.0]])
    clock.advance_ms(5000)

    def work(seconds: float) -> None:
        clock.sleep(seconds)
        source.next_batch()

    engine = FakeEngine({"logits": np.array([[4.0, 0, 0]], np.float32)}, [5000.0, 10.0, 10.0], sleep=work)
    record, results = Record(clock), []
    with Pipeline(Bundle(Path("x"), tiny.SPEC, ()), source, clock=clock, opened_engine=engine) as pipeline:
        for result in pipeline:
            record.add(result)
            results.append(result)
    assert [round(result.age_ms) for result in results] == [5000, 10, 10], "told, and the next ones are the newest"
    assert [result.frame.index for result in results] == [0, 150, 151]
    report = record.report()
    assert report["dropped"] == 149
    assert report["age_ms"]["max"] == pytest.approx(5000.0)


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's files")
def test_a_live_run_goes_on_where_the_kernel_writes_no_more(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Files of at most 4 kB, by RLIMIT_FSIZE: the lines stop, with a word, and the run does not."""
    options = ["--source", "test", "--sink", "jsonl", "--out", "seen.jsonl", "--max-frames", "60"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tiny_bundle.path), *QUICK, *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )  # fmt: skip
    assert "jsonl is not written for now: seen.jsonl: cannot be written (File too large)" in done.stdout
    assert "60 frames, " in done.stdout
    whole = (tmp_path / "seen.jsonl").read_text().splitlines()[:-1]
    assert 10 < len(whole) < 40
    assert [json.loads(line)["label"] in tiny.LABELS for line in whole] == [True] * len(whole)
