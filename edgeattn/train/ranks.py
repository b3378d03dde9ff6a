"""What layers count of the batches they see, in several processes: brought to what one process counts that sees all parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm


class Statistics:
    """The running statistics of a model of which every process has a copy.

    Those of BatchNorm become what one process has that sees the parts of the batch one after the other: from r before a step,
    of which each process keeps a share d, and r_i after it in process i of n, to

        d^n r + sum_i d^(n-1-i) (r_i - d r)

    Whatever else layers count, as the ends of quantization-aware training, becomes the mean over the processes.
    """

    def __init__(self, model: nn.Module, rank: int, ranks: int) -> None:
        """Of this process, number `rank` of `ranks`."""
        self.rank, self.ranks = rank, ranks
        # SyncBatchNorm's are those of all processes already; their mean is what they are.
        self.norms = [
            m
            for m in model.modules()
            if isinstance(m, _BatchNorm) and not isinstance(m, SyncBatchNorm) and m.track_running_stats and m.momentum
        ]
        known = {id(value) for norm in self.norms for value in _running(norm)}
        self.others = [value for value in model.buffers() if value.is_floating_point() and id(value) not in known]
        self._before: list[tuple[Tensor, list[Tensor]]] = []

    def keep(self) -> None:
        """Remember them before a step."""
        if self.ranks > 1:
            self._before = [(_batches(norm).clone(), [v.clone() for v in _running(norm)]) for norm in self.norms]

    @torch.no_grad()
    def share(self) -> None:
        """Bring them together after a step; every process calls it."""
        values = [value for norm in self.norms for value in _running(norm)] + self.others
        if self.ranks == 1 or not values:
            return
        later = self.ranks - 1 - self.rank
        parts: list[Tensor] = []
        for norm, (batches, before) in zip(self.norms, self._before, strict=True):
            left = (1.0 - (norm.momentum or 0.0)) ** (_batches(norm) - batches)
            for now, then in zip(_running(norm), before, strict=True):
                parts.append(left**later * (now - left * then) + left**self.ranks * then / self.ranks)
        parts += [value / self.ranks for value in self.others]
        flat = torch.cat([part.flatten() for part in parts])
        torch.distributed.all_reduce(flat)
        for value, total in zip(values, torch.split(flat, [value.numel() for value in values]), strict=True):
            value.copy_(total.view_as(value))


def _running(norm: _BatchNorm) -> list[Tensor]:
    return [value for value in (norm.running_mean, norm.running_var) if value is not None]


def _batches(norm: _BatchNorm) -> Tensor:
    """How many it has seen."""
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked
