"""The camera rig under other people's loops and ours. Not part of the test suite, since it wants an environment of its own:

    python -m venv peers && peers/bin/pip install -e '.[headless]' 'torch<2.14' supervision requests
    peers/bin/pip install --no-deps ultralytics torchvision
    peers/bin/python tests/rig/peers.py [--infer-ms 60] [--rounds 3] [--seconds 12] [--rtsp] [--arms edgeattn,plain]

Each arm reads the same camera in a process of its own, "infers" by sleeping, and is judged by the clock in the picture at
the moment of its result. The arms take turns, round by round. ultralytics' loader of streams is used without its models.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from judge import Judge
from mjpeg import MjpegCamera
from rtsp import RtspCamera

sys.path.insert(0, str(Path(__file__).parents[1]))


def plain(url: str, infer_ms: float) -> Iterator[np.ndarray]:
    """Read, infer, in one loop, with OpenCV as it comes."""
    import cv2

    capture = cv2.VideoCapture(url)
    while (read := capture.read())[0]:
        time.sleep(infer_ms / 1000)
        yield read[1]


def fresh(url: str, infer_ms: float) -> Iterator[np.ndarray]:
    """Ours, with `--policy fresh`."""
    return edgeattn(url, infer_ms, "fresh")


def edgeattn(url: str, infer_ms: float, policy: Any = "latest") -> Iterator[np.ndarray]:
    import tiny

    from edgeattn.bundle import Bundle
    from edgeattn.camera import Camera, Pipeline
    from edgeattn.engines.fake import FakeEngine

    engine = FakeEngine({"logits": np.zeros((1, 3), np.float32)}, infer_ms)
    bundle = Bundle(Path("nowhere"), tiny.SPEC, ())
    with Pipeline(bundle, Camera(url), opened_engine=engine, policy=policy) as pipeline:
        for result in pipeline:
            yield result.frame.picture


def ultralytics(url: str, infer_ms: float) -> Iterator[np.ndarray]:
    from ultralytics.data.loaders import LoadStreams

    for _, pictures, _ in LoadStreams(url):
        time.sleep(infer_ms / 1000)
        yield pictures[0]


def supervision(url: str, infer_ms: float) -> Iterator[np.ndarray]:
    import supervision

    for picture in supervision.get_video_frames_generator(url):
        time.sleep(infer_ms / 1000)
        yield picture


ARMS: dict[str, Callable[[str, float], Iterator[np.ndarray]]] = {
    each.__name__: each for each in (plain, edgeattn, fresh, ultralytics, supervision)
}


def measure(arm: str, url: str, infer_ms: float, seconds: float) -> None:
    """One arm, in this process; prints its figures, but for those of the first second."""
    judge, end = Judge(), None
    for picture in ARMS[arm](url, infer_ms):
        judge.show(picture)
        end = end or time.monotonic() + seconds
        if time.monotonic() > end:
            break
    start_ns = judge.sights[0].ns
    early = sum(ns < start_ns + 1_000_000_000 for ns, _ in judge.good)
    print(json.dumps(judge.report(early) | {"rss_mb": psutil.Process().memory_info().rss / 1e6}), flush=True)
    os._exit(0)  # the loaders' threads are still reading


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--infer-ms", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--rtsp", action="store_true")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--measure", nargs=2, metavar=("ARM", "URL"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(*asked.measure, asked.infer_ms, asked.seconds)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in asked.arms.split(",")}
    for _, arm in itertools.product(range(asked.rounds), found):
        with RtspCamera() if asked.rtsp else MjpegCamera() as camera:
            options = ["--infer-ms", str(asked.infer_ms), "--seconds", str(asked.seconds)]
            command = [sys.executable, __file__, *options, "--measure", arm, camera.url]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{arm}: {done.stderr}")
            found[arm].append(json.loads(done.stdout.splitlines()[-1]))
    kind = "RTSP" if asked.rtsp else "MJPEG"
    print(
        f"{kind} at 30 fps, {asked.infer_ms:g} ms an inference, {asked.rounds} x {asked.seconds:g} s, medians of the rounds"
    )
    print(f"{'':12} {'fps':>6} {'age p50':>9} {'p99':>9} {'max':>9}  {'RSS MB':>6}")
    for arm, rounds in found.items():
        fps, p50, p99, most, rss = (
            statistics.median(each[key] for each in rounds)
            for key in ("fps", "age_p50_ms", "age_p99_ms", "age_max_ms", "rss_mb")
        )
        print(f"{arm:12} {fps:6.1f} {p50:9.1f} {p99:9.1f} {most:9.1f}  {rss:6.0f}")


if __name__ == "__main__":
    main()
