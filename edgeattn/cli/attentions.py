"""`edgeattn attentions`: what attentions there are, what they look at, what they cost here, and whether your own holds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edgeattn.cli.common import console, need_training, say, write_json
from edgeattn.cli.prices import costs, print_whole, show_prices, show_table, steps_bar
from edgeattn.errors import DataError

if TYPE_CHECKING:
    from edgeattn.attentions import Mechanism
    from edgeattn.profiling.prices import PriceList

MOMENTS = 8
"""Frames of a strip over a video."""
BUILD_DIR = Path("runs/attentions")


def attentions(
    *,
    show: Annotated[
        str | None, typer.Option(metavar="BUNDLE", help="Draw the attention maps of a bundle over --image.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Picture, or video for a strip over time.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where --show writes its picture; default: NAME-attention.png.")
    ] = None,
    opacity: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the maps over the picture.")] = 0.5,
    check: Annotated[
        str | None, typer.Option(metavar="NAME", help="Check an attention of your own: package.module:Class.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Print what each attention costs on this machine.")
    ] = False,
    only: Annotated[str, typer.Option(help="Measure these alone, by commas; the empty slot is always there.")] = "",
    model: Annotated[str, typer.Option(help="Net to measure in: pico, nano, tiny or small.")] = "nano",
    imgsz: Annotated[int, typer.Option(help="Side of its input, in pixels.")] = 224,
    build: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write the bundles there and stop; a box without torch prices: edgeattn profile DIR."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Build and measure again what is there already.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """List the attentions; or show a bundle's maps, check one of your own, print the prices on this machine."""
    if show:
        _show(show, image, out, opacity)
        return
    need_training("edgeattn attentions")
    if check:
        _check(check, json)
        return
    from edgeattn.attentions import mechanisms

    found = mechanisms()
    report: dict[str, Any] = {
        "schema": "edgeattn.attentions/1",
        "mechanisms": [{"name": m.name, "family": m.family, "what": m.what, "paper": m.paper} for m in found],
    }
    if measure or build:
        folder = build or BUILD_DIR / f"{model}-{imgsz}"
        names = _chosen(only, found)
        _build(folder, names, model, imgsz, resume=not fresh)
        if measure:
            prices = _price(folder, names, resume=not fresh)
            show_table(folder)
            report |= prices.json() | {"costs": costs(folder)}
        else:
            say(
                f"price them on a box with: edgeattn profile {folder}; its prices/BOX.json, brought here, is shown beside"
            )
    else:
        print_whole(_listing(found))
    write_json(json, report)


def _listing(found: list[Mechanism]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("name", "family", "what it does"):
        table.add_column(name, no_wrap=True)
    table.add_column("paper", overflow="fold")
    for m in found:
        table.add_row(m.name, m.family, m.what, m.paper)
    return table


def _chosen(only: str, found: list[Mechanism]) -> list[str]:
    from edgeattn.nn.attention import build_attention

    names = [name.strip() for name in only.split(",") if name.strip()] or [m.name for m in found]
    for name in names:
        build_attention(name, 32)  # an unknown name is said before anything is built
    return ["none", *(name for name in names if name != "none")]


def _build(folder: Path, names: list[str], model: str, imgsz: int, *, resume: bool) -> None:
    from edgeattn.attentions import build

    with steps_bar() as bar:
        task = bar.add_task(f"building {model} at {imgsz}", total=len(names))
        for name, hindered in build(folder, names, model=model, imgsz=imgsz, resume=resume):
            bar.update(task, advance=1, description=f"built {name}")
            if hindered:
                say(f"{name} is left out: {hindered}")


def _price(folder: Path, names: list[str], *, resume: bool) -> PriceList:
    from edgeattn.profiling.prices import price_folder

    return show_prices(price_folder(folder, resume=resume, only=names), "pricing")


def _check(name: str, json: Path | None) -> None:
    from edgeattn.attentions import check

    say(f"checking {name}: shape, gradient, map, training on cards, export, int8, lint; about two minutes")
    marks = {"passed": "[green]passed[/]", "failed": "[red]failed[/]", "cannot tell": "[yellow]cannot tell[/]"}
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "verdict", "found"):
        table.add_column(heading, overflow="fold")
    checks = []
    with tempfile.TemporaryDirectory() as scratch:
        for each in check(name, Path(scratch), progress=console.is_terminal):
            checks.append(each)
            table.add_row(each.name, marks[each.verdict], each.found)
    console.print(table)
    write_json(
        json,
        {
            "schema": "edgeattn.attention-check/1",
            "attention": name,
            "checks": [{"check": c.name, "verdict": c.verdict, "found": c.found} for c in checks],
        },
    )
    if any(c.verdict == "failed" and c.name != "lint" for c in checks):  # lint warns
        raise typer.Exit(1)


def _show(name: str, image: Path | None, out: Path | None, opacity: float) -> None:
    from edgeattn._cv2 import cv2
    from edgeattn.bundle import load
    from edgeattn.engines import open_engine
    from edgeattn.imaging import SUFFIXES, prepare, read_picture
    from edgeattn.tasks import decode
    from edgeattn.tasks.sheet import Moment, sheet, strip

    if image is None:
        raise DataError("--show needs a picture or a video to look at: --image PATH")
    bundle = load(name)
    engine = open_engine(bundle, maps=True)
    target = out or Path(f"{bundle.name}-attention.png")

    def look(picture: Any) -> tuple[dict[str, Any], str]:
        outputs = engine.infer(prepare(picture, bundle.spec.input))
        prediction = decode(outputs, bundle.spec, picture.shape[:2])
        maps = {told.output: outputs[told.output] for told in bundle.spec.maps}
        return maps, f"{prediction.label} {prediction.score:.0%}"

    if image.suffix.lower() in SUFFIXES:
        picture = read_picture(image)
        maps, answer = look(picture)
        title = f"{bundle.name} on {image.name}: {answer} ({engine.name} {engine.precision})"
        drawn = sheet(picture, maps, bundle.spec, title=title, opacity=opacity)
    else:
        moments = [Moment(picture, *_timed(look(picture), at)) for at, picture in _moments(image)]
        title = f"{bundle.name} on {image.name} ({engine.name} {engine.precision})"
        drawn = strip(moments, bundle.spec, title=title, opacity=opacity)
    engine.close()
    if not cv2.imwrite(str(target), drawn):
        raise DataError(f"{target}: the picture was not written; choose a folder that is there with --out")
    say(f"wrote {target}")


def _timed(looked: tuple[dict[str, Any], str], at: str) -> tuple[dict[str, Any], str]:
    maps, answer = looked
    return maps, f"{at} {answer}"


def _moments(video: Path) -> list[tuple[str, Any]]:
    """Frames of a video, evenly apart, with their times."""
    from edgeattn.camera import open_source

    with open_source(str(video)) as source:
        rate, count = source.fps or 30.0, sum(1 for _ in source)
    wanted = {round((k + 0.5) * count / MOMENTS) for k in range(min(MOMENTS, count))}
    with open_source(str(video)) as source:
        return [(f"{i / rate:.1f} s", frame.picture) for i, frame in enumerate(source) if i in wanted]
