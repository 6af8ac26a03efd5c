"""Read and crop scanned films, and draw contact sheets to check by eye that the crops contain the breast.

The mini-MIAS films have a grey background, white borders and labels, for which the published cropping was not
designed. Each film is read, which sets its background to 0, and cropped. The sheets show the whole film with
the detected breast in colour and the frame of the crop.

    LOBULE_REFERENCE=... python experiments/four_view_mias_crops.py --to sheets

The sheets show real films: store them only where the films may be stored.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lobule.errors import CaseError
from lobule.mammograms.png import read_png
from lobule.mammograms.published.crop import crop_of

ITERATIONS, BUFFER = 30, 15
"""Number of erosions and margin. The published 100 and 50 are for images of 2.5 times the resolution."""
ACROSS, DOWN, SIDE = 10, 4, 190


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("mias-crops"))
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    films = sorted((Path(os.environ["LOBULE_REFERENCE"]) / "kit/mammograms/mias").glob("*.png"))
    tiles, checks, failed = [], {}, {}
    for path in films:
        try:
            tile, check = crop_and_check(path)
        except CaseError as error:
            failed[path.name] = str(error)
            continue
        tiles.append(tile)
        checks[path.name] = check
    for start in range(0, len(tiles), ACROSS * DOWN):
        sheet(tiles[start : start + ACROSS * DOWN]).save(options.to / f"sheet-{start // (ACROSS * DOWN)}.png")
    (options.to / "crops.json").write_text(json.dumps({"crops": checks, "failed": failed}, indent=1))
    widths = [check["width"] for check in checks.values()]
    print(f"{len(films)} films: {len(checks)} cropped, {len(failed)} failed with a case error, none crashed")
    print(f"crops are {min(widths)} to {max(widths)} px wide; sheets and crops.json in {options.to}")


def crop_and_check(path: Path) -> tuple[Image.Image, dict[str, Any]]:
    film = np.asarray(Image.open(path).convert("L"))
    mammogram = read_png(path)
    window = crop_of(mammogram.pixels, mammogram.pointing, iterations=ITERATIONS, buffer=BUFFER).window
    shown = np.stack([film] * 3, axis=-1).astype(np.float32)
    breast = mammogram.pixels > 0
    shown[..., 0] = np.where(breast, shown[..., 0] * 0.75 + 60, shown[..., 0])
    picture = Image.fromarray(shown.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    pen.rectangle(
        (window.left, window.top, window.right - 1, window.bottom - 1), outline=(0, 255, 90), width=8
    )
    picture.thumbnail((SIDE, SIDE - 14))
    tile = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    tile.paste(picture, (0, 14))
    ImageDraw.Draw(tile).text((2, 0), f"{path.stem} {mammogram.pointing}", (0, 0, 0))
    return tile, {
        "pointing": mammogram.pointing,
        "window": list(window.edges()),
        "height": window.height,
        "width": window.width,
        "share": float(breast.mean()),
        "background": next(d.sentence for d in mammogram.decisions if d.rule == "background"),
    }


def sheet(tiles: list[Image.Image]) -> Image.Image:
    rows = -(-len(tiles) // ACROSS)
    page = Image.new("RGB", (ACROSS * SIDE, rows * SIDE), (255, 255, 255))
    for number, tile in enumerate(tiles):
        page.paste(tile, ((number % ACROSS) * SIDE, (number // ACROSS) * SIDE))
    return page


if __name__ == "__main__":
    main()
