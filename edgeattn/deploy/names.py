"""Names that tell which module an operator comes from: `backbone.stages.2.0.attention/Conv_3`.

The exporter knows the modules that it calls. Attention is run by `attend`, which is no call; for the time of the export it
becomes one, so that also a gate's multiplication is known to be the attention's.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    from torch import nn

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter notes the modules around an operator, outermost first; the last entry is the operator's own."""
WRAPPER = "model."
"""What the wrapper that is exported puts before the paths of the model inside."""


@contextlib.contextmanager
def attending(model: nn.Module) -> Iterator[None]:
    """Make the `attend` of every module below `model` a call of that module, as long as the block lasts."""
    changed = [module for module in model.modules() if module is not model and hasattr(module, "attend")]
    kinds = [type(module) for module in changed]
    for module, kind in zip(changed, kinds, strict=True):
        module.__class__ = _calling(kind)
    try:
        yield
    finally:
        for module, kind in zip(changed, kinds, strict=True):
            module.__class__ = kind


def _calling(kind: type[nn.Module]) -> type[nn.Module]:
    def attend(self: Any, x: Any) -> Any:
        self.__dict__["_asked"] = True
        return self(x)

    def forward(self: Any, x: Any) -> Any:
        # `attend` may call `forward`, and the other way round: only the outermost call is turned.
        return kind.attend(self, x) if self.__dict__.pop("_asked", False) else kind.forward(self, x)  # type: ignore[attr-defined]

    return type(kind.__name__, (kind,), {"attend": attend, "forward": forward, "__module__": kind.__module__})


def name_nodes(graph: onnx.GraphProto) -> None:
    """Name every node of an exported graph PATH/OPERATOR_NUMBER, in place; `-` is the path of what is outside of modules."""
    for i, node in enumerate(graph.node):
        held = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
        modules = [scope for scope in ast.literal_eval(held)[:-1] if scope]
        path = modules[-1].removeprefix(WRAPPER) if modules else "-"
        node.name = f"{path}/{node.op_type}_{i}"


def in_attention(path: str) -> bool:
    """Whether a path, of a module or of a weight, lies in an attention branch."""
    return block_of(path) is not None


def block_of(path: str) -> str | None:
    """The attention block in whose branch a path lies, as bundle.json names it; None for a path outside of branches."""
    head, found, _ = f"{path}.".partition(".attention.")
    return head if found else None


def path_of(name: str) -> str:
    """The path of the module that a node of this name comes from."""
    return name.split("/", 1)[0]
