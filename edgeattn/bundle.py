"""The artefact on disk: a folder `NAME.edgeattn/` that describes, carries and proves a model.

`bundle.json` holds the schema version, the spec, the artefacts with their gates, provenance (recipe, calibration,
licence and attributions), the sha256 of every file, and a digest of itself. `golden/` holds up to 50 inputs with the
float outputs, so that any box, engine or NPU can be checked against the maker's answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import uuid
import zipfile
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
ZOO = Path(__file__).parent / "zoo"
"""Bundles that ship with edgeattn."""


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
        if engine == "onnxruntime" and any(a.file.endswith(".xml") and a.precision == "float" for a in self.artefacts):
            remedy = "; the model came as OpenVINO's IR, which nothing turns into ONNX: import an ONNX export of it"
        raise BundleError(f"{self.path} holds no {precision} artefact for {engine}; it holds: {held}{remedy}")

    def file(self, artefact: Artefact) -> Path:
        """Path of an artefact's file."""
        return self.path / artefact.file

    def size(self, artefact: Artefact) -> int:
        """Bytes of an artefact's files."""
        return sum((self.path / file).stat().st_size for file in _files_of(artefact))

    def golden(self) -> dict[str, NDArray[np.generic]]:
        """Inputs (`inputs`, N x spec.input.shape[1:]) and the maker's float outputs by name; empty where none are kept.

        Raises:
            BundleError: the file is no such thing.
        """
        if GOLDEN not in self.sha256:
            return {}
        try:
            with (self.path / GOLDEN).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                golden = {key: arrays[key] for key in arrays.files}
        except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            raise BundleError(f"{self.path}: {GOLDEN} cannot be read ({error}); make the bundle again") from error
        wanted = {"inputs", *self.spec.outputs, *(m.output for m in self.spec.maps)}
        if not wanted <= golden.keys() or golden["inputs"].shape[1:] != self.spec.input.shape[1:]:
            raise BundleError(f"{self.path}: {GOLDEN} does not fit the spec; make the bundle again")
        return golden

    def digest(self) -> str:
        """Digest over all files: two bundles with the same one hold the same model."""
        return hashlib.sha256(json.dumps(sorted(self.sha256.items())).encode()).hexdigest()[:16]

    def is_same(self, other: Bundle) -> bool:
        """Whether both hold the same files under the same contract, wherever they lie."""
        return (self.spec, self.artefacts, self.sha256) == (other.spec, other.artefacts, other.sha256)


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
    contents = _read_manifest(manifest)
    for file, digest in contents.sha256.items():
        _check_file(path, file, digest)
    for artefact in contents.artefacts:
        for file in _files_of(artefact):
            if file not in contents.sha256:
                raise BundleError(f"{manifest}: {file} of an artefact has no digest; make the bundle again")
    for file in contents.sha256:
        if file.endswith(".onnx"):
            _check_external_data(path, file, contents.sha256)
    return Bundle(path, contents.spec, contents.artefacts, contents.provenance, contents.sha256)


def check_unchanged(bundle: Bundle, artefact: Artefact) -> None:
    """Check that a file which is opened only now is the one of this bundle, and not of another that lies there since.

    Raises:
        BundleError: it is another one, or gone.
    """
    for file in _files_of(artefact):
        try:
            _check_file(bundle.path, file, bundle.sha256[file])
        except BundleError as error:
            raise BundleError(
                f"{bundle.path}: {file} is not what it was when the bundle was opened; take what is there with SIGHUP, or "
                "start again"
            ) from error


def find(name: str | Path) -> Path:
    """Folder of a bundle given by its path or by its name in the zoo.

    Raises:
        NameNotFoundError: neither of both.
    """
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    shipped = {p.name.removesuffix(SUFFIX): p for p in ZOO.glob(f"*{SUFFIX}")}
    if str(name) in shipped:
        return shipped[str(name)]
    raise NameNotFoundError("bundle", str(name), shipped, "A bundle is named by its folder or by its name in the zoo.")


@dataclass(frozen=True)
class _Contents:
    spec: Spec
    artefacts: tuple[Artefact, ...]
    sha256: Mapping[str, str]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def _read_manifest(manifest: Path) -> _Contents:
    try:
        raw = json.loads(manifest.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{manifest} cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{manifest} is not valid JSON ({error}); restore it or make the bundle again") from error
    if not isinstance(raw, dict):
        raise BundleError(f"{manifest} holds no JSON object; restore it or make the bundle again")
    schema, digest = str(raw.pop("schema", "")), raw.pop("digest", "")
    if schema != SCHEMA:
        raise BundleError(
            f"{manifest.parent} has schema '{schema}', this version reads '{SCHEMA}'; "
            "update with: pip install --upgrade edgeattn"
        )
    try:
        contents = from_json(_Contents, raw)
    except SpecError as error:
        raise BundleError(f"{manifest}: {error}; restore it or make the bundle again") from error
    if digest != _digest(raw):
        raise BundleError(f"{manifest} was altered since it was made (its digest differs); copy the bundle again")
    return contents


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _files_of(artefact: Artefact) -> tuple[str, ...]:
    """The artefact's file, and the weights of an OpenVINO IR beside it."""
    file = artefact.file
    return (file, file.removesuffix(".xml") + ".bin") if file.endswith(".xml") else (file,)


def _check_file(folder: Path, file: str, digest: str) -> None:
    inside = PurePosixPath(file)
    if "\0" in file or inside.is_absolute() or ".." in inside.parts or not _lies_in(folder, folder / file):
        raise BundleError(f"{folder}: the file name {file!r} leads out of the bundle; do not use this bundle")
    if not (folder / file).is_file():
        raise BundleError(f"{folder}: {file} is missing; copy the whole folder again")
    if sha256(folder / file) != digest:
        raise BundleError(f"{folder}: {file} was altered since it was made (sha256 differs); copy the bundle again")


def _lies_in(folder: Path, file: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())


def _check_external_data(folder: Path, file: str, digests: Mapping[str, str]) -> None:
    """Weights that an ONNX file keeps in other files must be in the bundle too, with a digest."""
    if b"location" not in (folder / file).read_bytes():  # the key under which a tensor names its file
        return
    import onnx

    try:
        model = onnx.load(folder / file, load_external_data=False)
    except Exception as error:  # whatever protobuf raises
        raise BundleError(f"{folder}: {file} is not an ONNX file; make the bundle again") from error
    home = (folder / file).parent
    for location in sorted(_external_locations(model)):
        beside = home / location
        if "\0" in location or not _lies_in(folder, beside):
            raise BundleError(
                f"{folder}: the weights of {file} lie outside the bundle ({location}); do not use this bundle"
            )
        if beside.resolve().relative_to(folder.resolve()).as_posix() not in digests:
            raise BundleError(f"{folder}: the weights of {file} in {location} have no digest; make the bundle again")


def _external_locations(message: Any) -> set[str]:
    """Files that tensors anywhere in a protobuf message (initializers, attributes, subgraphs, functions) point to."""
    found = {entry.value for entry in getattr(message, "external_data", ()) if entry.key == "location"}
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            repeated = not hasattr(value, "ListFields")
            for part in value if repeated else (value,):
                found |= _external_locations(part)
    return found


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
        BundleError: the disk is full, the folder cannot be written or holds something else, or the bundle would not
            open; what stood there before still stands.
    """
    folder = bundle.path.resolve()
    if folder.exists() and not _replaceable(folder):
        raise BundleError(f"{folder} is there already and is no bundle; choose another path")
    try:
        with replacing(folder) as fresh:
            for name, source in files.items():
                target = fresh / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(source, bytes):
                    target.write_bytes(source)
                else:
                    shutil.copyfile(source, target)
            digests = {name: sha256(fresh / name) for name in sorted(files)}
            manifest = to_json(_Contents(bundle.spec, bundle.artefacts, digests, bundle.provenance))
            head = {"schema": SCHEMA, "digest": _digest(manifest)}
            text = json.dumps(head | manifest, indent=1, ensure_ascii=False) + "\n"
            (fresh / "bundle.json").write_text(text, encoding="utf-8")
            written = load(fresh)  # before it takes the old one's place
    except OSError as error:
        raise BundleError(
            f"{folder} was not written ({error.strerror or error}); what stood there before is unchanged"
        ) from error
    return replace(written, path=folder)


def _replaceable(folder: Path) -> bool:
    """A bundle or an empty folder; anything else may be somebody's pictures."""
    return folder.is_dir() and ((folder / "bundle.json").is_file() or not any(folder.iterdir()))


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
    orphans = _all_files(bundle.artefacts) - _all_files(kept) - _all_files(artefacts)
    carried: dict[str, Path | bytes] = {name: bundle.path / name for name in bundle.sha256 if name not in orphans}
    merged = {**bundle.provenance, **(provenance or {})}
    grown = replace(bundle, path=path or bundle.path, artefacts=kept + artefacts, provenance=merged)
    return write(grown, {**carried, **files})


def _all_files(artefacts: tuple[Artefact, ...]) -> set[str]:
    return {file for artefact in artefacts for file in _files_of(artefact)}
