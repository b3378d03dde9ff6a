"""Several processes: two ranks on a CPU learn what one process learns from the same half-batches, one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import discs
import pytest
import torch

from edgeattn.errors import DataError
from edgeattn.spec import to_json
from edgeattn.train import Recipe, load_run, train
from edgeattn.train.loader import Loader
from edgeattn.train.sources import open_data

STEPS = 50

SCRIPT = """
import json, sys, torch, torch.distributed as dist
from pathlib import Path
from edgeattn.spec import from_json
from edgeattn.train import Recipe
from edgeattn.train.loop import _Run
from edgeattn.train.sources import open_data

recipe, folder, steps = from_json(Recipe, json.loads(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
data = open_data(recipe, folder)
run = _Run(recipe, folder, data, None)
torch.set_num_threads(1)  # as each rank has: another order of adding up is another run after 50 steps of Adam
run.objective.train()
done = 0
for epoch in range(1000):
    for batch in run.loader.epoch(epoch):
        run.advance(batch)
        done += 1
        if done == steps:
            break
    if done == steps:
        break
rank = run.accelerator.process_index
torch.save(
    {"world": run.accelerator.num_processes, "initialized": dist.is_initialized() and dist.get_world_size(),
     "parameters": {k: v.detach() for k, v in run.model.named_parameters()},
     "averaged": {k: v for k, v in run.averaged.state_dict().items() if v.is_floating_point()}},
    folder / f"rank-{rank}.pt",
)
if dist.is_initialized():
    dist.destroy_process_group()
"""


def started(command: list[str], recipe: Recipe, folder: Path) -> None:
    folder.mkdir()
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [*command, str(script), json.dumps(to_json(recipe)), str(folder), str(STEPS)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_ranks_equal_one_process_that_accumulates(tmp_path: Path) -> None:
    photos = discs.write(tmp_path / "photos", 20)
    recipe = Recipe(
        str(photos), attention="coord", imgsz=32, epochs=30, batch_size=15, workers=0, mixup=0.5, precision="float32"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    started(torchrun, recipe, tmp_path / "two")
    started([sys.executable], replace(recipe, accumulate=2), tmp_path / "one")
    one = torch.load(tmp_path / "one" / "rank-0.pt", weights_only=True)
    assert one["world"] == 1
    for rank in (0, 1):
        two = torch.load(tmp_path / "two" / f"rank-{rank}.pt", weights_only=True)
        assert (two["world"], two["initialized"]) == (2, 2)
        for kind in ("parameters", "averaged"):  # what is trained, and what is saved with its running statistics
            worst = max(float((two[kind][k] - v).abs().max()) for k, v in one[kind].items())
            assert worst <= 1e-5, kind
        assert any("running_var" in name for name in two["averaged"])


@pytest.mark.parametrize("batch_size", [8, 9])
def test_each_process_reads_the_part_of_every_batch_that_one_accumulates(batch_size: int, tmp_path: Path) -> None:
    views = open_data(Recipe(str(discs.write(tmp_path / "photos", 10)), imgsz=32), tmp_path).train
    whole = [
        [part.places.tolist() for part in batch.parts(2)]
        for batch in Loader(views, batch_size=batch_size, seed=1, workers=0).epoch(3)
    ]
    halves = [
        [b.places.tolist() for b in Loader(views, batch_size=batch_size, seed=1, workers=0, part=(rank, 2)).epoch(3)]
        for rank in (0, 1)
    ]
    assert [[a, b] for a, b in zip(*halves, strict=True)] == whole
    assert all(len(a) == 4 for a in halves[0])
    with pytest.raises(DataError, match="too few for 8 processes"):
        Loader(views, batch_size=8, seed=1, workers=0, part=(0, 8))


def test_a_whole_training_by_torchrun_leaves_one_run(tmp_path: Path) -> None:
    photos = discs.write(tmp_path / "photos", 12)
    script = tmp_path / "fit.py"
    script.write_text(
        "import sys\nfrom edgeattn.cli import main\n"
        f"sys.argv = ['edgeattn', 'train', {str(photos)!r}, '--out', {str(tmp_path / 'run')!r}, '--imgsz', '32',"
        " '--epochs', '2', '--set', 'workers=0', '--set', 'batch_size=8']\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)],
        env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model.safetensors").is_file()
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    recipe = replace(load_run(tmp_path / "run").recipe, accumulate=2)
    alone = train(recipe, tmp_path / "alone", progress=False)
    assert len(told) == 2
    assert told[-1]["cross_entropy"] == pytest.approx(alone.metrics["cross_entropy"], abs=1e-4), "of both halves"
    assert told[-1]["validation_top1"] == alone.metrics["validation_top1"]
