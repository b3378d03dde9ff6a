"""The folder of a run: its recipe, its weights, whose weights these came from; and the model that they make.

recipe.json  environment.json  labels.json  attributions.json  metrics.jsonl  model.safetensors  (checkpoint.pt until it ends)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from edgeattn.deploy.names import in_attention
from edgeattn.errors import DataError, SpecError
from edgeattn.nn.pretrained import ATTRIBUTIONS
from edgeattn.spec import to_json
from edgeattn.timing.environment import environment
from edgeattn.train.qat import folded
from edgeattn.train.recipe import RECIPE, Recipe, load_recipe
from edgeattn.train.tasks import training_task

WEIGHTS = "model.safetensors"
CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
ATTRIBUTIONS_FILE = "attributions.json"
HEAD = "head."
"""What the paths of a net's head begin with."""
ZOO_WEIGHTS = Path(__file__).parents[1] / "zoo" / "pico-coord.safetensors"


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    folder: Path
    """The run's folder."""
    recipe: Recipe
    """How it was trained."""
    labels: tuple[str, ...]
    """Names of the classes."""
    model: nn.Module
    """The trained model, on the CPU, in eval mode."""
    metrics: dict[str, float]
    """The last line of metrics: loss terms, `validation_top1` (fraction), ..."""


def load_run(folder: str | Path) -> Trained:
    """Load a finished run.

    Raises:
        DataError: the folder holds no finished run.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise DataError(f"{folder} holds no finished run ({WEIGHTS} is missing); train with --out {folder} --resume")
    recipe = load_recipe(folder)
    labels = tuple(json.loads((folder / "labels.json").read_text()))
    model = build(recipe, len(labels))
    if recipe.qat:
        model = folded(model)
    model.load_state_dict(load_file(folder / WEIGHTS))
    return Trained(folder, recipe, labels, model.eval(), load_metrics(folder)[-1])


def load_metrics(folder: Path) -> list[dict[str, float]]:
    """What a run noted of each of its epochs."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def resumed(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe to go on with in a run's folder: it keeps its number of workers, since sums depend on the number of threads.

    A run that is not finished may go on with another learning rate: where the loss was no longer a number, the same one would
    end there again. Its metrics tell the rate of each epoch.

    Raises:
        DataError: the folder holds a run of another recipe.
    """
    if not (folder / RECIPE).is_file():
        return recipe
    before = load_recipe(folder)
    if recipe.workers < 0:
        recipe = replace(recipe, workers=before.workers)
    lr = before.lr if (folder / WEIGHTS).is_file() else recipe.lr
    if replace(before, workers=recipe.workers, lr=lr) != recipe:
        raise DataError(
            f"{folder} holds a run of another recipe; resume with the same settings, or choose another --out"
        )
    return recipe


def clear(folder: Path) -> None:
    """Remove what an earlier run has learnt from its folder. Its teacher's answers go when new ones are begun."""
    for name in (WEIGHTS, CHECKPOINT, METRICS):
        (folder / name).unlink(missing_ok=True)


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Write a recipe into a run's folder."""
    (folder / RECIPE).write_text(json.dumps(to_json(recipe), indent=1))


def write_about(recipe: Recipe, labels: Sequence[str], folder: Path) -> None:
    """Write what a run is about to do into its folder: its recipe, where and for which classes, whose weights it builds on."""
    write_recipe(recipe, folder)
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1))
    (folder / "labels.json").write_text(json.dumps(labels))
    # Kept with the run: what it came from may be moved away, or be named from another working directory.
    (folder / ATTRIBUTIONS_FILE).write_text(json.dumps(attributions(recipe), indent=1))


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write a model's weights into a run's folder, in one step."""
    partial = folder / f".{WEIGHTS}"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial)
    partial.replace(folder / WEIGHTS)


def build(recipe: Recipe, classes: int) -> nn.Module:
    """Build the model that a recipe names, with fresh weights."""
    return training_task(recipe.task).build(recipe, classes)


def check(recipe: Recipe) -> None:
    """Build the model once and throw it away, so that a wrong name is said before any time is spent.

    Raises:
        NameNotFoundError: no such model or attention.
        SpecError: a class or function of the user's own that builds something else.
        DataError: no such starting weights, or they do not fit.
    """
    start_from(recipe.start, build(recipe, 2))


def start_from(name: str, model: nn.Module) -> None:
    """Load the weights called `name` into `model`, in place, but for another task's head, other classes and another attention.

    Raises:
        DataError: there are no such weights, or they are those of another net.
    """
    if name == "none":
        return
    file = ZOO_WEIGHTS if name == "zoo" else Path(name) / WEIGHTS
    if not file.is_file():
        raise DataError(f"there are no weights {file} to start from; name a finished run's folder, zoo or none")
    own = model.state_dict()
    fitting = {
        key: value.to(own[key].dtype)
        for key, value in load_file(file).items()
        if key in own and own[key].shape == value.shape
    }
    needed = {key for key in own if not in_attention(key) and not key.startswith(HEAD)}
    if len(fitting.keys() & needed) < 0.9 * len(needed):
        raise DataError(
            f"the weights {file} fit {len(fitting)} of the model's {len(own)} tensors; start from the same model, or none"
        )
    model.load_state_dict(fitting, strict=False)


def parents(recipe: Recipe) -> list[str]:
    """What a run's weights come from besides the pictures: what it starts from, and its teachers."""
    return sorted({recipe.start, *recipe.teacher.split(",")} - {"none", "zoo"})


def check_parents(recipe: Recipe, folder: Path) -> None:
    """See that a run does not build on what it is about to write over.

    Raises:
        SpecError: it starts or learns from the run in its own folder.
    """
    for parent in parents(recipe):
        if Path(parent).resolve() == folder.resolve():
            raise SpecError(f"the run would write over {parent}, which it builds on; choose another --out")


def weights_attributions(folder: str | Path) -> list[dict[str, str]]:
    """Sources and licences of the weights that a run started or learnt from, also by way of the runs that these came from."""
    return list(json.loads((Path(folder) / ATTRIBUTIONS_FILE).read_text()))


def attributions(recipe: Recipe) -> list[dict[str, str]]:
    """The same for a run that is to begin; a teacher from elsewhere is named as it stands in the recipe."""
    found = [ATTRIBUTIONS[recipe.model]] if recipe.model in ATTRIBUTIONS else []
    if recipe.start == "zoo":
        with safe_open(ZOO_WEIGHTS, "pt") as weights:
            found += json.loads(weights.metadata()["attributions"])
    for parent in parents(recipe):
        if (Path(parent) / ATTRIBUTIONS_FILE).is_file():
            found += weights_attributions(parent)
        elif parent in ATTRIBUTIONS:
            found.append(ATTRIBUTIONS[parent])
        else:
            found.append({"name": f"teacher {parent}", "source": parent, "licence": "not known", "credit": ""})
    return found
