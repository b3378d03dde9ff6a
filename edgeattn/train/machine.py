"""What of the machine a training uses: its accelerator, its memory, its cores."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from edgeattn.errors import EdgeAttnError

TRIAL = 64
"""Most pictures in the steps that tell how many workers are fastest; in far smaller ones threads help less than they will."""
TIE = 0.05
"""Gain, as a fraction, from which workers are worth having."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h."""


def executed_precision(precision: str) -> str:
    """What a recipe's precision is on this machine: `float32`, or `bf16` where nets compute in it."""
    cuda = torch.cuda.is_available()
    return (
        "bf16"
        if precision == "bf16" or (precision == "auto" and cuda and torch.cuda.is_bf16_supported())
        else "float32"
    )


def accelerator(precision: str) -> Accelerator:
    """One for the processes that there are.

    Raises:
        EdgeAttnError: the processes that were started have not found each other.
    """
    AcceleratorState._reset_state()  # it outlives a run, and refuses the next one another precision
    mixed = executed_precision(precision) == "bf16"
    found = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="bf16" if mixed else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],  # see `ranks`
    )  # fmt: skip
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if found.num_processes != asked:  # on a CPU it can happen that each goes its own way
        raise EdgeAttnError(
            f"{asked} processes were started, and {found.num_processes} found each other; start them with torchrun"
        )
    return found


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """What torch draws from: the processor's generator, and the device's own where it has one."""
    own = {"device_rng": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"rng": torch.get_rng_state()} | own


def set_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Go on drawing from there; a state from another machine may lack the device's."""
    torch.set_rng_state(state["rng"])
    if device.type == "cuda" and "device_rng" in state:
        torch.cuda.set_rng_state(state["device_rng"], device)


def compile_steps(model: nn.Module) -> None:
    """Let torch.compile fuse what `model` does when it is called, in place; at the first call, which takes minutes.

    Raises:
        EdgeAttnError: there is no compiler for it.
    """
    compiler = os.environ.get("CXX", "g++")
    if not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise EdgeAttnError(
            f"compile=true needs a C++ compiler, and there is no {compiler}; install it, or leave compile out"
        )
    torch.compiler.reset()  # what earlier runs left counts against a limit, beyond which nothing is compiled
    model.compile(dynamic=False)


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next one, which needs the same again.

    By default glibc gives large blocks back to the system, which hands them out zeroed, page by page: 5 to 15 % of a step.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def fastest_workers(views_s: float, step_s: float, fewer_s: float, cores: int) -> int:
    """How many of the cores should make pictures.

    With none, all compute, and the pictures are made in between; with k the rest computes meanwhile. Where it hardly differs,
    none: times of single steps are rough, and a worker that is not needed costs more than one that is missed.

    Args:
        views_s: time that one core takes for a batch's pictures, in seconds.
        step_s: time that all cores take for a step on it.
        fewer_s: time that all but one take.
        cores: how many there are.
    """
    times = {0: (views_s + step_s) * (1.0 - TIE)}
    for k in range(1, cores):
        times[k] = max(views_s / k, fewer_s * (cores - 1) / (cores - k))
    return min(times, key=lambda k: times[k])
