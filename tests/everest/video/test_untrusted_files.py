"""Files from anywhere: whatever is in them, they are read, or refused by one error that names them."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from timed_videos import write_frames

from everest.prepare.check import check_video
from everest.video.reader import VideoError, frames_in_order, read_frames, video_info
from everest.video.stream import LARGEST_FRAME
from everest.video.writer import H264, read_comment, write_timed_frames, write_video

TITLE = b"a title that is easy to find"


def moving(count: int = 6) -> torch.Tensor:
    """(F, 32, 64, 3) uint8"""
    return torch.arange(count * 32 * 64 * 3).reshape(count, 32, 64, 3).bitwise_and(255).to(torch.uint8)


def titled(path: Path, title: bytes) -> Path:
    """A video whose title, of as many bytes as TITLE, need not be UTF-8."""
    codec = {".avi": "mpeg4", ".webm": "libvpx"}.get(path.suffix, "libx264")
    write_frames(path, moving().numpy(), codec=codec, rate=10, title=TITLE.decode())
    content = path.read_bytes()
    assert content.count(TITLE) >= 1
    path.write_bytes(content.replace(TITLE, title.ljust(len(TITLE))))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi"])
def test_a_title_in_another_encoding_does_not_keep_a_video_from_being_read(tmp_path: Path, suffix: str):
    latin = titled(tmp_path / f"latin{suffix}", "café, Köln".encode("latin-1"))
    plain = titled(tmp_path / f"plain{suffix}", b"cafe, Koln")
    assert video_info(latin) == video_info(plain)
    ids = range(video_info(latin).num_frames)
    assert torch.equal(read_frames(latin, ids), read_frames(plain, ids))
    assert len(list(frames_in_order(latin, ids))) == len(ids)
    assert check_video(str(latin)).reason is None
    assert read_comment(latin) == ""


# --- names and playlists ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a:b.mp4", "http:x.mp4", "concat:x.mp4", "pipe:0.mp4", "file,x|y.mp4"])
def test_a_relative_name_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    write_video(name, moving(), fps=10)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    for decoder in ("auto", "decord"):
        assert len(read_frames(Path(name), range(6), decoder=decoder)) == 6
    assert check_video(name).reason is None
    timed = ((pixels, number, 1) for number, pixels in enumerate(moving().numpy()))
    write_timed_frames(Path(name), timed, 1, codec=H264(crf=18, gop=2), comment="mine")
    assert read_comment(Path(name)) == "mine"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_nothing_that_a_playlist_names_is_opened(tmp_path: Path):
    write_video(tmp_path / "real.mp4", moving(), fps=10)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        for named in (address, "real.mp4", str(tmp_path / "real.mp4"), f"concat:{address}"):
            hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{named}\n#EXT-X-ENDLIST\n"
            for name, text in {
                "list.m3u8": hls,
                "list.mp4": hls,
                "concat.mp4": f"ffconcat version 1.0\nfile '{named}'\n",
                "dash.mpd": f'<MPD type="static"><Period><BaseURL>{named}</BaseURL></Period></MPD>',
                "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n",
            }.items():
                (tmp_path / name).write_text(text)
                with pytest.raises(VideoError, match=rf"{name}: not a video file"):
                    video_info(tmp_path / name)
        with pytest.raises(TimeoutError):
            server.accept()


# --- sizes --------------------------------------------------------------------------------------------------


def png(path: Path, width: int, height: int, *, pixels: bytes = b"", more: bytes = b"") -> Path:
    """A gray png of 8 bits whose header states any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + more + data)
    return path


@pytest.mark.parametrize("side", [9000, 12000, 15000, 60000, 2**31 - 1])
def test_an_image_that_states_a_giant_size_is_refused_before_it_is_decoded(tmp_path: Path, side: int):
    png(tmp_path / "0.png", side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reason = r"0\.png: (an image of \d+ x \d+ pixels|cannot be read)"
        with pytest.raises(VideoError, match=reason) as caught:
            video_info(tmp_path)
    assert caught.value.path == str(tmp_path)  # the sample, not its image
    assert "\n" not in str(caught.value)


def test_damaged_images_are_errors_of_their_folder(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    whole = (tmp_path / "0.png").read_bytes()
    wrong_chunk = whole[:33] + b"\0\0\0\0\1\2\3\4" + whole[33:]  # Pillow raises SyntaxError
    text = struct.pack(">I", 2**20) + b"zTXtx"  # a chunk that is longer than the file
    compressed = zlib.compress(bytes(2**26))
    zipped = b"zTXt" + b"x\0\0" + compressed  # Pillow raises ValueError for texts that unpack to so much
    zipped = struct.pack(">I", len(zipped) - 4) + zipped + struct.pack(">I", zlib.crc32(zipped))
    too_much, other = whole[:33] + zipped + whole[33:], b"%!PS-Adobe-3.0 EPSF-3.0\n"
    for content in (whole[:200], wrong_chunk, whole[:33] + text, too_much, other):
        (tmp_path / "0.png").write_bytes(content)
        with pytest.raises(VideoError, match=r"0\.png: cannot be read: ") as caught:
            read_frames(tmp_path, [0])
        assert caught.value.path == str(tmp_path)
        assert check_video(str(tmp_path)).reason == caught.value.reason


def test_a_pipe_and_an_animation_are_no_frame(tmp_path: Path):
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(VideoError, match=r"0\.png: not a regular file"):
        read_frames(tmp_path, [0])
    (tmp_path / "0.png").unlink()
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    red.save(tmp_path / "0.png", save_all=True, append_images=[blue])
    with pytest.raises(VideoError, match=r"0\.png: an animation"):
        read_frames(tmp_path, [0])
    (tmp_path / "0.png").unlink()
    red.save(tmp_path / "0.jpg", format="MPO", save_all=True, append_images=[blue])  # as phones do
    assert read_frames(tmp_path, [0])[0, 0, 0].tolist() == [254, 0, 0]


def test_images_of_every_kind_of_pixels_are_rgb_of_8_bits(tmp_path: Path):
    gray = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    image = Image.fromarray(gray)
    palette = image.convert("RGB").convert("P")
    for name, kind, options in (
        ("1.png", image, {}),
        ("2.png", Image.fromarray(gray.astype(np.uint16) << 8), {}),
        ("3.png", image.convert("RGBA"), {}),
        ("4.png", image.convert("LA"), {}),
        ("5.jpg", image.convert("CMYK"), {"quality": 100}),
        ("6.png", palette, {"transparency": bytes([0, 99, 255])}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        kind.save(folder / name, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (pixels,) = read_frames(folder, [0])
        difference = (pixels.float() - torch.from_numpy(gray).float()[..., None]).abs()
        assert difference.mean() < (20 if name == "6.png" else 2), name
    (tmp_path / "f").mkdir()
    Image.fromarray(gray.astype(np.float32)).save(tmp_path / "f" / "f.jpg", format="TIFF")
    with pytest.raises(VideoError, match=r"f\.jpg: an animation, or pixels of 32 bits"):
        read_frames(tmp_path / "f", [0])


def giant_gif(path: Path, side: int) -> Path:
    Image.new("P", (64, 48)).save(path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<HH", content, 6, side, side)
    path.write_bytes(content)
    return path


def giant_avi(path: Path, side: int) -> Path:
    """A video whose header and images state another size."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame(48, 32, "yuvj420p")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    for size, sides in (("<II", (48, 32)), (">HH", (32, 48))):
        now = struct.pack(size, *sides)
        assert now in content
        content = content.replace(now, struct.pack(size, side, side))
    path.write_bytes(content)
    return path


READ = """
import resource, sys
from everest.video.reader import read_frames
from everest.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[1:]:
    try:
        read_frames(file, [0])
    except UserError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_video_of_giant_frames_is_refused_and_takes_no_memory(tmp_path: Path):
    kinds = (("gif", giant_gif), ("avi", giant_avi))
    sides = (9000, 16000, 60000)
    files = [make(tmp_path / f"{side}.{suffix}", side) for side in sides for suffix, make in kinds]
    done = subprocess.run([sys.executable, "-c", READ, *files], capture_output=True, text=True, check=True)
    *problems, megabytes = done.stdout.splitlines()
    for file, problem in zip(files, problems, strict=True):
        assert problem.startswith(f"{file}: ")
        assert f"{LARGEST_FRAME} pixels" in problem
    assert int(megabytes) < 100
