from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import with_hole
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from everest.data.views import EvalViews
from everest.inference import windows as windows_module
from everest.inference.windows import (
    BAD_WINDOW,
    PieceFrames,
    Unreadable,
    Window,
    WindowPieces,
    read_pieces,
    read_window_items,
    windows_of,
)
from everest.lists.sample import Sample
from everest.video import reader
from everest.video.stream import VideoError

SECONDS = 2.0  # of a clip file: 32 frames, 16 a second
VIEWS = EvalViews(frames=4, stride=2, size=(32, 32), clips=2, crops=3, sampling="dense")


@given(window=st.floats(0.07, 3), step=st.floats(0.05, 3))
@settings(max_examples=60)
def test_windows_follow_each_other_and_the_last_ends_with_the_video(clip_files, window, step):
    found = windows_of(Sample(path=str(clip_files / "clip0.mp4")), VIEWS, window=window, step=step)
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(SECONDS)
    for place, one in enumerate(found[:-1]):
        assert one.start == pytest.approx(place * step)
        assert one.end == pytest.approx(one.start + window)
    if step <= window:
        seen = {frame for one in found for frame in range(one.span.first, one.span.first + one.span.length)}
        assert seen == set(range(32))


def test_a_segment_is_a_video_of_its_own_and_a_window_of_a_clip_the_default(clip_files: Path):
    sample = Sample(path=str(clip_files / "clip0.mp4"), start=0.5, end=1.75)
    for window in (0.5, None):
        found = windows_of(sample, VIEWS, window=window, step=window)
        spans = [(one.start, one.span.first, one.span.length) for one in found]
        assert spans == [(0.5, 8, 8), (1.0, 16, 8), (1.25, 20, 8)]


@pytest.mark.parametrize("sampling", ["dense", "spread", "segment"])
@pytest.mark.parametrize(("window", "step"), [(0.5, 0.0625), (1.0, 0.3), (0.25, 0.5), (5.0, 1.0)])
def test_a_window_is_seen_as_its_segment_and_every_frame_decoded_once(
    clip_files, monkeypatch, window, step, sampling
):
    path, views = clip_files / "clip3.mp4", replace(VIEWS, sampling=sampling)
    windows = windows_of(Sample(path=str(path)), views, window=window, step=step)
    shown = []
    decode_frames = reader.decode_frames

    def counting(*arguments, **options):
        for frame in decode_frames(*arguments, **options):
            shown.append(frame.frame.pts)
            yield frame

    with monkeypatch.context() as counted:
        counted.setattr(reader, "decode_frames", counting)
        items = list(read_pieces(path, windows, views, [views.frames], batch=1))
    assert len(shown) == len(set(shown)) <= 32
    clips: dict[int, Tensor] = {}  # (crops, C, T, H, W) by number
    found = []
    for item in items:
        if isinstance(item, PieceFrames):
            clips |= {item.first + i: piece for i, piece in enumerate(item.frames)}
        else:
            found.append(item)
    for one, item in zip(windows, found, strict=True):
        assert isinstance(item, WindowPieces)
        (numbers,) = item.numbers  # (clips, 1)
        alone = Sample(path=str(path), start=one.start, end=one.end)
        expected = views(alone, np.random.default_rng(), "auto").frames
        assert torch.equal(torch.cat([clips[number] for number in numbers.flat]), expected)


def test_windows_go_on_after_any_of_them(clip_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(path: Path, windows: Sequence[Window], *settings, **options) -> Iterator[object]:
        for item in read_pieces(path, windows, *settings, **options):
            if path.name == "clip1.mp4" and isinstance(item, WindowPieces) and item.window.start == 0.75:
                raise VideoError(path, "lost")
            yield item

    monkeypatch.setattr(windows_module, "read_pieces", failing)
    with_hole(clip_files / "clip2.mp4", 0.7, tmp_path / "hole.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    files = [clip_files / "clip1.mp4", tmp_path / "hole.mp4", tmp_path / "text.mp4", clip_files / "clip0.mp4"]

    def rows(file: Path, done: Sequence[Unreadable | None]) -> list[Unreadable | None]:
        sample = Sample(path=str(file))
        options = {"window": 0.5, "step": 0.25, "batch": 1, "emit": lambda _: None, "done": done}
        items = read_window_items(sample, VIEWS, [VIEWS.frames], **options)
        windows = [item for item in items if not isinstance(item, PieceFrames)]
        return [item if isinstance(item, Unreadable) else None for item in windows]

    for file in files:
        every = rows(file, [])
        assert [rows(file, every[:number]) for number in range(len(every) + 1)] == [
            every[number:] for number in range(len(every) + 1)
        ]
    assert rows(files[0], [])[3:] == [Unreadable("lost")]
    assert BAD_WINDOW in rows(files[1], [])
