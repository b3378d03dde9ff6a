"""The way from pictures to a running model, step by step.

The verbs `make`, `demo`, `train`, `export` and `quantize` and the scripts in tools/ call these functions: `making` has the
whole way, `bundles` the steps from a finished run.
"""

from edgeattn.workflow.bundles import export_run, outside_data, qat_recipe, quantize_run, sensitivity_run
from edgeattn.workflow.making import (
    BEHIND,
    TEACHER_BELOW,
    Made,
    demo,
    demo_recipe,
    make,
    photo_recipe,
    task_of,
    teacher_recipe,
    train_with_teacher,
)

__all__ = [
    "BEHIND",
    "TEACHER_BELOW",
    "Made",
    "demo",
    "demo_recipe",
    "export_run",
    "make",
    "outside_data",
    "photo_recipe",
    "qat_recipe",
    "quantize_run",
    "sensitivity_run",
    "task_of",
    "teacher_recipe",
    "train_with_teacher",
]
