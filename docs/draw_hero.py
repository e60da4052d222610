"""Draw docs/hero.png: the frames of a video, their importance, and the 30 % of the tokens that are kept.

python docs/draw_hero.py VIDEO

The video of the committed image is a recording of American Sign Language from the folder `asl_gestures` of
https://github.com/intel-iot-devkit/sample-videos, which is licensed under CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/). The image shows some of its frames, scaled and masked.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from everest.figures.legend import legend_of, title_of
from everest.figures.mask_files import MaskRequest
from everest.figures.masks import view_masks
from everest.figures.pictures import draw_rows, rows_of
from everest.methods.strategies import RedundancyRobust

FRAMES, STRIDE, SIZE = 8, 6, 224
SELECTOR = RedundancyRobust(keep_ratio=0.3, visible_ratio=None)


def main() -> None:
    request = MaskRequest(
        selectors=[(SELECTOR.strategy, SELECTOR)],
        frames=FRAMES,
        stride=STRIDE,
        size=SIZE,
        windows=1,
        seed=0,
        model=None,
    )
    ((clip, source),) = request.clips(Path(sys.argv[1]))
    views = view_masks(clip, request.selectors, model=None, seed=0)
    frames, kept, importance = rows_of(views)
    path = Path(__file__).with_name("hero.png")
    draw_rows(
        path,
        [frames, importance, kept],
        slices=views[0].grid.t,
        title=title_of(views[0]),
        legend=legend_of(views, numbered=True),
        numbers=source.numbers,
    )
    with Image.open(path) as image:  # small enough for a repository
        image.convert("RGB").quantize(256, kmeans=1).save(path, optimize=True)


if __name__ == "__main__":
    main()
