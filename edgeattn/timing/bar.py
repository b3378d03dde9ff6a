"""The progress bar of long steps: how far, since when, how long still."""

from __future__ import annotations

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(shown: bool, *, a_second: float = 10.0) -> Progress:
    """A bar; each of its tasks has a field `note`, a few words on what goes on.

    Args:
        shown: False: it draws nothing.
        a_second: how often it is drawn; seldom, where times are measured meanwhile.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        refresh_per_second=a_second,
        disable=not shown,
    )
