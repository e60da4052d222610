"""The frames of a bout, for tests of files that programs round to milliseconds."""

import numpy as np

from everest.video.frame_borders import VideoTimes
from everest_workflows.annotations.bout import Bout


def frame_span(times: VideoTimes, bout: Bout) -> tuple[int, int]:
    """The first frame of a bout and the frame after its last, by the nearest borders; at least one frame."""
    middles = (times.borders[1:] + times.borders[:-1]) / 2
    first, after = np.searchsorted(middles, [bout.start, bout.end], side="right").tolist()
    first = min(first, times.num_frames - 1)
    return first, max(after, first + 1)
