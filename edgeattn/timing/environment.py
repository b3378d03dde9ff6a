"""What a figure was measured on: processor, cores, frequency, memory, system and versions."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

FLAGS_OF_INTEREST = frozenset({
    # x86: what int8 and reduced precision run on
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "avx512_bf16", "avx512_fp16",
    "amx_int8", "amx_bf16",
    # Arm: the dot product, int8 matrix product, half precision and bfloat16
    "neon", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
})  # fmt: skip
"""Instruction sets that decide how fast int8 and float are."""

BYTE_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm"})
"""Instruction sets with a dot product of bytes: without one of them int8 is often slower than float."""

PACKAGES = (
    "edgeattn", "numpy", "onnxruntime", "openvino", "onnx", "opencv-python", "opencv-python-headless",
    "opencv-contrib-python", "opencv-contrib-python-headless",
)  # fmt: skip
"""Packages whose versions are recorded."""

UNAVAILABLE = "unavailable"
"""Said in place of a value that this machine does not tell."""

_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def environment() -> dict[str, Any]:
    """Record this machine and its software as plain JSON values; what cannot be read is `"unavailable"`."""
    model, flags = _processor()
    return {
        "cpu": model,
        "architecture": platform.machine(),
        "flags": list(flags),
        "physical_cores": _physical_cores(),
        "logical_cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "memory_mb": _memory_mb(),
        "governor": _read(_CPUFREQ / "scaling_governor"),
        "frequency_mhz": _frequency_mhz(),
        "os": _os_name(),
        "kernel": platform.release(),
        "virtual": virtual(),
        "python": platform.python_version(),
        "versions": versions(),
        "cpu_pressure_avg10": _pressure_avg10(),
    }


def adds_bytes_exactly() -> bool:
    """Whether int8 with weights of eight bits is exact here: x86 without VNNI adds pairs of products in 16 bits and saturates."""
    return platform.machine().lower() not in ("x86_64", "amd64") or bool(BYTE_PRODUCTS.intersection(_processor()[1]))


def processor_key() -> str:
    """Short text that is equal on equal processors: model, instruction sets and cores that this process may use."""
    model, flags = _processor()
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40]
    return f"{slug}-{usable_cores()}c-{hashlib.sha256(' '.join((model, *flags)).encode()).hexdigest()[:8]}"


def usable_cores() -> int:
    """Logical cores that this process may run on: its affinity, and a container's quota (rounded up)."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores


def versions() -> dict[str, str]:
    """Versions of the installed packages that a figure depends on; nothing is imported for it."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def virtual() -> str:
    """What stands between us and the hardware: `container`, `virtual machine`, both or `no`, as far as it shows."""
    signs = []
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        signs.append("container")
    if "hypervisor" in _cpuinfo().get("flags", "").split():
        signs.append("virtual machine")
    return " in a ".join(signs) or "no"


@functools.cache
def _processor() -> tuple[str, tuple[str, ...]]:
    fields = _cpuinfo()
    if fields:
        model = fields.get("model name") or _read(Path("/proc/device-tree/model")).rstrip("\0")
        if model == UNAVAILABLE:
            model = fields.get("Hardware") or platform.machine()
        flags = (fields.get("flags") or fields.get("Features") or "").split()
    else:  # takes about a second, so only where /proc does not tell
        import cpuinfo

        info = cpuinfo.get_cpu_info()
        model, flags = str(info.get("brand_raw", platform.processor())), list(info.get("flags", ()))
    return model, tuple(sorted(FLAGS_OF_INTEREST.intersection(flags)))


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """Fields of the first core in /proc/cpuinfo; empty where there is none."""
    text = _read(Path("/proc/cpuinfo"))
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _physical_cores() -> int | str:
    import psutil

    return psutil.cpu_count(logical=False) or UNAVAILABLE


def _memory_mb() -> int:
    import psutil

    return int(psutil.virtual_memory().total) >> 20


def _frequency_mhz() -> float | str:
    khz = _read(_CPUFREQ / "scaling_cur_freq")
    if khz.isdigit():
        return int(khz) / 1000
    mhz = _cpuinfo().get("cpu MHz", "")  # under a hypervisor this is the nominal one
    return float(mhz) if mhz else UNAVAILABLE


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError, AttributeError):
        return platform.platform(terse=True)


def _pressure_avg10() -> float | str:
    found = re.search(r"avg10=([\d.]+)", _read(Path("/proc/pressure/cpu")))
    return float(found[1]) if found else UNAVAILABLE


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or UNAVAILABLE
    except OSError:
        return UNAVAILABLE
