from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import typer
from rich.console import Console
from typer.testing import CliRunner

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle
from edgeattn.cli.profile import profile as profile_verb
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import BundleError, EngineError, NameNotFoundError, SourceError, SpecError
from edgeattn.profiling import Profiler, Report, profile
from edgeattn.profiling.frames import builtin
from edgeattn.profiling.report import STAGES
from edgeattn.profiling.table import render
from edgeattn.spec import InputSpec

LOGITS = {"logits": np.zeros((1, 3), np.float32)}


def shown(report: Report) -> str:
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(render(report))
    return capture.get()


def sleeping(monkeypatch: pytest.MonkeyPatch, **delays_ms: float) -> dict[str, FakeEngine]:
    """Put sleeping engines in the place of real ones; keys as in `onnxruntime_int8`."""
    opened: dict[str, FakeEngine] = {}

    def open_artefact(bundle: Bundle, artefact: object, threads: int | None = None) -> FakeEngine:
        key = f"{artefact.engine}_{artefact.precision}"  # type: ignore[attr-defined]
        engine = FakeEngine(LOGITS, delays_ms[key], precision=artefact.precision, threads=threads or 1)  # type: ignore[attr-defined]
        engine.name = artefact.engine  # type: ignore[attr-defined]
        opened[key] = engine
        return engine

    monkeypatch.setattr("edgeattn.engines.open_artefact", open_artefact)
    return opened


def test_all_artefacts_by_real_engines(tiny_int8_bundle: Bundle) -> None:
    report = profile(tiny_int8_bundle, samples=64, threads=1)
    measured = [(r.engine, r.precision, r.executed_precision, r.threads) for r in report.results]
    assert measured == [
        ("onnxruntime", "float", "f32", 1),
        ("openvino", "float", "f32", 1),
        ("onnxruntime", "int8", "int8", 1),
        ("openvino", "int8", "int8", 1),
    ]
    for result in report.results:
        assert result.latencies_ms.shape == (64,)
        assert (result.latencies_ms > 0).all()
        assert set(result.stages_ms) == set(STAGES)
        assert all(len(values) == 8 for values in result.stages_ms.values())
        assert result.load_ms > result.latency_ms["p50"]
        assert result.first_ms > 0
        assert result.warmup >= 3
    assert report.digest == tiny_int8_bundle.digest()
    assert not report.stopped_early


def test_the_engines_own_clock_counts_less_than_the_call(tiny_bundle: Bundle) -> None:
    report = profile(tiny_bundle, samples=64, threads=1)
    inside = {r.engine: r.inside_ms for r in report.results}
    call_ms = {r.engine: r.latencies_ms for r in report.results}
    assert inside["onnxruntime"].size == 0
    assert inside["openvino"].shape == call_ms["openvino"].shape
    assert (inside["openvino"] > 0).all()
    assert (inside["openvino"] < call_ms["openvino"]).all()
    written = {r["engine"]: r["inside_ms"] for r in report.to_json()["results"]}
    assert written["onnxruntime"] is None
    assert written["openvino"]["p50"] == pytest.approx(np.median(inside["openvino"]))
    assert "Median inside engine" in shown(report)
    assert "benchmark_app counts so" in " ".join(shown(report).split())


def test_json_has_the_promised_names(tiny_bundle: Bundle) -> None:
    written = json.loads(json.dumps(profile(tiny_bundle, samples=64).to_json()))
    assert written["schema"] == "edgeattn.profile/1"
    assert written["valid"] is (written["disturbances"] == [])
    assert written["environment"]["versions"]["numpy"] == np.__version__
    for result in written["results"]:
        assert set(result["latency_ms"]) == {"p50", "p90", "p95", "p99", "p99.9", "max", "mean", "min"}
        low, high = result["latency_interval_ms"]["p50"]
        assert low <= result["latency_ms"]["p50"] <= high
        assert np.percentile(result["latencies_ms"], 90) == pytest.approx(result["latency_ms"]["p90"], abs=1e-4)
        assert {layer["precision"] for layer in result["layers"]} >= {"f32"}
        assert len(result["details"]["sha256"]) == 64
        assert (result["details"]["streams"], result["details"]["pinning"]) == (1, False)
        assert result["latency_ms"]["p50"] <= result["latency_ms"]["p90"] <= result["latency_ms"]["max"]
        assert result["latency_ms"]["p99"] is None  # 64 samples are no 662
        assert (result["mode"], result["n"], result["blocks"], result["ratio_to_float"]) == ("single", 64, [], 1.0)
        assert set(result["stages_ms"]) == set(STAGES)


def test_names_choose_what_is_measured(tiny_int8_bundle: Bundle) -> None:
    def measured(**named: str) -> list[tuple[str, str]]:
        return [(r.engine, r.precision) for r in profile(tiny_int8_bundle, samples=1, **named).results]

    assert measured(engine="openvino") == [("openvino", "float"), ("openvino", "int8")]
    assert measured(precision="int8") == [("onnxruntime", "int8"), ("openvino", "int8")]
    assert measured(engine="onnxruntime", precision="float") == [("onnxruntime", "float")]


@pytest.mark.parametrize("named", [{"precision": "int8"}, {"precision": "int8", "engine": "openvino"}])
def test_artefact_that_is_not_there(tiny_bundle: Bundle, named: dict[str, str]) -> None:
    with pytest.raises(BundleError, match=r"holds no int8 artefact.*it holds: onnxruntime float.*edgeattn quantize"):
        profile(tiny_bundle, **named)


def test_bad_arguments(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(NameNotFoundError, match="Did you mean 'openvino'"):
        profile(tiny_bundle, engine="openvno")
    for wrong in ({"samples": 0}, {"seconds": 0.0}, {"seconds": -1.0}):
        with pytest.raises(SpecError, match="above 0"):
            profile(tiny_bundle, **wrong)
    with pytest.raises(SourceError, match=r"nothing\.mp4"):
        profile(tiny_bundle, source=str(tmp_path / "nothing.mp4"))


def test_sleeping_engines_are_told_apart(tiny_int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    delays = {"onnxruntime_float": 4.0, "openvino_float": 2.0, "onnxruntime_int8": 2.0, "openvino_int8": 1.0}
    engines = sleeping(monkeypatch, **delays)
    report = profile(tiny_int8_bundle, samples=24)
    for result in report.results:
        delay_ms = delays[f"{result.engine}_{result.precision}"]
        assert result.latencies_ms.min() >= delay_ms  # a sleep is never shorter
        assert result.stages_ms["infer"].min() >= delay_ms
    ratios = [report.ratio(result) for result in report.results]
    assert ratios[:2] == [(1.0, 1.0, 1.0)] * 2
    assert all(ratio is not None and ratio.low <= ratio.value < 1.0 for ratio in ratios[2:])
    assert all(engine.closed for engine in engines.values())


def test_artefacts_take_turns(tiny_int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = sleeping(monkeypatch, onnxruntime_float=0.0, openvino_float=0.0, onnxruntime_int8=0.0, openvino_int8=0.0)
    with Profiler(tiny_int8_bundle, samples=80) as profiler:
        before = {key: engine.calls for key, engine in engines.items()}
        for turn, _ in enumerate(itertools.islice(profiler, 10), start=1):
            calls = {engine.calls - before[key] for key, engine in engines.items()}
            assert calls == {11 * turn}  # one by stages, two that do not count, a burst of eight
    assert turn == 10


def test_time_ends_a_profile_by_the_clock(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping(monkeypatch, onnxruntime_float=0.0, openvino_float=0.0)
    report = profile(tiny_bundle, seconds=2.0, clock=itertools.count(0, 1_000_000).__next__)  # 1 ms at every look
    assert 2.0 <= report.seconds < 2.2
    assert not report.stopped_early
    for result in report.results:
        assert set(result.latencies_ms) == {1.0}
        assert (result.load_ms, result.first_ms) == (1.0, 1.0)
        assert set(result.frames_ms) == {5.0}


def test_stopped_early_keeps_what_was_measured(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping(monkeypatch, onnxruntime_float=0.0, openvino_float=0.0)
    with Profiler(tiny_bundle, samples=8000) as profiler:
        with pytest.raises(EngineError, match="stopped before every artefact"):
            profiler.report()
        for done in itertools.islice(profiler, 10):
            assert 0 < done < 1
        report = profiler.report()
    assert report.stopped_early
    assert [len(result.latencies_ms) for result in report.results] == [80, 80]
    assert "stopped early" in shown(report)


def test_interrupt_inside_a_frame_leaves_whole_frames(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = sleeping(monkeypatch, onnxruntime_float=0.0, openvino_float=0.0)
    with Profiler(tiny_bundle, samples=8000) as profiler:
        next(iter(profiler))

        def interrupted(image: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(engines["openvino_float"], "infer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(profiler)
        report = profiler.report()
    for result in report.results:
        assert len({len(values) for values in result.stages_ms.values()}) == 1
        assert len(result.frames_ms) >= 1


def test_engine_that_does_not_open_is_told(tiny_int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeattn import engines

    real = engines.open_artefact

    def without_openvino(bundle: Bundle, artefact: object, **rest: object) -> object:
        if artefact.engine == "openvino":  # type: ignore[attr-defined]
            raise EngineError("openvino cannot be imported; pip install openvino[all]")
        return real(bundle, artefact, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(engines, "open_artefact", without_openvino)
    report = profile(tiny_int8_bundle, samples=8)
    assert [r.engine for r in report.results] == ["onnxruntime", "onnxruntime"]
    assert [(e, p) for e, p, _ in report.skipped] == [("openvino", "float"), ("openvino", "int8")]
    assert "openvino[all]" in shown(report)
    with pytest.raises(EngineError, match=r"no artefact of .* can be run here: openvino cannot be imported"):
        profile(tiny_int8_bundle, engine="openvino")
    with pytest.raises(EngineError, match="openvino cannot be imported"):
        profile(tiny_int8_bundle, engine="openvino", precision="int8")


def test_frames_of_a_folder_come_round_again(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, (picture, _) in enumerate(tiny.pictures(2)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture)
    report = profile(tiny_bundle, source=str(tmp_path), engine="onnxruntime", samples=40)
    assert report.source == str(tmp_path)
    assert len(report.results[0].frames_ms) == 5


def test_builtin_frames_look_like_the_golden_pictures(tiny_bundle: Bundle) -> None:
    frame = next(builtin(tiny_bundle))
    golden = cv2.cvtColor(tiny_bundle.golden()["inputs"][0], cv2.COLOR_RGB2BGR)
    assert (frame.shape, frame.dtype) == ((480, 640, 3), np.uint8)
    assert np.abs(frame.mean((0, 1)) - golden.mean((0, 1))).max() < 3


def test_builtin_frames_of_normalised_and_missing_golden_pictures(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = tiny_bundle.golden()["inputs"]
    floats = InputSpec(32, 32, layout="nchw_f32", mean=(10, 20, 30), std=(50, 60, 70))
    normalised = ((rgb - np.float32(floats.mean)) / np.float32(floats.std)).transpose(0, 3, 1, 2)
    other = dataclasses.replace(tiny_bundle, spec=dataclasses.replace(tiny_bundle.spec, input=floats))
    bytes_frame = next(builtin(tiny_bundle))
    monkeypatch.setattr(Bundle, "golden", lambda self: {"inputs": normalised})
    assert np.array_equal(next(builtin(other)), bytes_frame)
    monkeypatch.setattr(Bundle, "golden", lambda self: {})
    assert next(builtin(tiny_bundle)).shape == (480, 640, 3)


def test_disturbed_profile_is_not_valid(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping(monkeypatch, onnxruntime_float=0.0, openvino_float=0.0)
    measured = profile(tiny_bundle, samples=8)
    calm = dataclasses.replace(measured, waited_share=0.01, other_cores=0.0, stolen_cores=0.0)
    assert calm.valid
    assert dataclasses.replace(calm, waited_share=0.9).valid  # our own threads wait for each other
    assert dataclasses.replace(calm, other_cores=3.0).valid  # on cores that nobody waited for
    assert "disturbed" not in shown(calm)
    unknown = dataclasses.replace(calm, waited_share=None, other_cores=None, stolen_cores=None)
    assert unknown.valid
    assert "not known: no /proc/pressure/cpu" in shown(unknown)
    for disturbed, why in [
        (dataclasses.replace(calm, waited_share=0.3, other_cores=0.8), "waited for one 30% of the time"),
        (dataclasses.replace(calm, waited_share=None, other_cores=3.0), "the kernel tells not whether we waited"),
        (dataclasses.replace(calm, stolen_cores=0.2), "the hypervisor gave 0.20 of our cores"),
    ]:
        assert not disturbed.valid
        assert why in " ".join(shown(disturbed).split())
    crowded = dataclasses.replace(calm, results=(dataclasses.replace(calm.results[0], threads=4096),))
    assert "more threads than" in crowded.disturbances[0]


def test_table_says_what_is_missing(tiny_bundle: Bundle) -> None:
    text = shown(profile(tiny_bundle, samples=80))
    assert "p99: not enough samples (80 of 662);" in text
    assert "s more, measured with --until p99" in text
    assert "p90: not" not in text
    assert "capture" in text
    for label in ("Median", "Average", "Min", "Max", "Throughput, FPS"):  # as benchmark_app's users know them
        assert f"\n{label} " in text


def test_verb_writes_the_report(tiny_bundle: Bundle, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(profile_verb)
    path = tmp_path / "new" / "report.json"
    outcome = CliRunner().invoke(app, [str(tiny_bundle.path), "--samples", "8", "--json", str(path)])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(path.read_text())["results"][1]["engine"] == "openvino"


def test_verb_stopped_by_ctrl_c_shows_what_it_has(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = sleeping(monkeypatch, onnxruntime_float=0.0, openvino_float=0.0)
    real = FakeEngine.infer

    def infer(self: FakeEngine, image: np.ndarray) -> dict[str, np.ndarray]:
        if self is engines.get("openvino_float") and self.calls == 500:
            raise KeyboardInterrupt
        return real(self, image)

    monkeypatch.setattr(FakeEngine, "infer", infer)
    app = typer.Typer()
    app.command()(profile_verb)
    path = tmp_path / "report.json"
    outcome = CliRunner().invoke(app, [str(tiny_bundle.path), "--samples", "100000", "--json", str(path)])
    assert outcome.exit_code == 130, outcome.output
    report = json.loads(path.read_text())
    assert report["stopped_early"]
    assert report["results"][0]["n"] > 300
