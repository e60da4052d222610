"""Several clips of a video in an epoch: `data.clips_per_video`. Its own file: the only rule for long videos.

A sample is repeated in the list of samples. As every choice about a sample follows from the epoch and its
place in the list, each repetition shows another random place in each epoch, and a resumed run the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from everest.data.footage import segment
from everest.lists.sample import Sample
from everest.video.reader import VideoError, probe

CLIP_SECONDS: Final = 10.0  # of video for each clip: the length of Kinetics' videos


def repeat_samples(samples: Sequence[Sample], clips: int | Literal["auto"]) -> tuple[Sample, ...]:
    """Returns each sample as often as it gives clips in an epoch.

    Args:
        clips: of each sample; auto: one for every ten seconds, rounded, at least one. The packets of videos
            whose list does not name start and end in seconds are read once.
    """
    return tuple(sample for sample in samples for _ in range(num_clips(sample) if clips == "auto" else clips))


def num_clips(sample: Sample) -> int:
    """Returns the clips of a sample by its duration; one if it is unreadable, or has no frame rate."""
    try:
        if sample.start is not None and sample.end is not None:
            seconds = sample.end - sample.start
        else:
            seconds = segment(sample)[1] / (probe(sample.video).fps or float("inf"))
    except VideoError:  # reported when it is read
        return 1
    return max(round(seconds / CLIP_SECONDS), 1)
