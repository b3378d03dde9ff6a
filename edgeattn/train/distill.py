"""Distillation: what a teacher teaches by, and with which weight; the defaults are the papers'.

A recipe names one method, or several joined by `+`: `dist`, `kd+at`, `dkd+maps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeattn.errors import NameNotFoundError, SpecError
from edgeattn.train.losses import at, cwd, dist, dkd, kd, map_kl, mgd, rkd
from edgeattn.train.watch import Seen, exactly

MASKED = 0.65
"""Share of places that `mgd` blanks before the student's features are made whole again."""


@dataclass(frozen=True)
class Method:
    """One way to teach."""

    looks_at: str
    """What it needs of both nets: `logits`, `features` or `maps`."""
    weight: float
    """Its own weight."""
    labels: float = 1.0
    """Weight of the labels' cross entropy beside it."""


METHODS = {
    "kd": Method("logits", 0.9, 0.1),  # softened answers (Hinton 2015)
    "dkd": Method("logits", 1.0, 1.0),  # the target's and the other classes' part apart (2022)
    "dist": Method("logits", 1.0, 1.0),  # correlations with a stronger teacher (DIST 2022)
    "rkd": Method("features", 1.0, 1.0),  # distances and angles between pictures (2019)
    "at": Method("features", 1000.0, 1.0),  # activation energy, between like nets (2017)
    "cwd": Method("features", 1.0, 1.0),  # where each channel is active (2021)
    "mgd": Method("features", 2e-5, 1.0),  # masked features made whole again (2022)
    "maps": Method("maps", 1.0, 1.0),  # where the teacher's attention lies, any mechanism from any other
}


def methods(name: str) -> tuple[str, ...]:
    """The methods that `name` joins by `+`.

    Raises:
        NameNotFoundError: one of them is unknown.
    """
    names = tuple(name.split("+"))
    for one in names:
        if one not in METHODS:
            raise NameNotFoundError("distillation method", one, METHODS)
    return names


def labels_weight(names: tuple[str, ...]) -> float:
    """Weight of the labels' cross entropy beside these methods: the least that one of them wants."""
    return min(METHODS[name].labels for name in names)


def needs(names: tuple[str, ...], kind: str) -> bool:
    """Whether one of the methods looks at `kind`: logits, features or maps."""
    return any(METHODS[name].looks_at == kind for name in names)


def freeze(teacher: nn.Module) -> nn.Module:
    """Put a teacher into evaluation mode, without gradients."""
    return teacher.eval().requires_grad_(False)


class Distiller(nn.Module):
    """The loss terms of some methods, and the adapters that two unlike nets need between them."""

    def __init__(self, names: tuple[str, ...], student: Seen, teacher: Seen) -> None:
        """Build adapters for what two nets gave for the same pictures.

        Raises:
            SpecError: one of the nets has no maps to compare.
        """
        super().__init__()
        self.names = names
        self.adapters = nn.ModuleDict()
        for name in names:
            if name in ("cwd", "mgd"):
                assert student.features is not None
                assert teacher.features is not None
                own, wanted = student.features.shape[1], teacher.features.shape[1]
                self.adapters[name] = _Adapter(own, wanted, generate=name == "mgd")
        if needs(names, "maps"):
            for who, seen in (("student", student), ("teacher", teacher)):
                if not seen.maps:
                    raise SpecError(
                        f"the {who} has no attention whose maps could be taught; give it one, or leave out maps"
                    )
            self.pairs = pair_blocks(tuple(student.maps), tuple(teacher.maps))

    def forward(self, student: Seen, teacher: Seen, label_B: Tensor) -> dict[str, Tensor]:
        """The weighted loss terms by method, in float32; the adapters compute as the nets do."""
        adapted = {name: adapter(student.features).float() for name, adapter in self.adapters.items()}
        with exactly(label_B):
            return {
                name: METHODS[name].weight * self._term(name, student, teacher, label_B, adapted) for name in self.names
            }

    def _term(self, name: str, student: Seen, teacher: Seen, label_B: Tensor, adapted: Mapping[str, Tensor]) -> Tensor:
        logits = student.answer, teacher.answer
        compares = METHODS[name].looks_at == "logits"
        if compares and not len(label_B):  # a batch without boxes, or without a pixel that counts
            return torch.zeros((), device=label_B.device)
        if name == "kd":
            return kd(*logits)
        if name == "dkd":
            return dkd(*logits, label_B)
        if name == "dist":
            return dist(*logits)
        if name == "maps":
            return torch.stack(
                [map_kl(student.maps[own], resize(teacher.maps[other], student.maps[own])) for own, other in self.pairs]
            ).mean()
        assert student.features is not None
        assert teacher.features is not None
        own, other = student.features, teacher.features
        if name == "rkd":
            return rkd(own.mean((2, 3)), other.mean((2, 3)))
        if name == "at":
            return at(own, other)
        return (cwd if name == "cwd" else mgd)(adapted[name], resize(other, adapted[name]))


def pair_blocks(student: tuple[str, ...], teacher: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The block of the teacher at the same relative depth for each of the student's, both in order from first to last."""
    return tuple(
        (own, teacher[round(i * (len(teacher) - 1) / max(1, len(student) - 1))]) for i, own in enumerate(student)
    )


def resize(x: Tensor, like: Tensor) -> Tensor:
    """(B, ..., H, W) at another's size: averaged down, or interpolated up."""
    size = (like.shape[-2], like.shape[-1])
    if tuple(x.shape[-2:]) == size:
        return x
    x_BCHW = x if x.ndim == 4 else x[:, None]
    smaller = size[0] <= x.shape[-2] and size[1] <= x.shape[-1]
    found = F.adaptive_avg_pool2d(x_BCHW, size) if smaller else F.interpolate(x_BCHW, size, mode="bilinear")
    return found if x.ndim == 4 else found[:, 0]


class _Adapter(nn.Module):
    """The student's features in the teacher's width; with `generate`, made whole again after some places were blanked."""

    def __init__(self, channels: int, wanted: int, *, generate: bool) -> None:
        super().__init__()
        self.align = nn.Identity() if channels == wanted else nn.Conv2d(channels, wanted, 1)
        self.generate = (
            nn.Sequential(nn.Conv2d(wanted, wanted, 3, padding=1), nn.ReLU(), nn.Conv2d(wanted, wanted, 3, padding=1))
            if generate
            else None
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features of the teacher's width."""
        y_BCHW: Tensor = self.align(x_BCHW)
        if self.generate is None:
            return y_BCHW
        kept_B1HW = torch.rand_like(y_BCHW[:, :1]) >= MASKED
        return self.generate(y_BCHW * kept_B1HW)  # type: ignore[no-any-return]
