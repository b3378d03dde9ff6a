"""The artefact on disk: a folder `NAME.edgeattn/` that describes, carries and proves a model.

`bundle.json` holds the schema version, the spec, the artefacts with their gates, provenance (recipe, calibration, licence
and attributions) and the sha256 of every file. `golden/` holds up to 50 inputs with the float outputs, so that any box,
engine or NPU can be checked against the maker's answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import BundleError, NameNotFoundError, SpecError
from edgeattn.spec import Artefact, Spec, from_json, to_json

SCHEMA = "edgeattn.bundle/1"
SUFFIX = ".edgeattn"
GOLDEN = "golden/golden.npz"


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened and checked."""

    path: Path
    """Its folder."""
    spec: Spec
    """The model's contract."""
    artefacts: tuple[Artefact, ...]
    """Files for engines, in the order in which they were made."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Recipe and calibration digests, licence and attributions of data and weights."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Digest of every file but bundle.json."""

    @property
    def name(self) -> str:
        """The folder's name without its ending."""
        return self.path.name.removesuffix(SUFFIX)

    def artefact(self, engine: str, precision: str) -> Artefact:
        """The artefact for an engine at a precision.

        Raises:
            BundleError: the bundle holds none; the message lists those it holds.
        """
        for artefact in self.artefacts:
            if (artefact.engine, artefact.precision) == (engine, precision):
                return artefact
        held = ", ".join(f"{a.engine} {a.precision}" for a in self.artefacts) or "nothing yet"
        remedy = f"; make it with: edgeattn quantize {self.path}" if precision == "int8" else ""
        raise BundleError(f"{self.path} holds no {precision} artefact for {engine}; it holds: {held}{remedy}")

    def file(self, artefact: Artefact) -> Path:
        """Path of an artefact's file."""
        return self.path / artefact.file

    def golden(self) -> dict[str, NDArray[np.generic]]:
        """Inputs (`inputs`, N x spec.input.shape[1:]) and the maker's float outputs by name; empty where none were kept."""
        if GOLDEN not in self.sha256:
            return {}
        with np.load(self.path / GOLDEN, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    def digest(self) -> str:
        """Digest over all files: two bundles with the same one hold the same model."""
        return hashlib.sha256(json.dumps(sorted(self.sha256.items())).encode()).hexdigest()[:16]


def load(name: str | Path) -> Bundle:
    """Open a bundle by its folder, or by its name in the zoo that ships with edgeattn, and check every file.

    Raises:
        BundleError: no such folder, an unknown schema, a file that is missing, altered or outside the folder.
        NameNotFoundError: `name` is no folder and no bundle of the zoo.
    """
    path = find(name)
    manifest = path / "bundle.json"
    if not manifest.is_file():
        raise BundleError(f"{path} is not a bundle: bundle.json is missing; make one with: edgeattn make PHOTOS")
    try:
        raw = json.loads(manifest.read_text(encoding="utf-8"))
        schema = str(raw.pop("schema", ""))
    except (ValueError, AttributeError) as error:
        raise BundleError(f"{manifest} is not valid JSON ({error}); restore it or make the bundle again") from error
    if schema != SCHEMA:
        raise BundleError(
            f"{path} has schema '{schema}', this version reads '{SCHEMA}'; update with: pip install --upgrade edgeattn"
        )
    try:
        contents = from_json(_Contents, raw)
    except SpecError as error:
        raise BundleError(f"{manifest}: {error}; restore it or make the bundle again") from error
    for file, digest in contents.sha256.items():
        _check_file(path, file, digest)
    for artefact in contents.artefacts:
        if artefact.file not in contents.sha256:
            raise BundleError(f"{manifest}: artefact {artefact.file} has no digest; make the bundle again")
    return Bundle(path, contents.spec, contents.artefacts, contents.provenance, contents.sha256)


def find(name: str | Path) -> Path:
    """Folder of a bundle given by its path or by its name in the zoo.

    Raises:
        NameNotFoundError: neither of both.
    """
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    zoo = Path(__file__).parent / "zoo"
    shipped = {p.name.removesuffix(SUFFIX): p for p in zoo.glob(f"*{SUFFIX}")}
    if str(name) in shipped:
        return shipped[str(name)]
    raise NameNotFoundError("bundle", str(name), shipped, "A bundle is named by its folder or by its name in the zoo.")


@dataclass(frozen=True)
class _Contents:
    spec: Spec
    artefacts: tuple[Artefact, ...]
    sha256: Mapping[str, str]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def _check_file(folder: Path, file: str, digest: str) -> None:
    inside = PurePosixPath(file)
    if inside.is_absolute() or ".." in inside.parts or not (folder / file).resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{folder}: the file name '{file}' leads out of the bundle; do not use this bundle")
    if not (folder / file).is_file():
        raise BundleError(f"{folder}: {file} is missing; copy the whole folder again")
    if sha256(folder / file) != digest:
        raise BundleError(f"{folder}: {file} was altered since it was made (sha256 differs); copy the bundle again")
    if inside.suffix == ".onnx":
        _check_external_data(folder / file)


def _check_external_data(file: Path) -> None:
    import onnx

    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (file.parent / entry.value).resolve().is_relative_to(file.parent.resolve()):
                raise BundleError(f"{file}: its weights lie outside the bundle ({entry.value}); do not use this bundle")


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        hasher = hashlib.sha256()
        while block := stream.read(1 << 20):
            hasher.update(block)
        return hasher.hexdigest()


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a new empty folder beside `folder`; when the block ends well, it takes `folder`'s place.

    A crash or a full disk inside the block leaves the old folder as it was.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    fresh, aside = (folder.with_name(f".{folder.name}.{kind}-{token}") for kind in ("new", "old"))
    fresh.mkdir()
    try:
        yield fresh
        if folder.exists():
            folder.rename(aside)
        try:
            fresh.rename(folder)
        except OSError:
            if aside.exists():
                aside.rename(folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write(bundle: Bundle, files: Mapping[str, Path | bytes]) -> Bundle:
    """Write a whole bundle to `bundle.path` in one swap and open it again.

    Args:
        bundle: what bundle.json is to say (its `sha256` is made anew).
        files: every file of the bundle by its name inside, as bytes or as the path to copy from.

    Raises:
        BundleError: the disk is full or the folder cannot be written; what stood there before still stands.
    """
    try:
        with replacing(bundle.path) as fresh:
            for name, source in files.items():
                target = fresh / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(source, bytes):
                    target.write_bytes(source)
                else:
                    shutil.copyfile(source, target)
            digests = {name: sha256(fresh / name) for name in sorted(files)}
            manifest = {"schema": SCHEMA} | to_json(_Contents(bundle.spec, bundle.artefacts, digests, bundle.provenance))
            (fresh / "bundle.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise BundleError(f"{bundle.path} was not written ({error.strerror or error}); what stood there before is unchanged") from error
    return load(bundle.path)


def extend(
    bundle: Bundle,
    artefacts: tuple[Artefact, ...],
    files: Mapping[str, Path | bytes],
    *,
    provenance: Mapping[str, Any] | None = None,
    path: Path | None = None,
) -> Bundle:
    """Add artefacts to a bundle (those for the same engine, target and precision are replaced), in one swap.

    With `path` the result is written there and the bundle stays as it is.
    """
    made = {(a.engine, a.target, a.precision) for a in artefacts}
    kept = tuple(a for a in bundle.artefacts if (a.engine, a.target, a.precision) not in made)
    orphans = {a.file for a in bundle.artefacts} - {a.file for a in kept} - {a.file for a in artefacts}
    carried: dict[str, Path | bytes] = {name: bundle.path / name for name in bundle.sha256 if name not in orphans}
    merged = {**bundle.provenance, **(provenance or {})}
    grown = replace(bundle, path=path or bundle.path, artefacts=kept + artefacts, provenance=merged)
    return write(grown, {**carried, **files})
