"""Training: recipes, the loop, distillation. Needs the extra `train`."""

from edgeattn.train.loader import TrainingData
from edgeattn.train.loop import train
from edgeattn.train.recipe import Recipe
from edgeattn.train.runs import Trained, load_run

__all__ = ["Recipe", "Trained", "TrainingData", "load_run", "train"]
