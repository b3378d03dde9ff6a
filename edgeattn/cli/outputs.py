"""Where a run's results go, as the options of `edgeattn run` say it: files, lines on the screen, a broker."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.errors import EdgeAttnError, NameNotFoundError

if TYPE_CHECKING:
    from edgeattn.camera.frame import Source
    from edgeattn.camera.lines import Tell
    from edgeattn.camera.rotate import Rotation
    from edgeattn.camera.sinks import Sink


def sink_names(sink: Sequence[str] | None) -> list[str] | None:
    """Names of sinks, each checked; None: none was asked for."""
    from edgeattn.camera.sinks import NAMES

    names = [name.strip() for entry in sink or () for name in entry.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise NameNotFoundError("sink", name, NAMES)
    return names or None


def possible(asked: list[str] | None) -> tuple[list[str], list[str]]:
    """The sinks to open, and what to say where no window can be shown: a video is written instead."""
    from edgeattn.camera.window import display_problem

    names = asked or ["window"]
    problem = display_problem() if "window" in names else None
    if problem is None:
        return names, []
    others = [name for name in names if name != "window"]
    return others or ["mp4"], [f"no window, {problem}"]


def rotation_of(keep: str | None, rotate: str | None) -> Rotation | None:
    """What `--keep` and `--rotate` ask for; None: neither was given."""
    from edgeattn.camera.rotate import EVERY_S, Rotation
    from edgeattn.cli.units import size, time_or_size

    if keep is None and rotate is None:
        return None
    every_s, most_bytes = time_or_size("--rotate", rotate) if rotate else (EVERY_S, None)
    return Rotation(every_s, most_bytes, size("--keep", keep) if keep else None)


def files_of(names: Sequence[str], out: Path | None, source: Source, *, rotated: bool) -> list[tuple[str, Path | None]]:
    """Sinks that write files, with their paths; None: the screen.

    Raises:
        EdgeAttnError: the video would be written over its source.
    """
    kinds = [name for name in ("mp4", "jsonl") if name in names]
    stem = Path(source.name).stem if Path(source.name).exists() else "".join(filter(str.isalnum, source.name))[:40]
    video = Path(f"edgeattn-{stem or 'run'}.mp4")
    paths = {"mp4": video, "jsonl": video.with_suffix(".jsonl") if rotated else None}
    if out is not None:
        paths = {kind: out if len(kinds) == 1 else out.with_suffix(f".{kind}") for kind in kinds}
    for path in paths.values():
        if path is not None and path.resolve() == Path(source.name).resolve():
            raise EdgeAttnError(f"{path} is the source itself; choose another --out")
    return [(kind, paths[kind]) for kind in kinds]


def written_to(path: Path, rotation: Rotation | None) -> str:
    """What is said of a sink's path."""
    return f"writing {path}" if rotation is None else f"writing {path.with_name(f'{path.stem}-TIME{path.suffix}')}"


def file_sinks(
    files: Sequence[tuple[str, Path | None]],
    source: Source,
    rotation: Rotation | None,
    on_change: float | None,
    say: Callable[[str], None],
) -> Iterator[Sink]:
    """The sinks that write files, or lines to the screen; those of a live source wait where the disk is full."""
    from edgeattn.camera.rotate import Rotating, Segments
    from edgeattn.camera.sinks import JsonLines, VideoFile

    tell = told_by(source, on_change)
    segments: Segments | None = None
    for kind, path in files:
        if path is None:
            yield JsonLines(None, tell)
            continue
        make: Callable[[Path], Sink] = functools.partial(JsonLines, tell=tell)
        if kind == "mp4":
            make = functools.partial(VideoFile, fps=source.fps, hold=source.live)
        if rotation is None and not source.live:
            yield make(path)
            continue
        if segments is None:
            segments = Segments(path.parent, path.stem, rotation.keep_bytes if rotation else None)
        yield Rotating(make, path, segments, rotation, say=say)


def told_by(source: Source, on_change: float | None) -> Tell:
    """What lines and messages say: every frame, or what has changed for that many seconds."""
    from edgeattn.camera.lines import Changes, frame_line

    return frame_line if on_change is None else Changes(on_change, fps=None if source.live else source.fps)
