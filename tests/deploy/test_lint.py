"""The rules, each on a graph that breaks it and on one that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeattn._cv2 import cv2  # noqa: F401  OpenCV before torch's OpenMP
from edgeattn.bundle import Bundle, write
from edgeattn.deploy import export
from edgeattn.deploy.lint import RULES, lint
from edgeattn.errors import NameNotFoundError
from edgeattn.nn import build_model
from edgeattn.nn.layers import global_mean


class Net(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, 16, 4, 4), middle, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(global_mean(self.middle(self.stem(x))).flatten(1))


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def tokens(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return (
        (torch.softmax(flat.transpose(1, 2) @ flat * 0.01, -1) @ flat.transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    )


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "no maximum over channels": lambda x: x * x.amax(1, keepdim=True).sigmoid(),
    "no mean over channels": lambda x: x * x.mean(1, keepdim=True).sigmoid(),
    "no division or square root over maps": lambda x: x / (x.abs() + 1.0),
    "no transpose above rank 4": lambda x: (
        x.reshape(x.shape[0], 4, 4, 2, 4, -1).permute(0, 2, 1, 4, 3, 5).reshape(x.shape)
    ),
    "no smooth activation on whole maps": nn.functional.silu,
    "no ReduceL2": lambda x: x * torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "no layer norm": lambda x: nn.functional.group_norm(x, 4),
    "no control flow or data-dependent shapes": lambda x: x * x.flatten(2).topk(3).values.mean(2)[..., None, None],
}


def bundle(model: nn.Module, path: Path, side: int) -> Bundle:
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return export(model.eval(), path / "b", labels="abc", imgsz=side, pictures=[picture])


@pytest.mark.parametrize("rule", list(CASES))
def test_a_broken_rule_is_found_in_its_module(rule: str, tmp_path: Path) -> None:
    findings = {finding.rule: finding for finding in lint(bundle(Net(Of(CASES[rule])), tmp_path, 32))}
    assert findings[rule].blocks == ("middle",)
    assert findings[rule].file == "float.onnx"
    assert all(f.targets and f.evidence and f.mend and f.reason for f in findings.values())


def test_many_tokens(tmp_path: Path) -> None:
    rule = "softmax over 196 tokens at most"
    assert rule not in {f.rule for f in lint(bundle(Net(Of(tokens)), tmp_path / "few", 32))}
    assert rule in {f.rule for f in lint(bundle(Net(Of(tokens)), tmp_path / "many", 64))}


def test_a_gate_of_convolutions_breaks_none_but_the_opset(tmp_path: Path) -> None:
    made = bundle(Net(nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU())), tmp_path, 32)
    assert [f.rule for f in lint(made)] == ["opset 19 at most"]
    assert lint(made, "qualcomm") == lint(made, "intel") == lint(made, "ethos-u") == lint(made, "cpu") == []
    (finding,) = lint(made, "rockchip")
    assert (finding.targets, finding.level, finding.blocks) == (("rockchip",), "refused", ())
    with pytest.raises(NameNotFoundError, match="rokchip"):
        lint(made, "rokchip")


def test_attention_is_named_by_its_block(tmp_path: Path) -> None:
    findings = {f.rule: f for f in lint(bundle(build_model("pico", 3, attention="cbam", imgsz=32), tmp_path, 32))}
    assert findings["no maximum over channels"].blocks[:2] == (
        "backbone.stages.0.0.attention",
        "backbone.stages.0.1.attention",
    )
    assert len(findings["no mean over channels"].blocks) == 12


def graph(nodes: list[onnx.NodeProto], *, shape: tuple[int | str, ...] = (1, 32, 32, 3), opset: int = 20) -> bytes:
    """A graph from the picture `image` to `logits`, with a few constants to hand."""
    weights = {
        "scale": np.array(0.1, np.float32),
        "scales": np.full(3, 0.1, np.float32),
        "zero": np.array(128, np.uint8),
        "zeros": np.full(3, 128, np.uint8),
        "zero16": np.array(1000, np.uint16),
    }
    held = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    return bytes(
        helper.make_model(held, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()
    )


def node(kind: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], f"a.b/{kind}_{output}", **attributes)


CAST = node("Cast", ["image"], "x", to=TensorProto.FLOAT)


def quantized(zero: str, scale: str = "scale", source: str = "x", **attributes: object) -> list[onnx.NodeProto]:
    return [
        node("QuantizeLinear", [source, scale, zero], "q", **attributes),
        node("DequantizeLinear", ["q", scale, zero], "logits", **attributes),
    ]


GRAPHS = {
    "no dynamic shapes": ("float", graph([node("Cast", ["image"], "logits", to=1)], shape=(1, "h", 32, 3))),
    "batch of one": ("float", graph([node("Cast", ["image"], "logits", to=1)], shape=(4, 32, 32, 3))),
    "opset 20 at most": ("float", graph([node("Cast", ["image"], "logits", to=1)], opset=21)),
    "no ReduceL1": ("float", graph([CAST, node("ReduceL1", ["x"], "logits")])),
    "no Einsum": ("float", graph([CAST, node("Einsum", ["x"], "logits", equation="nhwc->nchw")])),
    "no raw Erf": ("float", graph([CAST, node("Erf", ["x"], "logits")])),
    "no large transpose": (
        "float",
        graph([CAST, node("Transpose", ["x"], "logits", perm=[0, 3, 1, 2])], shape=(1, 96, 96, 3)),
    ),
    "no int64 maps": ("float", graph([node("Cast", ["image"], "i", to=7), node("Cast", ["i"], "logits", to=1)])),
    "no softmax in 8 bits": ("int8", graph([CAST, node("Softmax", ["x"], "s"), *quantized("zero", source="s")])),
    "no activations in 16 bits": ("int8", graph([CAST, *quantized("zero16")])),
    "one scale for a map's channels": ("int8", graph([CAST, *quantized("zeros", "scales", axis=3)])),
}


def held(tmp_path: Path, precision: str, model: bytes) -> Bundle:
    made = tiny.bundle(tmp_path / "tiny.edgeattn", int8=tiny.int8_model())
    files: dict[str, Path | bytes] = {name: made.path / name for name in made.sha256}
    path = tmp_path / "changed.edgeattn"
    return write(replace(made, path=path, spec=replace(made.spec, maps=())), files | {f"{precision}.onnx": model})


@pytest.mark.parametrize("rule", list(GRAPHS))
def test_a_rule_on_a_graph_by_hand(rule: str, tmp_path: Path) -> None:
    precision, model = GRAPHS[rule]
    findings = {f.rule: f for f in lint(held(tmp_path, precision, model))}
    assert findings[rule].file == f"{precision}.onnx"
    assert findings[rule].blocks in (("a.b",), ())


@pytest.mark.parametrize(
    ("rule", "precision", "model"),
    [
        ("no softmax in 8 bits", "int8", graph([CAST, node("Softmax", ["x"], "s"), *quantized("zero16", source="s")])),
        ("one scale for a map's channels", "int8", graph([CAST, *quantized("zero")])),
        ("no large transpose", "float", graph([CAST, node("Transpose", ["x"], "logits", perm=[0, 3, 1, 2])])),
        ("no activations in 16 bits", "float", graph([CAST, *quantized("zero16")])),
    ],
)
def test_what_keeps_a_rule_is_not_found(rule: str, precision: str, model: bytes, tmp_path: Path) -> None:
    assert rule not in {f.rule for f in lint(held(tmp_path, precision, model))}


def reducing(kind: str, axes: list[int], *, opset: int) -> bytes:
    """A map whose axes are taken together and left out, (1, 8, 4, 4) -> fewer dimensions."""
    if opset >= 18:
        reduce = [
            node("Constant", [], "axes", value=numpy_helper.from_array(np.array(axes))),
            node(kind, ["x", "axes"], "logits", keepdims=0),
        ]
    else:
        reduce = [node(kind, ["x"], "logits", axes=axes, keepdims=0)]
    return graph([CAST, *reduce], shape=(1, 8, 4, 4), opset=opset)


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize(
    ("rule", "kind", "axes"),
    [
        ("no maximum over channels", "ReduceMax", [1]),
        ("no mean over channels", "ReduceMean", [-3]),
        ("global pooling as one operator", "ReduceMean", [2, 3]),
    ],
)
def test_a_reduction_is_known_by_its_axes_whatever_it_leaves(
    rule: str, kind: str, axes: list[int], opset: int, tmp_path: Path
) -> None:
    findings = {f.rule: f for f in lint(held(tmp_path / "broken", "float", reducing(kind, axes, opset=opset)))}
    assert findings[rule].blocks == ("a.b",)
    rows = reducing(kind, [3], opset=opset)
    assert rule not in {f.rule for f in lint(held(tmp_path / "kept", "float", rows))}


def test_every_rule_is_tried() -> None:
    others = {"softmax over 196 tokens at most", "opset 19 at most", "global pooling as one operator"}
    tried = {*CASES, *GRAPHS, *others}
    assert {rule.rule for rule in RULES} == tried
