"""A bundle's float model as other programs load it: pictures as (1, 3, H, W) between 0 and 1, probabilities, no maps.

The metadata are those that ultralytics reads of an ONNX file, and those of OpenVINO Model API, in the ONNX file and in the IR.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import onnx.utils

from edgeattn.bundle import Bundle
from edgeattn.spec import InputSpec, Spec

INPUT, OUTPUT = "images", "output0"
"""Their names, as ultralytics gives them."""
OWN = "own/"
"""Before the names of what was there."""


def export_peer(bundle: Bundle, file: Path) -> tuple[Path, Path]:
    """Write `file` (.onnx) and the OpenVINO IR of its name beside it; return both.

    Raises:
        SpecError: the model is no classifier.
        BundleError: the bundle has no float artefact.
        ImportError: OpenVINO is not installed.
    """
    import openvino

    from edgeattn.engines.openvino import openvino_core

    bundle.spec.must_classify("export --peer")
    file = file.with_suffix(".onnx")
    file.parent.mkdir(parents=True, exist_ok=True)
    model = peer(onnx.load(bundle.file(bundle.artefact("onnxruntime", "float"))), bundle.spec)
    told = model_info(bundle.spec)
    side = [bundle.spec.input.height, bundle.spec.input.width]
    metadata = {f"model_info {key}": value for key, value in told.items()} | {
        "task": "classify", "names": str(dict(enumerate(output_names(bundle.spec)))), "imgsz": str(side),
        "stride": "1", "batch": "1", "channels": "3", "description": f"edgeattn {bundle.name}",
    }  # fmt: skip
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)
    read = openvino_core().read_model(file)
    for key, value in told.items():
        read.set_rt_info(value, ["model_info", key])
    target = file.with_suffix(".xml")
    openvino.save_model(read, target, compress_to_fp16=False)
    return file, target


def output_names(spec: Spec) -> list[str]:
    """What each of the logits stands for: the labels, and "none of these" where it has one of its own."""
    names = list(spec.labels)
    if spec.rejection and spec.rejection.index is not None:
        names.insert(spec.rejection.index, spec.rejection.label)
    return names


def model_info(spec: Spec) -> dict[str, str]:
    """What OpenVINO Model API wants to know; it separates labels by spaces."""
    return {
        "model_type": "Classification",
        "labels": " ".join(label.replace(" ", "_") for label in output_names(spec)),
        "reverse_input_channels": "True",  # its pictures are BGR
        "mean_values": "0.0 0.0 0.0",
        "scale_values": "255.0 255.0 255.0",
        "resize_type": "crop",
        "multilabel": "False",
        "hierarchical": "False",
        "output_raw_scores": "True",
    }


def peer(model: onnx.ModelProto, spec: Spec) -> onnx.ModelProto:
    """The graph that takes (1, 3, H, W) RGB between 0 and 1 and gives probabilities (1, K)."""
    cut = onnx.utils.Extractor(model).extract_model([spec.input.name], [spec.output])
    cut = onnx.compose.add_prefix(cut, OWN)  # it may have such names itself, where it came from others
    graph, given = cut.graph, spec.input
    for node in [*_front(graph, given)][::-1]:
        graph.node.insert(0, node)
    graph.node.append(onnx.helper.make_node("Softmax", [OWN + spec.output], [OUTPUT], name="-/Softmax_peer", axis=1))
    del graph.input[:], graph.output[:], graph.value_info[:]  # the sizes and types of what is new are worked out again
    floats = onnx.TensorProto.FLOAT
    graph.input.append(onnx.helper.make_tensor_value_info(INPUT, floats, [1, 3, given.height, given.width]))
    graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, floats, [1, len(output_names(spec))]))
    return cut


def _front(graph: onnx.GraphProto, spec: InputSpec) -> list[onnx.NodeProto]:
    """From pictures between 0 and 1 to what the model takes."""

    def constant(name: str, value: object) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32).reshape(1, -1, 1, 1), name))
        return name

    scaled = onnx.helper.make_node("Mul", [INPUT, constant("peer_scale", 255.0)], ["peer_scaled"], name="-/Mul_peer")
    if spec.layout == "nhwc_u8":
        turned = onnx.helper.make_node(
            "Transpose", ["peer_scaled"], [OWN + spec.name], name="-/Transpose_peer", perm=[0, 2, 3, 1]
        )
        return [scaled, turned]
    centred = onnx.helper.make_node(
        "Sub", ["peer_scaled", constant("peer_mean", spec.mean)], ["peer_centred"], name="-/Sub_peer"
    )
    return [
        scaled,
        centred,
        onnx.helper.make_node(
            "Div", ["peer_centred", constant("peer_std", spec.std)], [OWN + spec.name], name="-/Div_peer"
        ),
    ]
