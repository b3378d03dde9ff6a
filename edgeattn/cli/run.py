"""`edgeattn run`: a model live on a camera, stream, video or folder."""

from __future__ import annotations

import contextlib
import functools
import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from typer.core import TyperCommand

from edgeattn.cli.common import console, write_json
from edgeattn.errors import EdgeAttnError, NameNotFoundError

if TYPE_CHECKING:
    from edgeattn.camera.feed import Feed
    from edgeattn.camera.frame import Source
    from edgeattn.camera.live import Live
    from edgeattn.camera.pipeline import Pipeline
    from edgeattn.camera.record import Record
    from edgeattn.camera.sinks import Sink
    from edgeattn.camera.slot import Policy

SCHEMA = "edgeattn.run/1"


class RunCommand(TyperCommand):
    """`run`, whose --web may stand without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let the address be left out: `--web` becomes `--web=`."""
        for place, (arg, following) in enumerate(itertools.zip_longest(args, args[1:], fillvalue="--")):
            if arg == "--web" and following.startswith("-"):
                args = [*args[:place], "--web=", *args[place + 1 :]]
        return super().parse_args(ctx, args)


def run(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or its name in the zoo.")],
    *,
    source: Annotated[
        str,
        typer.Option(
            help="Camera number, rtsp:// or http:// stream, gst:PIPELINE, video, picture, folder, test; env:NAME: from a variable."
        ),
    ] = "0",
    engine: Annotated[str | None, typer.Option(help="onnxruntime or openvino; default: the fastest here.")] = None,
    precision: Annotated[str | None, typer.Option(help="float, bf16 or int8; default: the fastest here.")] = None,
    device: Annotated[
        str, typer.Option(help="CPU, or NPU or GPU (OpenVINO's): used once its answers are checked against the CPU's.")
    ] = "CPU",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute one inference.")] = None,
    maps: Annotated[bool | None, typer.Option(help="Give attention maps; default: where something is drawn.")] = None,
    sink: Annotated[
        list[str] | None,
        typer.Option(help="window, mp4, jsonl or none; several by commas. Default: --web, window, else mp4."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for mp4 or jsonl; jsonl goes to the screen without.")] = None,
    web: Annotated[
        str | None, typer.Option(help="Serve a page with the live picture: HOST:PORT, by default 127.0.0.1:8080.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="What a browser must show; by default a random one, where --web is not loopback.")
    ] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="End after that many frames.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="latest (default), fresh (lowest age) or every (default for files): which frames are taken."),
    ] = None,
    max_fps: Annotated[float | None, typer.Option(min=0.01, help="Take no more frames a second than that.")] = None,
    crop: Annotated[str | None, typer.Option(help="Look at this part only: X,Y,WIDTH,HEIGHT in pixels.")] = None,
    give_up: Annotated[
        float | None, typer.Option(min=0.5, help="End after that many seconds without the camera; default: never.")
    ] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Replay a video live, at its own pace.")] = False,
    collect: Annotated[
        Path | None, typer.Option(help="Keys 1 to 9 and 0 save the frame into its class's folder in there.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Run a model live and show its answers, with its attention drawn over the picture."""
    from edgeattn.bundle import load
    from edgeattn.camera.files import Folder
    from edgeattn.camera.pipeline import Pipeline
    from edgeattn.camera.record import Record
    from edgeattn.camera.source import open_source
    from edgeattn.timing import environment

    if web is not None:
        from edgeattn.camera.web import Web
    asked = _asked(sink) or (["none"] if web is not None else None)
    loaded, opened = load(bundle), open_source(source, realtime=realtime)
    names, notices = _possible(asked)
    files = _files(names, out, opened)
    if maps and not loaded.spec.maps:
        notices.append(f"{loaded.name} gives no attention maps")
    if maps is None:
        maps = "window" in names or "mp4" in names or web is not None
    pipeline = Pipeline(
        loaded,
        opened,
        engine=engine,
        precision=precision,
        device=device,
        threads=threads,
        maps=maps and bool(loaded.spec.maps),
        smooth=not isinstance(opened, Folder),
        policy=cast("Policy | None", policy),
        max_fps=max_fps,
        crop=_crop(crop),
        give_up_s=give_up,
    )
    screen = Console(stderr=True, highlight=False, soft_wrap=True) if ("jsonl", None) in files else console
    say = functools.partial(screen.print, markup=False)
    report: dict[str, Any] = {}
    failed: list[Exception] = []
    environment()  # takes a quarter of a second the first time, which the ending should not
    try:
        with _interruptible(), contextlib.ExitStack() as stack:
            stack.enter_context(pipeline)
            for line in [
                f"{loaded.name}: {pipeline.line}",
                *notices,
                *(f"writing {path}" for _, path in files if path),
            ]:
                say(line)
            live = _live(pipeline, "window" in names, collect, say)
            stack.callback(live.close)
            for file in files:
                live.add(_sink(*file, opened))
            if web is not None:
                page = Web(live, web, token)
                live.add(page)
                say(f"watch it at {page.url}")
            try:
                live.run(max_frames)
            finally:
                live.close()
                report = _report(live.record, pipeline, live.feeds)
                failed = [feed.error for feed in live.feeds if feed.error]
        if not report and pipeline.status is not None:  # interrupted while the source was being waited for
            report = _report(Record(), pipeline, ())
    finally:
        if report:
            _finish(report, say, json, opened)
    if failed:
        raise failed[0]


def _crop(text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isdecimal() for part in parts) or "0" in parts[2:]:
        raise EdgeAttnError(f"--crop {text}: must be X,Y,WIDTH,HEIGHT in pixels, as in 100,0,480,480")
    x, y, width, height = map(int, parts)
    return x, y, width, height


def _asked(sink: Sequence[str] | None) -> list[str] | None:
    """Names of sinks, each checked; None: none was asked for."""
    from edgeattn.camera.sinks import NAMES

    names = [name.strip() for entry in sink or () for name in entry.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise NameNotFoundError("sink", name, NAMES)
    return names or None


def _possible(asked: list[str] | None) -> tuple[list[str], list[str]]:
    """The sinks to open, and what to say where no window can be shown: a video is written instead."""
    from edgeattn.camera.sinks import display_problem

    names = asked or ["window"]
    problem = display_problem() if "window" in names else None
    if problem is None:
        return names, []
    others = [name for name in names if name != "window"]
    return others or ["mp4"], [f"no window, {problem}"]


def _files(names: Sequence[str], out: Path | None, source: Source) -> list[tuple[str, Path | None]]:
    """Sinks that write files, with their paths; None: the screen.

    Raises:
        EdgeAttnError: the video would be written over its source.
    """
    kinds = [name for name in ("mp4", "jsonl") if name in names]
    stem = Path(source.name).stem if Path(source.name).exists() else "".join(filter(str.isalnum, source.name))[:40]
    paths = {"mp4": Path(f"edgeattn-{stem or 'run'}.mp4"), "jsonl": None}
    if out is not None:
        paths = {kind: out if len(kinds) == 1 else out.with_suffix(f".{kind}") for kind in kinds}
    for path in paths.values():
        if path is not None and path.resolve() == Path(source.name).resolve():
            raise EdgeAttnError(f"{path} is the source itself; choose another --out")
    return [(kind, paths[kind]) for kind in kinds]


def _sink(kind: str, path: Path | None, source: Source) -> Sink:
    from edgeattn.camera.sinks import JsonLines, VideoFile

    if kind == "mp4" and path is not None:
        return VideoFile(path, fps=source.fps, hold=source.live)
    return JsonLines(path)


def _live(pipeline: Pipeline, windowed: bool, collect: Path | None, say: Callable[[str], None]) -> Live:
    from edgeattn.camera.controls import Collector
    from edgeattn.camera.live import Live
    from edgeattn.camera.sinks import Window

    source, bundle = pipeline.source, pipeline.bundle
    window = Window(f"edgeattn: {bundle.name}", fps=None if source.live else source.fps) if windowed else None
    collector = Collector(collect, bundle.spec.labels) if collect else None
    return Live(pipeline, window=window, collector=collector, say=say)


def _report(record: Record, pipeline: Pipeline, feeds: Sequence[Feed]) -> dict[str, Any]:
    import psutil

    from edgeattn.spec import to_json

    engine = pipeline.engine
    return {
        "schema": SCHEMA,
        "bundle": pipeline.bundle.name,
        "source": pipeline.source.name,
        "engine": engine.name,
        "precision": engine.precision,
        "executed_precision": engine.executed_precision,
        "device": dict(engine.details) | {"certificate": to_json(pipeline.certificate)},
        "threads": engine.threads,
        "maps": pipeline.maps,
        **record.report(pipeline.status),
        "sinks": [
            {"name": feed.sink.name, "written": feed.written, "dropped": feed.dropped, "failed": feed.error is not None}
            for feed in feeds
        ],
        "rss_mb": round(psutil.Process().memory_info().rss / 1e6, 1),
    }


def _finish(report: dict[str, Any], say: Callable[[str], None], json: Path | None, source: Source) -> None:
    """Say what was seen, and write the report."""
    from edgeattn.camera.record import sentence
    from edgeattn.timing import environment

    say(sentence(report))
    skipped = getattr(source, "skipped", [])
    for _, reason in skipped:
        say(f"skipped {reason}")
    if json is not None:
        report["skipped"] = [{"path": str(path), "reason": reason} for path, reason in skipped]
        write_json(json, report | {"environment": environment()})


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the block as if it were done; a second one does not disturb the ending."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in signals}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
