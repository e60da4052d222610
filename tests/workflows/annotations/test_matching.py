from pathlib import Path

import pytest

from everest.errors import DataError
from everest_workflows.annotations.bout import Bout, merge_overlaps
from everest_workflows.annotations.matching import VideoFinder

NAMES = ("monday/cage1.mp4", "tuesday/cage1.mp4", "monday/Cage 2.MP4", "clip.01.mkv", "v_abc123.mp4")
VIDEOS = VideoFinder(Path("/data") / name for name in NAMES)


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("D:\\lab\\Monday\\cage1.mp4", "/data/monday/cage1.mp4"),
        ("tuesday/cage1.mp4", "/data/tuesday/cage1.mp4"),
        ("monday/cage1", "/data/monday/cage1.mp4"),  # without ending
        ("tuesday/cage1.avi", "/data/tuesday/cage1.mp4"),  # encoded again
        ("file:///D:/monday/cage%202.mp4", "/data/monday/Cage 2.MP4"),
        ("clip.01", "/data/clip.01.mkv"),
        ("/data/upload/1/0a1b2c3d-clip.01.mkv", "/data/clip.01.mkv"),
        ("/data/local-files/?d=tuesday/cage1.mp4", "/data/tuesday/cage1.mp4"),
        ("https://host/bucket/tuesday/cage1.mp4?X-Amz-Expires=60", "/data/tuesday/cage1.mp4"),
        ("http://host/data/local-files/?d=monday/cage%202.mp4", "/data/monday/Cage 2.MP4"),
        ("/data/local-files/?d=monday/Cage%202.MP4", "/data/monday/Cage 2.MP4"),
        ("abc123", "/data/v_abc123.mp4"),
        ("/data/upload/1/0a1b2c3d-cage_2.MP4", "/data/monday/Cage 2.MP4"),  # blanks are replaced
        ("tuesday/cage1.wav", "/data/tuesday/cage1.mp4"),  # the sound of the video
        ("file:///D:/monday/cage%202.M4A", "/data/monday/Cage 2.MP4"),
        ("./monday/Cage%202.MP4", "/data/monday/Cage 2.MP4"),  # a relative URL
        ("../x/cage%202.wav", "/data/monday/Cage 2.MP4"),
        ("cage3.mp4", None),
        ("50% off", None),
        ("cage", None),
        ("", None),
    ],
)
def test_a_video_is_found_by_any_name(name: str, video: str | None):
    assert VIDEOS.find(name) == (None if video is None else Path(video))


@pytest.mark.parametrize("name", ["cage1.mp4", "cage1", "E:\\old\\cage1.mp4"])
def test_a_name_of_two_videos_is_refused(name: str):
    with pytest.raises(DataError, match=r"may be /data/monday/cage1\.mp4 or /data/tuesday/cage1\.mp4"):
        VIDEOS.find(name)


def test_an_exact_name_goes_before_one_in_other_letters():
    videos = VideoFinder([Path("/a/Run.mp4"), Path("/a/run.mp4"), Path("/a/run.avi")])
    assert [videos.find(name) for name in ("Run.mp4", "run.mp4", "run.avi")] == videos.videos


def test_overlapping_bouts_of_one_kind_are_merged_and_touching_ones_are_not():
    def bout(start: float, end: float, label: str = "run") -> Bout:
        return Bout(video="a.mp4", start=start, end=end, label=label)

    bouts = [bout(2, 3), bout(0, 1), bout(0.5, 2), bout(1, 4, "sit"), bout(2.5, 2.5)]
    assert merge_overlaps(bouts) == [bout(0, 2), bout(1, 4, "sit"), bout(2, 3)]
