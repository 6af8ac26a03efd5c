"""Make docs/img/demo.png: the picture of `lobule demo`, reduced to fit a page."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from lobule.cli import ABOUT, COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.cli.picture import FRAME, INK, PAPER, TISSUE, TRUTH

TARGET = Path(__file__).parent / "img" / "demo.png"
WIDTH, COLOURS = 680, 64
"""Small enough for a repository, and for anyone's line."""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        status = run(LazyGroup("lobule", COMMANDS, help=ABOUT), ["demo", "--out", folder])
        if status:
            return status
        with Image.open(Path(folder) / "demo.png") as page:
            small = page.resize((WIDTH, round(page.height * WIDTH / page.width)), Image.Resampling.LANCZOS)
    TARGET.parent.mkdir(exist_ok=True)
    few = with_lines(small.quantize(COLOURS, dither=Image.Dither.NONE))
    small.quantize(palette=few, dither=Image.Dither.NONE).save(TARGET, optimize=True)
    return 0


def with_lines(few: Image.Image) -> Image.Image:
    """The same palette and the colours of the lines, which are too few pixels to earn a place in it."""
    palette = [*(few.getpalette() or []), *PAPER, *INK, *TISSUE, *TRUTH, *FRAME]
    few.putpalette(palette)
    return few


if __name__ == "__main__":
    sys.exit(main())
