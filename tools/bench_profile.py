"""Is the profiler's figure to be trusted? Its overhead, and its median against peers' on the same graph, in turns.

    python tools/bench_profile.py sign-digits

Peers: the loop of OpenVINO's benchmark_app (`-hint latency -api sync`), which reads the engine's own clock as our "inside
the engine" does, and a bare loop over ONNX Runtime's session, which times the call.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.bundle import Bundle, load
from edgeattn.engines.fake import FakeEngine
from edgeattn.engines.onnxruntime import OnnxRuntimeEngine, only_outputs
from edgeattn.engines.openvino import openvino_core
from edgeattn.imaging import prepare
from edgeattn.profiling import Profiler, frames
from edgeattn.profiling.bench import Bench
from edgeattn.profiling.modes import BURST, UNCOUNTED, burst
from edgeattn.profiling.report import by_turns
from edgeattn.timing import Spans, monotonic_ns, pressure, thread_ns
from edgeattn.timing.statistics import paired_ratio


def spin(seconds: float) -> None:
    """Busy for so long: an inference whose true duration is known."""
    end_ns = time.perf_counter_ns() + round(seconds * 1e9)
    while time.perf_counter_ns() < end_ns:
        pass


def overhead(bundle: Bundle) -> None:
    """What it costs to measure an inference of a millisecond: the profiler's burst against a bare loop."""
    image = prepare(next(frames.builtin(bundle)), bundle.spec.input)
    engine = FakeEngine({"logits": np.zeros((1, len(bundle.spec.labels)), np.float32)}, 1.0, sleep=spin)
    bench: Any = Bench.__new__(Bench)
    bench.image, bench.clock = image, monotonic_ns
    contender: Any = type("Contender", (), {"engine": engine, "latencies_ns": []})()
    bare: list[float] = []
    measured: list[float] = []
    for _ in range(300):
        start_ns = time.perf_counter_ns()
        for _ in range(BURST):
            engine.infer(image)
        middle_ns = time.perf_counter_ns()
        burst(bench, contender)
        measured.append(time.perf_counter_ns() - middle_ns)
        bare.append(middle_ns - start_ns)
    least = 100 * (min(measured) / min(bare) * BURST / (BURST + UNCOUNTED) - 1)
    print(f"burst of {BURST} x 1 ms, measured over bare: {least:+.2f} % (least of 300; bar 1 %)")
    spans = Spans(thread_clock=thread_ns)
    passes_us = []
    for _ in range(200):
        start_ns = time.perf_counter_ns()
        for _ in range(500):
            with spans("infer"):
                pass
        passes_us.append((time.perf_counter_ns() - start_ns) / 500 / 1000)
    each_us = min(passes_us)
    print(f"one span with wall and thread time: {each_us:.2f} us, {each_us / 10:.2f} % of 1 ms (bar 1 %)")


def bare_loop(onnx: Path, bundle: Bundle, image: Any) -> Callable[[int], list[float]]:
    """A loop over an ONNX Runtime session that is opened as our engine's is."""
    session, feed = OnnxRuntimeEngine(onnx, bundle.spec)._session, {bundle.spec.input.name: image}

    def times_ms(n: int) -> list[float]:
        found = []
        for _ in range(n):
            start = time.perf_counter()
            session.run(None, feed)
            found.append(1000 * (time.perf_counter() - start))
        return found

    return times_ms


def benchmark_app(model: Any, image: Any) -> Callable[[int], list[float]]:
    """The loop of OpenVINO's benchmark_app itself, `-hint latency -api sync -infer_precision f32`."""
    from openvino import Tensor
    from openvino.tools.benchmark.benchmark import Benchmark

    app = Benchmark("CPU", number_iterations=1, api_type="sync", inference_only=True)
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = app.create_infer_requests(app.core.compile_model(model, "CPU", config))[0]
    request.set_input_tensor(Tensor(image))
    batch = type("Batch", (), {"get_next_batch_size": lambda self: 1})()

    def times_ms(n: int) -> list[float]:
        app.niter = n
        return list(app.sync_inference(request, batch)[0])  # in milliseconds

    return times_ms


def against(name: str, bundle: Bundle, precision: str, opened: Callable[[], Any], options: Any) -> None:
    """The profiler's turns and the peer's loop by turns; each round opens both anew, as memory lies differently then."""
    ours: list[float] = []
    inside: list[float] = []
    theirs: list[float] = []
    engine = name.partition(" ")[0]
    for _ in range(options.rounds):
        peer = opened()
        peer(30)
        with Profiler(bundle, engine=engine, precision=precision, seconds=options.seconds) as profiler:
            beside = [float(np.median(peer(BURST + 2))) for _ in profiler]
            result = profiler.report().results[0]
        turns = by_turns(result.latencies_ms, BURST).tolist()
        ours += turns
        inside += by_turns(result.inside_ms, BURST).tolist()
        theirs += beside[: len(turns)]  # the profile's last step looks at the blocks alone
    for what, own in {"the call": ours, "inside the engine": inside}.items():
        if own:
            ratio = paired_ratio(own, theirs)
            print(
                f"  {name} {precision}, {what}: profile {np.median(own):.3f} ms, peer {np.median(theirs):.3f} ms, ratio "
                f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), {len(own)} turns; bar 0.97 to 1.03",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--precision", default="float,int8")
    options = parser.parse_args()
    bundle, before = load(options.bundle), pressure.read(monotonic_ns)
    overhead(bundle)
    image = prepare(next(frames.builtin(bundle)), bundle.spec.input)
    with tempfile.TemporaryDirectory() as scratch:
        for precision in options.precision.split(","):
            onnx = Path(scratch, f"{precision}.onnx")  # as our engines run it: without the attention maps
            onnx.write_bytes(only_outputs(bundle.file(bundle.artefact("onnxruntime", precision)), [bundle.spec.output]))
            against("onnxruntime", bundle, precision, functools.partial(bare_loop, onnx, bundle, image), options)
            model = openvino_core().read_model(bundle.file(bundle.artefact("openvino", precision)))
            for result, output in zip(model.get_results(), model.outputs, strict=True):
                if output.any_name != bundle.spec.output:
                    model.remove_result(result)
            against("openvino", bundle, precision, functools.partial(benchmark_app, model, image), options)
    after = pressure.read(monotonic_ns)
    print(f"others used {after.other_cores(before) or 0:.2f} cores, tasks waited {after.waited_share(before) or 0:.0%}")


if __name__ == "__main__":
    main()
