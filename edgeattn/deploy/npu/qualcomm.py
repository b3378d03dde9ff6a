"""Qualcomm's HTP: one EPContext node, compiled by ONNX Runtime's QNN provider and executed in its simulator on a PC.

Activations in 16 bits: in 8 bits the answers of pico with coord are 6 % off float's, with se 8 %, in 16 bits 1 to 2 % (measured
in the simulator). Weights in 8 bits, symmetric for each output channel; where that is not near enough, in 16 bits, which makes
a file six times as large. The QDQ form is the toolchain's own: that of other quantizers falls into several partitions.

Compiling runs in a process of its own: a compiler that aborts, or ends with code 0 after it failed, is judged by what it left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.bundle import Bundle, extend
from edgeattn.deploy.calibration import Reader
from edgeattn.engines.certify import relative_error
from edgeattn.errors import DataError, EngineError, NameNotFoundError
from edgeattn.spec import Artefact

ENGINE = "onnxruntime-qnn"
TARGET = "qualcomm"
CHIPS = {"sm8450": (36, 69), "sm8550": (43, 73), "sm8650": (57, 75), "sm8750": (69, 79), "x-elite": (60, 73)}
"""Model and architecture numbers of the chips, as the toolchain counts them."""
BOUND = 0.03
"""Greatest relative error of the answers, and of each map, that passes; maps of relu_linear were 40 % off under right answers."""
SIMULATED = "simulated on a PC, not measured on hardware"
WEIGHTS = ("s8 per channel", "s16")
"""What is tried for the weights, in this order."""
HEADROOM = 2.0
"""How far the ranges of activations reach beyond what calibration saw, one bit of the sixteen: pictures that exceed it would be
cut off, which is nearly all of the error (mhsa on cards, weights in 16 bits, on a CPU: 1.8 % without, 0.05 % with it)."""
OWN_RANGE = ("Sigmoid", "Tanh")
"""Operators whose outputs have the range that the toolchain wants."""
TIMEOUT_S = 600
Array = NDArray[Any]


@dataclass(frozen=True)
class Compiled:
    """What came of it."""

    bundle: Bundle
    """The bundle, with the artefact where it passed."""
    artefact: Artefact
    """The compiled model; in the bundle where its gate is passed."""
    log: str
    """What the toolchain printed."""


class CompileError(EngineError):
    """The toolchain refuses a model; `log` is all that it printed."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


def compile_qualcomm(bundle: Bundle, calibration: Sequence[Array] = (), *, chip: str = "sm8550") -> Compiled:
    """Quantize, compile and execute a bundle's float model; keep it in the bundle if answers and maps are right.

    Args:
        bundle: with golden inputs, whose float answers are the truth.
        calibration: inputs as the model takes them, (1, H, W, 3) bytes; without them every second golden one, and only the
            others are checked.
        chip: one of `CHIPS`.

    Raises:
        NameNotFoundError: no such chip.
        DataError: the bundle has too few golden inputs.
        CompileError: the toolchain is not installed, or refuses the model; the message holds the end of its log.
        EngineError: it does not end.
    """
    if chip not in CHIPS:
        raise NameNotFoundError("chip", chip, CHIPS)
    golden = bundle.golden()
    if not golden or len(golden["inputs"]) < 2:
        raise DataError(f"{bundle.path} has no golden inputs to check the compiled model on; export it anew")
    places = np.arange(len(golden["inputs"]))
    checked = places if len(calibration) else places[1::2]
    ranges = np.concatenate(list(calibration)) if len(calibration) else golden["inputs"][::2]
    soc, arch = CHIPS[chip]
    log = ""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.savez(folder / "inputs.npz", calibration=ranges, checked=golden["inputs"][checked])
        (folder / "float.onnx").write_bytes(bundle.file(bundle.artefact("onnxruntime", "float")).read_bytes())
        for weights in WEIGHTS:
            job = {"input": bundle.spec.input.name, "soc": soc, "arch": arch, "weights": weights}
            (folder / "job.json").write_text(json.dumps(job))
            log += _in_a_process(folder)
            done = folder / "done.json"
            if not done.is_file():
                raise CompileError(f"{bundle.path}: {_reason(log)}", log)
            told = json.loads(done.read_text())
            done.unlink()
            with np.load(folder / "answers.npz") as answers:
                errors = {
                    name: relative_error(answers[name], golden[name][checked])
                    for name in answers.files
                    if name in golden
                }
            gate = _judge(errors, told, bundle.spec.output, len(checked))
            artefact = Artefact(
                "qualcomm.onnx", ENGINE, "int8", TARGET,
                recipe={
                    "chip": chip, "soc_model": soc, "htp_arch": arch, "activations": "u16", "weights": weights,
                    "ranges": f"min-max x {HEADROOM:g}", "pictures": len(ranges),
                },
                toolchain=told["toolchain"], gates={"simulated": gate},
            )  # fmt: skip
            if gate["verdict"] == "passed":
                return Compiled(extend(bundle, (artefact,), {"qualcomm.onnx": folder / "context.onnx"}), artefact, log)
    return Compiled(bundle, artefact, log)


def _judge(errors: Mapping[str, float], told: Mapping[str, Any], output: str, n: int) -> dict[str, Any]:
    whole = told["nodes"] == ["EPContext"]
    passed = whole and max(errors.values()) < BOUND
    return {
        "verdict": "passed" if passed else "failed",
        "value": errors[output],
        "bound": BOUND,
        "maps": max((error for name, error in errors.items() if name != output), default=0.0),
        "nodes": told["nodes"],
        "n": n,
        "compile_s": told["compile_s"],
        "where": SIMULATED,
    }


def _in_a_process(folder: Path) -> str:
    """Run the toolchain on a folder; what it printed."""
    command = [sys.executable, "-m", __name__, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"the Qualcomm compiler did not end within {TIMEOUT_S} s; try a smaller input") from error
    return ran.stdout + ran.stderr


def _reason(log: str) -> str:
    """The lines of a log that tell why it failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any("No module named 'onnxruntime_qnn'" in line for line in lines):
        return "the Qualcomm toolchain is not installed; pip install 'edgeattn[qnn]' (Linux x86-64 or Windows)"
    telling = [line for line in lines if "rror" in line or "nsupported" in line] or lines[-3:]
    return "the Qualcomm compiler refuses it: " + " | ".join(telling[-3:])[:1000]


def _ranges(model: Path, calibration: Array, name: str) -> dict[str, list[dict[str, Any]]]:
    """Smallest and greatest value of every activation, with headroom, as the toolchain takes them.

    It drops a Clip, whose work the range behind it then does: that range must end where the Clip does.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    calibrator = create_calibrator(
        model, augmented_model_path=str(model.with_name("watched.onnx")), calibrate_method=CalibrationMethod.MinMax
    )
    calibrator.collect_data(Reader((row[None] for row in calibration), name))
    found = {
        tensor: [HEADROOM * float(np.ravel(end)[0]) for end in seen.range_value]
        for tensor, seen in calibrator.compute_data().items()
    }
    graph = onnx.load(model).graph
    constants = {held.name: float(onnx.numpy_helper.to_array(held)) for held in graph.initializer if not held.dims}
    for node in graph.node:
        if node.op_type in OWN_RANGE:
            found.pop(node.output[0], None)
        elif node.op_type == "Clip":
            low, high = (*node.input[1:], "", "")[:2]
            bounds = constants.get(low, -np.inf), constants.get(high, np.inf)
            found[node.output[0]] = np.clip(found[node.output[0]], *bounds).tolist()
    return {tensor: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for tensor, (low, high) in found.items()}


def _work(folder: Path) -> None:
    """Quantize, compile, execute: the child process."""
    import importlib.metadata
    import time

    import onnx
    import onnxruntime as ort
    import onnxruntime_qnn
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model

    job = json.loads((folder / "job.json").read_text())
    with np.load(folder / "inputs.npz") as held:
        calibration, checked = held["calibration"], held["checked"]

    source = folder / "float.onnx"
    if qnn_preprocess_model(str(source), str(folder / "prepared.onnx")):
        source = folder / "prepared.onnx"
    wide = job["weights"] == "s16"
    config = get_qnn_qdq_config(
        str(source), Reader((row[None] for row in calibration[:1]), job["input"]),  # the ranges are known already
        activation_type=QuantType.QUInt16, calibrate_method=CalibrationMethod.MinMax,
        weight_type=QuantType.QInt16 if wide else QuantType.QInt8, per_channel=not wide,
        init_overrides=_ranges(source, calibration, job["input"]),
    )  # fmt: skip
    quantize(str(source), str(folder / "qdq.onnx"), config)

    ort.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == "QNNExecutionProvider"]
    options = ort.SessionOptions()
    options.log_severity_level = 2
    context = folder / "context.onnx"
    context.unlink(missing_ok=True)
    for key, value in {
        "ep.context_enable": "1",
        "ep.context_file_path": str(context),
        "ep.context_embed_mode": "1",
        "session.disable_cpu_ep_fallback": "1",
    }.items():
        options.add_session_config_entry(key, value)
    backend = {"backend_path": onnxruntime_qnn.get_qnn_htp_path()}
    options.add_provider_for_devices(devices, backend | {"soc_model": str(job["soc"]), "htp_arch": str(job["arch"])})
    began = time.perf_counter()
    session = ort.InferenceSession(str(folder / "qdq.onnx"), options)
    compile_s = time.perf_counter() - began
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, {job["input"]: row[None]}) for row in checked]
    answers: dict[str, Any] = {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}
    np.savez(folder / "answers.npz", **answers)
    told = {
        "nodes": [node.op_type for node in onnx.load(context).graph.node],
        "compile_s": round(compile_s, 3),
        "toolchain": {name: importlib.metadata.version(name) for name in ("onnxruntime", "onnxruntime-qnn")},
    }
    (folder / "done.json").write_text(json.dumps(told))


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
