"""The zoo of attentions: what there is, whether one of your own holds, and bundles to price them by."""

from __future__ import annotations

import inspect
import multiprocessing
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgeattn.bundle import SUFFIX, Bundle, extend, load
from edgeattn.datasets.backgrounds import random_background
from edgeattn.deploy.calibration import FEWEST
from edgeattn.deploy.export import export
from edgeattn.deploy.lint import lint
from edgeattn.deploy.names import in_attention
from edgeattn.deploy.quantize import quantize
from edgeattn.errors import EdgeAttnError
from edgeattn.evaluation.significance import Verdict
from edgeattn.imaging import prepare
from edgeattn.nn import build_model
from edgeattn.nn.attention import ATTENTIONS, FAMILIES, attend, build_attention
from edgeattn.nn.cost import cost
from edgeattn.spec import InputSpec
from edgeattn.timing.environment import usable_cores
from edgeattn.train.loader import TrainingData
from edgeattn.train.loop import train
from edgeattn.train.recipe import Recipe
from edgeattn.train.sources import open_data
from edgeattn.workflow import export_run, quantize_run

LABELS = tuple(f"class {i}" for i in range(10))
CHANNELS, SIZES = (16, 64), ((12, 12), (6, 9))
CHECK_VIEWS = 8_000
"""Cards that a checked attention learns from, started from the zoo's weights: about 30 s on two cores."""


@dataclass(frozen=True)
class Mechanism:
    """One entry of the zoo."""

    name: str
    """As `--attention` takes it."""
    family: str
    """Kind of attention."""
    what: str
    """What it does, in a line."""
    paper: str
    """Where it comes from; empty for controls."""


def mechanisms() -> list[Mechanism]:
    """Every attention of the zoo, family by family; what it is stands at the head of its file."""
    return [
        Mechanism(name, family, *_head(name, of))
        for family, members in FAMILIES.items()
        for name, of in members.items()
    ]


def _head(name: str, of: type[nn.Module]) -> tuple[str, str]:
    """What the class says of itself, and the paper with its number that the head of its file names first."""
    if of is nn.Identity:
        return "nothing in the slot" + ("; wider perceptrons" if name == "wide" else ""), ""
    told = inspect.getdoc(sys.modules[of.__module__]) or ""
    paper = re.search(r"^Papers?: (?!none)(.*?\([^)]*\d{4}[^)]*\))", told, re.MULTILINE | re.DOTALL)
    shared = sum(other.__module__ == of.__module__ for other in ATTENTIONS.values()) > 1
    what = ((inspect.getdoc(of) if shared else None) or told).splitlines()[0]
    return re.sub(r"[:,.]? *(\(B, C, H, W\).*)?$", "", what), " ".join(paper.group(1).split()) if paper else ""


@dataclass(frozen=True)
class Check:
    """One check of an attention."""

    name: str
    """What was checked."""
    verdict: Verdict
    """How it ended."""
    found: str
    """What was found."""


def check(name: str, folder: Path, *, progress: bool = True) -> Iterator[Check]:
    """Check an attention from its shape to its int8 files; gives each check as it is done, and stops where none can follow.

    Args:
        name: of the zoo, or `package.module:Class`.
        folder: for the run and the bundle.
        progress: show the training's bar.

    Raises:
        NameNotFoundError: no such attention.
        SpecError: it cannot be built.
    """
    shape = _shapes(name)
    yield shape
    if shape.verdict == "failed":
        return
    yield _gradient(name)
    yield _map(name)
    recipe = Recipe(
        "cards", attention=name, start="zoo", epochs=3, views_per_epoch=CHECK_VIEWS // 3, label_smoothing=0.05
    )
    data = open_data(recipe, folder)
    trained = train(recipe, folder / "run", data=data, progress=progress)
    top1 = trained.metrics["validation_top1"]
    yield Check("training", "passed" if top1 > 0.5 else "failed", f"{top1:.1%} of cards after {CHECK_VIEWS:,} views")
    try:
        bundle = export_run(trained, data, folder / "attention")
        other = export(
            trained.model, folder / "other-size", labels=trained.labels, imgsz=128, pictures=[data.validation[0][0]]
        )
    except EdgeAttnError as error:
        yield Check("export", "failed", str(error))
        return
    worst = max(a.gates["parity"]["difference"] for made in (bundle, other) for a in made.artefacts)
    yield Check("export", "passed", f"both engines within {worst:.0e} of torch, at 96 and 128 pixels")
    yield from _int8(bundle, data, folder)
    found = [finding for finding in lint(bundle) if not finding.is_advice]
    findings = [f for f in found if any(in_attention(block) for block in f.blocks)]  # what is not the backbone's
    rules = [f"{f.rule} ({', '.join(f.targets)}: {f.reason}, {f.evidence})" for f in findings]
    yield Check(
        "lint", "failed" if findings else "passed", "; ".join(rules) or "fit for int8 engines and NPU compilers"
    )


def _int8(bundle: Bundle, data: TrainingData, folder: Path) -> Iterator[Check]:
    try:
        report = quantize_run(bundle, data, folder).report
    except EdgeAttnError as error:
        yield Check("int8", "failed", str(error))
        return
    floats = {r.engine: r for r in report.results if r.precision == "float"}
    for result in (r for r in report.results if r.precision == "int8"):
        whole = floats[result.engine]
        speed = (result.latency_ms or np.nan) / (whole.latency_ms or np.nan)
        points = 100 * ((whole.figure or 0) - (result.figure or 0))
        yield Check(
            f"int8 {result.engine}", result.verdict,
            f"loses {points:.1f} points, maps {result.map_js or 0:.3f} apart, {speed:.2f} of float's time",
        )  # fmt: skip


def _shapes(name: str) -> Check:
    for channels in CHANNELS:
        module = build_attention(name, channels).eval()
        for height, width in SIZES:
            x_BCHW = torch.randn(2, channels, height, width)
            with torch.no_grad():
                y_BCHW = module(x_BCHW)
            if y_BCHW.shape != x_BCHW.shape:
                return Check("shape", "failed", f"{tuple(x_BCHW.shape)} became {tuple(y_BCHW.shape)}; it must stay")
    return Check("shape", "passed", f"kept at {CHANNELS[0]} and {CHANNELS[1]} channels, square and not")


def _gradient(name: str) -> Check:
    module = build_attention(name, CHANNELS[0]).train()
    with torch.no_grad():
        for parameter in module.parameters():  # a branch that starts at zero hides what is behind it for one step
            parameter.add_(0.05 * torch.randn_like(parameter))
    (module(torch.randn(4, CHANNELS[0], 8, 8)) * torch.randn(4, CHANNELS[0], 8, 8)).sum().backward()
    starved = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    count = sum(1 for _ in module.parameters())
    return Check("gradient", "failed" if starved else "passed", ", ".join(starved) or f"reaches all {count} parameters")


def _map(name: str) -> Check:
    module = build_attention(name, CHANNELS[0]).eval()
    x_BCHW = torch.randn(2, CHANNELS[0], 8, 8)
    with torch.no_grad():
        map_BHW = attend(module, x_BCHW)[1]
    if map_BHW.shape != (2, 8, 8):
        return Check("map", "failed", f"is {tuple(map_BHW.shape)}; it must be (B, H, W), here (2, 8, 8)")
    if not bool(torch.isfinite(map_BHW).all()) or bool((map_BHW < 0).any()):
        return Check("map", "failed", "has values below 0 or that are no numbers")
    own = "its own" if hasattr(module, "attend") else "the energy it passes on"
    return Check("map", "passed", f"{own}, {float(map_BHW.min()):.2f} to {float(map_BHW.max()):.2f}")


def build(
    folder: Path, names: Sequence[str], *, model: str = "nano", imgsz: int = 224, resume: bool = True
) -> Iterator[tuple[str, str]]:
    """Write a bundle of each attention, in float and int8, for pricing; gives its name and what hindered it, if anything.

    The weights are random and the norms have seen pictures: such a net costs what a trained one costs and knows nothing.
    Several are built at once, a process a core.
    """
    waiting = []
    for name in names:
        if resume and _is_built(folder / f"{name}{SUFFIX}", model, imgsz):
            yield name, ""
        else:
            waiting.append(name)
    processes = min(usable_cores(), len(waiting))
    if processes < 2:
        for name in waiting:
            yield name, _build(folder, name, model, imgsz)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_builder) as pool:
        jobs = {pool.submit(_build, folder, name, model, imgsz): name for name in waiting}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_builder() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all; the parent says so
    torch.set_num_threads(1)


def _is_built(path: Path, model: str, imgsz: int) -> bool:
    try:
        told = load(path).provenance.get("priced", {})
    except EdgeAttnError:
        return False
    return bool(told.get("model") == model and told.get("imgsz") == imgsz)


def _build(folder: Path, name: str, model: str, imgsz: int) -> str:
    """Write one bundle; gives what hindered it, or nothing."""
    try:
        _write_bundle(folder, name, model, imgsz)
    except EdgeAttnError as error:
        return str(error)
    return ""


def _write_bundle(folder: Path, name: str, model: str, imgsz: int) -> None:
    pictures = [random_background(np.random.default_rng((21, i)), imgsz, "train") for i in range(FEWEST + 4)]
    torch.manual_seed(0)
    net = build_model(model, len(LABELS), attention=name, imgsz=imgsz).train()
    spec = InputSpec(imgsz, imgsz)
    batch_BHW3 = torch.from_numpy(np.concatenate([prepare(picture, spec) for picture in pictures[:8]]))
    with torch.no_grad():
        for _ in range(8):
            net((batch_BHW3.permute(0, 3, 1, 2).float() - 128) / 128)
    spent = cost(net, imgsz)
    priced = {"model": model, "imgsz": imgsz, "parameters": spent.parameters, "macs": spent.macs}
    with tempfile.TemporaryDirectory() as scratch:  # a bundle of the folder is whole, or not there
        made = export(
            net.eval(), Path(scratch) / name, labels=LABELS, imgsz=imgsz, pictures=pictures[:4], mechanism=name,
            provenance={"priced": priced, "note": "random weights: it costs what a trained net costs and knows nothing"},
        )  # fmt: skip
        made = quantize(made, pictures[:FEWEST], [(picture, 0) for picture in pictures[FEWEST:]], portable=True).bundle
        folder.mkdir(parents=True, exist_ok=True)
        extend(made, (), {}, path=folder / f"{name}{SUFFIX}")
