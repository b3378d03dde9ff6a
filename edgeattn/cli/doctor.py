"""`edgeattn doctor`: what is on this box, and what would help."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from edgeattn.cli.common import console, write_json
from edgeattn.cli.v4l2 import formats
from edgeattn.timing.environment import BYTE_PRODUCTS
from edgeattn.timing.sensors import Sensors, read

SCHEMA = "edgeattn.doctor/1"
BUSY_PERCENT = 5.0
"""Percent of the last ten seconds in which tasks waited for a core, above which measuring makes little sense."""

HOT_C = 85.0
"""From here on most processors slow down."""
_MARKS = {"good": "[green]ok  [/]", "note": "[yellow]note[/]", "broken": "[red]bad [/]"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    about: str
    """What was looked at."""
    state: Literal["good", "note", "broken"]
    """`note`: works, but something would make it better or faster; `broken`: edgeattn cannot do its work."""
    seen: str
    """What is there."""
    help: str = ""
    """What to do about it; empty where nothing is needed."""


def doctor(
    *,
    glass: Annotated[
        str | None,
        typer.Option(help="Measure this camera from glass to glass instead, by a clock shown on another screen."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="With --glass: for how long.")] = 30.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --glass: where the clock's page is served.")] = 8088,
    json: Annotated[Path | None, typer.Option(help="Write the findings and the environment to this file.")] = None,
) -> None:
    """Say what is on this box (engines, processor, OpenCV, cameras, display) and what would make it work better.

    Exit code 1 when something that edgeattn needs is missing or broken; with --glass, 3 when no clock was seen.
    """
    if glass is not None:
        from edgeattn.cli.glass import measure

        measure(glass, seconds, port, json)
        return
    from edgeattn.timing import environment

    machine = environment()
    console.print(
        escape(f"{machine['cpu']}, {machine['usable_cores']} cores, {machine['memory_mb']} MB, {machine['os']}")
    )
    findings = list(examine(machine))
    for finding in findings:
        console.print(f"{_MARKS[finding.state]} {finding.about}: {escape(finding.seen)}")
        if finding.help:
            console.print(f"     -> {escape(finding.help)}")
    payload = {"schema": SCHEMA, "findings": [asdict(finding) for finding in findings], "environment": machine}
    write_json(json, payload)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def examine(machine: dict[str, Any]) -> Iterator[Finding]:
    """Look at everything; `machine` is what `timing.environment` recorded."""
    yield _onnxruntime()
    yield _openvino()
    yield _int8(machine["flags"])
    yield _bf16(machine["flags"])
    yield _cores(machine["usable_cores"], machine["logical_cores"])
    yield _governor(machine["governor"])
    yield _heat(read())
    yield _load(machine["cpu_pressure_avg10"])
    yield from _opencv()
    yield _display()
    yield _cameras(sorted(Path("/dev").glob("video*")))
    yield _training()


def _onnxruntime() -> Finding:
    try:
        import onnxruntime

        held = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
        providers = ", ".join(name for name in held if name != "Azure")  # it calls a service and is in every wheel
    except Exception as error:  # a broken native library raises all sorts of things
        return Finding(
            "onnxruntime", "broken", f"cannot be used ({_line(error)})", "pip install --force-reinstall onnxruntime"
        )
    return Finding("onnxruntime", "good", f"{onnxruntime.__version__} ({providers})")


def _openvino() -> Finding:
    try:
        import openvino

        from edgeattn.engines.openvino import openvino_core

        devices = ", ".join(openvino_core().available_devices)
    except Exception as error:
        return Finding(
            "openvino", "broken", f"cannot be used ({_line(error)})", "pip install --force-reinstall openvino"
        )
    return Finding("openvino", "good", f"{openvino.__version__.partition('-')[0]} (devices: {devices})")


def _int8(flags: list[str]) -> Finding:
    found = sorted(BYTE_PRODUCTS.intersection(flags))
    if found:
        return Finding("int8 in hardware", "good", " ".join(found))
    seen = f"no dot product of bytes (only {' '.join(flags) or 'unknown flags'})"
    return Finding(
        "int8 in hardware", "note", seen, "int8 may be slower than float here; see it with: edgeattn profile BUNDLE"
    )


def _bf16(flags: list[str]) -> Finding:
    found = sorted({"amx_bf16", "avx512_bf16", "bf16"}.intersection(flags))
    seen = " ".join(found) or "none: a bundle's bf16 is left out here"
    return Finding("bf16 in hardware", "good", seen)


def _heat(sensors: Sensors) -> Finding:
    """Temperature, clock, and what the firmware holds back."""
    hottest = max(sensors.temperatures_c.values(), default=None)
    told = [f"{hottest:.0f} C"] if hottest is not None else []
    told += [f"{sensors.frequency_mhz:.0f} MHz"] if sensors.frequency_mhz is not None else []
    if sensors.throttled:
        remedy = "the processor is slowed down: cool it, or give it a stronger power supply"
        return Finding("temperature and clock", "note", ", ".join([*told, sensors.throttled]), remedy)
    if hottest is not None and hottest >= HOT_C:
        remedy = "it will soon slow down, if it has not yet: cool it, and see edgeattn profile --mode sustained"
        return Finding("temperature and clock", "note", ", ".join(told), remedy)
    return Finding("temperature and clock", "good", ", ".join(told) or "unavailable")


def _cores(usable: int, logical: int) -> Finding:
    if usable < logical:
        seen = f"{usable} of {logical} (affinity or a container's limit)"
        return Finding("cores", "note", seen, "more of them make larger models faster")
    return Finding("cores", "good", f"all {logical}")


def _governor(governor: str) -> Finding:
    if governor in ("powersave", "conservative", "ondemand"):
        return Finding(
            "frequency governor", "note", governor, "steadier times with: sudo cpupower frequency-set -g performance"
        )
    return Finding("frequency governor", "good", governor)


def _load(percent: float | str) -> Finding:
    if isinstance(percent, str):
        return Finding("other load", "good", percent)
    if percent > BUSY_PERCENT:
        seen = f"tasks waited for a core {percent:.0f} % of the last 10 s"
        return Finding(
            "other load", "note", seen, "times measured now are not to be trusted; stop other programs first"
        )
    return Finding("other load", "good", "the cores are free")


def _opencv() -> Iterator[Finding]:
    from edgeattn.errors import ExtraMissingError

    try:
        from edgeattn._cv2 import cv2, installed_wheels
    except ExtraMissingError as error:
        yield Finding("OpenCV", "broken", str(error))
        return
    wheels = installed_wheels()
    if len(wheels) > 1:
        names = " ".join(wheel.split()[0] for wheel in wheels)
        remedy = f"keep one: pip uninstall -y {names}, then pip install opencv-python (without a screen: -headless)"
        yield Finding("OpenCV", "broken", f"{' and '.join(wheels)} overwrite each other's files", remedy)
    else:
        yield Finding("OpenCV", "good", wheels[0] if wheels else f"{cv2.__version__} (not from a wheel)")
    built = [line.split(":", 1) for line in cv2.getBuildInformation().splitlines() if ":" in line]
    parts = {name.strip(): value.strip() for name, value in built}
    wanted = {"FFmpeg": "FFMPEG", "V4L2": "v4l/v4l2", "GStreamer": "GStreamer"}
    held = [name for name, part in wanted.items() if parts.get(part, "NO").startswith("YES")]
    missing = [name for name in ("FFmpeg", "V4L2") if name not in held and sys.platform == "linux"]
    if missing:
        seen = f"without {' and '.join(missing)}"
        yield Finding(
            "video", "note", seen, "streams and videos may not open; the wheels opencv-python[-headless] have it"
        )
    else:
        yield Finding("video", "good", f"opens by {', '.join(held)}")
    if parts.get("GUI", "NONE").startswith("NONE") and _has_display():
        remedy = "windows need: pip uninstall -y opencv-python-headless && pip install opencv-python"
        yield Finding("windows", "note", "there is a display, but this OpenCV is headless", remedy)


def _display() -> Finding:
    if _has_display():
        return Finding(
            "display", "good", os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY") or sys.platform
        )
    return Finding("display", "note", "none", "edgeattn run writes a video instead; over ssh try: ssh -X")


def _has_display() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _cameras(devices: list[Path]) -> Finding:
    if not devices:
        remedy = "plug one in, or give --source a video, a folder, rtsp:// or http://"
        return Finding("cameras", "note", "no /dev/video*", remedy)
    closed = [str(device) for device in devices if not os.access(device, os.R_OK | os.W_OK)]
    if closed:
        remedy = "sudo usermod -aG video $USER, then log in again"
        return Finding("cameras", "note", f"no right to open {', '.join(closed)}", remedy)
    return Finding("cameras", "good", ", ".join(map(_camera_name, devices)))


def _camera_name(device: Path) -> str:
    told = []
    with contextlib.suppress(OSError):
        told.append(Path("/sys/class/video4linux", device.name, "name").read_text(encoding="utf-8").strip())
    with contextlib.suppress(OSError):
        told.append(", ".join(formats(device)) or "films nothing")
    return f"{device} ({': '.join(told)})" if told else str(device)


def _training() -> Finding:
    try:
        return Finding("training", "good", f"torch {importlib.metadata.version('torch')}")
    except importlib.metadata.PackageNotFoundError:
        return Finding("training", "note", "not installed; not needed to run", "pip install 'edgeattn[train]'")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
