"""What is asked of a graph from elsewhere, whatever its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Port:
    """An input or an output."""

    name: str
    """Its name."""
    shape: tuple[int, ...]
    """Its sizes, 0 where they are left open; empty: even their number is."""
    kind: str
    """Type of its numbers, as in float32."""

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)}"


class Graph(Protocol):
    """A model from elsewhere, changed in place; it has one input when the changing begins."""

    engines: tuple[str, ...]
    """Engines that read this form."""

    @property
    def told(self) -> Mapping[str, str]:
        """What the file says of itself, by key: ultralytics' as they are, Model API's after `model_info `."""

    @property
    def inputs(self) -> Sequence[Port]:
        """What it takes."""

    @property
    def outputs(self) -> Sequence[Port]:
        """What it gives."""

    @property
    def integers(self) -> Sequence[str]:
        """What shows that it is quantized already: types of nodes."""

    def keep(self, *outputs: str) -> None:
        """Give these outputs alone; a softmax before one that stands alone, with at most a change of shape between, is cut off."""

    def fix(self, shape: Sequence[int]) -> None:
        """Work out all sizes from the input's.

        Raises:
            DataError: they hang on more than the input's size.
        """

    def channels_first(self) -> None:
        """Take (1, 3, H, W) in place of (1, H, W, 3)."""

    def swap_channels(self) -> None:
        """Take RGB where it was made for BGR, (1, 3, H, W) both."""

    def repaired(self) -> Graph | None:
        """A copy in the form that engines compute best (see `rewrite`); None where there is nothing to repair."""

    def named_in(self, text: str) -> Sequence[str]:
        """Nodes whose operator an engine's message names, each with its own name."""

    def files(self) -> dict[str, bytes]:
        """The float artefact's files by name; the first is what an engine opens."""
