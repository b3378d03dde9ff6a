"""What a training minimises: the named loss terms of a batch, with everything in them that learns.

labels       the task's own terms, as cross entropy against the labels
distillation the methods of `distill`, where there is a teacher
looking      attention maps against where to look (`supervise`), every block at its own resolution
adversarial  the first and the third once more on pictures turned against the model by the fast gradient sign method
             (Goodfellow et al. 2015, arXiv:1412.6572)

The terms are added with fixed weights, or each with one that is learnt from its own uncertainty (Kendall et al. 2018,
arXiv:1705.07115): L / (2 s^2) + log s.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgeattn.errors import DataError, SpecError
from edgeattn.train.distill import Distiller, labels_weight, methods, needs, resize
from edgeattn.train.recipe import Recipe
from edgeattn.train.supervision import SUPERVISIONS
from edgeattn.train.tasks import training_task
from edgeattn.train.watch import Seen, exactly, watch

ADVERSARIAL_SHARE = 0.5
"""Weight of the terms on adversarial pictures; the others have the rest (the paper's)."""
DISTILL_WARMUP = 0.1
"""Part of the training in which distillation gains its weight."""
SUPERVISE_WARMUP, SUPERVISE_LEFT = 0.1, 0.1
"""Part of the training in which the maps' loss gains its weight, and what is left of it at the end: look first, then answer."""


class Objective(nn.Module):
    """The student and the terms; `forward` gives them, so that several processes share all their gradients."""

    def __init__(self, recipe: Recipe, model: nn.Module, teacher: nn.Module | None) -> None:
        """Try the nets once on an empty picture, to see what they give.

        Raises:
            SpecError: a net gives no features or maps, and a term needs them.
        """
        super().__init__()
        self.recipe, self.model, self.task = recipe, model, training_task(recipe.task)
        self._teacher = (teacher,)  # in a tuple, it is no part of this module: neither trained nor saved
        self.methods = methods(recipe.distill) if teacher else ()
        self.answers = needs(self.methods, "logits")
        self.teaches_maps, self.features = needs(self.methods, "maps"), needs(self.methods, "features")
        self.maps = self.teaches_maps or recipe.supervise != "none"
        self.looking = f"looking_{recipe.supervise}"
        self.distiller: Distiller | None = None
        if teacher is not None:
            self.distiller = Distiller(self.methods, self._probe(model), self._teach(self._empty(teacher)))
        self.blocks = _chosen_blocks(recipe, tuple(self._probe(model).maps)) if recipe.supervise != "none" else ()
        self.log_sigma = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name in self._names()} if recipe.weighting == "uncertainty" else {}
        )

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher; None without one."""
        return self._teacher[0]

    @property
    def teacher_answers_alone(self) -> bool:
        """Whether of the teacher nothing but its answer is needed."""
        return self.teacher is not None and not self.features and not self.teaches_maps

    def forward(
        self,
        x_BCHW: Tensor,
        target: Tensor,
        where_Bhw: Tensor,
        *,
        progress: float,
        told_NK: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss terms by name, weighted; their sum is the loss.

        Args:
            x_BCHW: normalised pictures.
            target: as the task's `mix` gives it, (B, ...).
            where_Bhw: where to look; (B, 0, 0) where nobody tells.
            progress: share of the training that is done, 0 to 1.
            told_NK: the teacher's logits, where they are known already.

        Raises:
            DataError: maps are to be supervised, and the data does not tell where to look.
            SpecError: the supervision does not fit the attention's maps.
        """
        seen = watch(self.model, x_BCHW, maps=self.maps, features=self.features)
        terms = self._taught_by_data(seen, target, where_Bhw, progress)
        if self.recipe.fgsm:
            against = watch(self.model, self._turned(x_BCHW, target), maps=bool(self.blocks))
            adversarial = self._taught_by_data(against, target, where_Bhw, progress)
            terms = {name: (1 - ADVERSARIAL_SHARE) * term for name, term in terms.items()}
            terms["adversarial"] = ADVERSARIAL_SHARE * torch.stack(list(adversarial.values())).sum()
        if self.distiller is not None:
            told = Seen(told_NK, {}, None) if told_NK is not None else self._teach(x_BCHW)
            rise = min(1.0, progress / DISTILL_WARMUP)
            compared = None
            if self.answers:
                with exactly(x_BCHW):
                    compared = self.task.compared(seen.answer, told.answer, target)
                seen, told = seen._replace(answer=compared.own), told._replace(answer=compared.told)
            taught = self.distiller(seen, told, compared.label if compared else target)
            terms |= {name: rise * term for name, term in taught.items()}
        if not self.log_sigma:
            return terms
        return {
            name: term * (-2 * self.log_sigma[name]).exp() / 2 + self.log_sigma[name] for name, term in terms.items()
        }

    def _names(self) -> list[str]:
        chosen = [self.looking] * bool(self.blocks) + ["adversarial"] * bool(self.recipe.fgsm)
        return [*self.task.terms, *chosen, *self.methods]

    def _taught_by_data(self, seen: Seen, target: Tensor, where_Bhw: Tensor, progress: float) -> dict[str, Tensor]:
        smoothing = 0.0 if self.methods else self.recipe.label_smoothing
        weight = labels_weight(self.methods) if self.methods else 1.0
        with exactly(target):
            terms = {name: weight * term for name, term in self.task.loss(seen.answer, target, smoothing).items()}
            if self.blocks:
                terms[self.looking] = self._weight(progress) * self._looking(seen, where_Bhw)
        return terms

    def _looking(self, seen: Seen, where_Bhw: Tensor) -> Tensor:
        if not where_Bhw.numel():
            raise DataError(
                f"supervise={self.recipe.supervise} needs to know where to look, and the data does not tell; name masks, "
                "gaze maps or boxes: --set targets=PATH"
            )
        supervision = SUPERVISIONS[self.recipe.supervise]
        maps = [seen.maps[path] for path in self.blocks]
        if supervision.gates_only and (high := max(float(m.detach().amax()) for m in maps)) > 1.001:
            raise SpecError(
                f"supervise={self.recipe.supervise} compares gates between 0 and 1, and a map of {self.recipe.attention} "
                f"reaches {high:.3g}; take kl, ce or cosine"
            )
        return torch.stack([supervision.loss(m, resize(where_Bhw, m)) for m in maps]).mean()

    def _weight(self, progress: float) -> float:
        """Weight of the maps' loss: it rises, then falls as a cosine."""
        full = self.recipe.supervise_weight or SUPERVISIONS[self.recipe.supervise].weight
        if progress < SUPERVISE_WARMUP:
            return full * progress / SUPERVISE_WARMUP
        done = (progress - SUPERVISE_WARMUP) / (1 - SUPERVISE_WARMUP)
        return full * (SUPERVISE_LEFT + (1 - SUPERVISE_LEFT) * (1 + math.cos(math.pi * done)) / 2)

    def _turned(self, x_BCHW: Tensor, target: Tensor) -> Tensor:
        """The pictures, each value moved by `fgsm` grey levels to where the loss rises."""
        leaf_BCHW = x_BCHW.detach().requires_grad_(True)
        with torch.enable_grad():
            answer = watch(self.model, leaf_BCHW).answer
            with exactly(x_BCHW):
                loss = torch.stack(list(self.task.loss(answer, target, 0.0).values())).sum()
            (slope_BCHW,) = torch.autograd.grad(loss, leaf_BCHW)
        return (x_BCHW + self.recipe.fgsm / 128 * slope_BCHW.sign()).clamp(-1.0, 127 / 128).detach()

    def _teach(self, x_BCHW: Tensor) -> Seen:
        assert self.teacher is not None
        with torch.no_grad():
            return watch(self.teacher, x_BCHW, maps=self.teaches_maps, features=self.features)

    def _probe(self, model: nn.Module) -> Seen:
        was_training = model.training
        model.eval()
        with torch.no_grad():
            seen = watch(model, self._empty(model), maps=self.maps, features=self.features)
        model.train(was_training)
        return seen

    def _empty(self, model: nn.Module) -> Tensor:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        return torch.zeros(2, 3, self.recipe.input.height, self.recipe.input.width, device=device)


def _chosen_blocks(recipe: Recipe, held: tuple[str, ...]) -> tuple[str, ...]:
    if not held:
        raise SpecError(
            f"supervise={recipe.supervise} teaches attention where to look, and {recipe.model} with attention "
            f"{recipe.attention} has no maps; choose another attention"
        )
    if recipe.supervise_blocks == "all":
        return held
    if recipe.supervise_blocks == "last":
        return held[-1:]
    asked = tuple(recipe.supervise_blocks.split(","))
    if unknown := [path for path in asked if path not in held]:
        raise SpecError(
            f"supervise_blocks: there is no block {unknown[0]}; there are {', '.join(held)}, or all, or last"
        )
    return asked
