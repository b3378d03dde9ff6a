"""What this processor can do at best: multiplications a second by precision, and memory, by a short measurement.

The roof that a net's own speed is held against (Williams, Waterman, Patterson, "Roofline", 2009). Not the data sheet's figure:
a chain of large matrix products through the engine that also runs the nets, so clock, throttling and guests are in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
    """Measure for about so many seconds, all in turns, and take the least time of each: what disturbs it only ever adds.

    Raises:
        EngineError: `threads` is below one.
    """
    threads = checked_threads(threads)
    kinds = ["f32", "int8", *(["bf16"] if computes_bf16() else [])]
    works = {kind: work for kind in kinds if (work := _products(kind, threads)) is not None}
    works["memory"] = _copying()
    best = dict.fromkeys(works, float("inf"))
    for work in works.values():
        work()
    end = time.monotonic() + seconds
    while time.monotonic() < end or float("inf") in best.values():
        for kind, work in works.items():
            began = time.perf_counter()
            work()
            best[kind] = min(best[kind], time.perf_counter() - began)
    gops = {kind: 2e-9 * ROWS * SIDE * SIDE * DEPTH / s for kind, s in best.items()}
    copied = 2e-3 * COPIED_MB * 1.048576 / best["memory"]  # read and written
    return Peaks(threads, gops["f32"], gops.get("bf16"), gops.get("int8"), copied)


def _products(kind: str, threads: int) -> Callable[[], object] | None:
    core = openvino_core()
    compiled = core.compile_model(
        _chain(quantized=kind == "int8"),
        "CPU",
        {
            "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32",
        },
    )  # fmt: skip
    layers = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    executed = {r["runtimePrecision"].astype(str) for r in layers if r["layerType"].astype(str) == "FullyConnected"}
    if not executed or not executed <= ({"u8", "i8"} if kind == "int8" else {kind}):
        return None
    request, image = compiled.create_infer_request(), np.random.default_rng(0).random((ROWS, SIDE), np.float32)
    return lambda: request.infer({0: image}, share_inputs=True)


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


def _copying() -> Callable[[], object]:
    source = np.ones(COPIED_MB * 2**20 // 8)
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)
