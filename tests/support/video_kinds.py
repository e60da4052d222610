"""Files of every kind that everest reads: containers x codecs x what tools and accidents make of them.

Each frame shows its number and a mark that is the same in no other orientation, so that frames are judged by
what they show. Their times are judged by those that were written. Everything is made by PyAV and by changing
bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av import Packet
from numpy.typing import NDArray

COUNT = 40  # frames
HEIGHT, WIDTH = 48, 64
BITS = 8
MARK = np.array([1, 0, 0, 1, 1, 1, 0, 1])
RATE = 25
UNIT = Fraction(1, 1000)
GOP = 10
FIXED = 1 << 16  # one, in a display matrix

X264 = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:b-adapt=0"
X265 = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:log-level=error:pools=none"
# Codec: options of the encoder, B-frames.
CODECS: dict[str, tuple[str, dict[str, str], int]] = {
    "h264": ("libx264", {"x264-params": f"{X264}:bframes=0"}, 0),
    "h264-b": ("libx264", {"x264-params": f"{X264}:bframes=3"}, 3),
    "h264-open": ("libx264", {"x264-params": f"{X264}:bframes=2:open-gop=1"}, 2),
    "hevc-open": ("libx265", {"x265-params": f"{X265}:bframes=3:open-gop=1"}, 3),
    "hevc": ("libx265", {"x265-params": f"{X265}:bframes=0"}, 0),
    "mpeg4": ("mpeg4", {}, 0),
    "mpeg4-b": ("mpeg4", {}, 2),
    "mpeg2": ("mpeg2video", {}, 0),
    "mpeg2-b": ("mpeg2video", {}, 2),
    "mpeg1-b": ("mpeg1video", {}, 2),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, 0),
    "vp8": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}, 0),
    "flv1": ("flv", {}, 0),
    "wmv2": ("wmv2", {}, 0),
    "mjpeg": ("mjpeg", {}, 0),
}
MPEG = ("h264", "h264-b", "h264-open", "hevc", "hevc-open", "mpeg4", "mpeg4-b", "mpeg2", "mpeg2-b", "mpeg1-b")
# Container: FFmpeg's name of the muxer, its options, the codecs.
CONTAINERS: dict[str, tuple[str, dict[str, str], Sequence[str]]] = {
    "mp4": ("mp4", {"movflags": "+faststart"}, (*MPEG[:-1], "vp9")),
    "mp4-fragments": (
        "mp4",
        {"movflags": "frag_keyframe+empty_moov"},
        ("h264", "h264-b", "hevc-open", "mpeg4-b"),
    ),
    "mov": ("mov", {}, ("h264-b", "h264-open", "hevc", "mpeg4-b", "mpeg2-b", "mjpeg")),
    "mkv": ("matroska", {}, (*MPEG, "vp8", "vp9", "mjpeg", "wmv2")),
    "webm": ("webm", {}, ("vp8", "vp9")),
    "avi": ("avi", {}, ("h264", "h264-b", "mpeg4", "mpeg4-b", "mpeg2-b", "mjpeg")),
    "ts": (
        "mpegts",
        {},
        ("h264", "h264-b", "h264-open", "hevc", "hevc-open", "mpeg4-b", "mpeg2", "mpeg2-b", "mpeg1-b"),
    ),
    "mpg": ("mpeg", {}, ("mpeg1-b", "mpeg2", "mpeg2-b", "h264-b")),
    "vob": ("vob", {}, ("mpeg2", "mpeg2-b")),
    "asf": ("asf", {}, ("h264-b", "mpeg4", "mpeg4-b", "wmv2", "mjpeg")),
    "flv": ("flv", {}, ("h264", "h264-b", "flv1")),
    "h264": ("h264", {}, ("h264", "h264-b", "h264-open")),
    "m2v": ("mpeg2video", {}, ("mpeg2", "mpeg2-b")),
}


def painted(number: int) -> NDArray[np.uint8]:
    """(48, 64, 3): the number in binary, noise, and the mark."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    bits = number >> np.arange(BITS) & 1
    frame[:16] = np.repeat(np.where(bits, 225, 25), WIDTH // BITS)[None, :, None]
    noise = np.random.default_rng(number).integers(20, 220, (8, WIDTH // 2, 3))
    frame[16:32] = noise.repeat(2, axis=0).repeat(2, axis=1)  # so that a frame has many bytes
    frame[32:] = np.repeat(np.where(MARK, 225, 25), WIDTH // BITS)[None, :, None]
    return frame


def number_of(frame: NDArray[np.uint8]) -> int | None:
    """The number that an upright frame shows; None if it shows none."""
    if frame.shape[:2] != (HEIGHT, WIDTH):
        return None
    side = WIDTH // BITS
    cells = lambda rows: rows.reshape(-1, BITS, side, 3)[:, :, 2:-2].mean(axis=(0, 2, 3)) > 125  # noqa: E731
    if np.any(cells(frame[36:44]) != MARK):
        return None
    return int(np.sum(cells(frame[4:12]) << np.arange(BITS)))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file to be written, and what is to be read from it."""

    container: str
    codec: str
    accident: str

    def __str__(self) -> str:
        return f"{self.container}, {self.codec}, {self.accident}"


@dataclass(kw_only=True)
class Written:
    """A file, and the frames that were written to it."""

    path: Path
    seconds: dict[int, float]  # by the number of a frame; a player shows all of these, if nothing is damaged
    retimed: frozenset[int] = frozenset()  # frames whose time stamps are wrong in the file
    may_lack: bool = False  # frames may be missing
    # Formats without a time for each frame: of frames that are shown after one that is cut off.
    guesses_after_loss: bool = False
    shows_lack: bool = True  # whether the file shows that they are
    # Of the upright picture to the shown.
    transform: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    fps: float = RATE
    # Seconds: units of containers are up to a millisecond, and two stamps are compared.
    tolerance: float = 0.0021


PacketEdit = Callable[[list[Packet]], list[Packet]]


def _uneven(count: int = COUNT) -> list[int]:
    """Times in milliseconds: 20 to 60, later 150 to 250 from one frame to the next."""
    rng = np.random.default_rng(7)
    steps = np.where(
        np.arange(count) < count // 2, rng.integers(20, 60, count), rng.integers(150, 250, count)
    )
    return (np.cumsum(steps) - steps[0]).tolist()


def _mux(
    path: Path,
    case: Case,
    *,
    times: Sequence[int] | None = None,
    edit: PacketEdit | None = None,
    first: int = 0,
    stated_rate: int = RATE,
) -> None:
    """Write the frames from number `first` on, at `times` in milliseconds (None: at a constant rate)."""
    muxer, container_options, _ = CONTAINERS[case.container]
    encoder, options, b_frames = CODECS[case.codec]
    unit = Fraction(1, RATE) if times is None else UNIT
    with av.open(str(path), "w", format=muxer, container_options=container_options) as container:
        stream = container.add_stream(encoder, rate=stated_rate, options={"g": str(GOP), **options})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = unit
        stream.codec_context.thread_count = 1
        if not encoder.startswith("lib"):
            stream.codec_context.max_b_frames = b_frames
            stream.codec_context.bit_rate = 2_000_000
        packets: list[Packet] = []
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(painted(first + number), format="rgb24")
            frame.pts, frame.time_base = (number if times is None else times[number]), unit
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in edit(packets) if edit else packets:
            container.mux(packet)


def _from_second_keyframe(packets: list[Packet]) -> list[Packet]:
    return packets[[at for at, packet in enumerate(packets) if packet.is_keyframe][1] :]


def _by_decoding(packets: list[Packet]) -> list[Packet]:
    """Display times equal decode times, from 0 on."""
    begin = packets[0].dts or 0
    for packet in packets:
        packet.pts = packet.dts = (packet.dts or 0) - begin
    return packets


def _with_stamp(packets: list[Packet], number: int, change: Callable[[list[int]], int]) -> list[Packet]:
    """Another time stamp for the frame with a number, by the rising stamps of all."""
    stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
    packet = next(packet for packet in packets if packet.pts == stamps[number])
    packet.pts = change(stamps)
    for each in packets:  # a muxer refuses frames that are shown before they are decoded
        each.dts = (each.dts or 0) - 1000
    return packets


def _patched(path: Path, box: bytes, at: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    begin = data.find(box) + at
    data[begin : begin + len(content)] = content
    path.write_bytes(data)


MATRICES: dict[str, tuple[tuple[int, int, int, int], Callable[[NDArray[np.uint8]], NDArray[np.uint8]]]] = {
    "mirrored": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "flipped": ((1, 0, 0, -1), lambda x: x[::-1]),
    "rotated by 180": ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
    "rotated by 90": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "rotated by 270": ((0, -1, 1, 0), lambda x: np.rot90(x)),
    "transposed": ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
    "transposed and rotated by 180": ((0, -1, -1, 0), lambda x: x.transpose(1, 0, 2)[::-1, ::-1]),
}
TIMED = {"mp4", "mp4-fragments", "mov", "mkv", "webm", "ts", "asf", "flv"}  # any times
UNTIMED = {"avi", "asf"}  # with B-frames: store times of decoding, and PyAV changes the first and the last
CUTS = (0.35, 0.5, 0.62, 0.77, 0.9)
LOST = (0.3, 0.45, 0.6, 0.75)  # of the packets of a transport stream
STAMPS = (4, 12, 17, 23, 31)  # frames with another time stamp


def all_cases() -> list[Case]:
    """Every combination."""
    return [
        Case(container=container, codec=codec, accident=accident)
        for container, (_, _, codecs) in CONTAINERS.items()
        for codec in codecs
        for accident in _accidents(container, codec)
    ]


def _accidents(container: str, codec: str) -> Iterator[str]:
    b_frames = CODECS[codec][2]
    yield "none"
    if codec != "mjpeg":
        yield "starts at an inner keyframe"
        yield "starts between keyframes"
    if container in TIMED and not (container in UNTIMED and b_frames):
        yield "uneven times"
        yield "states 1000 frames per second"
        for number in STAMPS:
            yield f"repeated time {number}"
            yield f"falling time {number}"
    if b_frames and container not in ("mpg", "vob", "h264", "m2v"):
        yield "times of decoding"
    if container in ("mp4", "mov"):
        yield "edit list"
        yield from (f"matrix {name}" for name in MATRICES)
    yield from (f"cut at {fraction}" for fraction in CUTS)
    if container == "ts":
        yield "cut between packets"
        yield from (f"lost packet at {fraction}" for fraction in LOST)
        yield "lost start of a frame"
    if container in ("ts", "mpg", "vob", "h264", "m2v"):
        yield "joined"


def write_case(case: Case, path: Path) -> Written:
    """Write the file of a case; an error of PyAV if it cannot be written."""
    accident = case.accident
    even = {number: number / RATE for number in range(COUNT)}
    if accident in ("uneven times", "states 1000 frames per second"):
        times = _uneven()
        stated = 1000 if "1000" in accident else RATE
        _mux(path, case, times=times, stated_rate=stated)
        seconds = {number: time / 1000 for number, time in enumerate(times)}
        return Written(
            path=path, seconds=seconds, fps=0 if stated == RATE else (COUNT - 1) / seconds[COUNT - 1]
        )
    if accident.startswith(("repeated", "falling")):
        number, times = int(accident.split()[-1]), _uneven()
        repeats = accident.startswith("repeated")
        change = lambda stamps: (  # noqa: E731
            stamps[number - 1] if repeats else (stamps[number - 2] + stamps[number - 1]) // 2
        )
        _mux(path, case, times=times, edit=lambda packets: _with_stamp(packets, number, change))
        seconds = {number: time / 1000 for number, time in enumerate(times)}
        return Written(path=path, seconds=seconds, retimed=frozenset({number - 1, number}), fps=0)
    if accident.startswith("starts"):
        first: list[int] = []

        def cut(packets: list[Packet]) -> list[Packet]:
            kept = _from_second_keyframe(packets) if "inner" in accident else packets[4:]
            first.append(next(packet.pts for packet in kept if packet.is_keyframe))
            begin = kept[0].dts if case.container == "avi" else 0  # else PyAV fills it up with empty packets
            for packet in kept:
                packet.pts, packet.dts = packet.pts - begin, packet.dts - begin
            return kept

        _mux(path, case, edit=cut)
        return Written(path=path, seconds={n: time for n, time in even.items() if n >= first[0]})
    if accident == "times of decoding":
        _mux(path, case, edit=_by_decoding)
        return Written(path=path, seconds=even)
    _mux(path, case)
    if accident == "edit list":
        return _with_edit_list(path, even)
    if accident.startswith("matrix"):
        (a, b, c, d), transform = MATRICES[accident.removeprefix("matrix ")]
        matrix = struct.pack(">9i", a * FIXED, b * FIXED, 0, c * FIXED, d * FIXED, 0, 0, 0, 1 << 30)
        _patched(path, b"tkhd", 44, matrix)
        return Written(path=path, seconds=even, transform=transform)
    data = path.read_bytes()
    if accident.startswith("cut"):
        fraction = 0.6 if "between" in accident else float(accident.split()[-1])
        end = int(fraction * len(data))
        if case.container == "ts":
            end -= end % 188 - (0 if "between" in accident else 90)
        path.write_bytes(data[:end])
        shows = case.container in ("mp4", "mp4-fragments", "mov", "mkv", "webm", "avi", "asf")
        return Written(
            path=path,
            seconds=even,
            may_lack=True,
            guesses_after_loss=case.container in ("mpg", "vob", "h264", "m2v"),
            shows_lack=shows or (case.container == "ts" and end % 188 > 0),
        )
    if accident.startswith("lost"):
        fraction = 0.5 if "start" in accident else float(accident.split()[-1])
        at = _video_packet(data, fraction, is_start="start" in accident)
        path.write_bytes(data[: 188 * at] + data[188 * (at + 1) :])
        return Written(path=path, seconds=even, may_lack=True)
    if accident == "joined":
        _mux(path, case, first=64)
        path.write_bytes(data + path.read_bytes())
        even |= {64 + number: (COUNT + number) / RATE for number in range(COUNT)}
    return Written(path=path, seconds=even)


def written(folder: Path, container: str, codec: str, accident: str) -> Path:
    """The file of a case in a folder."""
    case = Case(container=container, codec=codec, accident=accident)
    return write_case(case, folder / f"video.{container}").path


def _video_packet(data: bytes, fraction: float, *, is_start: bool) -> int:
    """The number of a video packet after a fraction of a transport stream; ValueError if there is none."""
    count = len(data) // 188
    for at in range(int(fraction * count), count):
        begin, rest = data[188 * at + 1 : 188 * at + 3]
        if (begin & 31) << 8 | rest == 0x100 and bool(begin & 0x40) == is_start:
            return at
    raise ValueError("every frame is one packet")


def _with_edit_list(path: Path, even: dict[int, float]) -> Written:
    """Show the frames from number 15 on, which is not a keyframe, as an editor does."""
    data = path.read_bytes()
    (unit,) = struct.unpack(">I", data[(at := data.find(b"mdhd") + 16) : at + 4])
    at = data.find(b"elst") + 12
    duration, begin = struct.unpack(">Ii", data[at : at + 8])
    (film,) = struct.unpack(">I", data[(of := data.find(b"mvhd") + 16) : of + 4])
    skipped = 15
    edit = struct.pack(">Ii", duration - skipped * film // RATE, begin + skipped * unit // RATE)
    _patched(path, b"elst", 12, edit)
    return Written(path=path, seconds={n: time for n, time in even.items() if n >= skipped})


def write_with_sound(path: Path, encoder: str) -> Path:
    """A file of FLV or ASF with all frames, and with sound of 6 seconds."""
    per_second = 8
    with av.open(str(path), "w", format=path.suffix[1:]) as container:
        video = container.add_stream(CODECS[encoder][0], rate=RATE)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=44100, layout="mono")
        packets = []
        for number in range(COUNT):
            packets += video.encode(av.VideoFrame.from_ndarray(painted(number), format="rgb24"))
        packets += video.encode(None)
        for number in range(6 * per_second):
            noise = np.random.default_rng(number).integers(-9000, 9000, (1, 44100 // per_second), np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.sample_rate, frame.time_base = 44100, Fraction(1, 44100)
            frame.pts = noise.size * number
            packets += audio.encode(frame)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def flv_part(content: bytes, fraction: float) -> int:
    """Where the last part of an FLV file begins that is not complete after a fraction of its bytes."""
    at = 13
    while (after := at + 15 + int.from_bytes(content[at + 1 : at + 4])) < fraction * len(content):
        at = after
    return at
