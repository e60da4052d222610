"""Every kind of file gives the frames that were written, at their times; or what is missing is reported."""

from __future__ import annotations

import random
import struct
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import FFmpegError
from PIL import Image
from timed_videos import write_frames
from video_kinds import (
    CODECS,
    COUNT,
    GOP,
    HEIGHT,
    MATRICES,
    RATE,
    WIDTH,
    Case,
    Written,
    all_cases,
    flv_part,
    number_of,
    painted,
    write_case,
    write_with_sound,
    written,
)

from everest.prepare.check import check_video
from everest.prepare.encode import EncodeSettings, encode_video
from everest.video.metadata import clear_video_cache
from everest.video.reader import (
    VideoError,
    frame_times,
    intact_frames,
    read_frames,
    repair_notices,
    video_damage_text,
    video_info,
)
from everest.video.writer import H264

NO_FILE, RIGHT, REPORTED, UNREPORTED, REFUSED = "not writable", "right", "reported", "end unknown", "refused"


def summary(written: Written) -> str:
    """What is read; AssertionError if anything is wrong."""
    path = written.path
    try:
        info, times = video_info(path), frame_times(path)
        frames = list(intact_frames(path, list(range(info.num_frames))))
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
        assert written.may_lack or video_damage_text(path) is None, video_damage_text(path)
        return RIGHT
    assert written.may_lack, sorted(set(expected) - set(numbers))
    if video_damage_text(path) is not None or len(intact) < len(frames):
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
            verdicts[summary(written)] += 1
        except (AssertionError, IndexError, StopIteration) as error:
            wrong.append(f"{case}: {(str(error).splitlines() or [repr(error)])[0]}")
        clear_video_cache()
        path.unlink()
    return verdicts, wrong


ALWAYS = {  # of the sample: seeks that end too late, times that are those of decoding, every matrix
    *(f"{kind}, none" for kind in ("mpg, mpeg2-b", "mpg, h264-b", "vob, mpeg2-b", "asf, h264-b")),
    *(f"{kind}, times of decoding" for kind in ("mp4, hevc-open", "mkv, h264-b", "mkv, mpeg4-b")),
    *(f"mp4, h264, matrix {name}" for name in MATRICES),
}


def test_a_sample_of_all_kinds_is_read_exactly(tmp_path: Path):
    sample = random.Random(0).sample(all_cases(), 60)
    always = [case for case in all_cases() if str(case) in ALWAYS]
    assert len(always) == len(ALWAYS)
    verdicts, wrong = judged([*always, *sample], tmp_path)
    assert wrong == []
    assert verdicts[RIGHT] > 30 + len(always)


@pytest.mark.slow
def test_all_kinds_are_read_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    verdicts, wrong = judged(all_cases(), tmp_path)
    table = [f"{name:16} {count:5}" for name, count in [*verdicts.most_common(), ("wrong", len(wrong))]]
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *table, *wrong, ""]))
    assert wrong == []
    assert sum(verdicts.values()) - verdicts[NO_FILE] >= 1000


def shown(path: Path, ids=None) -> list[int | None]:
    ids = range(video_info(path).num_frames) if ids is None else ids
    return [number_of(frame.numpy()) for frame in read_frames(path, ids)]


@pytest.mark.parametrize("accident", ["repeated time 12", "falling time 12"])
def test_one_wrong_time_stamp_is_repaired_with_a_notice(tmp_path: Path, accident: str):
    wrong, right = tmp_path / "wrong", tmp_path / "right"
    wrong.mkdir()
    right.mkdir()
    file, intact = written(wrong, "mkv", "h264", accident), written(right, "mkv", "h264", "uneven times")
    found, expected = frame_times(file), frame_times(intact)
    others = [number for number in range(COUNT) if number not in (11, 12)]
    assert found[others] == pytest.approx(expected[others], abs=0.002)
    assert found[10] < found[11] < found[12] < found[13]
    assert shown(file) == list(range(COUNT))
    assert repair_notices(file) == [f"{file}: 1 of {COUNT} time stamps cannot be right and were interpolated"]
    assert repair_notices(intact) == []


def test_another_angle_is_a_notice(tmp_path: Path):
    file = written(tmp_path, "mp4", "h264", "none")
    data, half = bytearray(file.read_bytes()), 46341  # of the unit 65536: 45 degrees
    at = data.find(b"tkhd") + 44
    data[at : at + 8] = struct.pack(">2i", half, half)
    data[at + 12 : at + 20] = struct.pack(">2i", -half, half)
    file.write_bytes(data)
    assert "no multiple of 90 degrees" in repair_notices(file)[0]


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mkv", "mpeg2-b"), ("mpg", "mpeg2-b"), ("mkv", "h264-open"), ("ts", "h264-open"), ("mkv", "mpeg4-b")],
)
def test_frames_that_refer_to_others_before_the_recording_are_left_out(tmp_path, container, codec):
    file = written(tmp_path, container, codec, "starts at an inner keyframe")
    numbers = shown(file)
    assert numbers == list(range(numbers[0], COUNT))
    assert 9 <= numbers[0] <= 13
    assert video_damage_text(file) is None
    assert check_video(str(file)).reason is None
    settings = EncodeSettings(short_side=48, codec=H264(gop=12, crf=10))
    encode_video(str(file), {str(file): tmp_path / "encoded.mp4"}, settings, overwrite=False)
    assert shown(tmp_path / "encoded.mp4") == numbers


def test_the_rate_follows_from_the_times_if_the_stated_one_is_the_unit_of_time(tmp_path: Path):
    file = written(tmp_path, "webm", "vp9", "states 1000 frames per second")
    assert video_info(file).fps == pytest.approx((COUNT - 1) / frame_times(file)[-1])
    gray = np.zeros((10, 576, 720, 3), np.uint8)
    assert video_info(write_frames(tmp_path / "tape.dv", gray, codec="dvvideo", rate=25)).fps == 25


def test_what_is_lost_is_left_out_and_named(tmp_path: Path):
    file = written(tmp_path, "ts", "h264-b", "lost packet at 0.3")
    numbers, seconds = shown(file), frame_times(file)
    assert numbers == np.rint(seconds * RATE).astype(int).tolist()
    assert numbers[-1] == COUNT - 1
    assert len(numbers) < COUNT
    damage = video_damage_text(file)
    assert damage.startswith("damaged: no intact frames from 0.")
    assert check_video(str(file)).reason == damage


@pytest.mark.parametrize(("container", "codec"), [("ts", "h264-b"), ("ts", "mpeg2-b"), ("mpg", "mpeg2-b")])
def test_joined_streams_are_read_to_the_end(tmp_path: Path, container: str, codec: str):
    file = written(tmp_path, container, codec, "joined")
    assert shown(file) == [*range(COUNT), *range(64, 64 + COUNT)]
    assert frame_times(file) == pytest.approx(np.arange(2 * COUNT) / RATE, abs=0.002)
    assert video_damage_text(file) is None
    assert repair_notices(file) == [f"{file}: time stamps start again at frame {COUNT}; they are continued"]


def test_an_animated_webp_is_not_called_damaged(tmp_path: Path):
    images = [Image.fromarray(painted(number)) for number in range(3)]
    assert images[0].size == (WIDTH, HEIGHT)
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=40)
    with pytest.raises(VideoError, match=r"an animated WebP, which FFmpeg does not read; convert it to mp4"):
        video_info(tmp_path / "a.webp")


def test_a_damaged_spot_of_a_stamped_file_ends_at_the_next_keyframe(tmp_path: Path):
    file = written(tmp_path, "mp4", "h264-b", "none")
    data = file.read_bytes()
    half = (data.find(b"mdat") + len(data)) // 2
    file.write_bytes(data[:half] + bytes(400) + data[half + 400 :])
    found = intact_frames(file, list(range(COUNT)))
    numbers = [None if frame is None else number_of(frame.numpy()) for frame in found]
    assert 0 < numbers.count(None) < 2 * GOP
    assert [number for number, shown in enumerate(numbers) if shown != number] == [
        number for number, shown in enumerate(numbers) if shown is None
    ]
    assert numbers[-1] == COUNT - 1


@pytest.mark.parametrize("codec", ["h264-b", "mpeg2-b", "hevc-open"])
@pytest.mark.parametrize(("before", "after"), [(4, 0), (0, 16)])
def test_transport_streams_with_more_bytes_a_packet_are_whole(tmp_path, codec, before, after):
    file = written(tmp_path, "ts", codec, "none")
    data = file.read_bytes()
    packets = [bytes(before) + data[at : at + 188] + bytes(after) for at in range(0, len(data), 188)]
    file.write_bytes(b"".join(packets))
    assert shown(file) == list(range(COUNT))
    assert video_damage_text(file) is None
    half = len(packets) // 2
    file.write_bytes(b"".join(packets[:half] + packets[half + 5 :]))
    assert shown(file) == np.rint(frame_times(file) * RATE).astype(int).tolist()
    assert video_damage_text(file) is not None
    file.write_bytes(b"".join(packets[:half]) + packets[half][:100])
    assert video_damage_text(file) is not None


@pytest.mark.parametrize("codec", ["h264-b", "mpeg2-b", "hevc-open"])
def test_zeros_after_a_transport_stream_are_its_end(tmp_path: Path, codec: str):
    file = written(tmp_path, "ts", codec, "none")
    file.write_bytes(file.read_bytes() + bytes(5000))
    assert shown(file) == list(range(COUNT))
    assert video_damage_text(file) is None


def test_a_packet_that_the_receiver_marked_is_a_damage(tmp_path: Path):
    file = written(tmp_path, "ts", "h264-b", "none")
    data = bytearray(file.read_bytes())
    at = next(
        at
        for at in range(len(data) * 4 // 10 // 188 * 188, len(data), 188)
        if data[at + 1] == 1 and data[at + 2] == 0 and data[at + 3] & 0x10
    )
    data[at + 1] |= 0x80
    data[at + 20 : at + 60] = np.random.default_rng(0).bytes(40)
    file.write_bytes(data)
    numbers = shown(file)
    assert numbers == np.rint(frame_times(file) * RATE).astype(int).tolist()
    assert COUNT - GOP <= len(numbers) < COUNT
    assert video_damage_text(file) is not None


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_frames_are_right_where_keyframes_are_refreshed_bit_by_bit(tmp_path: Path, container: str):
    file, options = tmp_path / f"video.{container}", {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}
    picture = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    moved = np.stack([np.roll(picture, (3 * number, 5 * number), (0, 1)) for number in range(100)])
    write_frames(file, moved, codec="libx264", rate=RATE, options=options)
    clip, whole = range(1, 100, 8), read_frames(file, range(100))
    assert np.array_equal(read_frames(file, clip), whole[list(clip)])
    assert np.array_equal(read_frames(file, clip), [read_frames(file, [number])[0] for number in clip])


@pytest.mark.parametrize("zeros", [4096, None])
def test_a_fragmented_file_that_breaks_off_at_zeros_is_damaged(tmp_path: Path, zeros: int | None):
    file = written(tmp_path, "mp4-fragments", "h264-b", "none")
    assert video_damage_text(file) is None
    data = file.read_bytes()
    at = data.find(b"moof", len(data) // 2) - 4
    zeros = zeros or len(data) - at
    file.write_bytes(data[:at] + bytes(zeros) + data[at + zeros :])
    count = len(shown(file))
    assert 0 < count < COUNT
    assert video_damage_text(file) == f"damaged: no intact frames after {count / RATE:.2f} s"
    assert check_video(str(file)).reason == video_damage_text(file)


@pytest.mark.parametrize("container", ["mkv", "ts", "mp4-fragments"])
def test_the_text_begins_with_the_first_missing_frame(tmp_path: Path, container: str):
    file = written(tmp_path, container, "h264-b", "none")
    data, gaps = file.read_bytes(), 0
    for end in range(len(data) * 6 // 10, len(data) * 9 // 10, 400):
        file.write_bytes(data[: end + (end % 188 == 0)])
        numbers, damage = shown(file), video_damage_text(file)
        first = next(number for number in range(COUNT) if number not in numbers)
        gaps += first < numbers[-1]
        assert float(damage.split()[5]) == pytest.approx(first / RATE, abs=0.006)
    assert gaps > 0


@pytest.mark.parametrize(
    ("muxer", "encoder", "options"),
    [("ogg", "libvpx", {}), ("gif", "gif", {}), ("mxf", "mpeg2video", {}), ("webm", "libvpx", {"live": "1"})],
)
def test_a_file_without_its_end_is_damaged(tmp_path: Path, muxer: str, encoder: str, options: dict[str, str]):
    frames = np.stack([painted(number) for number in range(COUNT)])
    file, pix_fmt = tmp_path / f"video.{muxer}", "rgb8" if muxer == "gif" else "yuv420p"
    write_frames(file, frames, codec=encoder, rate=RATE, pix_fmt=pix_fmt, muxing=options)
    assert video_damage_text(file) is None
    data = file.read_bytes()
    for fraction in (0.5, 0.8):
        file.write_bytes(data[: int(fraction * len(data))])
        damage = video_damage_text(file)
        assert damage.startswith("damaged: no intact frames after ")


@pytest.mark.parametrize(("muxer", "encoder"), [("flv", "flv1"), ("flv", "h264"), ("asf", "wmv2")])
def test_sound_that_lasts_longer_than_the_picture_is_no_damage(tmp_path: Path, muxer: str, encoder: str):
    file = write_with_sound(tmp_path / f"video.{muxer}", encoder)
    assert shown(file) == list(range(COUNT))
    assert video_damage_text(file) is None
    content = file.read_bytes()
    # FLV between two parts, so that only the stated duration shows it.
    file.write_bytes(content[: flv_part(content, 0.6) if muxer == "flv" else int(0.6 * len(content))])
    clear_video_cache()
    damage = video_damage_text(file)
    assert f" {COUNT / RATE:.2f} " in damage


@pytest.mark.parametrize(("encoder", "fraction"), [("mpeg4", 0.15), ("wmv2", 0.15), ("mpeg4", 0.7)])
def test_a_cut_asf_file_states_no_end(tmp_path: Path, encoder: str, fraction: float):
    file = write_with_sound(tmp_path / "video.asf", encoder)
    content = file.read_bytes()
    file.write_bytes(content[: int(fraction * len(content))])
    assert video_damage_text(file) == f"damaged: no intact frames after {len(shown(file)) / RATE:.2f} s"


def test_a_cut_flv_file_that_seems_to_begin_a_stream_is_read_to_the_cut(tmp_path: Path):
    file = write_with_sound(tmp_path / "video.flv", "h264")
    content = file.read_bytes()
    file.write_bytes(content[: flv_part(content, 0.1) + 10])  # after the kind and the size of a part
    numbers = shown(file)
    first = next(number for number in range(COUNT) if number not in numbers)
    assert 0 < first <= len(numbers) < COUNT
    assert video_damage_text(file) == f"damaged: no intact frames from {first / RATE:.2f} to 6.00 s"


def test_a_bare_stream_that_ends_in_the_first_bytes_of_a_picture_shows_no_frame_twice(tmp_path):
    file = written(tmp_path, "h264", "h264-open", "none")
    content = file.read_bytes()
    with av.open(str(file)) as container:
        begins = [packet.pos or 0 for packet in container.demux(video=0) if packet.size]
    for begin in begins[31::2]:
        for kept in (0, 9, 10, 12, 14):
            cut = tmp_path / f"{begin + kept}.h264"
            cut.write_bytes(content[: begin + kept])
            frames = intact_frames(cut, list(range(video_info(cut).num_frames)))
            numbers = [number_of(frame.numpy()) for frame in frames if frame is not None]
            assert numbers == sorted(set(numbers)), (begin, kept)
            if kept == 0:  # pictures that are whole stay
                assert len(numbers) == begins.index(begin)
