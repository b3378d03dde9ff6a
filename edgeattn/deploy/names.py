"""Names that tell which module an operator comes from: `backbone.stages.2.0.attention/Conv_3`.

The exporter knows the modules that it calls. Attention is run by `attend`, which is no call; for the time of the export it
becomes one, so that also a gate's multiplication is known to be the attention's.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import onnx

from edgeattn.spec import block_of

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


def name_nodes(graph: onnx.GraphProto, modules: Collection[str]) -> None:
    """Name every node of an exported graph PATH/OPERATOR_NUMBER, in place; `-` is the path of what is outside of modules.

    Args:
        graph: as one of torch's exporters wrote it.
        modules: the paths of the modules that were exported.
    """
    for i, node in enumerate(graph.node):
        held = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
        if held is None:
            path = _scope(node.name, modules)
        else:
            path = next((scope for scope in reversed(ast.literal_eval(held)[:-1]) if scope), "")
        node.name = f"{path.removeprefix(WRAPPER) or '-'}/{node.op_type}_{i}"


def _scope(name: str, modules: Collection[str]) -> str:
    """The module in a name by the TorchScript exporter: `/model/downs.1/downs.1.0/act_2/Relu` is `model.downs.1.0.act`.

    A segment goes on from the module outside, or from one further out; `_2` counts the calls of one module.
    """
    path = ""
    for segment in name.split("/")[1:-1]:
        parts = path.split(".")
        bases = [".".join(parts[:n]) for n in range(len(parts), -1, -1)]
        tried = (f"{base}.{each}".lstrip(".") for each in (segment, re.sub(r"_\d+$", "", segment)) for base in bases)
        path = next((candidate for candidate in tried if candidate in modules), path)
    return path


def in_attention(path: str) -> bool:
    """Whether a path, of a module or of a weight, lies in an attention branch."""
    return block_of(path) is not None
