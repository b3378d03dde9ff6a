"""What attention costs on this machine: bundles of one net with different attentions, each timed against the one without.

A bundle's artefacts and those of the reference take turns in one process, so that the ratio holds in any weather; a
machine's memory need not hold more than two bundles at once. Needs no torch: the bundles can come from elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import platform
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn import engines
from edgeattn.bundle import SUFFIX, Bundle, load
from edgeattn.engines.base import Engine
from edgeattn.errors import BundleError, DataError, EngineError, SpecError
from edgeattn.imaging import prepare
from edgeattn.profiling import frames
from edgeattn.spec import from_json, to_json
from edgeattn.timing import NS_PER_MS, environment, monotonic_ns, pressure

SCHEMA = "edgeattn.prices/1"
REFERENCE = "none"
"""Name of the bundle that the others are held against."""
ROUNDS, BURST = 24, 4
"""Turns of an artefact, and inferences that count in one turn."""
Nodes = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Price:
    """What one attention costs in one engine."""

    mechanism: str
    """Name of the attention, which is the bundle's."""
    engine: str
    """`onnxruntime` or `openvino`."""
    digest: str
    """Of the float model: results of several machines are joined by it."""
    float_ms: float
    """Median of one inference."""
    int8_ms: float | None
    """Likewise; None: there is no int8 artefact for this engine."""
    float_over_none: float
    """Median ratio to the net without attention, turn by turn."""
    int8_over_none: float | None
    """Likewise, int8 against int8."""
    int8_over_float: float | None
    """Below 1: int8 is faster."""
    nodes: Nodes
    """Nodes of the int8 graph (of the float one where there is none) as executed, by precision and type."""
    kept_float: Mapping[str, str]
    """Type of a node that stayed in float, to the reason."""
    verdict: str
    """The int8 artefact's accuracy gate."""

    @property
    def ships(self) -> str:
        """The faster of float and int8 on this machine."""
        return "int8" if self.int8_over_float is not None and self.int8_over_float < 1.0 else "float"


def find_bundles(folder: str | Path) -> list[Path]:
    """Bundles in a folder of bundles, the reference first.

    Raises:
        DataError: there are none, or not the reference.
    """
    found = sorted(path for path in Path(folder).glob(f"*{SUFFIX}") if path.is_dir())
    names = [path.name.removesuffix(SUFFIX) for path in found]
    if REFERENCE not in names:
        raise DataError(
            f"{folder} holds no {REFERENCE}{SUFFIX} to hold the others against; make them with: "
            f"edgeattn attentions --measure --build {folder}"
        )
    return sorted(found, key=lambda path: (path.name != REFERENCE + SUFFIX, path.name))


def price(bundle: Bundle, reference: Bundle, *, threads: int | None = 1, rounds: int = ROUNDS) -> list[Price]:
    """Time a bundle's artefacts against the reference's, in turns: a price for each engine that runs here.

    Raises:
        EngineError: no engine runs it here.
    """
    image = prepare(next(frames.builtin(reference)), reference.spec.input)
    found = []
    for name in engines.NAMES:
        with contextlib.suppress(BundleError), contextlib.ExitStack() as stack:
            opened: dict[tuple[str, str], Engine] = {}
            for role, each in (("it", bundle), ("none", reference)):
                for artefact in engines.held(each, [name]):
                    engine = engines.open_artefact(each, artefact, threads=threads)
                    stack.callback(engine.close)
                    opened[role, artefact.precision] = engine
            if ("it", "float") not in opened or ("none", "float") not in opened:
                continue
            times = _in_turns(opened, image, rounds)
            found.append(_price(bundle, name, opened, times))
    if not found:
        raise EngineError(f"no engine runs {bundle.path} and its reference here")
    return found


def _in_turns(opened: Mapping[tuple[str, str], Engine], image: Any, rounds: int) -> dict[tuple[str, str], Any]:
    """Median of each burst in ms, (rounds,) by artefact."""
    order, times = random.Random(0), {key: np.empty(rounds) for key in opened}
    for engine in opened.values():
        for _ in range(5):
            engine.infer(image)
    for turn in range(rounds):
        for key in order.sample(list(opened), len(opened)):
            infer = opened[key].infer
            infer(image)  # the caches are the previous one's
            burst = []
            for _ in range(BURST):
                start_ns = monotonic_ns()
                infer(image)
                burst.append(monotonic_ns() - start_ns)
            times[key][turn] = np.median(burst) / NS_PER_MS
    return times


def _price(bundle: Bundle, name: str, opened: Mapping[tuple[str, str], Engine], times: Mapping[Any, Any]) -> Price:
    def ratio(a: tuple[str, str], b: tuple[str, str]) -> float | None:
        return float(np.median(times[a] / times[b])) if a in times and b in times else None

    has_int8 = ("it", "int8") in opened
    nodes = opened["it", "int8" if has_int8 else "float"].nodes
    artefact = bundle.artefact(name, "int8") if has_int8 else None
    float_over_none = ratio(("it", "float"), ("none", "float"))
    assert float_over_none is not None
    return Price(
        mechanism=bundle.name,
        engine=name,
        digest=bundle.digest(),
        float_ms=float(np.median(times["it", "float"])),
        int8_ms=float(np.median(times["it", "int8"])) if has_int8 else None,
        float_over_none=float_over_none,
        int8_over_none=ratio(("it", "int8"), ("none", "int8")),
        int8_over_float=ratio(("it", "int8"), ("it", "float")),
        nodes=nodes,
        kept_float=_reasons(nodes, artefact.recipe.get("float_types", ()) if artefact else None),
        verdict=artefact.verdict if artefact else "none",
    )


_TYPES_OF_LAYERS = {
    "Multiply": "Eltwise", "Divide": "Eltwise", "Subtract": "Eltwise", "Abs": "Eltwise", "Sigmoid": "Eltwise",
    "HSigmoid": "Eltwise", "HSwish": "Eltwise", "ReduceMean": "Reduce", "ReduceMax": "Reduce", "ReduceSum": "Reduce",
    "Concat": "Concatenation",
}  # fmt: skip
"""OpenVINO's name of an operation to that of the layer that its CPU plugin runs it by."""


def _reasons(nodes: Nodes, recipe_types: Sequence[str] | None) -> dict[str, str]:
    """Why each type of node stayed in float; `recipe_types` are those that the recipe leaves there, None: no int8 file."""
    floats = {kind for precision, kinds in nodes.items() if precision not in ("int8", "convert") for kind in kinds}
    if recipe_types is None:
        return dict.fromkeys(sorted(floats), "there is no int8 artefact")
    chosen = set(recipe_types) | {_TYPES_OF_LAYERS.get(kind, kind) for kind in recipe_types}
    return {
        kind: "the recipe keeps attention branches in float"
        if kind in chosen
        else "the engine fused it with nodes in float"
        if kind in ("Subgraph", "Eltwise") or kind.startswith("Fused")
        else "no integers reach it: its neighbours are in float, or the engine has no integer kernel"
        for kind in sorted(floats)
    }


@dataclass(frozen=True)
class PriceList:
    """The prices of one machine."""

    box: str
    """Name of the machine."""
    environment: Mapping[str, Any]
    """What the figures rest on."""
    prices: tuple[Price, ...]
    """In the order of measurement."""
    waited_share: float | None
    """Share of the time in which tasks waited for a core: above 0.05 the absolute figures are not to be trusted."""

    def json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"schema": SCHEMA, **to_json(self)}


def price_file(folder: str | Path) -> Path:
    """Where this machine's prices of a folder of bundles are kept."""
    box = re.sub(r"[^A-Za-z0-9_.-]", "-", platform.node() or "box")
    return Path(folder) / "prices" / f"{box}.json"


def read_prices(file: Path) -> PriceList:
    """Read what `price_folder` wrote.

    Raises:
        DataError: it is no price list.
    """
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        schema = told.pop("schema", None)
        if schema == SCHEMA:
            return from_json(PriceList, told)
    except (OSError, ValueError, AttributeError, SpecError) as error:
        raise DataError(f"{file} is no price list ({error}); measure again with --fresh") from error
    raise DataError(
        f"{file} is a price list of schema {schema}, this version writes {SCHEMA}; measure again with --fresh"
    )


def joined(folder: str | Path) -> tuple[PriceList, ...]:
    """Every box's prices of the bundles that are there: lists that were brought here into `DIR/prices/` count too.

    A price belongs to a bundle by the digest of its float model; those of other models are left out.

    Raises:
        DataError: there are no bundles, or a file there is no price list.
    """
    here = {(bundle.name, bundle.digest()) for bundle in map(load, find_bundles(folder))}
    found = []
    for file in sorted(price_file(folder).parent.glob("*.json")):
        told = read_prices(file)
        same = tuple(p for p in told.prices if (p.mechanism, p.digest) in here)
        if same:
            found.append(replace(told, prices=same))
    return tuple(found)


def price_folder(
    folder: str | Path, *, threads: int | None = 1, resume: bool = True, only: Sequence[str] = ()
) -> Iterator[tuple[PriceList, int]]:
    """Price every bundle of a folder; yields the list after each, with the number that is still to do.

    What this machine has priced already is kept while the bundle is the same; the list is written after each bundle.

    Raises:
        DataError: there are no bundles, or not the reference.
        EngineError: no engine runs them here.
    """
    paths = find_bundles(folder)
    if only:
        paths = [path for path in paths if path.name.removesuffix(SUFFIX) in {REFERENCE, *only}]
    file = price_file(folder)
    known = read_prices(file).prices if resume and file.is_file() else ()
    reference = load(paths[0])
    prices: list[Price] = []
    before = pressure.read(monotonic_ns)
    for left, path in zip(range(len(paths) - 1, -1, -1), paths, strict=True):
        bundle = load(path)
        kept = [old for old in known if old.mechanism == bundle.name and old.digest == bundle.digest()]
        prices += kept or price(bundle, reference, threads=threads)
        waited = pressure.read(monotonic_ns).waited_share(before)
        found = PriceList(platform.node(), environment(), tuple(prices), waited)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(found.json(), indent=1), encoding="utf-8")
        partial.replace(file)
        yield found, left
