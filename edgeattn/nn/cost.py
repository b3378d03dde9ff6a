"""What a net costs, and nets of equal cost: what an attention adds, the perceptrons give.

Without this a comparison of attentions compares sizes. Two figures must agree at once, parameters (most of them in the
last stages) and MACs (most of them in the first), so that each stage gets a ratio of its own.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeattn.errors import SpecError
from edgeattn.nn.backbone import SIZES, EdgeMeta

PLAIN = "plain"
"""The net without attention."""
TOLERANCE = 0.01
"""Greatest difference of equal costs, as a fraction."""
LEAST = 8
"""Least hidden width of a perceptron."""


@dataclass(frozen=True)
class Cost:
    """Cost of a net."""

    parameters: int
    """Trainable numbers."""
    macs: int
    """Multiplications of convolutions and matrix products for one picture; gating multiplications are not counted."""


def cost(model: nn.Module, imgsz: int) -> Cost:
    """Count the parameters of a model, and the MACs of one square picture of `imgsz` pixels."""
    parameter = next(model.parameters())
    was_training = model.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(torch.zeros(1, 3, imgsz, imgsz, device=parameter.device))
    model.train(was_training)
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


@functools.cache
def equal_cost(size: str, attention: str, imgsz: int) -> tuple[int, ...]:
    """Hidden widths of the stages' perceptrons with which a net with attention costs what the plain net costs.

    Of all that do, the one that changes the ratios least (weighted least squares), rounded as coarsely as `TOLERANCE`
    allows, since engines like multiples of 8.

    Raises:
        SpecError: the attention costs more than the perceptrons can give.
    """
    plain = SIZES[size].hidden()
    target = _cost(size, "none", imgsz, plain)
    units = np.array([_unit(size, stage, imgsz) for stage in range(4)], float).T  # (2, 4) cost of one hidden channel
    excess = _cost(size, attention, imgsz, plain) - target
    weight = np.diag(np.square(plain).astype(float))
    less = weight @ units.T @ np.linalg.solve(units @ weight @ units.T, excess)
    wanted = np.array(plain) - less
    for step in (8, 4, 2, 1):
        coarse = np.floor(wanted / step) * step
        rounded = [coarse + up for up in itertools.product((0, step), repeat=4)]
        off = [np.max(np.abs(excess + units @ (hidden - plain)) / target) for hidden in rounded]
        best = int(np.argmin(off))
        if off[best] <= TOLERANCE and min(rounded[best]) >= LEAST:
            return tuple(int(h) for h in rounded[best])
    raise SpecError(
        f"{size} with {attention} cannot cost what {size} without attention costs: its perceptrons would be "
        f"{', '.join(f'{h:.0f}' for h in wanted)} wide; take a larger model, or compare it without equal_cost_to"
    )


def _cost(size: str, attention: str, imgsz: int, hidden: tuple[int, ...]) -> NDArray[np.float64]:
    with torch.random.fork_rng(devices=[]):  # whoever asks goes on with the weights that his seed gives
        found = cost(EdgeMeta(size, attention, imgsz=imgsz, hidden=hidden), imgsz)
    return np.array([found.parameters, found.macs], float)


@functools.cache
def _unit(size: str, stage: int, imgsz: int) -> tuple[float, float]:
    """Parameters and MACs of one more hidden channel in every perceptron of a stage."""
    plain = SIZES[size].hidden()
    more = tuple(h + (s == stage) for s, h in enumerate(plain))
    parameters, macs = _cost(size, "none", imgsz, more) - _cost(size, "none", imgsz, plain)
    return float(parameters), float(macs)
