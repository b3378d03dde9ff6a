"""Make the zoo's `sign-digits` bundle: hand signs 0 to 9, fit for a real room, with a calibrated `none of these`.

    python tools/zoo_sign_digits.py ~/edge-data/sign-digits --negatives ~/edge-data/imagenet1k-sample/images --out runs/sign-digits

Hands are cut out of their plain background once, then put over photographs and textures at random places, sizes, turns,
colours and blurs; a share of views stays plain. An eleventh output learns "none": backgrounds, and hands cut in pieces.
Training reads only the pack's training people, scikit-learn's and scikit-image's photographs and rendered textures, whose
licences allow shipping weights. `--negatives` are looked at once, at the end, for the rate of false answers.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle, load
from edgeattn.datasets.backgrounds import Part, attributions, random_background
from edgeattn.deploy import export, quantize
from edgeattn.deploy.export import Deployed
from edgeattn.deploy.verify import difference
from edgeattn.engines import open_engine
from edgeattn.errors import GateError
from edgeattn.imaging import Picture, list_pictures, prepare, read_picture
from edgeattn.nn import build_model
from edgeattn.spec import InputSpec, Rejection, to_json
from edgeattn.tasks.classify import decode
from edgeattn.train import Recipe, TrainingData, train
from edgeattn.train.augment import Augment
from edgeattn.train.loader import evaluation_batches, normalise

LABELS = tuple("0123456789")
NONE = len(LABELS)
IMGSZ = 96
PLAIN = Augment(rotate=20, scale=(0.75, 1.5), shift=0.1)
TEST_SEED = 7


@dataclass(frozen=True)
class Hand:
    """A hand cut out of its picture."""

    picture: Picture
    """The whole picture, (H, W, 3) BGR bytes."""
    alpha: NDArray[np.uint8]
    """Where the hand is, (H, W), 0 to 255."""
    label: int
    """The digit that it shows."""
    participant: str
    """Whose hand it is."""


def read_hands(root: Path, part: str) -> list[Hand]:
    """Read and cut out all hands of `train` or `test`."""
    with (root / f"{part}.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    hands = []
    for row in rows:
        picture = read_picture(root / row["file"])
        if picture.shape[:2] != (100, 100):
            picture = np.asarray(cv2.resize(picture, (100, 100), interpolation=cv2.INTER_AREA), np.uint8)
        hands.append(Hand(picture, cut_out(picture), int(row["label"]), row["participant"]))
    return hands


def cut_out(picture: Picture) -> NDArray[np.uint8]:
    """Alpha of the hand, (H, W): skin is warmer than the grey wall; GrabCut draws the edge, holes and specks are mended."""
    lab = cv2.cvtColor(cv2.GaussianBlur(picture, (0, 0), 1.0), cv2.COLOR_BGR2LAB).astype(np.float32)
    warmth = np.clip((lab[..., 1] - 128) + (lab[..., 2] - 128) * 1.0 + 20, 0, 255).astype(np.uint8)
    level, _ = cv2.threshold(warmth, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    mask = np.where(warmth > level, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    mask[warmth > level + 12] = cv2.GC_FGD
    mask[warmth < level - 12] = cv2.GC_BGD
    models = np.zeros((2, 1, 65))
    cv2.grabCut(picture, mask, (0, 0, 1, 1), models[0], models[1], 2, cv2.GC_INIT_WITH_MASK)
    inside = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(inside)
    if count > 1:
        inside = (parts == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(inside * 255, (0, 0), 0.7), np.uint8)


def composite(hand: Hand, part: Part, rng: np.random.Generator, *, least: float = 0.5, size: int = IMGSZ) -> Picture:
    """Put a hand, `least` to 1 of the frame high, over a random background: (size, size, 3) BGR bytes."""
    ys, xs = np.nonzero(hand.alpha > 127)
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], float) if len(xs) else np.array([0.0, 0, 100, 100])
    extent = max(box[2] - box[0], box[3] - box[1])
    scale = size * np.exp(rng.uniform(np.log(least), np.log(1.0))) / extent
    angle, mirror = np.deg2rad(rng.uniform(-25, 25)), -1.0 if rng.random() < 0.5 else 1.0
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(
        [mirror * stretch, 1 / stretch]
    )
    room = max(0.0, size - extent * scale * 0.9) / 2
    middle = np.array([size / 2, size / 2]) + rng.uniform(-1, 1, 2) * room
    centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    matrix = np.column_stack([turn * scale, middle - turn @ centre * scale])
    colour = cv2.warpAffine(hand.picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(hand.alpha, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)
    tone = np.exp(rng.uniform(-0.25, 0.25) + rng.uniform(-0.06, 0.06, 3))
    colour = cv2.LUT(
        colour, np.clip(np.arange(256)[:, None] * tone + rng.uniform(-25, 20), 0, 255).astype(np.uint8)[:, None, :]
    )
    share = (alpha.astype(np.float32) / 255.0)[..., None]
    mixed = colour * share + random_background(rng, size, part) * (1.0 - share)
    return finish(mixed.astype(np.uint8), rng)


def finish(picture: Picture, rng: np.random.Generator) -> Picture:
    """Light, colour, blur and noise over the whole picture, as a room's camera has them."""
    gain = np.exp(rng.uniform(-0.3, 0.3) + rng.uniform(-0.1, 0.1, 3))
    table = np.clip(np.arange(256)[:, None] * gain + rng.uniform(-25, 25), 0, 255).astype(np.uint8)[:, None, :]
    picture = np.asarray(cv2.LUT(picture, table), np.uint8)
    if rng.random() < 0.4:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.5)), np.uint8)
    if rng.random() < 0.3:
        picture = np.clip(picture + rng.normal(0, rng.uniform(2, 9), picture.shape), 0, 255).astype(np.uint8)
    return picture


def nothing(hands: Sequence[Hand], part: Part, rng: np.random.Generator) -> Picture:
    """A picture that shows no sign: a background, two backgrounds in one, or a hand cut in pieces."""
    kind = rng.random()
    picture = random_background(rng, IMGSZ, part)
    if kind < 0.35:
        other, at = random_background(rng, IMGSZ, part), int(rng.integers(10, IMGSZ - 10))
        picture = np.where(
            (np.arange(IMGSZ) < at)[:, None, None] if kind < 0.15 else (np.arange(IMGSZ) < at)[None, :, None],
            picture,
            other,
        )
    elif kind < 0.6:
        shape = np.zeros((IMGSZ, IMGSZ), np.uint8)  # a blob of skin colour or anything else that is no hand
        points = rng.uniform(8, IMGSZ - 8, (int(rng.integers(3, 9)), 2)).astype(np.int32)
        cv2.fillPoly(shape, [points if rng.random() < 0.5 else cv2.convexHull(points)], 255, lineType=cv2.LINE_AA)
        share = (cv2.GaussianBlur(shape, (0, 0), rng.uniform(0.5, 3)).astype(np.float32) / 255)[..., None]
        skin = hands[int(rng.integers(len(hands)))].picture[45:60, 45:60].reshape(-1, 3).mean(0)
        fill = skin * np.exp(rng.uniform(-0.4, 0.4)) if rng.random() < 0.6 else random_background(rng, IMGSZ, part)
        picture = (np.broadcast_to(fill, picture.shape) * share + picture * (1 - share)).clip(0, 255).astype(np.uint8)
    elif kind < 0.8:
        picture = composite(hands[int(rng.integers(len(hands)))], part, rng, least=0.9)
        tiles = [picture[y : y + 32, x : x + 32] for y in (0, 32, 64) for x in (0, 32, 64)]
        order = rng.permutation(9)
        picture = np.vstack([np.hstack([tiles[order[3 * r + c]] for c in range(3)]) for r in range(3)])
    return finish(np.ascontiguousarray(picture, np.uint8), rng)


class SignViews:
    """Hands over backgrounds, plain hands, and nothing."""

    def __init__(self, hands: Sequence[Hand], nothing_share: float = 0.22) -> None:
        self.hands, self.nothing = list(hands), int(len(hands) * nothing_share)

    def __len__(self) -> int:
        return len(self.hands) + self.nothing

    def view(self, index: int, rng: np.random.Generator) -> tuple[Picture, int]:
        """As `Views.view`."""
        if index >= len(self.hands):
            return nothing(self.hands, "train", rng), NONE
        hand = self.hands[index]
        if rng.random() < 0.25:
            return PLAIN(hand.picture, InputSpec(IMGSZ, IMGSZ), rng), hand.label
        return composite(hand, "train", rng), hand.label


def fixed(hands: Sequence[Hand], part: Part, seed: int, per_hand: int = 1) -> list[tuple[Picture, int]]:
    """Fixed composites over the backgrounds of a part."""
    return [
        (composite(hand, part, np.random.default_rng((seed, i, k))), hand.label)
        for i, hand in enumerate(hands)
        for k in range(per_hand)
    ]


def split_people(hands: Sequence[Hand], share: float = 0.15, seed: int = 0) -> tuple[list[Hand], list[Hand]]:
    """Training and validation hands, no person in both."""
    people = sorted({hand.participant for hand in hands})
    held = set(np.random.default_rng(seed).permutation(people)[: round(len(people) * share)])
    return [h for h in hands if h.participant not in held], [h for h in hands if h.participant in held]


def threshold(model: nn.Module, recipe: Recipe, validation: Sequence[tuple[Picture, int]], rejected: float) -> float:
    """Greatest threshold at which at most a share `rejected` of the validation hands is answered with "none of these"."""
    best = []
    with torch.inference_mode():
        for batch in evaluation_batches(validation, recipe.input):
            shares = model(normalise(batch)).softmax(1).numpy()
            best += list(np.where(shares[:, NONE] >= shares[:, :NONE].max(1), 0.0, shares[:, :NONE].max(1)))
    return round(float(np.quantile(best, rejected)), 4)


def measure(bundle: Bundle, sets: dict[str, Sequence[tuple[Picture, int]]]) -> list[dict[str, Any]]:
    """Every artefact on every set, through its engine: share of right answers, of hands rejected, of nothing accepted."""
    rows = []
    for artefact in bundle.artefacts:
        engine = open_engine(bundle, engine=artefact.engine, precision=artefact.precision)
        row: dict[str, Any] = {"engine": artefact.engine, "precision": artefact.precision, "verdict": artefact.verdict}
        for name, pictures in sets.items():
            answers = [
                decode(engine.infer(prepare(picture, bundle.spec.input)), bundle.spec) for picture, _ in pictures
            ]
            found = [answer.index for answer in answers]
            best = [int(answer.probabilities.argmax()) for answer in answers]
            wanted = [label for _, label in pictures]
            row[f"{name}_n"] = len(pictures)
            row[f"{name}_right"] = round(float(np.mean([f == w for f, w in zip(found, wanted, strict=True)])), 4)
            row[f"{name}_top1"] = round(float(np.mean([b == w for b, w in zip(best, wanted, strict=True)])), 4)
            row[f"{name}_rejected"] = round(float(np.mean([f < 0 for f in found])), 4)
        engine.close()
        rows.append(row)
    return rows


def trained_bundle(
    hands: Sequence[Hand],
    validation: Sequence[tuple[Picture, int]],
    plain: Sequence[tuple[Picture, int]],
    epochs: int,
    out: Path,
) -> Bundle:
    """Train in three rounds, calibrate the rejection, export."""
    data = TrainingData((*LABELS, "none of these"), SignViews(hands), validation)
    recipe = Recipe("sign-digits", attention="coord", epochs=epochs, lr=0.01, label_smoothing=0.05)
    trained = train(recipe, out / "round-1", data=data, resume=True)
    for number in (2, 3):  # the same again, from where the last round ended: the loss still falls
        recipe = replace(recipe, start=str(trained.folder), epochs=epochs * (number - 1), lr=0.006)
        trained = train(recipe, out / f"round-{number}", data=data, resume=True)
    rejection = Rejection(threshold(trained.model, recipe, validation, 0.02), index=NONE)
    print(f"validation top-1 {trained.metrics['validation_top1']:.2%}, threshold {rejection.threshold}")
    golden = [*plain[:: len(plain) // 14][:14], *validation[:2]]  # plain ones, mostly: noise does not compress
    return export(
        trained.model,
        out / "sign-digits.edgeattn",
        labels=LABELS,
        imgsz=IMGSZ,
        mechanism="coord",
        rejection=rejection,
        pictures=[picture for picture, _ in golden],
        provenance=PROVENANCE | {"recipe": to_json(recipe)},
    )


def main() -> None:
    """Train, calibrate, export, quantize; measure on the test people and on the negatives; print it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the sign-digits pack")
    parser.add_argument(
        "--negatives", type=Path, help="folder of pictures without hand signs, looked at once at the end"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/sign-digits"))
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--requantize", help="export this bundle's weights and make its int8 anew; nothing is trained")
    options = parser.parse_args()
    train_hands, held_out = split_people(read_hands(options.root, "train"))
    plain = [(hand.picture, hand.label) for hand in held_out]
    validation = (
        fixed(held_out, "validation", 3, 4) + fixed(held_out, "train", 4, 4) + plain
    )  # people unseen, rooms both
    if options.requantize:
        bundle = exported_again(load(options.requantize), options.out / "sign-digits.edgeattn")
    else:
        bundle = trained_bundle(train_hands, validation, plain, options.epochs, options.out)
    calibration = [composite(hand, "train", np.random.default_rng((11, i))) for i, hand in enumerate(train_hands[::5])]
    calibration += [nothing(train_hands, "train", np.random.default_rng((12, i))) for i in range(40)]
    bundle = quantize(
        bundle, calibration, validation, portable=True,
        provenance={"calibration": {"pictures": len(calibration), "seed": 11}},
    ).bundle  # fmt: skip
    test = read_hands(options.root, "test")
    sets: dict[str, Sequence[tuple[Picture, int]]] = {
        "plain": [(hand.picture, hand.label) for hand in test],
        "composited": fixed(test, "test", TEST_SEED),
    }
    if options.negatives:
        sets["negatives"] = [(read_picture(path), -1) for path in list_pictures(options.negatives)]
    print(json.dumps(measure(bundle, sets), indent=1))
    size = sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file())
    print(f"{bundle.path}: {size / 1e6:.2f} MB")


def exported_again(bundle: Bundle, path: Path) -> Bundle:
    """The same weights through the present exporter, so that every operator bears its module's name.

    Raises:
        GateError: the answers to the golden pictures are not the same.
    """
    held, golden = onnx.load(bundle.file(bundle.artefact("onnxruntime", "float"))), bundle.golden()
    model = Deployed(build_model("pico", NONE + 1, attention="coord", imgsz=IMGSZ)).model
    weights = {tensor.name.removeprefix("model."): numpy_helper.to_array(tensor) for tensor in held.graph.initializer}
    model.load_state_dict({name: torch.from_numpy(weights[name].copy()) for name in model.state_dict()})
    pictures = [np.ascontiguousarray(image[..., ::-1]) for image in golden["inputs"]]  # they are RGB, of the right size
    made = export(
        model, path, labels=bundle.spec.labels, imgsz=IMGSZ, pictures=pictures, mechanism="coord",
        rejection=bundle.spec.rejection, provenance=bundle.provenance,
    )  # fmt: skip
    worst = max(difference(made.golden()[name], values) for name, values in golden.items())
    if worst > 1e-4:
        raise GateError(f"exported again it answers otherwise, by {worst:.1e}")
    return made


PROVENANCE: dict[str, Any] = {
    "licence": "Apache-2.0",
    "notice": "Weights trained on the Sign Language Digits Dataset, Copyright 2017 Arda Mavi, Apache-2.0 (arXiv:2011.08927).",
    "attributions": [
        {
            "name": "Sign Language Digits Dataset",
            "source": "github.com/ardamavi/Sign-Language-Digits-Dataset",
            "licence": "Apache-2.0",
            "credit": "Arda Mavi and Zeynep Dikle, 2017",
        },
        *attributions("train"),
    ],
}

if __name__ == "__main__":
    main()
