"""`edgeattn run`: a model live on a camera, stream, video or folder."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from typer.core import TyperCommand

from edgeattn.cli.common import console
from edgeattn.cli.ending import finish, report_of
from edgeattn.cli.outputs import file_sinks, files_of, possible, rotation_of, sink_names, told_by, written_to
from edgeattn.cli.settings import bundle_of, take
from edgeattn.cli.signals import Hangup, interruptible
from edgeattn.errors import EdgeAttnError

if TYPE_CHECKING:
    from edgeattn.camera.exchange import Exchange
    from edgeattn.camera.live import Live
    from edgeattn.camera.pipeline import Pipeline
    from edgeattn.camera.shadow import Shadow
    from edgeattn.camera.slot import Policy


class RunCommand(TyperCommand):
    """`run`, whose --web may stand without an address, and whose bundle may stand in a file of settings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let the address be left out: `--web` becomes `--web=`."""
        for place, (arg, following) in enumerate(itertools.zip_longest(args, args[1:], fillvalue="--")):
            if arg == "--web" and following.startswith("-"):
                args = [*args[:place], "--web=", *args[place + 1 :]]
        rest: list[str] = super().parse_args(ctx, args)
        source = ctx.get_parameter_source("bundle")
        if source is not None and source.name == "COMMANDLINE":
            ctx.params["settings"] = None  # SIGHUP has no other bundle to look for
        return rest


def run(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or its name in the zoo.")],
    *,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Camera number (default: 0), rtsp:// or http:// stream, gst:PIPELINE, video, picture, folder, test; env:NAME: "
            "from a variable. Several cameras: --source A --source B.",
            show_default=False,
        ),
    ] = None,
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
    keep: Annotated[
        str | None,
        typer.Option(help="Write files of --rotate, named after their time; remove the oldest above that size: 2GB."),
    ] = None,
    rotate: Annotated[
        str | None,
        typer.Option(help="Begin a new file after that time or size: 1h, 500MB; 10min by default with --keep."),
    ] = None,
    on_change: Annotated[
        float | None,
        typer.Option(min=0.0, help="Tell only when the answer has changed and held for that many seconds, as 0.5."),
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(
            help="Publish there: mqtt://[NAME:PASSWORD@]HOST[:PORT]/TOPIC; env:NAME reads it from a variable."
        ),
    ] = None,
    web: Annotated[
        str | None, typer.Option(help="Serve a page with the live picture: HOST:PORT, by default 127.0.0.1:8080.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="What a browser must show; by default a random one, where --web is not loopback. env:NAME reads it "
            "from a variable."
        ),
    ] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="End after that many frames.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.001, help="End after that many minutes, with a line on each of them.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="latest (default), fresh (lowest age) or every (default for files): which frames are taken."),
    ] = None,
    max_fps: Annotated[float | None, typer.Option(min=0.01, help="Take no more frames a second than that.")] = None,
    conf: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Of a detector: least score of a box; default: 0.25.")
    ] = None,
    iou: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Of a detector: overlap from which two boxes are one thing; default: 0.45."
        ),
    ] = None,
    track: Annotated[
        bool, typer.Option("--track", help="Follow a detector's boxes from frame to frame (needs edgeattn[track]).")
    ] = False,
    crop: Annotated[str | None, typer.Option(help="Look at this part only: X,Y,WIDTH,HEIGHT in pixels.")] = None,
    give_up: Annotated[
        float | None, typer.Option(min=0.5, help="End after that many seconds without the camera; default: never.")
    ] = None,
    throughput: Annotated[
        bool,
        typer.Option(
            "--throughput", help="Two inferences at a time: more frames a second, each older by about one inference."
        ),
    ] = False,
    realtime: Annotated[bool, typer.Option("--realtime", help="Replay a video live, at its own pace.")] = False,
    collect: Annotated[
        Path | None, typer.Option(help="Keys 1 to 9 and 0 save the frame into its class's folder in there.")
    ] = None,
    shadow: Annotated[
        float | None, typer.Option(min=0.01, help="Every so many seconds, ask float too: does it still answer so?")
    ] = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Where --shadow finds that a bound is broken, float takes over.")
    ] = False,
    settings: Annotated[
        Path | None,
        typer.Option(
            is_eager=True,
            callback=take,
            help="A TOML file of these options, by their names; see: edgeattn service. SIGHUP reads its bundle anew.",
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Run a model live and show its answers, with its attention drawn over the picture."""
    from edgeattn.bundle import load
    from edgeattn.camera.exchange import Exchange
    from edgeattn.camera.files import Folder
    from edgeattn.camera.heart import Heart
    from edgeattn.camera.notify import Notifier
    from edgeattn.camera.pipeline import Pipeline
    from edgeattn.camera.record import Record
    from edgeattn.camera.soak import Soak
    from edgeattn.camera.source import open_source
    from edgeattn.timing import environment
    from edgeattn.timing.memory import give_back

    if web is not None:
        from edgeattn.camera.address import from_environment
        from edgeattn.camera.web import Web

        token = token and from_environment(token, "--token", "WHAT-A-BROWSER-MUST-SHOW")
    if fallback and shadow is None:
        raise EdgeAttnError("--fallback acts on what --shadow finds; add --shadow 30")
    broker = None
    if mqtt is not None:
        from edgeattn.camera.mqtt import Mqtt, parse_broker

        broker = parse_broker(mqtt)
    asked = sink_names(sink) or (["none"] if web is not None or broker is not None else None)
    if on_change is not None and broker is None and "jsonl" not in (asked or ()):
        asked = [*(asked or ()), "jsonl"]
    rotation = rotation_of(keep, rotate)
    if rotation and not {"mp4", "jsonl"}.intersection(asked or ()):
        asked = [*(asked or ()), "mp4"]
    if throughput and shadow is not None:
        raise EdgeAttnError("--shadow needs one inference in flight; leave out --throughput")
    notifier, hangup = Notifier(), Hangup()
    patient = notifier.listened_to  # a service is ready, and waits, where a camera is not plugged in yet
    loaded, sources = load(bundle), [open_source(each, realtime=realtime, wait=patient) for each in source or ["0"]]
    opened = sources[0]
    if loaded.spec.task == "classify" and (conf, iou) != (None, None):
        raise EdgeAttnError(
            f"{loaded.name} classifies; --conf and --iou choose among a detector's boxes, leave them out"
        )
    if loaded.spec.task != "classify" and collect is not None:
        raise EdgeAttnError(
            f"{loaded.name} is a model to {loaded.spec.task}; --collect sorts pictures by class: leave it out"
        )
    if collect is not None and len(sources) > 1:
        raise EdgeAttnError("--collect saves one camera's frames; give it one --source")
    if track and isinstance(opened, Folder):
        raise EdgeAttnError(f"{opened.name}: pictures of a folder do not follow each other; leave out --track")
    if on_change is not None and isinstance(opened, Folder):
        raise EdgeAttnError(f"{opened.name}: pictures of a folder do not follow each other; leave out --on-change")
    names, notices = possible(asked)
    written = files_of(names, out, opened, rotated=rotation is not None)
    if maps and not loaded.spec.maps:
        notices.append(f"{loaded.name} gives no attention maps")
    if maps is None:
        maps = "window" in names or "mp4" in names or web is not None
    pipeline = Pipeline(
        loaded,
        sources,
        engine=engine,
        precision=precision,
        device=device,
        threads=threads,
        maps=maps,
        smooth=not isinstance(opened, Folder),
        policy=cast("Policy | None", policy),
        max_fps=max_fps,
        crop=_crop(crop),
        give_up_s=give_up,
        throughput=throughput,
        confidence=conf,
        iou=iou,
        track=track,
    )
    screen = Console(stderr=True, highlight=False, soft_wrap=True) if ("jsonl", None) in written else console
    say = functools.partial(screen.print, markup=False)
    report: dict[str, Any] = {}
    failed: list[Exception] = []
    environment()  # takes a quarter of a second the first time, which the ending should not
    if notifier.watchdog_s is not None:
        faulthandler.enable()  # killed for a loop that stands, it says where
    try:
        with interruptible(hangup), contextlib.ExitStack() as stack:
            notifier.send(STATUS=f"opening {loaded.name}")
            stack.enter_context(pipeline)
            for line in [
                f"{loaded.name}: {pipeline.line}",
                *notices,
                *(written_to(path, rotation) for _, path in written if path),
            ]:
                say(line)
            name = functools.partial(bundle_of, settings, bundle)
            exchange = stack.enter_context(Exchange(pipeline, name, notifier=notifier, say=say))
            watch = _shadow(shadow, exchange if fallback else None, pipeline, say)
            live = _live(pipeline, "window" in names, collect, say, shadow=watch, exchange=exchange)
            stack.callback(live.close)
            for each in file_sinks(written, opened, rotation, on_change, say):
                live.add(each)
            if broker is not None:
                tell, several = told_by(opened, on_change), len(sources) > 1
                live.add(Mqtt(broker, tell, lasting=on_change is not None, several=several, say=say))
            if web is not None:
                page = Web(live, web, token)
                live.add(page)
                say(f"watch it at {page.url}")
            stack.enter_context(Heart(live, notifier))
            hangup.answer(exchange.reload)
            give_back()
            soak = Soak(live, minutes, say=say) if minutes is not None else None
            try:
                with soak or contextlib.nullcontext():
                    live.run(max_frames)
            finally:
                notifier.send(STOPPING=1)
                live.close()
                report = report_of(live.record, pipeline, live.feeds, live.status()) | {"sources": live.by_source()}
                report["minutes"] = list(soak.minutes) if soak else []
                failed = [feed.error for feed in live.feeds if feed.error]
        if not report and pipeline.statuses:  # interrupted while the source was being waited for
            report = report_of(Record(), pipeline, (), {})
    finally:
        if report:
            finish(report, say, json, opened)
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


def _shadow(
    every_s: float | None, exchange: Exchange | None, pipeline: Pipeline, say: Callable[[str], None]
) -> Shadow | None:
    """The watch for drift, if it was asked for; `exchange`: lets float take over.

    Raises:
        EdgeAttnError: float was asked for by name, so that there is nothing to watch.
    """
    from edgeattn.camera.shadow import Shadow, open_reference, watchable

    if every_s is None:
        return None
    if not watchable(pipeline.model):
        if pipeline.options["precision"] == "float":
            raise EdgeAttnError(
                "--shadow watches whether int8 answers as float does; leave it out with --precision float"
            )
        say("nothing to watch for drift: float runs; --precision int8 runs the other")
    else:
        open_reference(pipeline.bundle, maps=False).close()
    return Shadow(every_s, say=say, broken=exchange.fall_back if exchange else None)


def _live(pipeline: Pipeline, windowed: bool, collect: Path | None, say: Callable[[str], None], **watches: Any) -> Live:
    from edgeattn.camera.controls import Collector
    from edgeattn.camera.live import Live
    from edgeattn.camera.window import Window

    source, bundle = pipeline.source, pipeline.bundle
    window = Window(f"edgeattn: {bundle.name}", fps=None if source.live else source.fps) if windowed else None
    collector = Collector(collect, bundle.spec.labels) if collect else None
    return Live(pipeline, window=window, collector=collector, say=say, **watches)
