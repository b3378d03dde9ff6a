"""A tiny real classifier for tests, without torch: which colour has the patch on the grey noise?

`pictures` draws the data, `float_model` is the ONNX graph (32x32 u8 NHWC in; `logits` of 3 labels and the attention map
`map_0` of 4x4 out), `int8_model` its QDQ form as ONNX Runtime quantizes it, `bundle` a whole bundle on disk.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeattn import imaging
from edgeattn.bundle import GOLDEN, Bundle, write
from edgeattn.spec import Artefact, InputSpec, MapSpec, Spec

LABELS = ("red", "green", "blue")
SIDE = 32
SPEC = Spec("classify", InputSpec(SIDE, SIDE), LABELS, maps=(MapSpec("map_0", "stages.2.attention", "energy"),))
PASSED = {"parity": {"verdict": "passed", "n": 24}}


def pictures(n: int, seed: int = 0, height: int = 48, width: int = 64) -> list[tuple[NDArray[np.uint8], int]]:
    """`n` pairs of a BGR picture with a coloured patch in its middle half and the patch's label index."""
    rng = np.random.default_rng(seed)
    drawn = []
    for i in range(n):
        picture = rng.integers(96, 160, (height, width, 1), np.uint8).repeat(3, axis=2)
        label = i % 3
        h, w = rng.integers(height // 4, height // 2, 2)
        y, x = rng.integers(height // 8, height - height // 8 - h), rng.integers(width // 4, width - width // 4 - w)
        patch = rng.integers(0, 100, (h, w, 3), np.uint8)
        patch[..., 2 - label] = rng.integers(150, 256, (h, w), np.uint8)
        picture[y : y + h, x : x + w] = patch
        drawn.append((picture, label))
    return drawn


def float_model(seed: int = 0) -> onnx.ModelProto:
    """The classifier: three strided convolutions whose first channels are colour opponents, pooled into logits."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], {}

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def weight(name: str, value: Any) -> str:
        weights[name] = np.asarray(value, np.float32)
        return name

    x = node("Cast", ["image"], "cast", to=TensorProto.FLOAT)
    x = node("Sub", [x, weight("mean", 128.0)], "centred")
    x = node("Div", [x, weight("std", 128.0)], "normalised")
    x = node("Transpose", [x], "nchw", perm=[0, 3, 1, 2])
    for stage, (before, after) in enumerate([(3, 8), (8, 16), (16, 16)]):
        kernel = rng.normal(0, 0.05, (after, before, 3, 3))
        kernel[:3] = 0
        for colour in range(3):
            kernel[colour, :3] = -1 / 18 if stage == 0 else 0
            kernel[colour, colour] = 1 / 9
        conv = [x, weight(f"kernel_{stage}", kernel), weight(f"bias_{stage}", np.full(after, -0.02))]
        x = node("Conv", conv, f"conv_{stage}", strides=[2, 2], pads=[1, 1, 1, 1])
        x = node("Relu", [x], f"relu_{stage}")
    node("ReduceMean", [x, "axes"], "map_0", keepdims=0)
    x = node("Flatten", [node("GlobalAveragePool", [x], "pooled")], "flat")
    head = rng.normal(0, 0.02, (3, 16))
    head[:, :3] += 20 * np.eye(3)
    node("Gemm", [x, weight("head", head), weight("head_bias", np.zeros(3))], "logits", transB=1)

    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.asarray([1], np.int64), "axes"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3]),
            helper.make_tensor_value_info("map_0", TensorProto.FLOAT, [1, 4, 4]),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def inputs(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """`n` prepared pictures, (n, 32, 32, 3) RGB bytes."""
    return np.concatenate([imaging.prepare(picture, SPEC.input) for picture, _ in pictures(n, seed)]).astype(np.uint8)


def answers(model: bytes, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Outputs of an ONNX file for each image, by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(None, {"image": image[None]}) for image in images]
    return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}


@functools.cache
def int8_model(leave_in_float: tuple[str, ...] = ()) -> bytes:
    """The classifier in QDQ: u8 activations, s8 weights per channel of 7 bits (8 saturate without VNNI)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, images: NDArray[np.uint8]) -> None:
            self.rows = iter({"image": image[None]} for image in images)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(self.rows, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        model = float_model()
        for node in model.graph.node:
            node.name = node.output[0]
        onnx.save(model, source)
        quantize_static(
            source,
            target,
            Reader(inputs(24, seed=1)),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "GlobalAveragePool", "Relu"],
            nodes_to_exclude=list(leave_in_float),
        )
        return target.read_bytes()


@functools.cache
def spoilt_int8_model() -> bytes:
    """The int8 model with the weights of its last layer negated: quick, finite and wrong on two pictures of three."""
    model = onnx.load_model_from_string(int8_model())
    head = next(weight for weight in model.graph.initializer if weight.name.startswith("head_quantized"))
    head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), head.name))
    return bytes(model.SerializeToString())


@functools.cache
def to_openvino(model: bytes) -> dict[str, bytes]:
    """The OpenVINO form of an ONNX file: `.xml` and `.bin`."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "model.xml")
        source.write_bytes(model)
        # Not by convert_model, whose telemetry leaves threads behind.
        openvino.save_model(openvino.Core().read_model(source), target, compress_to_fp16=False)
        return {".xml": target.read_bytes(), ".bin": target.with_suffix(".bin").read_bytes()}


def golden(model: bytes, n: int = 24) -> bytes:
    """golden.npz: inputs and the float answers."""
    import io

    images = inputs(n, seed=2)
    stream = io.BytesIO()
    np.savez_compressed(stream, inputs=images, **answers(model, images))
    return stream.getvalue()


def bundle(path: Path, *, int8: bytes | None = None, spec: Spec = SPEC) -> Bundle:
    """Write the float bundle with artefacts for both engines; `int8`: QDQ ONNX bytes, put in for both engines too."""
    model = float_model().SerializeToString()
    files: dict[str, Path | bytes] = {"float.onnx": model, GOLDEN: golden(model)}
    artefacts = [Artefact("float.onnx", engine, "float", gates=PASSED) for engine in ("onnxruntime", "openvino")]
    if int8 is not None:
        files["int8.onnx"] = int8
        files |= {f"int8{suffix}": data for suffix, data in to_openvino(int8).items()}
        artefacts += [
            Artefact("int8.onnx", "onnxruntime", "int8", gates=PASSED),
            Artefact("int8.xml", "openvino", "int8", gates=PASSED),
        ]
    return write(Bundle(path, spec, tuple(artefacts)), files)
