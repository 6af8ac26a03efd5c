"""Maps of exams: only the cells under the heatmaps of a view are to be scored."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from lobule.geometry import Size
from lobule.mammograms.exam_views import ExamView, Frame, ViewSource
from lobule.mammograms.published.crop import Window
from lobule.scanning.exam_passes import fill_heatmap


class StoredView(ViewSource):
    """A view of 60 × 40 px that is not cropped."""

    def __init__(self) -> None:
        super().__init__(Size(60, 40), None)
        self.frame = Frame(Window(0, 40, 0, 60), mirrored=False)


def test_only_cells_that_touch_the_window_of_the_heatmaps_are_scored() -> None:
    heatmaps = np.zeros((2, 40, 60), np.float32)
    inside = Window(9, 20, 17, 41)  # rows 9 to 19, columns 17 to 40
    steps = fill_heatmap("map", "L-CC", cast(ExamView, StoredView()), heatmaps, 8, inside)
    spec = cast(Any, next(steps).store)
    expected = np.zeros((5, 8), bool)
    expected[1:3, 2:6] = True
    np.testing.assert_array_equal(np.asarray(spec.required), expected)
