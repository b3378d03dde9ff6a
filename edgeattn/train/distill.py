"""Distillation: a teacher, and the named loss terms that it adds to a step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from edgeattn.errors import NameNotFoundError
from edgeattn.train.losses import dkd, kd

Term = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(student logits, teacher logits, labels) to a scalar."""

METHODS: dict[str, Term] = {
    "dkd": dkd,
    "kd": lambda student, teacher, _: kd(student, teacher),
}

CROSS_ENTROPY_WEIGHT = {"dkd": 1.0, "kd": 0.1}
"""Weight of the labels' own loss beside a method (the papers')."""
METHOD_WEIGHT = {"dkd": 1.0, "kd": 0.9}


def method(name: str) -> Term:
    """The distillation loss called `name`.

    Raises:
        NameNotFoundError: no such method.
    """
    if name not in METHODS:
        raise NameNotFoundError("distillation method", name, METHODS)
    return METHODS[name]


def freeze(teacher: nn.Module) -> nn.Module:
    """Put a teacher into evaluation mode, without gradients."""
    return teacher.eval().requires_grad_(False)
