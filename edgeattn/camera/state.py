"""How a live source is doing: its state, since when and why, and what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgeattn.timing import NS_PER_MS

State = Literal["connecting", "live", "stalled", "down"]
CHANGES = 100
"""Latest changes that are kept."""


@dataclass(frozen=True)
class Change:
    """From when on a source was in a state."""

    state: State
    ns: int
    """On the monotonic clock."""
    reason: str = ""
    """Why, where it is not well."""


@dataclass(frozen=True)
class Status:
    """A source at one moment."""

    changes: tuple[Change, ...]
    """The latest changes; the last one is how it is now."""
    reconnects: int = 0
    """Times that frames came again over a new connection."""
    stalls: int = 0
    """Times that it fell silent on a connection that stood."""
    resizes: int = 0
    """Times that its pictures changed their size."""
    damaged: int = 0
    """Frames that could not be used."""
    drops: Mapping[str, int] | None = None
    """Good frames that were not used, by cause: see `slot.CAUSES`."""
    size: tuple[int, int] | None = None
    """Width and height of the latest picture."""

    @property
    def state(self) -> State:
        """`connecting` at first, `live`, `stalled` (no frame for half a second) or `down` (being reconnected)."""
        return self.changes[-1].state

    @property
    def reason(self) -> str:
        """Why it is not live; empty where it is."""
        return self.changes[-1].reason

    @property
    def since_ns(self) -> int:
        """From when on it has been so."""
        return self.changes[-1].ns

    def report(self) -> dict[str, Any]:
        """As plain JSON values; times count from the first state."""
        start_ns = self.changes[0].ns
        return {
            "state": self.state,
            "reconnects": self.reconnects,
            "stalls": self.stalls,
            "resizes": self.resizes,
            "damaged": self.damaged,
            "drops": dict(self.drops or {}),
            "states": [
                {"state": each.state, "after_ms": round((each.ns - start_ns) / NS_PER_MS, 1), "reason": each.reason}
                for each in self.changes
            ],
        }
