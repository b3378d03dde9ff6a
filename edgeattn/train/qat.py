"""Quantization-aware training: the float net learns with the rounding of its int8 files in the way (Jacob et al. 2018,
arXiv:1712.05877).

BatchNorm is folded first. Then every convolution and linear layer that the int8 files compute in integers sees its weights
in seven bits, symmetric for each output channel, and its input in eight bits between the ends that training has seen; the
gradient passes the rounding unchanged (straight through). What stays float there (see `deploy.recipes`) stays float here.
What comes out is a float net again, whose weights the ordinary quantization then takes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgeattn.deploy.recipes.plan import is_small
from edgeattn.errors import SpecError

WEIGHT_LEVELS = 63
"""Greatest weight, in steps: seven bits, as both engines' files have them."""
INPUT_LEVELS = 255
"""Greatest input, in steps from the least."""
MOMENTUM = 0.05
"""Weight of a batch's ends in the ends that are kept."""
INPUT = "rounded_input"


class _Weight(nn.Module):
    """Weights as int8 holds them."""

    def forward(self, weight: Tensor) -> Tensor:
        """Rounded, the same shape (O, ...)."""
        scale_O = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-8) / WEIGHT_LEVELS
        zero_O = torch.zeros_like(scale_O, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale_O, zero_O, 0, -WEIGHT_LEVELS, WEIGHT_LEVELS)


class _Input(nn.Module):
    """A layer's input as int8 holds it, between ends that follow the batches seen in training."""

    ends: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ends", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        """Rounded, the same shape; as it is before anything was seen."""
        if self.training:
            low, high = x.detach().float().aminmax()
            now = torch.stack([low.clamp_max(0.0), high.clamp_min(0.0)])  # 0 must be a step: padding is exact
            self.ends.lerp_(now, MOMENTUM if self.ends.any() else 1.0)
        if not self.ends.any():
            return x
        scale = ((self.ends[1] - self.ends[0]) / INPUT_LEVELS).clamp_min(1e-8)
        zero = (-self.ends[0] / scale).round().to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, INPUT_LEVELS)


def rounded(model: nn.Module, imgsz: int) -> nn.Module:
    """A copy of a model with BatchNorm folded, that computes as its int8 files will.

    Args:
        model: with a `deployed` form.
        imgsz: side of its input, in pixels; small layers of attention stay float.

    Raises:
        SpecError: a model that cannot be folded.
    """
    twin = folded(model)
    for layer in _integer_layers(twin, imgsz):
        parametrize.register_parametrization(layer, "weight", _Weight())
        layer.add_module(INPUT, _Input())
        layer.register_forward_pre_hook(_round_input)
    return twin


def folded(model: nn.Module) -> nn.Module:
    """A copy of a model with its BatchNorm folded; the form in which a quantization-aware run keeps its weights.

    Raises:
        SpecError: it has no such form.
    """
    if not hasattr(model, "deployed"):
        raise SpecError(
            f"qat folds BatchNorm first, and a {type(model).__name__} has no deployed form; take pico, nano, tiny, small, "
            "lite or resnet20"
        )
    twin: nn.Module = model.deployed()  # type: ignore[operator]
    if left := [name for name, m in twin.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]:
        raise SpecError(f"qat wants every BatchNorm folded, and {left[0]} of the deployed model is not")
    return twin


def unrounded(model: nn.Module) -> nn.Module:
    """The float net inside, changed in place."""
    for module in list(model.modules()):
        if hasattr(module, INPUT):
            delattr(module, INPUT)
            module._forward_pre_hooks.clear()
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    return model


def _round_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (getattr(layer, INPUT)(inputs[0]), *inputs[1:])


def _integer_layers(model: nn.Module, imgsz: int) -> list[nn.Module]:
    """The layers that the int8 files compute in integers."""
    places: dict[nn.Module, int] = {}

    def count(layer: nn.Module, _: object, y: Tensor) -> None:
        places[layer] = y.numel() // (y.shape[1] if isinstance(layer, nn.Conv2d) else y.shape[-1])

    named = {
        f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    hooks = [layer.register_forward_hook(count) for layer in named.values()]
    with torch.no_grad():
        model(torch.zeros(1, 3, imgsz, imgsz))
    for hook in hooks:
        hook.remove()
    return [layer for name, layer in named.items() if not is_small(name, places.get(layer, 0) * layer.weight.numel())]
