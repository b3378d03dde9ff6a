"""The choice on this machine: the fastest of those that can be trusted, said in one line, kept for the next start."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from onnx import numpy_helper

from edgeattn.bundle import Bundle, write
from edgeattn.engines import choose as module
from edgeattn.engines import held, open_engine
from edgeattn.engines.choose import AGREEMENT, choose, golden_agreement
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import BundleError, EngineError
from edgeattn.spec import Artefact

FAST_MS = 20.0
"""Time to spend on timing where the figures do not matter."""


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / "cache"))


def rewritten(bundle: Bundle, folder: Path, change: Callable[[Artefact], Artefact | None], **files: bytes) -> Bundle:
    """A copy of a bundle with other artefacts and files (`int8_onnx` stands for int8.onnx)."""
    held: dict[str, Path | bytes] = {name: bundle.path / name for name in bundle.sha256}
    held |= {name.replace("_", "."): data for name, data in files.items()}
    changed = tuple(new for old in bundle.artefacts if (new := change(old)))
    return write(replace(bundle, path=folder / "changed.edgeattn", artefacts=changed), held)


def judged(verdict: str, precision: str) -> Callable[[Artefact], Artefact]:
    return lambda a: replace(a, gates={"loss": {"verdict": verdict}}) if a.precision == precision else a


def ticking(step_ns: int = 1_000_000) -> Callable[[], int]:
    """A clock that goes on by the same step at each look: all engines are equally fast."""
    ticks = itertools.count(0, step_ns)
    return lambda: next(ticks)


def test_all_that_passed_are_timed_and_the_fastest_is_taken(tiny_int8_bundle: Bundle) -> None:
    choice = choose(tiny_int8_bundle, threads=1, budget_ms=FAST_MS)
    assert {(t.engine, t.precision) for t in choice.timings} == {
        (engine, precision) for engine in ("onnxruntime", "openvino") for precision in ("float", "int8")
    }
    assert all(t.n >= 5 and t.median_ms > 0 for t in choice.timings)
    assert (choice.timings[0].engine, choice.timings[0].precision) == (choice.engine, choice.precision)
    assert choice.timings[0].median_ms <= module.TIE * min(t.median_ms for t in choice.timings)
    others = [t.median_ms for t in choice.timings[1:]]
    assert others == sorted(others)
    assert choice.notes == ()
    assert not choice.cached


def test_the_line_names_the_choice_the_others_and_where_it_was_measured(tiny_int8_bundle: Bundle) -> None:
    choice = choose(tiny_int8_bundle, budget_ms=FAST_MS)
    first, *others = choice.timings
    assert choice.line.startswith(f"{first.engine} {first.precision}: {first.median_ms:.2f} ms (")
    for other in others:
        assert f"{other.engine} {other.precision} {other.median_ms:.2f}" in choice.line
    assert choice.line.endswith("timed on this machine)")


def test_bf16_is_left_out_where_the_processor_does_not_compute_it(
    tiny_int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle made on another processor says nothing of it here, unless it is asked for by name."""
    source = tiny_int8_bundle.artefact("openvino", "float")
    bundle = replace(tiny_int8_bundle, artefacts=(*tiny_int8_bundle.artefacts, replace(source, precision="bf16")))
    monkeypatch.setattr("edgeattn.engines.openvino.computes_bf16", lambda: False)
    choice = choose(bundle, threads=1, budget_ms=FAST_MS)
    assert "bf16" not in choice.line
    with pytest.raises(EngineError, match="does not compute in bf16"):
        choose(bundle, engine="openvino", precision="bf16")
    monkeypatch.setattr("edgeattn.engines.openvino.computes_bf16", lambda: True)
    assert [a.precision for a in held(bundle, ["openvino"])] == ["float", "int8", "bf16"]


def test_weights_of_eight_bits_are_left_out_where_they_overflow(
    tiny_int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tuple(
        replace(a, recipe={"weights": "s8 per channel"}) if a.precision == "int8" else a
        for a in tiny_int8_bundle.artefacts
    )
    bundle = replace(tiny_int8_bundle, artefacts=wide)
    monkeypatch.setattr(module, "adds_bytes_exactly", lambda: False)
    choice = choose(bundle, budget_ms=FAST_MS)
    assert {t.precision for t in choice.timings} == {"float"}
    assert "quantize --portable" in choice.line
    monkeypatch.setattr(module, "adds_bytes_exactly", lambda: True)
    monkeypatch.setenv("EDGEATTN_CACHE", "/nonexistent/cache")
    assert {t.precision for t in choose(bundle, budget_ms=FAST_MS).timings} == {"float", "int8"}


def test_equally_fast_goes_to_float_and_says_so(tiny_int8_bundle: Bundle) -> None:
    choice = choose(tiny_int8_bundle, clock=ticking(), budget_ms=FAST_MS)
    assert choice.precision == "float"
    assert {t.median_ms for t in choice.timings} == {1.0}


def test_a_tie_that_is_a_little_slower_is_explained() -> None:
    timings = [module.Timing("onnxruntime", "float", 1.03, 9), module.Timing("openvino", "int8", 1.0, 9)]
    line = module._line(timings, [])
    assert line == "onnxruntime float: 1.03 ms (openvino int8 1.00; a tie, so the float one; timed on this machine)"


def test_timing_is_interleaved_and_bounded() -> None:
    log: list[str] = []

    class Logged(FakeEngine):
        def infer(self, image: Any) -> dict[str, Any]:
            log.append(self.precision)
            return super().infer(image)

    engines = [Logged({"logits": [[0.0]]}, precision=name) for name in ("float", "int8")]
    times = module._interleaved(engines, tiny.inputs(1), ticking(), budget_ms=0)
    assert [len(ms) for ms in times] == [module.ROUNDS[0]] * 2
    warm = 2 * module.WARM_UP
    assert log[warm:] == ["float", "int8"] * module.ROUNDS[0]
    times = module._interleaved(engines, tiny.inputs(1), lambda: 0, budget_ms=1000)
    assert [len(ms) for ms in times] == [module.ROUNDS[1]] * 2


def test_the_choice_is_kept_and_read_again(tiny_int8_bundle: Bundle) -> None:
    first = choose(tiny_int8_bundle, threads=1, budget_ms=FAST_MS)
    again = choose(tiny_int8_bundle, threads=1, clock=_unused)
    assert again.cached
    assert (again.engine, again.precision, again.timings) == (first.engine, first.precision, first.timings)
    assert again.line == first.line.replace("timed on this machine", "timed on this machine before")


@pytest.mark.parametrize("asked", [{"threads": 2}, {"threads": 1, "maps": True}, {"threads": 1, "engine": "openvino"}])
def test_another_question_is_timed_anew(tiny_int8_bundle: Bundle, asked: dict[str, Any]) -> None:
    choose(tiny_int8_bundle, threads=1, budget_ms=FAST_MS)
    assert not choose(tiny_int8_bundle, **asked, budget_ms=FAST_MS).cached


def test_another_processor_or_version_is_timed_anew(tiny_int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(tiny_int8_bundle, budget_ms=FAST_MS)
    with monkeypatch.context() as patch:
        patch.setattr(module, "processor_key", lambda: "another-processor")
        assert not choose(tiny_int8_bundle, budget_ms=FAST_MS).cached
    with monkeypatch.context() as patch:
        patch.setattr(module, "versions", lambda: {"onnxruntime": "99.0"})
        assert not choose(tiny_int8_bundle, budget_ms=FAST_MS).cached
    assert choose(tiny_int8_bundle, budget_ms=FAST_MS).cached


def test_another_model_and_other_verdicts_are_timed_anew(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    choose(tiny_int8_bundle, budget_ms=FAST_MS)
    other = rewritten(tiny_int8_bundle, tmp_path, judged("failed", "int8"))
    choice = choose(other, budget_ms=FAST_MS)
    assert not choice.cached
    assert choice.precision == "float"


@pytest.mark.parametrize("spoilt", ["", "{}", '{"key": 1, "choice": {}}', "[1]", "\x00"])
def test_a_spoilt_cache_is_timed_anew(tiny_int8_bundle: Bundle, tmp_path: Path, spoilt: str) -> None:
    choose(tiny_int8_bundle, budget_ms=FAST_MS)
    (kept,) = (tmp_path / "cache" / "choices").glob("*.json")
    kept.write_text(spoilt)
    assert not choose(tiny_int8_bundle, budget_ms=FAST_MS).cached
    assert choose(tiny_int8_bundle, budget_ms=FAST_MS).cached


def test_a_cache_that_cannot_be_written_means_timing_every_time(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert not choose(tiny_int8_bundle, budget_ms=FAST_MS).cached
    assert not choose(tiny_int8_bundle, budget_ms=FAST_MS).cached


@pytest.mark.parametrize("verdict", ["failed", "cannot tell"])
def test_int8_that_did_not_pass_is_no_candidate(tiny_int8_bundle: Bundle, tmp_path: Path, verdict: str) -> None:
    bundle = rewritten(tiny_int8_bundle, tmp_path, judged(verdict, "int8"))
    choice = choose(bundle, budget_ms=FAST_MS)
    assert {t.precision for t in choice.timings} == {"float"}
    assert choice.notes == ()


@pytest.mark.parametrize(
    ("verdict", "said"), [("failed", "its gates failed"), ("cannot tell", "not proven by its gates")]
)
def test_asked_for_by_name_int8_that_did_not_pass_opens_and_says_so(
    tiny_int8_bundle: Bundle, tmp_path: Path, verdict: str, said: str
) -> None:
    bundle = rewritten(tiny_int8_bundle, tmp_path, judged(verdict, "int8"))
    choice = choose(bundle, precision="int8", budget_ms=FAST_MS)
    assert choice.precision == "int8"
    assert said in choice.line
    assert open_engine(bundle, precision="int8").precision == "int8"


def test_without_any_that_passed_unproven_float_is_taken_and_said(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    bundle = rewritten(tiny_int8_bundle, tmp_path, lambda a: replace(a, gates={}))
    choice = choose(bundle, budget_ms=FAST_MS)
    assert {t.precision for t in choice.timings} == {"float"}
    assert "not proven by its gates" in choice.line


def test_nothing_that_can_be_used_is_an_error_with_the_next_step(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    bundle = rewritten(tiny_int8_bundle, tmp_path, lambda a: replace(a, gates={"loss": {"verdict": "failed"}}))
    with pytest.raises(EngineError, match=r"no artefact passed its gates.*edgeattn verify.*--precision"):
        choose(bundle)


def test_int8_that_computes_otherwise_here_is_dropped_and_the_line_says_so(
    tiny_int8_bundle: Bundle, tmp_path: Path
) -> None:
    """As without VNNI, where 16-bit sums may overflow: the maker's gates passed, this machine's answers differ."""
    bundle = rewritten(tiny_int8_bundle, tmp_path, lambda a: a, int8_onnx=tiny.spoilt_int8_model())
    choice = choose(bundle, budget_ms=FAST_MS)
    assert ("onnxruntime", "int8") not in {(t.engine, t.precision) for t in choice.timings}
    assert ("openvino", "int8") in {(t.engine, t.precision) for t in choice.timings}
    assert "onnxruntime int8 left out: here it gives the maker's answer on 33 % of the golden inputs" in choice.line
    assert choose(bundle).line.count("left out") == 1, "a cached choice still says what was left out"


def test_asked_for_by_name_it_opens_all_the_same_and_says_so(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    bundle = rewritten(tiny_int8_bundle, tmp_path, lambda a: a, int8_onnx=tiny.spoilt_int8_model())
    choice = choose(bundle, engine="onnxruntime", precision="int8", budget_ms=FAST_MS)
    assert (choice.engine, choice.precision) == ("onnxruntime", "int8")
    assert "opened as asked, but here it gives the maker's answer on 33 %" in choice.line
    assert "no other to choose from" in choice.line


def test_an_artefact_is_held_to_what_it_did_where_it_was_made(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    """Its gates passed although it answers a third of the golden inputs as float does: here it does no worse."""

    def known(artefact: Artefact) -> Artefact:
        return replace(artefact, gates={"loss": {"verdict": "passed", "golden_agreement": 1 / 3}})

    bundle = rewritten(tiny_int8_bundle, tmp_path, known, int8_onnx=tiny.spoilt_int8_model())
    choice = choose(bundle, budget_ms=FAST_MS)
    assert ("onnxruntime", "int8") in {(t.engine, t.precision) for t in choice.timings}
    assert choice.notes == ()


def test_nothing_that_can_be_trusted_here_is_an_error(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    model = tiny.float_model()
    head = next(w for w in model.graph.initializer if w.name == "head")
    head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), "head"))
    bundle = rewritten(
        tiny_int8_bundle,
        tmp_path,
        lambda a: a if a.precision == "float" else None,
        float_onnx=model.SerializeToString(),
    )
    with pytest.raises(EngineError, match="nothing in it can be run and trusted here: onnxruntime float left out"):
        choose(bundle)


def test_answers_that_are_not_numbers_agree_with_nobody(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    right: Iterator[dict[str, Any]] = ({"logits": row[None]} for row in golden["logits"])
    assert golden_agreement(FakeEngine(right), golden, tiny.SPEC) == 1.0
    assert golden_agreement(FakeEngine({"logits": [[np.nan, 0.0, 0.0]]}), golden, tiny.SPEC) == 0.0
    third = golden_agreement(FakeEngine({"logits": [[1.0, 0.0, 0.0]]}), golden, tiny.SPEC)
    assert third == pytest.approx(1 / 3)
    assert third < AGREEMENT
    assert golden_agreement(FakeEngine([]), {}, tiny.SPEC) == 1.0


def test_an_engine_that_is_not_installed_leaves_the_other(
    tiny_int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    choice = choose(tiny_int8_bundle, budget_ms=FAST_MS)
    assert choice.engine == "onnxruntime"
    assert "openvino int8 left out: openvino cannot be imported" in choice.line
    with pytest.raises(EngineError, match="pip install openvino"):
        choose(tiny_int8_bundle, engine="openvino")


def test_an_engine_or_precision_asked_for_is_the_only_one_considered(tiny_int8_bundle: Bundle) -> None:
    assert {t.engine for t in choose(tiny_int8_bundle, engine="openvino", budget_ms=FAST_MS).timings} == {"openvino"}
    timed = choose(tiny_int8_bundle, precision="int8", budget_ms=FAST_MS).timings
    assert {t.precision for t in timed} == {"int8"}


def test_what_the_bundle_does_not_hold_is_said(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="holds no int8 artefact for openvino"):
        choose(tiny_bundle, engine="openvino", precision="int8")
    with pytest.raises(BundleError, match="holds no int8 artefact"):
        choose(tiny_bundle, precision="int8")


def test_a_bundle_without_golden_inputs_is_timed_on_noise(tmp_path: Path) -> None:
    whole = tiny.bundle(tmp_path / "tiny.edgeattn")
    bundle = write(replace(whole, path=tmp_path / "bare.edgeattn"), {"float.onnx": whole.path / "float.onnx"})
    assert choose(bundle, budget_ms=FAST_MS).precision == "float"


def test_open_engine_opens_the_choice(tiny_int8_bundle: Bundle) -> None:
    choice = choose(tiny_int8_bundle, budget_ms=FAST_MS)
    engine = open_engine(tiny_int8_bundle)
    assert (engine.name, engine.precision) == (choice.engine, choice.precision)


def _unused() -> int:
    raise AssertionError("a kept choice must not time anything")
