"""Training: recipes, the loop, distillation. Needs the extra `train`."""

from edgeattn.train.loader import TrainingData
from edgeattn.train.loop import Trained, load_run, train
from edgeattn.train.recipe import Recipe

__all__ = ["Recipe", "Trained", "TrainingData", "load_run", "train"]
