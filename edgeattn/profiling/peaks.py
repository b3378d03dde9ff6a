"""What this processor can do at best: multiplications a second by precision, and memory, by a short measurement.

The roof that a net's own speed is held against (Williams, Waterman, Patterson, "Roofline", 2009). Not the data sheet's figure:
a chain of large matrix products through the engine that also runs the nets, so clock, throttling and guests are in it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeattn.engines.base import checked_threads
from edgeattn.engines.openvino import computes_bf16, openvino_core

ROWS, SIDE, DEPTH = 512, 1024, 4
"""Of the products: ROWS x SIDE by SIDE x SIDE, DEPTH of them, 4.3 billion operations."""
COPIED_MB = 256
"""Far above every cache."""


@dataclass(frozen=True)
class Peaks:
    """The best of a short measurement, threads together."""

    threads: int
    """Threads that computed."""
    f32_gops: float
    """Billions of operations a second (a multiplication and its addition are two) in float32."""
    bf16_gops: float | None
    """The same in bfloat16; None: the processor does not compute it."""
    int8_gops: float | None
    """The same on integers of eight bits; None: the engine takes float even for these."""
    memory_gb_s: float
    """Billions of bytes a second, read and written by one thread that copies."""

    def efficiency(self, macs: float, ms: float, precision: str) -> float | None:
        """Share of the peak that a net with so many multiplications reaches in so many milliseconds; None: no such peak."""
        peak = {"float": self.f32_gops, "bf16": self.bf16_gops, "int8": self.int8_gops}[precision]
        return None if peak is None else 2.0 * macs / (ms * 1e6) / peak


def measure_peaks(*, threads: int | None = None, seconds: float = 3.0) -> Peaks:
    """Measure for about so many seconds, all precisions together.

    Raises:
        EngineError: `threads` is below one.
    """
    threads = checked_threads(threads)
    kinds = ["f32", "int8", *(["bf16"] if computes_bf16() else [])]
    share = seconds / (len(kinds) + 1)
    found = {kind: _products(kind, threads, share) for kind in kinds}
    f32 = found["f32"]
    assert f32 is not None
    return Peaks(threads, f32, found.get("bf16"), found["int8"], _copying(share))


def _products(kind: str, threads: int, seconds: float) -> float | None:
    core = openvino_core()
    compiled = core.compile_model(
        _chain(quantized=kind == "int8"),
        "CPU",
        {
            "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32",
        },
    )  # fmt: skip
    executed = {
        str(op.get_rt_info()["runtimePrecision"].astype(str))
        for op in compiled.get_runtime_model().get_ordered_ops()
        if op.get_rt_info()["layerType"].astype(str) in ("FullyConnected", "MatMul")
    }
    if not executed <= ({"u8", "i8"} if kind == "int8" else {kind}):
        return None
    request, image = compiled.create_infer_request(), np.random.default_rng(0).random((ROWS, SIDE), np.float32)
    return 2e-9 * ROWS * SIDE * SIDE * DEPTH / _best(lambda: request.infer({0: image}, share_inputs=True), seconds)


def _chain(*, quantized: bool) -> Any:
    import openvino
    from openvino import opset13 as ov

    rng = np.random.default_rng(0)
    given = ov.parameter([ROWS, SIDE], np.float32)
    value: Any = given
    for _ in range(DEPTH):
        weight: Any = ov.constant(rng.uniform(-1, 1, (SIDE, SIDE)).astype(np.float32))
        if quantized:
            value = ov.fake_quantize(value, *map(np.float32, (0, 1, 0, 1)), levels=256)
            weight = ov.fake_quantize(weight, *map(np.float32, (-1, 1, -1, 1)), levels=255)
        value = ov.relu(ov.matmul(value, weight, False, True))
    return openvino.Model([value], [given], "peak")


def _copying(seconds: float) -> float:
    source = np.ones(COPIED_MB * 2**20 // 8)
    target = np.empty_like(source)
    return 2e-9 * source.nbytes / _best(lambda: np.copyto(target, source), seconds)


def _best(work: Any, seconds: float) -> float:
    """Least seconds that the work took: what disturbs it only ever adds."""
    best, end = float("inf"), time.monotonic() + seconds
    work()
    while time.monotonic() < end or best == float("inf"):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
