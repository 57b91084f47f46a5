"""Digits through an autoencoder: compressed, restored, taken apart, made up, and an unusual one found.

It makes the pictures and figures of docs/tutorial-autoencoder.md: python examples/digits.py --out docs
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from models import Codec, ModelSpec, SeriesRows, train

Floats = NDArray[np.float64]

SIDE = 8  # an image is a window of 8 rows of 8 features
CODE = 8
HIDDEN = (96, 48)
UNSEEN_IMAGES = 300  # of the digits that were trained on, kept from training
SHOWN = 10


def learn(images: Floats, kind: str, steps: int, seed: int = 0) -> Codec:
    """Train one network on images float64[n, 8, 8]."""
    spec = ModelSpec(
        features=tuple(f"column {number}" for number in range(SIDE)),
        window_rows=SIDE,
        kind=kind,
        hidden=None if kind == "pca" else HIDDEN,
        code=CODE,
        seed=seed,
        steps=steps,
    )
    # The images lie end to end; a gap after each keeps windows from beginning in one and ending in the next.
    segment = np.repeat(np.arange(len(images), dtype=np.int32), SIDE)
    rows = SeriesRows(images.reshape(-1, SIDE), segment)
    # Every bundle has a model for series it has not seen, learned from all there are: that one is used here.
    bundle = train({"digits": rows}, spec, source={}, created_at="2026-01-01T00:00:00Z")
    return Codec(bundle)


def restored(images: Floats, labels: NDArray[np.int64], steps: int, out: Path) -> Codec:
    """Draw unseen digits, and what is left of them after eight numbers."""
    unseen = np.array([np.flatnonzero(labels == digit)[-1] for digit in range(10)])
    seen = np.delete(images, unseen, axis=0)
    shown, codecs = images[unseen], {kind: learn(seen, kind, steps) for kind in ("undercomplete", "pca")}
    rows = [Row("original", shown)]
    for name, codec in zip(("autoencoder", "PCA"), codecs.values(), strict=True):
        windows = codec.reconstruct(shown).windows
        off = np.abs(windows - shown).mean(axis=(1, 2))
        rows.append(Row(name, windows, [f"{each:.1f}" for each in off]))
        print(f"{name}: 64 values from {codec.code}, off by {off.mean():.2f} of 16 on average")
    draw(rows, out / "tutorial-restored.svg")
    return codecs["undercomplete"]


def apart(codec: Codec, images: Floats, labels: NDArray[np.int64], out: Path) -> None:
    """Use the encoder alone and the decoder alone: go from one digit to another by their codes."""
    rows = []
    for first, second in ((3, 8), (1, 7), (0, 6)):
        ends = np.stack([images[labels == digit][0] for digit in (first, second)])
        before, after = codec.encode(ends)
        if not rows:
            print(f"the code of a {first}: {' '.join(f'{number:.2f}' for number in before)}")
        way = np.linspace(0, 1, SHOWN, dtype=np.float32)[:, None]
        rows.append(Row(f"{first} to {second}", codec.decode(before * (1 - way) + after * way)))
    draw(rows, out / "tutorial-apart.svg")


def made_up(images: Floats, steps: int, out: Path) -> None:
    """Decode draws from the prior of a variational autoencoder."""
    made = learn(images, "variational", steps).generate(3 * SHOWN, seed=1)
    draw(
        [Row("made up" * (not at), made[at : at + SHOWN]) for at in range(0, 3 * SHOWN, SHOWN)],
        out / "tutorial-made-up.svg",
    )


def unusual(
    images: Floats, labels: NDArray[np.int64], digit: int, *, kind: str, steps: int, seed: int
) -> Found:
    """Leave a digit out of training, and find it among unseen images of the others by its error."""
    known = np.random.default_rng(seed).permutation(np.flatnonzero(labels != digit))
    codec = learn(images[known[UNSEEN_IMAGES:]], kind, steps, seed)
    odd = np.flatnonzero(labels == digit)
    asked = np.concatenate([known[:UNSEEN_IMAGES], odd])
    errors = codec.reconstruct(images[asked]).errors.window
    return Found(asked, errors, float(roc_auc_score(labels[asked] == digit, errors)))


@dataclass(frozen=True)
class Found:
    """Images that were asked about, their errors, and how well these tell the digit that was left out."""

    images: NDArray[np.int64]
    errors: Floats
    auc: float


def compare(images: Floats, labels: NDArray[np.int64], digits: Sequence[int], steps: int, seeds: int) -> None:
    """Print how well the unseen digit is told by an autoencoder and by PCA, as a table of Markdown."""
    kinds = ("undercomplete", "pca")
    print("| Left out | Autoencoder | PCA |\n|---|---|---|")
    every = []
    for digit in digits:
        aucs = np.array(
            [
                [
                    unusual(images, labels, digit, kind=kind, steps=steps, seed=seed).auc
                    for seed in range(seeds)
                ]
                for kind in kinds
            ]
        )
        every.append(aucs)
        cells = [f"{each.mean():.3f} ({each.min():.3f} to {each.max():.3f})" for each in aucs]
        print(f"| {digit} | {cells[0]} | {cells[1]} |", flush=True)
    mean = np.mean(every, axis=0)  # over digits: [kind, seed]
    cells = [f"{each.mean():.3f} ({each.min():.3f} to {each.max():.3f})" for each in mean]
    print(f"| on average | {cells[0]} | {cells[1]} |")


def strangest(images: Floats, labels: NDArray[np.int64], digit: int, steps: int, out: Path) -> None:
    """Draw the images with the largest errors, and those with the smallest."""
    found = unusual(images, labels, digit, kind="undercomplete", steps=steps, seed=0)
    order = np.argsort(-found.errors)
    rows = []
    for name, chosen in (("largest error", order[:SHOWN]), ("smallest", order[-SHOWN:])):
        captions = [f"{labels[found.images[at]]}: {found.errors[at]:.2f}" for at in chosen]
        rows.append(Row(name, images[found.images[chosen]], captions))
    draw(rows, out / "tutorial-unusual.svg")
    hits = int((labels[found.images[order[:SHOWN]]] == digit).sum())
    print(f"of the {SHOWN} images with the largest errors, {hits} are of the digit {digit} that was left out")


@dataclass(frozen=True)
class Row:
    """Images beside each other in a picture, and what is written under each."""

    label: str
    images: Floats
    captions: Sequence[str] = ()


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw images 0 (white) to 16 (black) as an SVG: one path for all dots of a shade."""
    dot, left, apart_x = 5, 110, 52
    dots: dict[int, list[str]] = {}
    texts, top = [], 10
    for row in rows:
        if row.label:
            texts.append(f'<text x="8" y="{top + 25}">{row.label}</text>')
        for place, image in enumerate(row.images):
            x, shades = left + apart_x * place, np.rint(image.clip(0, 16) / 2).astype(int)
            for down, across in np.argwhere(shades > 0):
                start = f"M{x + dot * across} {top + dot * down}"
                dots.setdefault(int(shades[down, across]), []).append(f"{start}h{dot}v{dot}h-{dot}z")
            if row.captions:
                middle = x + dot * SIDE // 2
                texts.append(f'<text x="{middle}" y="{top + 55}" class="small">{row.captions[place]}</text>')
        top += 66 if row.captions else 52
    width = left + apart_x * max(len(row.images) for row in rows)
    style = "text{font:13px sans-serif;fill:#222}.small{font-size:10px;text-anchor:middle}"
    paths = [
        f'<path fill="rgb({grey},{grey},{grey})" d="{"".join(marks)}"/>'
        for shade, marks in sorted(dots.items())
        for grey in [255 - 30 * shade]
    ]
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" height="{top}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<g shape-rendering="crispEdges">{"".join(paths)}</g>{"".join(texts)}</svg>\n',
        encoding="utf-8",
    )


def main() -> None:
    """Make the pictures, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder of the pictures")
    parser.add_argument("--steps", type=int, default=3_000, help="of the optimiser, for each network")
    parser.add_argument("--seeds", type=int, default=5, help="of the comparison with PCA")
    parser.add_argument("--digits", type=int, nargs="+", default=list(range(10)), help="left out one by one")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    images, labels = digits.images.astype(np.float64), digits.target
    codec = restored(images, labels, options.steps, options.out)
    apart(codec, images, labels, options.out)
    made_up(images, options.steps, options.out)
    strangest(images, labels, options.digits[0], options.steps, options.out)
    compare(images, labels, options.digits, options.steps, options.seeds)


if __name__ == "__main__":
    main()
