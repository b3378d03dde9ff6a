"""What a task adds to training: its net, its loss and the figure that a run is judged by; a file a task."""

from __future__ import annotations

from edgeattn.errors import NameNotFoundError
from edgeattn.train.tasks.base import TrainingTask
from edgeattn.train.tasks.classify import Classify
from edgeattn.train.tasks.detect import Detect
from edgeattn.train.tasks.segment import Segment

__all__ = ["TASKS", "TrainingTask", "training_task"]

TASKS: dict[str, TrainingTask] = {"classify": Classify(), "detect": Detect(), "segment": Segment()}


def training_task(name: str) -> TrainingTask:
    """The task called `name`.

    Raises:
        NameNotFoundError: there is none.
    """
    if name not in TASKS:
        raise NameNotFoundError("task", name, TASKS)
    return TASKS[name]
