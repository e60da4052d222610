"""Finds the user's videos by the names that annotation files give them, and the times of their frames.

Programs write absolute paths of another computer, Windows paths, URLs, names without a folder or an ending,
and names with a prefix: Label Studio adds eight characters to an uploaded file, and replaces its blanks;
ActivityNet's files begin with `v_` and its annotations do not. ELAN may name only the sound of a video.

F frames.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from everest.errors import DataError, shorten
from everest.video.folders import VIDEO_SUFFIXES
from everest.video.frame_borders import VideoTimes
from everest.video.stream import VideoError
from everest_workflows.annotations.bout import LATEST_TIME, UNSCORED, Bout, Bouts

END_SLACK: Final = 1.0  # seconds after the end of a video; a bout that ends later is reported
SOUND_SUFFIXES: Final = frozenset(
    {".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".m4b", ".mka", ".mp2", ".mp3"}
    | {".oga", ".ogg", ".opus", ".ra", ".snd", ".w64", ".wav", ".wave", ".weba", ".wma"}
)
_REMOVED: Final = re.compile(r"[^-\w.]")  # from the name of a file that is uploaded to Label Studio
_PREFIX: Final = re.compile("^(v_|[0-9a-f]{8}-)")
_LOCAL_FILES: Final = "?d="  # Label Studio writes /data/local-files/?d=folder/video.mp4


def stem(name: str) -> str:
    """A name without its folder and the ending of a video or sound; other endings are part of the name."""
    name = name.replace("\\", "/").rpartition("/")[2]
    suffix = Path(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in VIDEO_SUFFIXES | SOUND_SUFFIXES else name


def is_sound(name: str) -> bool:
    return Path(name).suffix.lower() in SOUND_SUFFIXES


class VideoFinder:
    """Finds the user's videos by the names in annotation files."""

    def __init__(self, videos: Iterable[Path] = ()) -> None:
        self.videos = list(videos)
        self._by_key: dict[tuple[int, str], list[Path]] = defaultdict(list)
        self._times_of = cache(VideoTimes.of)
        for video in self.videos:
            for key in _matching_keys(video.name):
                self._by_key[key].append(video)

    def find(self, name: str) -> Path | None:
        """The user's video for a name in an annotation file; None if no video matches.

        The file name decides: as it is, else in lower case, else without ending, else without a prefix, else
        as an upload changes it. If several videos match, the video with the most equal folders is chosen.
        """
        text = name.rpartition(_LOCAL_FILES)[2]
        if "://" in name or _LOCAL_FILES in name:
            text = unquote(text.partition("?")[0])
        *folders, last = text.replace("\\", "/").split("/")
        shared: dict[Path, int] = {}  # number of equal folders at the end of the path
        for video in next((self._by_key[key] for key in _matching_keys(last) if key in self._by_key), []):
            pairs = zip(reversed(video.absolute().parts[:-1]), reversed(folders), strict=False)
            shared[video] = len([*takewhile(lambda pair: pair[0].casefold() == pair[1].casefold(), pairs)])
        best = [video for video, count in shared.items() if count == max(shared.values())]
        if len(best) > 1:
            fix = "give only one of them" if best[0].parent == best[1].parent else "name one of the folders"
            raise DataError(f"the annotated video {shorten(name)} may be {best[0]} or {best[1]}; {fix}")
        if not best and (unquoted := unquote(text)) != text:  # a relative URL, as `./my%20talk.mp4`
            return self.find(unquoted)
        return best[0] if best else None

    def times(self, name: str) -> VideoTimes | None:
        """The times of the user's video for a name; None if no video matches."""
        video = self.find(name)
        return None if video is None else self._times_of(video)


def _matching_keys(name: str) -> list[tuple[int, str]]:
    """The forms of a file name to compare, the surest first."""
    plain_stem = stem(name).casefold()
    plain_name = _PREFIX.sub("", plain_stem)
    uploaded = _REMOVED.sub("", plain_name.strip().replace(" ", "_"))
    return list(enumerate([name, name.casefold(), plain_stem, plain_name, uploaded]))


def late_bout_notices(bouts_by_video: Bouts, ends: Mapping[str, float]) -> list[str]:
    """A notice for each video with bouts after its end; `ends` are the known ends in seconds."""
    notices = []
    for video, bouts in bouts_by_video.items():
        last = ends.get(video, LATEST_TIME) + END_SLACK
        are_late = [bout.end > last for bout in bouts if bout.label != UNSCORED]
        if any(are_late):
            notices.append(
                f"{video}: {sum(are_late)} of {len(are_late)} bouts end after the video; they may be of "
                "another file, count frames at another rate, or run on over several files"
            )
    return notices


def check_lengths(bouts_by_video: Bouts) -> tuple[dict[str, list[Bout]], dict[str, VideoTimes], list[str]]:
    """Compare bouts with the lengths of their videos.

    Returns:
        The bouts, with unscored time that ends with the video; the times of the videos that can be read; and
        notices about videos that cannot be read and about bouts after the end.
    """
    times: dict[str, VideoTimes] = {}
    clipped: dict[str, list[Bout]] = {}
    notices = []
    for path, bouts in bouts_by_video.items():
        try:
            times[path] = VideoTimes.of(path)
        except VideoError as error:
            notices.append(f"{error}; its bouts were not checked against its length")
        end = times[path].seconds if path in times else LATEST_TIME
        clipped[path] = [
            replace(bout, end=min(bout.end, end)) if bout.label == UNSCORED else bout
            for bout in bouts
            if bout.label != UNSCORED or bout.start < end
        ]
    notices += late_bout_notices(clipped, {path: video_times.seconds for path, video_times in times.items()})
    return clipped, times, notices
