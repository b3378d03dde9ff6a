"""What the machine feels: temperature, clock of the processor and energy, where they can be read.

Linux's files for temperatures and clocks; RAPL (Intel, AMD) for energy; Jetson's INA3221 and the Raspberry Pi's
`vcgencmd` for power. What is not there is left out, and told as "unavailable".
"""

from __future__ import annotations

import itertools
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.timing.clock import Clock, monotonic_ns
from edgeattn.timing.environment import UNAVAILABLE

DROP = 0.9
"""Share of the highest clock that was seen, below which a processor's clock has dropped."""


@dataclass(frozen=True)
class Sensors:
    """One reading."""

    at_ns: int
    """When."""
    temperatures_c: Mapping[str, float]
    """By the name of the place."""
    frequency_mhz: float | None
    """Mean clock of the cores as the kernel sets it; None: not told, as in most virtual machines."""
    energy_j: Mapping[str, float]
    """Counters that grow, by domain."""
    energy_range_j: Mapping[str, float]
    """Where each counter starts again."""
    power_w: Mapping[str, float]
    """Power at that moment, by rail."""
    throttled: str | None
    """What the firmware of a Raspberry Pi holds back and why; None: no such firmware. Empty: nothing."""


def read(clock: Clock = monotonic_ns, root: Path = Path("/")) -> Sensors:
    """Read all sensors that are there; takes well under a millisecond, on a Raspberry Pi some.

    Args:
        clock: gives nanoseconds.
        root: where the files of the system lie.
    """
    energy = dict(_energies(root / "sys/class/powercap"))
    return Sensors(
        at_ns=clock(),
        temperatures_c=dict(_temperatures(root / "sys/class/thermal")),
        frequency_mhz=_frequency_mhz(root / "sys/devices/system/cpu"),
        energy_j={name: counted for name, (counted, _) in energy.items()},
        energy_range_j={name: most for name, (_, most) in energy.items()},
        power_w=dict(_rails(root / "sys/class/hwmon")) | dict(_pi_rails()),
        throttled=_pi_throttled(),
    )


def told(readings: list[Sensors]) -> dict[str, Any]:
    """What a series of readings says, as plain JSON values: ranges, and the energy between the first and the last."""
    first, last = readings[0], readings[-1]
    clocks = [r.frequency_mhz for r in readings if r.frequency_mhz is not None]
    return {
        "temperature_c": {
            name: {"first": degrees, "last": last.temperatures_c[name], "max": max(r.temperatures_c[name] for r in readings)}
            for name, degrees in first.temperatures_c.items()
            if all(name in r.temperatures_c for r in readings)
        }
        or UNAVAILABLE,
        "frequency_mhz": {"min": min(clocks), "max": max(clocks)} if clocks else UNAVAILABLE,
        "energy_j": _spent(readings) or UNAVAILABLE,
        "throttled": last.throttled if last.throttled is not None else UNAVAILABLE,
    }  # fmt: skip


def dropped(readings: list[Sensors]) -> str | None:
    """That the processor's clock fell between readings, in words; None: not as far as it is told."""
    clocks = [r.frequency_mhz for r in readings if r.frequency_mhz is not None]
    if clocks and min(clocks) < DROP * max(clocks):
        return f"the processor's clock fell from {max(clocks):.0f} to {min(clocks):.0f} MHz"
    held_back = next((r.throttled for r in readings if r.throttled), None)
    return f"the firmware holds the processor back: {held_back}" if held_back else None


def _spent(readings: list[Sensors]) -> dict[str, float]:
    """Joules between the first reading and the last, by domain or rail; a counter may have started again once a reading."""
    spent = {
        name: sum(
            (after.energy_j[name] - before.energy_j[name]) % before.energy_range_j[name]
            for before, after in itertools.pairwise(readings)
        )
        for name in readings[0].energy_j
        if all(name in r.energy_j for r in readings)
    }
    seconds = (readings[-1].at_ns - readings[0].at_ns) / 1e9
    for name in readings[0].power_w:
        if all(name in r.power_w for r in readings):
            spent[name] = seconds * statistics.fmean(r.power_w[name] for r in readings)
    return {name: round(joules, 3) for name, joules in spent.items()}


def _temperatures(folder: Path) -> Iterator[tuple[str, float]]:
    for zone in sorted(folder.glob("thermal_zone*")):
        kind, degrees = _text(zone / "type"), _number(zone / "temp")
        if kind and degrees is not None:
            yield f"{kind} ({zone.name.removeprefix('thermal_zone')})", degrees / 1000


def _frequency_mhz(folder: Path) -> float | None:
    khz = [_number(file) for file in folder.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    known = [each for each in khz if each]
    return max(known) / 1000 if known else None  # of the core that works: idle ones clock down


def _energies(folder: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    """RAPL's counters, by domain: joules, and where it starts again; only root may read them on many systems."""
    for domain in sorted(folder.glob("*-rapl:*")):
        name, counted = _text(domain / "name"), _number(domain / "energy_uj")
        if name and counted is not None:
            most = _number(domain / "max_energy_range_uj") or float("inf")
            yield f"{name} ({domain.name.partition(':')[2]})", (counted / 1e6, most / 1e6)


def _rails(folder: Path) -> Iterator[tuple[str, float]]:
    """Jetson's power monitors: milliampere times millivolt of each labelled rail."""
    for monitor in sorted(folder.glob("hwmon*")):
        if _text(monitor / "name") != "ina3221":
            continue
        for label in sorted(monitor.glob("in[1-3]_label")):
            number = label.name[2]
            volts, amperes = _number(monitor / f"in{number}_input"), _number(monitor / f"curr{number}_input")
            if volts is not None and amperes is not None:
                yield _text(label) or number, volts * amperes / 1e6


def _pi_rails() -> Iterator[tuple[str, float]]:
    """The Raspberry Pi 5's power management: amperes and volts of each rail."""
    told = _vcgencmd("pmic_read_adc") or ""
    volts = {name: float(value) for name, value in re.findall(r"(\w+)_V volt\(\d+\)=([\d.]+)V", told)}
    for name, value in re.findall(r"(\w+)_A current\(\d+\)=([\d.]+)A", told):
        if name in volts:
            yield name, float(value) * volts[name]


_REASONS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "too hot"}


def _pi_throttled() -> str | None:
    found = re.search(r"throttled=0x([0-9a-fA-F]+)", _vcgencmd("get_throttled") or "")
    if not found:
        return None
    bits = int(found[1], 16)
    return ", ".join(reason for bit, reason in _REASONS.items() if bits >> bit & 1)


def _vcgencmd(command: str) -> str | None:
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        return subprocess.run([program, command], capture_output=True, text=True, timeout=2, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _number(file: Path) -> float | None:
    try:
        return float(_text(file))
    except ValueError:
        return None
