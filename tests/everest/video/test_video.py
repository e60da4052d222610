import contextlib
import csv
import pickle

import av
import numpy as np
import pytest
import torch
from damage import with_hole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from timed_videos import write_frames

from everest.errors import RecipeError
from everest.video.reader import (
    VideoError,
    VideoInfo,
    frame_times,
    frames_between,
    frames_in_order,
    read_frames,
    video_info,
)
from everest.video.truncation import MXF_MARK, is_truncated
from everest.video.writer import write_video

FRAMES, BITS = 70, 8
BIT_SIZE = 16  # pixels of the square that shows one bit of the frame number


def numbered_frames(count=FRAMES):
    """(F, 32, 128, 3) uint8 that show their number in binary over a moving pattern."""
    numbers = np.arange(count)
    bits = numbers[:, None] >> np.arange(BITS) & 1  # (F, bits)
    squares = np.kron(bits[:, None], np.ones((BIT_SIZE, BIT_SIZE))) * 235 + 10  # (F, 16, 128)
    below = (np.arange(BITS * BIT_SIZE) * 2 + numbers[:, None] * 5) % 256  # (F, 128)
    below = np.repeat(below[:, None], BIT_SIZE, axis=1)
    frames = np.concatenate([squares, below], axis=1).astype(np.uint8)
    return np.repeat(frames[..., None], 3, axis=-1)


def numbers_shown(frames):
    """The numbers read back from (F, 32, 128, 3)."""
    squares = frames[:, :BIT_SIZE].float().unflatten(2, (BITS, BIT_SIZE)).mean(dim=(1, 3, 4))  # (F, bits)
    return ((squares > 128) * 2 ** torch.arange(BITS)).sum(dim=1).tolist()


GOP = {"g": "12", "bf": "3"}
OPEN_GOP = {"x264-params": "keyint=12:min-keyint=12:bframes=3:b-adapt=0:open-gop=1:scenecut=0"}
UNEVEN = [i * i // 10 + i for i in range(FRAMES)]  # in 1/25 s
KINDS = {
    "closed_gop.mp4": {"codec": "libx264", "options": GOP},
    "one_gop.mp4": {"codec": "libx264", "options": {"g": "250", "bf": "3"}},
    "open_gop.mp4": {"codec": "libx264", "options": OPEN_GOP},
    "variable_rate.mp4": {"codec": "libx264", "options": GOP, "times": UNEVEN},
    "closed_gop.mkv": {"codec": "libx264", "options": GOP},
    "open_gop.mkv": {"codec": "libx264", "options": OPEN_GOP},
    "b_frames.avi": {"codec": "mpeg4", "options": {"g": "12"}, "b_frames": 2},
    "no_b_frames.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "b_frames.mp4": {"codec": "mpeg4", "options": {"g": "12"}, "b_frames": 2},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:log-level=error:pools=none"}},
    "ten_bits.mp4": {"codec": "libx264", "options": GOP, "pix_fmt": "yuv420p10le"},
    "stream.ts": {"codec": "libx264", "options": GOP},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime", "cpu-used": "8"}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"}},
    "images.mp4": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "times": UNEVEN},
    "animated.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}
DECORD_IS_RIGHT = {"closed_gop.mp4", "one_gop.mp4", "closed_gop.mkv", "vp9.webm"}


def encoded(path, **options):
    """A file of a kind whose frames show their numbers; `times` in 1/25 s."""
    return write_frames(path, numbered_frames(), rate=25, **KINDS[path.name] | options)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return {name: encoded(folder / name) for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_of_every_kind_of_file_is_the_requested_one(kinds, name):
    assert video_info(kinds[name]).num_frames == FRAMES
    every = read_frames(kinds[name], range(FRAMES))
    assert numbers_shown(every) == list(range(FRAMES))
    for stride in (2, 3, 4, 7):  # skipped frames change no bit of the others
        ids = list(range(stride // 2, FRAMES, stride))
        assert torch.equal(read_frames(kinds[name], ids), every[ids])


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=8))
def test_frames_come_in_any_order_and_repeated(kinds, name, ids):
    assert numbers_shown(read_frames(kinds[name], ids)) == ids
    in_order = sorted(set(ids))
    clip = read_frames(kinds[name], in_order)
    assert torch.equal(torch.stack(list(frames_in_order(kinds[name], in_order))), clip)


def test_avi_with_a_wrong_packet_table_is_read_as_from_the_start(kinds, tmp_path):
    content = bytearray(kinds["b_frames.avi"].read_bytes())
    table = content.rindex(b"idx1")  # of 16 bytes a packet: kind, flags, place, size
    for entry in range(table + 8 + 16 * 12, len(content) - 16, 16 * 12):
        content[entry + 8 : entry + 16] = content[entry - 8 : entry]  # point a packet too early
    file = tmp_path / "wrong_table.avi"
    file.write_bytes(content)
    expected = linearly_decoded(file, range(FRAMES + 1))
    for ids in ([50, 0, 30], [60], list(range(1, len(expected), 5))):
        assert np.array_equal(read_frames(file, ids).numpy(), np.stack([expected[i] for i in ids]))


@pytest.mark.parametrize("name", KINDS)
def test_decord_is_right_or_refused(kinds, name):
    pytest.importorskip("decord")
    ids = [69, 11, 12, 13, 40, 0]
    if name in DECORD_IS_RIGHT:
        assert numbers_shown(read_frames(kinds[name], ids, decoder="decord")) == ids
    else:
        with pytest.raises(VideoError, match=r"decord may return wrong .* use data\.decoder 'auto'"):
            read_frames(kinds[name], ids, decoder="decord")


def test_unknown_decoders_and_frames_that_do_not_exist_are_an_error(kinds):
    with pytest.raises(RecipeError, match="did you mean 'decord'"):
        read_frames(kinds["one_gop.mp4"], [0], decoder="decor")
    with pytest.raises(RecipeError, match="channels: 2"):
        read_frames(kinds["one_gop.mp4"], [0], channels=2)
    with pytest.raises(AssertionError):
        next(frames_in_order(kinds["one_gop.mp4"], [3, 3]))
    for ids in ([70], [-1], [3, 70], []):
        with pytest.raises(VideoError, match="there are 70"):
            read_frames(kinds["closed_gop.mp4"], ids)


def test_seconds_become_frame_numbers(kinds):
    assert frames_between(kinds["closed_gop.mp4"], 0.4, 1.2) == (10, 30)
    assert frames_between(kinds["b_frames.avi"], 0.4, 1.2) == (10, 30)
    assert frames_between(kinds["closed_gop.mp4"], None, None) == (0, FRAMES)
    assert frames_between(kinds["closed_gop.mp4"], 2.0, 99.0) == (50, FRAMES)
    with pytest.raises(VideoError, match=r"the last is at 2\.76 s"):
        frames_between(kinds["closed_gop.mp4"], 3.0, 4.0)


def test_the_frames_of_a_gif_have_the_times_at_which_they_are_shown(tmp_path):
    file = encoded(tmp_path / "animated.gif", times=UNEVEN)
    assert frame_times(file) == pytest.approx([time / 25 for time in UNEVEN], abs=1e-3)


def test_written_video_is_read_back_and_written_again_to_the_same_bytes(tmp_path):
    frames = torch.from_numpy(numbered_frames(30))
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames, fps=10, gop=5)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert video_info(tmp_path / "a.mp4") == VideoInfo(num_frames=30, height=32, width=128, fps=10.0)
    back = read_frames(tmp_path / "a.mp4", range(30))
    assert (back.float() - frames.float()).abs().mean() < 4
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert sum(packet.is_keyframe for packet in container.demux(video=0)) == 6


def test_rewritten_file_is_inspected_again_and_odd_sizes_are_not_written(tmp_path):
    file = tmp_path / "a.mp4"
    for count in (20, 30):
        write_video(file, torch.from_numpy(numbered_frames(count)), fps=10)
        assert video_info(file).num_frames == count
    with pytest.raises(VideoError, match="even sizes, not 3x4"):
        write_video(file, torch.zeros(2, 3, 4, 3, dtype=torch.uint8), fps=5)


# --- folders of images --------------------------------------------------------------------------------------


def test_folder_of_images_is_a_video_in_the_order_of_names(tmp_path):
    for number, pixels in enumerate(numbered_frames(12)):
        Image.fromarray(pixels).save(tmp_path / f"img_{number:05d}.{'png' if number % 2 else 'PNG'}")
    (tmp_path / "notes.txt").write_text("not an image")
    assert video_info(tmp_path) == VideoInfo(num_frames=12, height=32, width=128, fps=None)
    assert numbers_shown(read_frames(tmp_path, [11, 0, 5, 5])) == [11, 0, 5, 5]
    with pytest.raises(VideoError, match="no seconds"):
        frames_between(tmp_path, 0, 1)


@pytest.mark.parametrize("template", ["frame{}.png", "{}.png", "take2_{}_left.png", "shot 10-{:03d}.png"])
def test_numbers_in_the_names_of_images_are_in_numerical_order(tmp_path, template):
    for number, pixels in enumerate(numbered_frames(12)):
        Image.fromarray(pixels).save(tmp_path / template.format(number))
    assert numbers_shown(read_frames(tmp_path, range(12))) == list(range(12))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_images_are_turned_and_mirrored_as_their_exif_data_say(tmp_path, suffix):
    shown = np.zeros((32, 48, 3), dtype=np.uint8)  # each corner differs
    shown[:16, :24], shown[:16, 24:], shown[16:, :24] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    transposed, left_right, top_bottom = (lambda a: a.swapaxes(0, 1)), np.fliplr, np.flipud
    # By EXIF 2.3: how the picture that is shown was changed before it was stored.
    stored = {1: shown, 2: left_right(shown), 3: np.rot90(shown, 2), 4: top_bottom(shown)}
    stored |= {5: transposed(shown), 6: np.rot90(shown), 7: np.rot90(transposed(shown), 2)}
    stored |= {8: np.rot90(shown, -1), 0: shown, 9: shown}  # not of the standard: not turned
    for number, (value, pixels) in enumerate(stored.items()):
        exif = Image.Exif()
        exif[0x0112] = value
        options = {"exif": exif, "quality": 100, "subsampling": 0} if suffix == ".jpg" else {"exif": exif}
        Image.fromarray(pixels).save(tmp_path / f"{number}{suffix}", **options)
    first = tmp_path / f"0{suffix}"
    Image.fromarray(np.rot90(shown)).save(first, **options | {"exif": b"Exif\0\0no TIFF"})  # damaged
    assert video_info(tmp_path) == VideoInfo(num_frames=len(stored), height=48, width=32, fps=None)
    with pytest.raises(VideoError, match="images of different sizes"):
        read_frames(tmp_path, [0, 1])  # as shown; stored, the sixth has the size of the damaged one
    first.unlink()
    assert video_info(tmp_path) == VideoInfo(num_frames=len(stored) - 1, height=32, width=48, fps=None)
    frames = read_frames(tmp_path, range(len(stored) - 1)).float()
    assert (frames - torch.from_numpy(shown)).abs().max() < 40


def test_folders_that_are_no_video_are_refused_with_the_reason(tmp_path):
    with pytest.raises(VideoError, match="a folder without"):
        video_info(tmp_path)
    for number, side in enumerate((4, 6)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{number}.png")
    with pytest.raises(VideoError, match="different sizes"):
        read_frames(tmp_path, [0, 1])
    in_order = frames_in_order(tmp_path, [0, 1])
    assert next(in_order).shape == (4, 4, 3)
    with pytest.raises(VideoError, match="different sizes"):
        next(in_order)
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(VideoError, match="cannot be read"):
        read_frames(tmp_path, [1])


# --- broken and odd files -----------------------------------------------------------------------------------


def test_file_that_is_no_video_is_refused_with_the_reason(tmp_path):
    damaged = b"\0\0\0\x18ftypmp42" + b"\0" * 99
    for content, reason in ((b"", "empty file"), (b"hello\n" * 99, "not a video"), (damaged, "no frame can")):
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(VideoError, match=f"a.mp4: {reason}"):
            video_info(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"b\.mp4: No such file"):
        video_info(tmp_path / "b.mp4")
    (tmp_path / "a.mxf").write_bytes(MXF_MARK)
    assert is_truncated(tmp_path / "a.mxf")
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "empty file")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "empty file", "a.mp4: empty file")


def test_frames_in_order_end_where_the_file_is_damaged(kinds, tmp_path):
    file, shown = with_hole(kinds["closed_gop.mp4"], 0.6, tmp_path / "hole.mp4", size=600), []
    with pytest.raises(VideoError) as caught:
        shown.extend(frames_in_order(file, range(FRAMES)))
    assert 0 < len(shown) < FRAMES
    assert numbers_shown(torch.stack(shown)) == list(range(len(shown)))
    assert f"frame {len(shown)} of {FRAMES} cannot be decoded" in str(caught.value)


def numbers_at(seconds):
    """The numbers of the frames that are shown at some seconds, of files whose rate is 25."""
    return np.rint(np.asarray(seconds) * 25).astype(int).tolist()


@pytest.mark.parametrize("name", ["closed_gop.mp4", "closed_gop.mkv", "stream.ts"])
@pytest.mark.parametrize("at", [0.4, 0.6])
def test_hole_in_a_file_gives_right_frames_or_an_error(kinds, name, at, tmp_path):
    file = with_hole(kinds[name], at, tmp_path / name, size=600)
    for number, seconds in enumerate(frame_times(file)):
        with contextlib.suppress(VideoError):
            assert numbers_shown(read_frames(file, [number])) == numbers_at([seconds])


def odd_files(shared, expected):
    folder = shared / "videos" / "odd"
    rows = csv.DictReader((folder / "manifest.csv").read_text().splitlines())
    found = [(folder / row["name"], row) for row in rows if row["expected"].startswith(expected)]
    assert found
    return found


def test_real_odd_files_have_their_frames(shared):
    for file, row in odd_files(shared, "decode"):
        if row["expected"].startswith("decode the frames that are there"):
            continue
        info = video_info(file)
        ids = np.random.default_rng(0).integers(0, min(info.num_frames, 60), size=5).tolist()
        expected = linearly_decoded(file, ids)
        for frame, number in zip(read_frames(file, ids), ids, strict=True):
            assert np.array_equal(frame.numpy(), expected[number]), (file.name, number)
        assert info.num_frames == int(row["frames"]), file.name
        size = (int(row["h"]), int(row["w"]))
        rotated = abs(int(row["rotation"])) % 180 == 90
        assert (info.height, info.width) == (size[::-1] if rotated else size), file.name
        last = info.num_frames - 1
        frames = read_frames(file, [last, 0, last // 2])
        assert frames.shape == (3, info.height, info.width, 3), file.name


def linearly_decoded(file, ids):
    """The frames of these numbers, decoded from the start."""
    frames = {}
    with av.open(str(file)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in ids:
                frames[number] = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            if number == max(ids):
                break
    return frames


def test_frames_after_a_keyframe_that_need_earlier_frames_are_found(shared):
    file = shared / "videos" / "odd" / "yuv444p_audio.mp4"
    clips = ([264], [0, 200, 278], list(range(0, 280, 20)))
    expected = linearly_decoded(file, set().union(*clips))
    for ids in clips:
        for frames in (read_frames(file, ids), frames_in_order(file, ids)):
            for frame, number in zip(frames, ids, strict=True):
                assert np.array_equal(frame.numpy(), expected[number]), number


def test_real_files_that_cannot_be_decoded_are_refused_with_the_reason(shared):
    for file, row in odd_files(shared, "clear error"):
        reason = row["expected"].removeprefix("clear error (").removesuffix(")")
        with pytest.raises(VideoError, match=reason) as caught:
            video_info(file)
        assert file.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damaged_real_files_give_the_frames_before_the_damage(shared):
    folder = shared / "videos" / "odd"
    assert video_info(folder / "truncated_faststart.mp4").num_frames == 154
    assert len(read_frames(folder / "truncated_faststart.mp4", [0, 100, 153])) == 3
    assert len(read_frames(folder / "corrupted_real.mp4", [0, 28])) == 2
    with pytest.raises(VideoError, match=r"corrupted_real.mp4: frame 30 of 50 cannot be decoded"):
        read_frames(folder / "corrupted_real.mp4", [3, 30])
