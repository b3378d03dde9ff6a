"""What stays in float on both engines: a plan's rungs, and the layers that are too small for integers.

By default that is the elementwise and reducing part of an attention branch, and what decodes the answer of a detector (see
`heads`). Weights have seven bits, which hold everywhere, or eight: x86 without VNNI adds pairs of products in 16 bits and
saturates with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgeattn.deploy.names import in_attention
from edgeattn.spec import block_of, weight_bits

SMALL_MACS = 100_000
"""Layers of an attention branch with fewer multiplications stay in float: quantizing their input costs more than it saves.

Coordinate attention in nano at 224, OpenVINO int8 over the net without attention: 1.31 with them quantized, 1.21 without.
"""
RUNGS = ("int8", "branch", "attention", "block")
"""What of an attention block stays in float, from nothing on: its elementwise and reducing part and its small layers; all of
its attention; all of the block."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to quantize for one engine."""

    rungs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What stays in float, of `RUNGS`, by the path of the attention block."""
    others: str = "branch"
    """The rung of all other blocks."""
    bias: str = "fast"
    """How biases take back what rounding moves means by: `full` (layer by layer, each for what really reaches it), or `fast`, as
    the toolchain does it unasked: NNCF by statistics, ONNX Runtime not at all."""
    ranges: str = "min-max"
    """Of activations: `min-max`, all that calibration saw, or `histogram`, where the error of its values is least (OpenVINO)."""
    smooth: float | None = None
    """SmoothQuant's alpha at convolutions, which moves range from activations to weights; None: not done."""
    layers: tuple[str, ...] = ()
    """Single layers that stay in float, by name."""
    weight_bits: int = 7
    """Bits of the weights, 7 or 8. EfficientNet-Lite0, answers as float: ONNX Runtime 95.6 and 98.0 %, OpenVINO 98.0 and 98.6 %."""

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Plan:
        """The plan that an artefact's recipe in bundle.json tells of."""
        return cls(
            rungs=dict(recipe.get("blocks", {})),
            others=recipe.get("other_blocks", cls.others),
            bias=recipe.get("bias_correction", cls.bias),
            ranges=recipe.get("ranges", cls.ranges),
            smooth=recipe.get("smooth_quant", cls.smooth),
            layers=tuple(recipe.get("float_layer_names", ())),
            weight_bits=weight_bits(recipe),
        )

    def told(self) -> dict[str, Any]:
        """What a recipe tells of it on either engine; NNCF's own settings come beside it."""
        return {
            "weights": f"s{self.weight_bits} per channel",
            "blocks": dict(self.rungs),
            "other_blocks": self.others,
            "bias_correction": self.bias,
            "ranges": self.ranges,
            "float_layer_names": list(self.layers),
        }

    def rung(self, block: str) -> int:
        """The place of a block's rung in `RUNGS`."""
        return RUNGS.index(self.rungs.get(block, self.others))

    def keeps(self, path: str) -> bool:
        """Whether what lies at a path of the graph stays in float, whatever it is."""
        block = block_of(path)
        if block is not None and self.rung(block) >= RUNGS.index("attention"):
            return True
        return any(rung == "block" and f"{path}.".startswith(f"{at}.") for at, rung in self.rungs.items())

    def keeps_nothing(self, path: str) -> bool:
        """Whether what lies at a path is quantized without exceptions."""
        block = block_of(path)
        return block is not None and self.rung(block) == RUNGS.index("int8")


DEFAULT_PLAN = Plan()


def is_small(weight: str, macs: float) -> bool:
    """Whether a layer is too small for integers: a branch's, by the name of its weight, with few multiplications."""
    return in_attention(weight) and macs < SMALL_MACS


def stays_float(kind: str, weight: str, path: str, macs: float) -> bool:
    """Whether a layer with weights stays in float: a small one of a branch, and every MatMul of a branch or with few products.

    The other ones are the linear layers of transformers from elsewhere.
    """
    return is_small(weight, macs) or (kind == "MatMul" and (in_attention(path) or macs < SMALL_MACS))
