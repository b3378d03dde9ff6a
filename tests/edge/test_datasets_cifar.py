"""CIFAR's binary version, written here record by record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeattn.datasets.cifar import is_cifar, read_cifar
from edgeattn.errors import DataError

TEN = ("airplane", "automobile", "bird")


def record(label: bytes, seed: int) -> tuple[bytes, np.ndarray]:
    rgb = np.random.default_rng(seed).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    return label + rgb[..., 0].tobytes() + rgb[..., 1].tobytes() + rgb[..., 2].tobytes(), rgb


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    for i in range(1, 6):
        rows = [record(bytes([k % 3]), 100 * i + k)[0] for k in range(12)]
        (tmp_path / f"data_batch_{i}.bin").write_bytes(b"".join(rows))
    (tmp_path / "test_batch.bin").write_bytes(b"".join(record(bytes([k % 3]), k)[0] for k in range(6)))
    (tmp_path / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    return tmp_path


def test_ten(ten: Path) -> None:
    assert is_cifar(ten)
    held = read_cifar(ten, seed=1)
    assert held.labels == TEN
    assert (len(held.train.labels), len(held.validation.labels), len(held.test.labels)) == (54, 6, 6)
    assert np.bincount(held.validation.labels).tolist() == [2, 2, 2]
    np.testing.assert_array_equal(held.test.pictures[4][..., ::-1], record(b"", 4)[1])
    assert held.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    whole = {p.tobytes() for part in (held.train, held.validation) for p in part.pictures}
    assert len(whole) == 60
    again, other = read_cifar(ten, seed=1), read_cifar(ten, seed=2)
    np.testing.assert_array_equal(again.validation.pictures, held.validation.pictures)
    assert not np.array_equal(other.validation.pictures, held.validation.pictures)


def test_hundred_takes_the_fine_label(tmp_path: Path) -> None:
    for name, count in (("train", 20), ("test", 4)):
        rows = [record(bytes([9, k % 2]), k)[0] for k in range(count)]
        (tmp_path / f"{name}.bin").write_bytes(b"".join(rows))
    (tmp_path / "fine_label_names.txt").write_text("apple\naquarium_fish\n")
    held = read_cifar(tmp_path)
    assert held.labels == ("apple", "aquarium_fish")
    assert held.test.labels.tolist() == [0, 1, 0, 1]


def test_what_is_wrong_is_named(ten: Path, tmp_path: Path) -> None:
    data = (ten / "data_batch_3.bin").read_bytes()
    (ten / "data_batch_3.bin").write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"data_batch_3.bin has 36875 bytes, no multiple of 3073"):
        read_cifar(ten)
    (ten / "data_batch_3.bin").write_bytes(b"\x07" + data[1:])
    with pytest.raises(DataError, match=r"has label 7, and there are 3 classes"):
        read_cifar(ten)
    (ten / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin is missing"):
        read_cifar(ten)
    assert not is_cifar(tmp_path / "nothing")
