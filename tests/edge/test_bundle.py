"""A bundle opens whole and unaltered, or not at all; writing leaves the old one or the new one, never half of one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny

from edgeattn import bundle as module
from edgeattn.bundle import GOLDEN, Bundle, extend, find, load, write
from edgeattn.errors import BundleError, EdgeAttnError, NameNotFoundError
from edgeattn.spec import Artefact


@pytest.fixture
def copied(tiny_int8_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_int8_bundle.path, tmp_path / "copied.edgeattn")


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change bundle.json and give it the digest that fits, as somebody who knows how would."""
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    change(manifest)
    rest = {key: value for key, value in manifest.items() if key not in ("schema", "digest")}
    manifest["digest"] = module._digest(rest)
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def listed(folder: Path, name: str) -> None:
    """Give a file the digest that fits."""
    reseal(folder, lambda manifest: manifest["sha256"].update({name: module.sha256(folder / name)}))


def test_a_bundle_comes_back_as_it_was_written(tmp_path: Path) -> None:
    spec = replace(tiny.SPEC, labels=("größe", "日本", "blue"))
    artefact = Artefact("float.onnx", "onnxruntime", "float", recipe={"opset": 20}, gates=tiny.PASSED)
    provenance = {"licence": "Apache-2.0", "attributions": [{"name": "é"}]}
    model = tiny.float_model().SerializeToString()
    made = write(Bundle(tmp_path / "x.edgeattn", spec, (artefact,), provenance), {"float.onnx": model})
    opened = load(tmp_path / "x.edgeattn")
    assert opened == made
    assert (opened.spec, opened.artefacts, opened.provenance) == (spec, (artefact,), provenance)
    assert opened.file(artefact).read_bytes() == model
    assert opened.name == "x"
    assert opened.golden() == {}
    assert names(tmp_path) == ["x.edgeattn"]


def test_golden_holds_inputs_and_answers(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    assert golden["inputs"].shape == (24, 32, 32, 3)
    assert golden["logits"].shape == (24, 3)
    assert golden["map_0"].shape == (24, 4, 4)


def test_the_digest_tells_models_apart(tiny_bundle: Bundle, tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    again = Path(shutil.copytree(tiny_bundle.path, tmp_path / "other-name.edgeattn"))
    assert load(again).digest() == tiny_bundle.digest()
    assert tiny_int8_bundle.digest() != tiny_bundle.digest()


def test_artefacts_are_found_or_listed(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.artefact("openvino", "float").file == "float.onnx"
    with pytest.raises(BundleError, match="no int8 artefact for openvino; it holds: onnxruntime float, openvino"):
        tiny_bundle.artefact("openvino", "int8")


# What opening refuses


@pytest.mark.parametrize("name", ["float.onnx", "int8.onnx", "int8.xml", "int8.bin", GOLDEN])
def test_one_altered_byte_anywhere_is_found(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was altered"):
        load(copied)


def test_one_altered_byte_in_the_manifest_is_found(copied: Path) -> None:
    manifest = copied / "bundle.json"
    whole = manifest.read_bytes()
    meant = json.loads(whole)
    for at in range(0, len(whole), 7):
        altered = bytearray(whole)
        altered[at] ^= 1
        manifest.write_bytes(altered)
        try:
            load(copied)
        except EdgeAttnError:
            continue
        assert json.loads(bytes(altered)) == meant, f"byte {at} changed the meaning and was not found"


def test_a_changed_label_is_found(copied: Path) -> None:
    manifest = copied / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"red"', '"rad"'))
    with pytest.raises(BundleError, match=r"bundle\.json was altered"):
        load(copied)


@pytest.mark.parametrize("name", ["float.onnx", "int8.bin", GOLDEN])
def test_a_missing_file_is_found(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load(copied)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json is missing.*edgeattn make"):
        load(tmp_path)


def test_a_newer_schema_is_refused_with_the_way_out(copied: Path) -> None:
    reseal(copied, lambda manifest: manifest.update(schema="edgeattn.bundle/2", whatever=[]))
    with pytest.raises(BundleError, match=r"schema 'edgeattn\.bundle/2', this version reads.*pip install --upgrade"):
        load(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"x"', "{}", "\x00", "[" * 5000])
def test_a_manifest_that_is_none_is_refused(copied: Path, text: str) -> None:
    (copied / "bundle.json").write_text(text)
    with pytest.raises(BundleError):
        load(copied)


def test_a_manifest_of_other_bytes_is_refused(copied: Path) -> None:
    (copied / "bundle.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="not valid JSON"):
        load(copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("spec"),
        lambda m: m.update(more=1),
        lambda m: m["spec"]["input"].update(height="96"),
        lambda m: m["artefacts"][0].update(precision="int4"),
        lambda m: m["artefacts"][0].update(gates={"loss": {}}),
        lambda m: m.update(sha256=[]),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(copied: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    reseal(copied, change)
    with pytest.raises(BundleError, match=r"bundle\.json: .*make the bundle again"):
        load(copied)


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/hostname", "golden/../../outside.onnx", "a\0b", "link.onnx"])
def test_a_path_that_leaves_the_folder_is_refused(copied: Path, name: str) -> None:
    outside = copied.parent / "outside.onnx"
    outside.write_bytes(b"secret")
    (copied / "link.onnx").symlink_to(outside)
    reseal(copied, lambda manifest: manifest["sha256"].update({name: module.sha256(outside)}))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        load(copied)


@pytest.mark.parametrize("name", ["float.onnx", "int8.bin"])
def test_an_artefact_whose_file_has_no_digest_is_refused(copied: Path, name: str) -> None:
    reseal(copied, lambda manifest: manifest["sha256"].pop(name))
    with pytest.raises(BundleError, match=f"{name} of an artefact has no digest"):
        load(copied)


def external(folder: Path, location: str, place: str) -> None:
    """Make float.onnx keep a tensor in another file: a weight, a constant, or a constant of a subgraph."""
    model = tiny.float_model()
    tensor = next(weight for weight in model.graph.initializer if weight.name == "head")
    data = tensor.raw_data
    if place != "weight":
        kept = onnx.TensorProto()
        kept.CopyFrom(tensor)
        model.graph.initializer.remove(tensor)
        tensor = kept
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", str(len(data)))):
        tensor.external_data.add(key=key, value=value)
    constant = onnx.helper.make_node("Constant", [], ["head"], value=tensor)
    if place == "constant":
        model.graph.node.insert(0, constant)
    if place == "subgraph":
        given = onnx.helper.make_tensor_value_info("head", onnx.TensorProto.FLOAT, [3, 16])
        inner = onnx.helper.make_graph([constant], "inner", [], [given])
        branches = {"then_branch": inner, "else_branch": inner}
        model.graph.node.insert(0, onnx.helper.make_node("If", ["mean"], ["head"], **branches))
    (folder / "float.onnx").write_bytes(model.SerializeToString())
    target = folder / location
    if target.parent.is_dir():
        target.write_bytes(data)
    listed(folder, "float.onnx")


@pytest.mark.parametrize("place", ["weight", "constant", "subgraph"])
@pytest.mark.parametrize("location", ["../weights.bin", "golden/../../weights.bin"])
def test_weights_outside_the_bundle_are_refused(copied: Path, place: str, location: str) -> None:
    external(copied, location, place)
    with pytest.raises(BundleError, match="lie outside the bundle"):
        load(copied)


def test_weights_at_an_absolute_path_are_refused(copied: Path, tmp_path: Path) -> None:
    external(copied, str(tmp_path / "weights.bin"), "weight")
    with pytest.raises(BundleError, match="lie outside the bundle"):
        load(copied)


def test_weights_behind_a_link_out_of_the_bundle_are_refused(copied: Path) -> None:
    external(copied, "weights.bin", "weight")
    (copied / "weights.bin").rename(copied.parent / "weights.bin")
    (copied / "weights.bin").symlink_to(copied.parent / "weights.bin")
    with pytest.raises(BundleError, match="lie outside the bundle"):
        load(copied)


def test_weights_inside_the_bundle_need_a_digest(copied: Path) -> None:
    external(copied, "weights.bin", "weight")
    with pytest.raises(BundleError, match=r"weights\.bin have no digest"):
        load(copied)
    listed(copied, "weights.bin")
    assert load(copied).spec == tiny.SPEC
    (copied / "weights.bin").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"weights\.bin was altered"):
        load(copied)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"location" * 9])
def test_golden_inputs_that_are_none_are_refused_when_asked_for(copied: Path, data: bytes) -> None:
    (copied / GOLDEN).write_bytes(data)
    listed(copied, GOLDEN)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        load(copied).golden()


def test_golden_inputs_that_do_not_fit_are_refused(copied: Path) -> None:
    for arrays in (
        {"inputs": np.zeros((2, 32, 32, 3), np.uint8)},
        {"inputs": np.zeros((2, 9, 9, 3), np.uint8), "logits": np.zeros((2, 3)), "map_0": np.zeros((2, 4, 4))},
    ):
        np.savez(copied / GOLDEN, **arrays)  # type: ignore[arg-type]
        listed(copied, GOLDEN)
        with pytest.raises(BundleError, match="does not fit the spec"):
            load(copied).golden()


def test_a_pickle_among_the_golden_inputs_is_not_opened(copied: Path) -> None:
    np.savez(copied / GOLDEN, inputs=np.array([{"a": 1}], object), allow_pickle=True)
    listed(copied, GOLDEN)
    with pytest.raises(BundleError, match="cannot be read"):
        load(copied).golden()


def test_a_name_that_is_no_folder_lists_the_zoo() -> None:
    with pytest.raises(NameNotFoundError, match=r"no bundle is named 'nowhere'.*or by its name in the zoo"):
        find("nowhere")


# What writing leaves


def test_writing_over_a_bundle_replaces_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "x.edgeattn"
    tiny.bundle(path, int8=tiny.int8_model())
    new = tiny.bundle(path)
    assert load(path) == new
    assert not (path / "int8.onnx").exists()
    assert names(tmp_path) == ["x.edgeattn"]


@pytest.mark.parametrize("kind", ["file", "pictures"])
def test_writing_over_something_else_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "holiday.jpg").write_text("mine")
    with pytest.raises(BundleError, match="is there already and is no bundle"):
        tiny.bundle(path)
    assert (path if kind == "file" else path / "holiday.jpg").read_text() == "mine"


def test_writing_into_an_empty_folder_is_fine(tmp_path: Path) -> None:
    assert tiny.bundle(tmp_path).path == tmp_path


def test_a_bundle_that_would_not_open_does_not_replace_one_that_does(tmp_path: Path) -> None:
    old = tiny.bundle(tmp_path / "x.edgeattn")
    with pytest.raises(BundleError, match=r"missing\.onnx of an artefact has no digest"):
        write(replace(old, artefacts=(Artefact("missing.onnx", "onnxruntime", "float"),)), {})
    assert load(old.path) == old
    assert names(tmp_path) == ["x.edgeattn"]


def test_a_source_that_is_gone_leaves_the_old_bundle(tmp_path: Path) -> None:
    old = tiny.bundle(tmp_path / "x.edgeattn")
    with pytest.raises(BundleError, match=r"was not written.*what stood there before is unchanged"):
        write(old, {"float.onnx": tmp_path / "gone.onnx"})
    assert load(old.path) == old
    assert names(tmp_path) == ["x.edgeattn"]


def test_a_full_disk_leaves_the_old_bundle(tmp_path: Path) -> None:
    """A real one: a small file system in memory, where the box lets us mount it; else a limit on the size of files."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    mounted = os.geteuid() == 0 and shutil.which("mount") and not subprocess.call(mount, stderr=subprocess.DEVNULL)
    try:
        old = tiny.bundle(small / "x.edgeattn")
        script = (
            "import sys; from edgeattn.bundle import load, extend\n"
            "bundle = load(sys.argv[1])\n"
            "try: extend(bundle, (), {'big.bin': bytes(1 << 20)})\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        limit = None if mounted else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
        done = subprocess.run(
            [sys.executable, "-c", script, str(old.path)], capture_output=True, text=True, check=True, preexec_fn=limit
        )
        reason = "No space left on device" if mounted else "File too large"
        assert done.stdout.startswith(f"BundleError {old.path} was not written ({reason})")
        assert load(old.path) == old
        assert names(small) == ["x.edgeattn"]
    finally:
        if mounted:
            subprocess.run(["umount", str(small)], check=True)


def test_a_kill_while_writing_leaves_the_old_bundle(tmp_path: Path) -> None:
    old = tiny.bundle(tmp_path / "x.edgeattn")
    script = (
        "import os, sys, signal; from edgeattn import bundle\n"
        "real = bundle.sha256\n"
        "def dying(file):\n"
        "    if 'new' in str(file) and file.name == 'float.onnx': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(file)\n"
        "held = bundle.load(sys.argv[1])\n"
        "bundle.sha256 = dying\n"
        "bundle.extend(held, (), {})"
    )
    done = subprocess.run([sys.executable, "-c", script, str(old.path)], check=False, capture_output=True)
    assert done.returncode == -9
    assert load(old.path) == old


def test_extending_replaces_what_is_for_the_same_engine_and_keeps_the_rest(tmp_path: Path) -> None:
    old = tiny.bundle(tmp_path / "x.edgeattn", int8=tiny.int8_model())
    model = tiny.float_model(seed=1).SerializeToString()
    new = Artefact("better.onnx", "openvino", "int8", gates={"loss": {"verdict": "passed"}})
    grown = extend(old, (new,), {"better.onnx": model}, provenance={"calibration": "abc"})
    assert grown.artefact("openvino", "int8") == new
    assert grown.artefact("onnxruntime", "int8") == old.artefact("onnxruntime", "int8")
    assert set(old.sha256) - set(grown.sha256) == {"int8.xml", "int8.bin"}, "the weights of an IR go with it"
    assert grown.provenance == {"calibration": "abc"}
    assert grown.golden().keys() == old.golden().keys()


def test_extending_to_another_path_leaves_the_bundle_as_it_is(tmp_path: Path) -> None:
    old = tiny.bundle(tmp_path / "x.edgeattn")
    grown = extend(old, (), {"note.txt": b"hello"}, path=tmp_path / "y.edgeattn")
    assert load(old.path) == old
    assert (grown.path / "note.txt").read_bytes() == b"hello"
