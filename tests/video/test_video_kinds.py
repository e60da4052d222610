"""Every kind of file gives the frames that were written, at their times; or what is missing is reported."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from av.error import FFmpegError
from video_kinds import CODECS, RATE, Case, Written, all_cases, number_of, write_case

from everest.video.facts import clear_video_cache
from everest.video.reader import VideoError, frame_times, intact_frames, known_damage, probe, read_frames

NO_FILE, RIGHT, REPORTED, UNREPORTED, REFUSED = (
    "not writable",
    "right",
    "damage reported",
    "end unknown",
    "refused",
)


def verdict(written: Written) -> str:
    """What is read; AssertionError if anything is wrong."""
    path = written.path
    try:
        info, times = probe(path), frame_times(path)
        frames = list(intact_frames(path, list(range(info.frames))))
    except VideoError as error:
        if not written.may_lack:
            raise AssertionError(str(error)) from error
        return REFUSED
    intact = [i for i, frame in enumerate(frames) if frame is not None]
    shown = {i: shown_number(frames[i].numpy(), written) for i in intact}
    expected = list(written.seconds)
    numbers = list(shown.values())
    assert None not in numbers, numbers
    assert numbers == sorted(set(numbers)), numbers
    assert set(numbers) <= set(expected), numbers
    for i in intact[:: max(len(intact) // 8, 1)]:  # single frames are the same
        assert shown_number(read_frames(path, [i])[0].numpy(), written) == shown[i], i
    clip = intact[len(intact) // 3 :: 3] or intact
    assert [shown_number(frame.numpy(), written) for frame in read_frames(path, clip)] == [
        shown[i] for i in clip
    ]
    first_lost = min(set(expected) - set(numbers), default=max(expected))
    anchor = next(i for i in intact if shown[i] not in written.retimed)
    for i, number in shown.items():
        after_anchor = times[i] - times[anchor]
        right = written.seconds[number] - written.seconds[shown[anchor]]
        is_guessed = number in written.retimed or (written.guesses_after_loss and number > first_lost)
        if not is_guessed:
            assert after_anchor == pytest.approx(right, abs=written.tolerance), number
    assert np.all(np.diff(times) > 0), np.diff(times)
    if written.fps and not written.may_lack:
        assert info.fps == pytest.approx(written.fps, rel=0.02)
    if numbers == expected:
        assert written.may_lack or known_damage(path) is None, known_damage(path)
        return RIGHT
    assert written.may_lack, sorted(set(expected) - set(numbers))
    if known_damage(path) is not None or len(intact) < len(frames):
        return REPORTED
    assert not written.shows_lack, numbers
    return UNREPORTED


def shown_number(frame: np.ndarray, written: Written) -> int | None:
    """The number that a frame shows once it is transformed back."""
    if written.transform is None:
        return number_of(frame)
    places = np.arange(48 * 64 * 3).reshape(48, 64, 3)
    moved = written.transform(places)
    if moved.shape != frame.shape:
        return None
    back = np.empty(places.size, np.uint8)
    back[moved.reshape(-1)] = frame.reshape(-1)
    return number_of(back.reshape(places.shape))


def judged(cases: list[Case], folder: Path) -> tuple[Counter[str], list[str]]:
    """The verdicts of cases, and which are wrong and why."""
    verdicts: Counter[str] = Counter()
    wrong = []
    for at, case in enumerate(cases):
        path = folder / f"{at}.{case.container.split('-')[0]}"
        try:
            written = write_case(case, path)
        except (FFmpegError, ValueError, OSError):
            verdicts[NO_FILE] += 1
            continue
        if case.container == "asf" and CODECS[case.codec][2]:  # no display times: those of decoding, uneven
            written.tolerance = 1.1 / RATE
        try:
            verdicts[verdict(written)] += 1
        except (AssertionError, IndexError, StopIteration) as error:
            wrong.append(f"{case}: {(str(error).splitlines() or [repr(error)])[0]}")
        clear_video_cache()
        path.unlink()
    return verdicts, wrong


def test_a_sample_of_all_kinds_is_read_exactly(tmp_path: Path):
    verdicts, wrong = judged(random.Random(0).sample(all_cases(), 60), tmp_path)
    assert wrong == []
    assert verdicts[RIGHT] > 30


@pytest.mark.slow
def test_all_kinds_are_read_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    verdicts, wrong = judged(all_cases(), tmp_path)
    table = [f"{name:16} {count:5}" for name, count in [*verdicts.most_common(), ("wrong", len(wrong))]]
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *table, *wrong, ""]))
    assert wrong == []
    assert sum(verdicts.values()) - verdicts[NO_FILE] >= 1000
