"""The ladder: every try is a real file, measured through its engine."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import small
import torch
from disc_ladder import CALIBRATION, VALIDATION, a_ladder

from edgeattn.bundle import Bundle, extend, load
from edgeattn.deploy import ladder as module
from edgeattn.deploy import quantize
from edgeattn.deploy.climb import climb
from edgeattn.deploy.export import Deployed, to_onnx
from edgeattn.deploy.ladder import SURE, Bounds, Ladder
from edgeattn.deploy.recipes.onnxruntime import entrance, float_nodes
from edgeattn.deploy.recipes.plan import Plan
from edgeattn.errors import EdgeAttnError
from edgeattn.spec import path_of
from edgeattn.train import Trained

ORT = ("onnxruntime",)


def quantized_paths(file: Path) -> set[str]:
    """Modules whose weights are integers."""
    graph = onnx.load(file).graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return {path_of(node.name) for node in graph.node if node.op_type == "Conv" and node.input[1] in dequantized}


def test_loose_bounds_are_kept_by_the_lowest_rungs(eca_bundle: Bundle, tmp_path: Path) -> None:
    ladder = a_ladder(eca_bundle, tmp_path / "s", Bounds(loss=0.5, map_js=10.0, rank=-1.0))
    made = climb(ladder, 5.0)
    lowest = {
        "onnxruntime": ["branch float", "all int8", "first layers float", "full bias"],
        "openvino": ["branch float", "all int8", "full bias", "histogram ranges"],
    }
    assert [(step.engine, step.rung) for step in ladder.steps] == [(e, rung) for e in lowest for rung in lowest[e]]
    for engine, (artefact, files) in made.items():
        best = [step for step in ladder.steps if step.engine == engine and step.kept][-1]
        assert best.is_inside
        assert artefact.recipe["other_blocks"] == best.plan.others
        assert [told["rung"] for told in artefact.recipe["ladder"]] == lowest[engine]
        assert all(Path(str(file)).is_file() for file in files.values())


def test_blocks_that_are_off_get_float_attention_and_the_second_climb_remembers(
    eca_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds that int8 cannot keep: all rungs are tried, each nearer, and what is left in float is in the file."""
    # Of divergence alone: ranks of small maps go in steps, which may hide that float is nearer.
    tight, memory = Bounds(map_js=1e-9, rank=0.0), tmp_path / "ladder.jsonl"
    ladder = a_ladder(eca_bundle, tmp_path / "s", tight, memory)
    made = climb(ladder, 5.0, engines=ORT)
    assert [step.rung for step in ladder.steps] == [
        "branch float", "all int8", "first layers float", "full bias", "attention float", "block float",
    ]  # fmt: skip
    kept = [step for step in ladder.steps if step.kept]
    pulls = [step.pull for step in kept]
    assert pulls == sorted(pulls, reverse=True)
    best = kept[-1]
    assert set(best.plan.rungs.values()) <= {"attention", "block"}
    assert set(best.plan.rungs) == {ladder.in_graph(block) for block in best.off}, "all are off"
    assert len(best.plan.rungs) == small.BLOCKS
    artefact, files = made["onnxruntime"]
    assert artefact.recipe["blocks"] == dict(best.plan.rungs)
    touched = quantized_paths(Path(str(files["int8.onnx"])))
    for block, rung in best.plan.rungs.items():
        inside = block if rung == "block" else f"{block}.attention"
        assert not any(f"{path}.".startswith(f"{inside}.") for path in touched), f"{inside} was to stay in float"
    assert touched, "the rest is int8"

    def measured_again(*_: object, **__: object) -> None:
        raise AssertionError("this was measured before")

    monkeypatch.setattr(module, "verify", measured_again)
    again = a_ladder(eca_bundle, tmp_path / "s2", tight, memory)
    assert climb(again, 5.0, engines=ORT)["onnxruntime"][0].recipe["blocks"] == dict(best.plan.rungs)
    assert [replace(s, seconds=0) for s in again.steps] == [replace(s, seconds=0) for s in ladder.steps]
    assert again.knows("onnxruntime", best.plan)
    others = [(picture[:, ::-1].copy(), label) for picture, label in VALIDATION]
    assert not replace(again, validation=others).knows("onnxruntime", best.plan), "other pictures of the same labels"
    for name, other in (("processor_key", lambda: "another"), ("default_threads", lambda: 64), ("STEM_CHANNELS", 1)):
        with monkeypatch.context() as there:
            there.setattr(module, name, other)
            assert not again.knows("onnxruntime", best.plan), f"another {name}"
    assert again.knows("onnxruntime", best.plan)


def test_one_block_that_is_off_is_repaired_and_no_other(
    pico_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound on the divergence that all blocks but one keep: what counts is the worst, not most of them."""
    monkeypatch.setattr(Ladder, "entrance", lambda *_: ())  # with the first layers in float another one is off
    full = Plan(bias="full", others="int8")  # what the rungs before its own try, else one of them may be what repairs
    loose = Bounds(loss=0.5, map_js=1.0, rank=-1e6)  # of the ranks nothing is asked
    first = a_ladder(pico_bundle, tmp_path / "first", loose).attempt("onnxruntime", full, "branch float")
    worst, second = sorted(first.off, key=lambda block: -first.off[block])[:2]
    between = replace(loose, map_js=(first.off[worst] * first.off[second]) ** 0.5)
    ladder = replace(a_ladder(pico_bundle, tmp_path / "second", between), start=full)
    step = ladder.attempt("onnxruntime", full, "branch float")
    assert [block for block in step.off if step.off[block] > 1.0] == [worst]
    assert step.excess == pytest.approx(step.off[worst])
    assert not step.is_inside
    climb(ladder, 5.0, engines=ORT)
    assert next(step.blocks for step in ladder.steps if step.rung == "attention float") == (worst,)


def test_maps_of_which_it_is_not_sure_are_brought_nearer(eca_bundle: Bundle, tmp_path: Path) -> None:
    """A bound just above the worst block's figure: it is inside, and ten pictures do not prove it."""
    loose = Bounds(loss=0.5, map_js=1.0, rank=-1e6)  # of the ranks nothing is asked
    first = a_ladder(eca_bundle, tmp_path / "first", loose).attempt("onnxruntime", Plan(), "branch float")
    ladder = a_ladder(eca_bundle, tmp_path / "second", replace(loose, map_js=1.001 * max(first.off.values())))
    step = ladder.attempt("onnxruntime", Plan(), "branch float")
    assert (step.is_inside, step.verdict, step.standing) == (True, "cannot tell", 1)
    climb(ladder, 5.0, engines=ORT)
    best = [step for step in ladder.steps if step.kept][-1]
    assert best.standing == SURE
    assert max(best.off.values()) < max(step.off.values())


def test_without_time_the_default_recipe_is_taken(eca_bundle: Bundle, tmp_path: Path) -> None:
    path = extend(eca_bundle, (), {}, path=tmp_path / "q.edgeattn")
    made = quantize(path, CALIBRATION, VALIDATION, minutes=1e-6)
    assert [(step.rung, step.kept) for step in made.steps] == [("branch float", True)] * 2
    held = load(made.bundle.path).artefact("openvino", "int8")
    assert (held.recipe["blocks"], held.recipe["other_blocks"], held.recipe["tuned"]) == ({}, "branch", False)
    assert len(held.recipe["ladder"]) == 1


def test_fine_tuning_is_the_last_rung_and_is_asked_for_when_needed_alone(
    eca_run: Trained, eca_bundle: Bundle, tmp_path: Path
) -> None:
    asked = []

    def tune() -> onnx.ModelProto:
        asked.append(1)
        return to_onnx(Deployed(eca_run.model), eca_bundle.spec)

    easy = a_ladder(eca_bundle, tmp_path / "easy", Bounds(loss=0.5, map_js=10.0, rank=-1.0))
    climb(easy, 5.0, tune, engines=ORT)
    assert not asked
    hard = a_ladder(eca_bundle, tmp_path / "hard", Bounds(map_js=1e-9))
    climb(hard, 5.0, tune, engines=ORT)
    assert len(asked) == 1
    rungs = [step.rung for step in hard.steps]
    assert rungs.index("QAT") > rungs.index("block float")


def test_a_rung_whose_toolchain_fails_is_told_and_passed_over(
    eca_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module.quantize_for

    def fails(engine: str, source: Path, folder: Path, inputs: object, plan: Plan) -> object:
        if plan != Plan():
            raise EdgeAttnError("not today")
        return original(engine, source, folder, inputs, plan)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "quantize_for", fails)
    ladder = a_ladder(eca_bundle, tmp_path / "s", Bounds(map_js=1e-9))
    climb(ladder, 5.0, engines=("openvino",))
    first, *others = ladder.steps
    assert [step.rung for step in others] == [
        "all int8", "full bias", "histogram ranges", "SmoothQuant 0.15", "SmoothQuant 0.5",
        "attention float", "block float",
    ]  # fmt: skip
    assert first.kept
    assert {(step.failure, step.kept, step.is_inside) for step in others} == {("not today", False, False)}
    assert (others[1].json()["excess"], others[1].json()["plan"]["bias"]) == (None, "full")


def test_every_rung_of_openvino_makes_another_file(eca_bundle: Bundle, tmp_path: Path) -> None:
    """A rung that changes nothing would be measured, and told, in vain."""
    ladder = a_ladder(eca_bundle, tmp_path / "s")
    plans = (
        Plan(),
        Plan(bias="full"),
        Plan(ranges="histogram"),
        Plan(smooth=0.15),
        Plan(smooth=0.5),
        Plan(others="int8"),
    )
    made = {ladder.files("openvino", plan)[1].with_suffix(".bin").read_bytes() for plan in plans}
    assert len(made) == len(plans)


def test_what_each_rung_keeps_in_float(eca_bundle: Bundle) -> None:
    model = onnx.load(eca_bundle.file(eca_bundle.artefact("onnxruntime", "float")))
    block = "backbone.stages.2.1"
    of_block = {node.name for node in model.graph.node if f"{path_of(node.name)}.".startswith(f"{block}.")}
    of_attention = {name for name in of_block if f"{block}.attention" in name}
    kept = {
        rung: set(float_nodes(model, Plan({block: rung}))) & of_block
        for rung in ("int8", "branch", "attention", "block")
    }
    assert not kept["int8"]
    assert kept["int8"] < kept["branch"] < kept["attention"] == of_attention < kept["block"] == of_block
    others = set(float_nodes(model)) - of_block
    assert all(set(float_nodes(model, Plan({block: rung}))) - of_block == others for rung in kept)
    assert np.isin(list(kept["branch"]), list(of_attention)).all()


def test_the_entrance_is_the_first_layer_and_the_depthwise_one_behind_it() -> None:
    """Not one that the default recipe leaves in float, and nothing behind another layer or a sum."""

    def net(channels: int) -> onnx.ModelProto:
        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem = torch.nn.Conv2d(3, channels, 3)
                self.wide = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
                self.plain = torch.nn.Conv2d(channels, channels, 1)
                self.late = torch.nn.Conv2d(channels, channels, 3, groups=channels)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stem((x.float() - 127.0) / 128.0).clamp(0, 6)
                y = torch.nn.functional.hardswish(self.wide(x))
                return self.late(self.plain(y) + x)

        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.onnx.export(Net(), (torch.zeros(1, 3, 8, 8),), file, dynamo=False, opset_version=17)
        return onnx.load_from_string(file.getvalue())

    assert entrance(net(32)) == ("/stem/Conv", "/wide/Conv")
    assert entrance(net(16)) == ("/wide/Conv",)
