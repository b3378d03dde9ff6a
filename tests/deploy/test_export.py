"""Export: parity per attention at two sizes through both engines, the rewrites, and a gate that fails when it should."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgeattn.bundle import load
from edgeattn.deploy import export as export_function
from edgeattn.deploy.export import EXPORTERS, Deployed, to_onnx
from edgeattn.deploy.lint import lint
from edgeattn.deploy.rewrite import rewrite
from edgeattn.engines import open_engine
from edgeattn.errors import DataError, EdgeAttnError, GateError
from edgeattn.imaging import Picture, prepare
from edgeattn.nn import build_model
from edgeattn.spec import InputSpec, MapSpec, Spec

LABELS = ("a", "b", "c", "d")


def pictures(n: int, seed: int = 0) -> list[Picture]:
    """Smooth random pictures: blobs of colour, as photographs have them."""
    from edgeattn._cv2 import cv2

    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, 6, 8, 3), np.uint8)
    return [np.asarray(cv2.resize(p, (120, 90), interpolation=cv2.INTER_CUBIC), np.uint8) for p in small]


def trained(attention: str, imgsz: int, name: str = "pico") -> nn.Module:
    """A net whose norms have seen pictures, so that its answers depend on them."""
    torch.manual_seed(0)
    model = build_model(name, len(LABELS), attention=attention, imgsz=imgsz).train()
    batch = torch.from_numpy(np.concatenate([prepare(p, InputSpec(imgsz, imgsz)) for p in pictures(24, 1)]))
    with torch.no_grad():
        for _ in range(30 if name == "pico" else 5):
            model((batch.permute(0, 3, 1, 2).float() - 128) / 128)
    return model.eval()


# Every mechanism is exported by itself, in tests/nn/attention; here a few stand for the families in the whole net.
@pytest.mark.parametrize(
    ("model_name", "attention", "imgsz"),
    [
        *(
            ("pico", attention, side)
            for attention in ("none", "se", "eca", "cbam", "coord", "shsa")
            for side in (32, 96)
        ),
        ("lite", "coord", 96),
        ("nano", "mhsa", 224),  # whose untrained maps hardly vary
    ],
)
def test_parity(model_name: str, attention: str, imgsz: int, tmp_path: Path) -> None:
    model = trained(attention, imgsz, model_name)
    bundle = export_function(
        model, tmp_path / "m", labels=LABELS, imgsz=imgsz, pictures=pictures(8), mechanism=attention
    )
    assert bundle.path.name == "m.edgeattn"
    for artefact in bundle.artefacts:
        gate = artefact.gates["parity"]
        assert gate["verdict"] == "passed"
        assert gate["n"] == 8
        assert gate["difference"] <= 1e-4
    inputs = prepare(pictures(9, seed=5)[8], bundle.spec.input)  # a picture that the gate has not seen
    with torch.inference_mode():
        expected = model((torch.from_numpy(inputs).permute(0, 3, 1, 2).float() - 128) / 128).numpy()
    for name in ("onnxruntime", "openvino"):
        engine = open_engine(bundle, engine=name, precision="float", maps=True)
        answer = engine.infer(inputs)
        engine.close()
        assert np.abs(answer["logits"] - expected).max() <= 1e-4 * max(np.ptp(expected), 1e-3)
        assert set(answer) == {"logits", *(m.output for m in bundle.spec.maps)}


def test_engines_find_pooling_as_one_node_and_no_batchnorm(tmp_path: Path) -> None:
    bundle = export_function(
        trained("se", 96), tmp_path / "m", labels=LABELS, imgsz=96, pictures=pictures(2), mechanism="se"
    )
    graph = onnx.load(bundle.path / "float.onnx").graph
    ops = Counter(node.op_type for node in graph.node)
    assert ops["GlobalAveragePool"] == 13  # twelve gates and the head
    assert ops["BatchNormalization"] == 0
    assert ops["ReduceMean"] == 12  # the maps' means over channels
    assert ops["Add"] == 12  # one shortcut a block; the other is folded into its kernel
    assert not any(node.metadata_props for node in graph.node)


def test_a_length_by_absolute_values_is_written_as_their_sum(tmp_path: Path) -> None:
    bundle = export_function(
        build_model("pico", 3, attention="additive_normed", imgsz=32).eval(),
        tmp_path / "m",
        labels=LABELS,
        imgsz=32,
        pictures=pictures(2),
    )  # fmt: skip  its parity is a gate of export
    nodes = onnx.load(bundle.path / "float.onnx").graph.node
    kinds = {node.op_type for node in nodes}
    assert "ReduceL1" not in kinds
    assert {"Abs", "ReduceSum"} <= kinds
    assert all(".attention/" in node.name for node in nodes if node.op_type == "Abs")


class Clipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(self.conv(x) * 9).mean((2, 3))


def test_relu6_becomes_one_clip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = export_function(Clipped().eval(), tmp_path / "m", labels=LABELS, imgsz=32, pictures=pictures(2))
    ops = Counter(node.op_type for node in onnx.load(bundle.path / "float.onnx").graph.node)
    assert ops["Clip"] == 1
    assert ops["Min"] + ops["Max"] == 0
    assert bundle.spec.maps == ()


class Squeezed(nn.Module):
    """Squeeze and excitation by linear layers, and an attention whose q, k and v come of `unbind`, as timm writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 4)
        self.narrow, self.wide, self.qkv = nn.Linear(16, 4), nn.Linear(4, 16), nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * self.wide(self.narrow(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]
        tokens_BNC = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens_BNC).reshape(-1, tokens_BNC.shape[1], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def test_means_without_their_dimensions_and_unbind_are_repaired(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = export_function(Squeezed().eval(), tmp_path / "m", labels=LABELS, imgsz=32, pictures=pictures(2))
    assert [artefact.recipe["exporter"] for artefact in bundle.artefacts] == ["dynamo", "dynamo"]
    graph = onnx.shape_inference.infer_shapes(onnx.load(bundle.path / "float.onnx")).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert (kinds["GlobalAveragePool"], kinds["Flatten"], kinds["Split"], kinds["Slice"]) == (1, 1, 1, 0)
    assert max(len(value.type.tensor_type.shape.dim) for value in graph.value_info) == 4


def test_a_mean_of_three_dimensions_is_no_pooling() -> None:
    """Its last two axes are 1 and 2, which counted from the end look like those of a map."""
    node = onnx.helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)
    x, y = (
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("x", [1, 4, 4]), ("y", [1, 1, 1]))
    )
    graph = onnx.helper.make_graph([node], "g", [x], [y], [onnx.numpy_helper.from_array(np.array([-2, -1]), "axes")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    rewrite(model)
    assert [node.op_type for node in model.graph.node] == ["ReduceMean"]


class Fickle(nn.Module):
    """Answers otherwise when it is traced: what an exporter's error looks like."""

    def __init__(self, *, to_both: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.head = Shifted(to_both=to_both)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


class Shifted(nn.Module):
    def __init__(self, *, to_both: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.to_both = to_both

    def forward(self, x: Tensor) -> Tensor:
        wrong = torch.compiler.is_compiling() or (self.to_both and torch.jit.is_tracing())
        return self.linear(x.mean((2, 3))) + (0.01 if wrong else 0.0)


def test_a_changed_answer_fails_the_gate_names_its_operator_and_writes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(GateError) as failed:
        export_function(Fickle(to_both=True).eval(), tmp_path / "m", labels=LABELS, imgsz=32, pictures=pictures(4))
    told = str(failed.value)
    assert "nothing was written" in told
    for exporter in ("dynamo", "torchscript"):
        assert f"exporter {exporter}: onnxruntime answers otherwise than torch" in told
    assert told.count("first in head (") == 2
    assert told.count("Add") == 2
    assert list(tmp_path.iterdir()) == []


def test_where_one_exporter_changes_the_answer_the_other_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = export_function(
        Fickle(to_both=False).eval(), tmp_path / "m", labels=LABELS, imgsz=32, pictures=pictures(4)
    )
    assert [a.recipe["exporter"] for a in bundle.artefacts] == ["torchscript", "torchscript"]
    assert all(a.gates["parity"]["verdict"] == "passed" for a in bundle.artefacts)


@pytest.mark.parametrize("attention", ["coord", "shsa"])
def test_both_exporters_give_the_same_layers_by_the_same_names(attention: str) -> None:
    """So whatever goes by names (what stays in float, the blocks of a report) holds whichever was taken."""
    deployed = Deployed(trained(attention, 32))
    maps = tuple(MapSpec(path, path, attention) for path in deployed.map_paths((32, 32)))
    spec = Spec("classify", InputSpec(32, 32), LABELS, maps=maps)
    found = []
    for exporter in EXPORTERS:
        nodes = to_onnx(deployed, spec, exporter=exporter).graph.node
        assert not {"Identity", "Constant"} & {node.op_type for node in nodes}
        found.append(
            Counter(n.name.rpartition("_")[0] for n in nodes if n.op_type in ("Conv", "Sigmoid", "Softmax", "Relu"))
        )
    assert found[0] == found[1]
    assert found[0]["backbone.stages.0.0.expand/Conv"] == 1


def test_a_lower_opset_for_toolchains_that_read_no_higher(tmp_path: Path) -> None:
    bundle = export_function(
        trained("se", 32), tmp_path / "m", labels=LABELS, imgsz=32, pictures=pictures(2), mechanism="se", opset=19
    )
    assert [entry.version for entry in onnx.load(bundle.path / "float.onnx").opset_import if not entry.domain] == [19]
    assert "opset 19 at most" not in {finding.rule for finding in lint(bundle, "rockchip")}


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(x.mean((2, 3)).tolist(), np.float32))


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(EdgeAttnError, match=r"exporter dynamo: the model cannot be exported.*exporter torchscript: "):
        export_function(Untraceable(), tmp_path / "m", labels=("a", "b", "c"), imgsz=32, pictures=pictures(1))
    with pytest.raises(DataError, match=r"real pictures"):
        export_function(Clipped(), tmp_path / "m", labels=LABELS, imgsz=32, pictures=[])


def test_a_failed_export_leaves_the_last_bundle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    good = export_function(Clipped().eval(), tmp_path / "m", labels=LABELS, imgsz=32, pictures=pictures(4))
    with pytest.raises(GateError):
        export_function(Fickle(to_both=True).eval(), tmp_path / "m", labels=LABELS, imgsz=32, pictures=pictures(4))
    assert load(good.path).digest() == good.digest()
