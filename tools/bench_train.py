"""What does the training loop cost beside the arithmetic? The loop against a bare forward and backward, in one process.

    python tools/bench_train.py photos --imgsz 96
    python tools/bench_train.py cifar10 --imgsz 32 --batch 128

Bare: the same net on one batch that lies in memory, cross entropy, backward, optimizer step, every core computing. The loop:
the same with pictures read, augmented and handed over, gradients clipped, weights averaged, terms noted. Both take turns, so
that a busy machine hits both. Pictures are in memory, as from the second epoch on (workers of their own, if they pay, read
them once each before). Prints views a second, the loop's share of the bare speed, and its share of time without data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from edgeattn.timing.environment import usable_cores
from edgeattn.train import Recipe
from edgeattn.train.loader import normalise
from edgeattn.train.loop import _Run
from edgeattn.train.runs import build
from edgeattn.train.sources import open_data


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="as `edgeattn train` takes it")
    parser.add_argument("--model", default="pico")
    parser.add_argument("--attention", default="coord")
    parser.add_argument("--imgsz", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8, help="turns of each (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="steps a turn (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recipe = Recipe(
        options.data, model=options.model, attention=options.attention, imgsz=options.imgsz, batch_size=options.batch,
        epochs=1000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        data = open_data(recipe, Path(scratch))
        run = _Run(recipe, Path(scratch), data, None)
        threads = torch.get_num_threads()
        net = build(recipe, len(data.labels)).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        for index in range(len(data.train)):  # read once, as they are from the second epoch on
            data.train.view(index, np.random.default_rng(0))
        batches = (batch for epoch in range(1000) for batch in run.loader.epoch(epoch))
        run.objective.train()
        first = next(batches)
        x_BCHW, label_B = normalise(first.pictures), first.truths

        def bare() -> None:
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(net(x_BCHW), label_B))
            optimizer.step()

        bare_s, loop_s, waits_s = [], [], []
        for turn in range(options.rounds + 1):
            torch.set_num_threads(usable_cores())
            began = time.perf_counter()
            for _ in range(options.steps):
                bare()
            middle = time.perf_counter()
            torch.set_num_threads(threads)
            waited = 0.0
            # Workers went on while the bare loop ran: what they have ready is not counted as the loop's speed.
            for _ in range(4 * run.recipe.workers):
                run.advance(next(batches))
            start = time.perf_counter()
            for _ in range(options.steps):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                run.advance(batch)
            if turn:  # the first turn starts workers and chooses kernels
                bare_s.append(middle - began)
                loop_s.append(time.perf_counter() - start)
                waits_s.append(waited)
    views = options.steps * run.loader.batch_size
    told = {
        "workers": run.recipe.workers,
        "threads": threads,
        "bare_views_per_s": round(views / statistics.median(bare_s), 1),
        "loop_views_per_s": round(views / statistics.median(loop_s), 1),
        "ratio": round(statistics.median(b / a for a, b in zip(loop_s, bare_s, strict=True)), 3),
        "waited": round(statistics.median(w / a for w, a in zip(waits_s, loop_s, strict=True)), 3),
    }
    if options.json:
        options.json.write_text(json.dumps(told))
    print(f"{options.model} {options.attention} {options.imgsz}, {told['workers']} workers, {threads} threads")
    print(f"loop {told['loop_views_per_s']} views/s, bare {told['bare_views_per_s']}, ratio {told['ratio']}")
    print(f"without data for {100 * told['waited']:.1f} % of the time")


if __name__ == "__main__":
    main()
