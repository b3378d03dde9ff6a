"""What a spec refuses, and that JSON gives back what was written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeattn.errors import SpecError
from edgeattn.spec import Artefact, InputSpec, MapSpec, Rejection, Spec, from_json, to_json

SPEC = Spec(
    "classify",
    InputSpec(96, 128, crop=0.9, mean=(127.0, 127.0, 127.0)),
    ("cat", "größe"),
    maps=(MapSpec("map_a", "stages.0", "se"), MapSpec("map_b", "stages.1", "se")),
    rejection=Rejection(0.4, index=2),
)


def test_a_spec_comes_back_from_json_as_it_was() -> None:
    assert from_json(Spec, json.loads(json.dumps(to_json(SPEC)))) == SPEC
    bare = Spec("classify", InputSpec(32, 32), ("a", "b"))
    assert from_json(Spec, json.loads(json.dumps(to_json(bare)))) == bare


def test_an_artefact_comes_back_from_json_as_it_was() -> None:
    artefact = Artefact("int8.onnx", "onnxruntime", "int8", gates={"loss": {"verdict": "passed", "n": 5}})
    assert from_json(Artefact, json.loads(json.dumps(to_json(artefact)))) == artefact


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unheard": 1}, "unknown field 'unheard'"),
        ({"task": "caption"}, "task is 'caption'"),
        ({"labels": ["one"]}, "needs two at least"),
        ({"labels": ["same", "same"]}, "the same name twice"),
        ({"labels": "cat"}, "labels must be a list, not str"),
        ({"labels": ["cat", 3]}, r"labels\[1\] must be of type str, not int"),
        ({"output": None}, "output must be of type str"),
        ({"output": "map_a"}, "two of the outputs have the same name"),
        ({"input": {"height": 96}}, "width"),
        ({"input": {"height": 96, "width": True}}, "input.width must be of type int, not bool"),
        ({"input": {"height": 96.5, "width": 96}}, "input.height must be of type int, not float"),
        ({"input": {"height": 4, "width": 96}}, "input.height is 4"),
        ({"input": {"height": 96, "width": 9999}}, "input.width is 9999"),
        ({"input": {"height": 96, "width": 96, "crop": 0}}, "input.crop is 0"),
        ({"input": {"height": 96, "width": 96, "crop": float("nan")}}, "input.crop is nan"),
        ({"input": {"height": 96, "width": 96, "layout": "nhwc"}}, "input.layout is 'nhwc'; choose one of nhwc_u8"),
        ({"input": {"height": 96, "width": 96, "mean": [1, 2]}}, "input.mean must have 3 entries, not 2"),
        ({"input": {"height": 96, "width": 96, "std": [1, 0, 1]}}, "a divisor must be above 0"),
        ({"input": [96, 96]}, "input must be an object, not list"),
        ({"maps": [{"output": "a", "block": "b"}]}, r"maps\[0\].*mechanism"),
        ({"rejection": {"threshold": 1.5}}, "rejection.threshold is 1.5"),
        ({"rejection": {"threshold": 0.5, "index": 3}}, "rejection.index is 3"),
        ({"rejection": {"threshold": 0.5, "index": -1}}, "rejection.index is -1"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said) as error:
        from_json(Spec, to_json(SPEC) | change)
    assert "\n" not in str(error.value)


def test_whole_numbers_stand_for_floats() -> None:
    spec = from_json(InputSpec, {"height": 96, "width": 96, "crop": 1, "mean": [127, 127, 127]})
    assert spec.crop == 1.0
    assert spec.mean == (127.0, 127.0, 127.0)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "cannot tell"),
        (["passed"], "passed"),
        (["passed", "passed"], "passed"),
        (["passed", "cannot tell"], "cannot tell"),
        (["cannot tell", "failed", "passed"], "failed"),
    ],
)
def test_the_verdict_of_an_artefact_is_the_worst_of_its_gates(verdicts: list[str], expected: str) -> None:
    gates = {str(i): {"verdict": verdict} for i, verdict in enumerate(verdicts)}
    assert Artefact("f", "openvino", "int8", gates=gates).verdict == expected


@pytest.mark.parametrize("gate", [{}, {"verdict": "fine"}, {"n": 3}, "passed", None])
def test_a_gate_without_a_verdict_is_refused(gate: Any) -> None:
    with pytest.raises(SpecError, match=r"gate 'loss' of int8\.onnx has no verdict"):
        Artefact("int8.onnx", "onnxruntime", "int8", gates={"loss": gate})


def test_the_shape_of_an_input_follows_its_layout() -> None:
    assert InputSpec(96, 128).shape == (1, 96, 128, 3)
    assert InputSpec(96, 128, layout="nchw_f32").shape == (1, 3, 96, 128)
