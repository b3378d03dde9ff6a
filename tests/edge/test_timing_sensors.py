from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeattn.timing import sensors
from edgeattn.timing.sensors import Sensors, dropped, read, told


def write(root: Path, **files: str) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dash_", "-").replace("_colon_", ":")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")


def a_box(root: Path, *, mhz: int = 2400, energy_uj: int = 10_000_000) -> Sensors:
    """Files as Linux lays them out on a PC with RAPL and on a Jetson."""
    write(
        root,
        sys__class__thermal__thermal_zone0__type="cpu-thermal",
        sys__class__thermal__thermal_zone0__temp="48312",
        sys__devices__system__cpu__cpu0__cpufreq__scaling_cur_freq=str(mhz * 1000),
        sys__devices__system__cpu__cpu1__cpufreq__scaling_cur_freq=str(mhz * 1000),
        sys__class__powercap__intel_dash_rapl_colon_0__name="package-0",
        sys__class__powercap__intel_dash_rapl_colon_0__energy_uj=str(energy_uj),
        sys__class__powercap__intel_dash_rapl_colon_0__max_energy_range_uj="50000000",
        sys__class__hwmon__hwmon3__name="ina3221",
        sys__class__hwmon__hwmon3__in1_label="VDD_IN",
        sys__class__hwmon__hwmon3__in1_input="5000",
        sys__class__hwmon__hwmon3__curr1_input="1200",
    )
    return read(root=root)


def test_what_linux_tells(tmp_path: Path) -> None:
    found = a_box(tmp_path)
    assert found.temperatures_c == {"cpu-thermal (0)": 48.312}
    assert found.frequency_mhz == 2400
    assert found.energy_j == {"package-0 (0)": 10.0}
    assert found.power_w == {"VDD_IN": 6.0}


def test_energy_between_readings_also_where_the_counter_starts_again(tmp_path: Path) -> None:
    first = dataclasses.replace(a_box(tmp_path, energy_uj=48_000_000), at_ns=0)
    last = dataclasses.replace(a_box(tmp_path, energy_uj=3_000_000), at_ns=2 * 10**9)
    record = told([first, last])
    assert record["energy_j"] == {"package-0 (0)": 5.0, "VDD_IN": 12.0}
    assert record["temperature_c"]["cpu-thermal (0)"] == {"first": 48.312, "last": 48.312, "max": 48.312}


def test_a_clock_that_falls_is_told(tmp_path: Path) -> None:
    fast, slow = a_box(tmp_path), a_box(tmp_path, mhz=1500)
    assert dropped([fast, fast]) is None
    assert dropped([fast, slow]) == "the processor's clock fell from 2400 to 1500 MHz"
    assert told([fast, slow, fast])["frequency_mhz"] == {"min": 1500, "max": 2400}


def test_a_box_that_tells_nothing(tmp_path: Path) -> None:
    readings = [read(root=tmp_path), read(root=tmp_path)]
    assert set(told(readings).values()) == {"unavailable"}
    assert dropped(readings) is None


def test_raspberry_pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text(
        "#!/bin/sh\nif [ $1 = get_throttled ]; then echo throttled=0x50005; else\n"
        "echo '     3V3_SYS_A current(1)=0.05000000A'\necho '     VDD_CORE_A current(7)=2.00000000A'\n"
        "echo '     3V3_SYS_V volt(9)=3.30000000V'\necho '     VDD_CORE_V volt(15)=0.75000000V'\nfi\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = read(root=tmp_path)
    assert found.power_w == pytest.approx({"3V3_SYS": 0.165, "VDD_CORE": 1.5})
    assert found.throttled == "under-voltage, throttled"
    assert "the firmware holds the processor back: under-voltage" in (dropped([found]) or "")


def test_readings_of_this_machine_are_plausible() -> None:
    found = sensors.read()
    assert all(-20 < degrees < 130 for degrees in found.temperatures_c.values())
    assert found.frequency_mhz is None or 100 < found.frequency_mhz < 10_000
