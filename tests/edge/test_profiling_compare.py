from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import typer
from scripted import Clock
from typer.testing import CliRunner

from edgeattn.bundle import Bundle, load, write
from edgeattn.cli.compare import compare as compare_verb
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import DataError, NameNotFoundError
from edgeattn.profiling.compare import APART, Comparison, compare_files, judge
from edgeattn.profiling.duel import IN_TURNS, Duel
from edgeattn.timing.statistics import Ratio

ONE = {"engine": "openvino", "precision": "float"}


def noisy(rng: np.random.Generator, weather: Callable[[], float], slower: float, layout: float) -> Any:
    """Delays of an engine on a restless machine: slow weather, a long tail, and engines that lie luckily in memory."""
    luck = 1 + layout * rng.normal()
    while True:
        held_up = rng.exponential(1.5) if rng.random() < 0.15 else 0.0
        yield slower * luck * weather() * (1 + rng.exponential(0.08)) + held_up


def duel(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, slower: float, seed: int) -> Comparison:
    """A simulated duel: both sides run on a clock turned by hand, and no real time passes."""
    rng, clock = np.random.default_rng(seed), Clock()
    phase = rng.random()

    def weather() -> float:  # the whole machine is half as fast for seconds on end
        return 1.0 + 0.5 * (np.sin(2 * np.pi * (clock.ns / 3e9 + phase)) > 0)

    def open_artefact(opened: Bundle, artefact: Any, threads: int | None = None) -> FakeEngine:
        factor = slower if opened.provenance.get("after") else 1.0
        engine = FakeEngine(tiny_answer(), noisy(rng, weather, factor, layout=0.01), sleep=clock.sleep)
        engine.name = artefact.engine
        return engine

    monkeypatch.setattr("edgeattn.engines.open_artefact", open_artefact)
    monkeypatch.setattr("edgeattn.profiling.duel.frames.builtin", lambda bundle: iter([small()] * 9999))
    after = dataclasses.replace(bundle, provenance={"after": True})
    fight = Duel(bundle, after, **ONE, seconds=4.0, clock=clock, lot=random.Random(seed))  # type: ignore[arg-type]
    shares = list(fight)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return fight.comparison()


def tiny_answer() -> dict[str, np.ndarray]:
    return {"logits": np.zeros((1, 3), np.float32)}


def small() -> np.ndarray:
    return np.zeros((32, 32, 3), np.uint8)


def test_a_slow_down_of_5_percent_is_found_and_none_is_not(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed = [duel(tiny_bundle, monkeypatch, 1.05, seed).verdict for seed in range(10)]
    assert slowed.count("slower") >= 9
    alike = [duel(tiny_bundle, monkeypatch, 1.0, 100 + seed).verdict for seed in range(20)]
    assert alike.count("slower") + alike.count("faster") <= 1
    assert alike.count("no difference") >= 15
    assert duel(tiny_bundle, monkeypatch, 0.9, 7).verdict == "faster"


def test_verdicts() -> None:
    assert judge(Ratio(1.05, 1.04, 1.06), IN_TURNS) == "slower"
    assert judge(Ratio(0.95, 0.94, 0.96), IN_TURNS) == "faster"
    assert judge(Ratio(1.01, 1.002, 1.02), IN_TURNS) == "no difference"
    assert judge(Ratio(1.01, 0.97, 1.08), IN_TURNS) == "too noisy"
    assert judge(Ratio(1.04, 1.01, 1.07), APART) == "no difference"
    assert judge(Ratio(1.2, 1.1, 1.3), APART) == "slower"


def test_real_engines_in_turns(tiny_int8_bundle: Bundle) -> None:
    fight = Duel(tiny_int8_bundle, tiny_int8_bundle, precision="int8", seconds=0.3, rounds=1)
    assert list(fight)[-1] == 1.0
    found = fight.comparison()
    assert [each.name for each in found.differences] == ["onnxruntime int8", "openvino int8"]
    assert all(each.n >= 48 and each.ratio.low <= each.ratio.value <= each.ratio.high for each in found.differences)
    assert found.notes == ()


def test_bundles_that_cannot_be_compared(tiny_bundle: Bundle, tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="have no artefact in common: nothing that was asked for; onnxruntime int8"):
        Duel(tiny_bundle, tiny_int8_bundle, precision="int8")
    with pytest.raises(NameNotFoundError):
        Duel(tiny_bundle, tiny_bundle, engine="tensorrt")
    spec = dataclasses.replace(tiny_bundle.spec, labels=("red", "green", "azure"))
    other = dataclasses.replace(tiny_bundle, spec=spec)
    assert Duel(tiny_bundle, other, force=True)
    with pytest.raises(DataError, match=r"different models \(their graphs\).*--force"):
        Duel(tiny_bundle, other)
    files = {"float.onnx": tiny.float_model(seed=5).SerializeToString()}
    retrained = write(Bundle(tmp_path / "retrained.edgeattn", tiny.SPEC, tiny_bundle.artefacts), files)
    assert Duel(tiny_bundle, retrained)  # other weights, the same model
    with pytest.raises(DataError, match="stopped before 6 turns"):
        Duel(tiny_bundle, tiny_bundle).comparison()


# --- files


def a_file(path: Path, latencies_ms: Any, **changes: Any) -> Path:
    told = {
        "schema": "edgeattn.profile/1",
        "model": {"task": "classify", "input": [1, 96, 96, 3], "labels": 10, "attention": ["se"], "digest": "1"},
        "environment": {"cpu": "A", "architecture": "x86_64", "versions": {"onnxruntime": "1.30"}},
        "valid": True,
        "disturbances": [],
        "results": [
            {
                "engine": "openvino",
                "precision": "int8",
                "mode": "single",
                "threads": 2,
                "latencies_ms": list(latencies_ms),
            }
        ],
    }
    path.write_text(json.dumps(told | changes))
    return path


def drawn(scale: float, seed: int) -> np.ndarray:
    return scale * np.random.default_rng(seed).lognormal(0, 0.1, 700)


def test_files(tmp_path: Path) -> None:
    a = a_file(tmp_path / "a.json", drawn(1.0, 1))
    for scale, verdict in ((1.2, "slower"), (0.8, "faster"), (1.0, "no difference"), (1.02, "no difference")):
        b = a_file(tmp_path / "b.json", drawn(scale, 2), environment=json.loads(a.read_text())["environment"])
        found = compare_files(a, b)
        assert found.verdict == verdict
        assert found.differences[0].ratio.value == pytest.approx(scale, rel=0.03)
    newer = {"cpu": "A", "architecture": "x86_64", "versions": {"onnxruntime": "1.31", "openvino": "2026.4"}}
    b = a_file(tmp_path / "b.json", drawn(1.0, 2), environment=newer)
    assert compare_files(a, b).notes == ("onnxruntime: 1.30 -> 1.31", "openvino: none -> 2026.4")
    noisy = a_file(tmp_path / "c.json", drawn(1.3, 2), valid=False, disturbances=["other programs used 1 core"])
    assert compare_files(a, noisy).verdict == "too noisy"
    assert f"{noisy} was disturbed: other programs used 1 core" in compare_files(a, noisy).notes


def test_ages_are_compared_too(tmp_path: Path) -> None:
    def paced(path: Path, age_ms: float, **more: Any) -> Path:
        result = {"engine": "openvino", "precision": "int8", "mode": "paced", "threads": 2}
        ages = age_ms + np.random.default_rng(0).random(700)
        return a_file(path, [], results=[result | {"latencies_ms": [1.0] * 700, "ages_ms": ages.tolist()} | more])

    found = compare_files(paced(tmp_path / "a.json", 10), paced(tmp_path / "b.json", 15))
    assert [(each.name, each.verdict) for each in found.differences] == [
        ("openvino int8", "no difference"),
        ("openvino int8, age", "slower"),
    ]
    for more in ({"age_from": "received"}, {"fps_due": 15.0}):  # other ages, or of another pace
        found = compare_files(paced(tmp_path / "a.json", 10), paced(tmp_path / "b.json", 15, **more))
        assert [each.name for each in found.differences] == ["openvino int8"]


def test_a_machine_is_the_same_with_another_kernel_and_another_governor_is_told(tmp_path: Path) -> None:
    machine = {"cpu": "A", "architecture": "x86_64", "memory_mb": 16_000, "governor": "performance"}
    a = a_file(tmp_path / "a.json", drawn(1.0, 1), environment=machine)
    b = a_file(tmp_path / "b.json", drawn(1.0, 2), environment=machine | {"memory_mb": 15_900, "governor": "powersave"})
    assert compare_files(a, b).notes == ("governor: performance -> powersave",)
    less = a_file(tmp_path / "c.json", drawn(1.0, 2), environment=machine | {"memory_mb": 8_000})
    with pytest.raises(DataError, match="memory_mb: 16000; 8000"):
        compare_files(a, less)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": {"input": [1, 224, 224, 3], "digest": "2"}}, "different models"),
        ({"environment": {"cpu": "B", "architecture": "x86_64"}}, "different machines (cpu: A; B)"),
    ],
)
def test_different_models_or_machines_are_refused_unless_forced(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    a, b = a_file(tmp_path / "a.json", drawn(1.0, 1)), a_file(tmp_path / "b.json", drawn(1.0, 2), **changes)
    with pytest.raises(DataError) as raised:
        compare_files(a, b)
    assert told in str(raised.value)
    assert "--force" in str(raised.value)
    found = compare_files(a, b, force=True)
    assert any(note.startswith("forced: ") and told in note for note in found.notes)
    assert any(note.startswith("forced: ") for note in found.to_json()["notes"])


def test_files_that_are_no_profiles(tmp_path: Path) -> None:
    a = a_file(tmp_path / "a.json", drawn(1.0, 1))
    b = tmp_path / "b.json"
    for content, told in [
        ("[]", "is no profile"),
        ("{", "is no profile"),
        ('{"schema": "edgeattn.verify/1"}', "has the schema edgeattn.verify/1, and not edgeattn.profile/1"),
        ('{"schema": "edgeattn.profile/1"}', "tells no model: an older version wrote it"),
        (
            json.dumps(json.loads(a.read_text()) | {"results": [{"engine": "openvino"}]}),
            "a result tells no 'precision'",
        ),
    ]:
        b.write_text(content)
        with pytest.raises(DataError) as raised:
            compare_files(a, b)
        assert told in str(raised.value)
    other = json.loads(a.read_text())["results"][0] | {"threads": 1}
    with pytest.raises(DataError, match="hold no artefact in the same mode"):
        compare_files(a, a_file(b, [], results=[other]))


def test_verb(tiny_bundle: Bundle, tmp_path: Path) -> None:
    verb = typer.Typer()
    verb.command()(compare_verb)
    copy = tmp_path / "copy.edgeattn"
    shutil.copytree(tiny_bundle.path, copy)
    a, b = a_file(tmp_path / "a.json", drawn(1.0, 1)), a_file(tmp_path / "b.json", drawn(1.2, 2))
    report, markdown = tmp_path / "out.json", tmp_path / "out.md"
    outcome = CliRunner().invoke(verb, [str(a), str(b), "--json", str(report), "--markdown", str(markdown)])
    assert outcome.exit_code == 1, outcome.output
    assert "verdict: slower" in outcome.output
    told = json.loads(report.read_text())
    assert (told["schema"], told["verdict"]) == ("edgeattn.compare/1", "slower")
    assert markdown.read_text().startswith("### slower\n")
    assert CliRunner().invoke(verb, [str(b), str(a)]).exit_code == 0  # faster
    wide = a_file(tmp_path / "wide.json", [1.0, 2.0, 1.5, 3.0, 0.5, 2.5])
    assert CliRunner().invoke(verb, [str(a), str(wide)]).exit_code == 3
    mixed = CliRunner().invoke(verb, [str(a), str(copy)])
    assert isinstance(mixed.exception, DataError)
    measured = CliRunner().invoke(verb, [str(tiny_bundle.path), str(copy), "--engine", "openvino", "--seconds", "1"])
    assert measured.exit_code in (0, 1, 3), measured.output
    assert f"{load(copy).path} against {tiny_bundle.path}, in turns" in measured.output
