"""Whether a file ends early, and which seconds are missing at its end."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from math import inf
from typing import BinaryIO, Final

import av
import numpy as np
from av import VideoStream
from av.container import InputContainer
from numpy.typing import NDArray

from everest.video.source import Video, open_bytes, video_version
from everest.video.stream import open_stream, packets

ASF_FILE: Final = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the object with the size of the file
MXF_HEAD: Final = bytes.fromhex("060e2b34020501010d0102010102")
OGG_PAGE: Final = 65_307  # bytes, at most
MEDIA_BOXES: Final = (b"mdat", b"moof")  # of ISO media: with frames
TS_PACKET: Final = 188  # bytes
TS_SPACINGS: Final = (TS_PACKET, 192, 204)  # plain, with a clock before each packet, with parity after it
TS_SYNC: Final = 0x47
MOST_HELD: Final = 16  # frames that a decoder holds back
DURATION: Final = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")  # of Matroska: hours, minutes, seconds
# Our choice: how much of the stated duration may be missing from an intact file, in seconds and as a share.
CUT_SECONDS: Final = 1.0
CUT_SHARE: Final = 0.1


def is_cut(path: Video) -> bool:
    """Whether a file ends early: of ISO media, Matroska, AVI, ASF, FLV, TS, Ogg, GIF, MXF; else False."""
    size = video_version(path)[0]
    with open_bytes(path) as file:
        begin = file.read(4096)
        if begin[4:8] == b"ftyp":
            return _cut_box(file, size)
        if begin.startswith(b"\x1aE\xdf\xa3"):
            return _cut_element(file, size)
        if begin.startswith(b"RIFF"):
            return 8 + int.from_bytes(begin[4:8], "little") > size
        if (spacing := _ts_spacing(begin)) is not None:
            first, step = spacing
            rest = (size - first) % step
            file.seek(size - rest)
            return 0 < rest < TS_PACKET and file.read(1)[0] == TS_SYNC  # else zeros that follow the end
        if begin.startswith(b"FLV"):  # each part ends with its size
            file.seek(max(size - 4, 0))
            last = int.from_bytes(file.read(4))
            file.seek(max(size - 4 - last + 1, 0))
            return last != int.from_bytes(file.read(3)) + 11
        if begin.startswith((b"OggS", b"GIF8")):
            file.seek(max(size - OGG_PAGE, 0))
            end = file.read()
            if begin.startswith(b"GIF8"):
                return not end.rstrip(b"\0").endswith(b";")
            page = end.rpartition(b"OggS")[2]
            parts = int.from_bytes(page[22:23])
            is_last = int.from_bytes(page[1:2]) & 4
            return not is_last or len(page) < 23 + parts + sum(page[23 : 23 + parts])
        if begin.startswith(MXF_HEAD):
            at = 17 + (begin[16] & 127 if begin[16] & 128 else 0)
            return int.from_bytes(begin[at + 24 : at + 32]) >= size  # the place of the footer; 0: not stated
        at = begin.find(ASF_FILE)
        return at >= 0 and int.from_bytes(begin[at + 40 : at + 48], "little") > size


def _cut_box(file: BinaryIO, size: int) -> bool:
    """Whether the last box is incomplete and has frames, or the boxes of a fragmented file break off."""
    at, is_fragmented = 0, False
    while at < size:
        file.seek(at)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4]), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16])
        if length == 0 and kind == b"mdat":  # up to the end of the file
            return False
        if length < 8 or at + length > size:
            return is_fragmented or (length >= 8 and kind in MEDIA_BOXES)
        is_fragmented = is_fragmented or kind == b"moof"
        at += length
    return False


def _cut_element(file: BinaryIO, size: int) -> bool:
    """Whether the last element of Matroska is incomplete. An element of unknown length is entered."""
    at = 0
    while at < size:
        file.seek(at)
        header = file.read(12)
        name = 9 - header[0].bit_length()  # bytes
        digits = 9 - header[name].bit_length() if name < len(header) else 9
        if name > 4 or digits > 8:  # no element
            return False
        unknown = (1 << 7 * digits) - 1
        length = int.from_bytes(header[name : name + digits]) & unknown
        at += name + digits + (length if length != unknown else 0)
    return at > size


def _ts_spacing(begin: bytes) -> tuple[int, int] | None:
    """Where the first whole packet of a transport stream begins, and the bytes from one to the next."""
    for step in TS_SPACINGS:
        for first in range(step):
            syncs = begin[first::step]
            if len(syncs) > 1 and set(syncs) == {TS_SYNC}:  # one byte may be any file's
                return first, step
    return None


def pes_state(path: Video, position: int | None) -> tuple[bool, bool]:
    """Whether the packet that begins at a byte of a transport stream is whole, and the next one follows.

    The parts are numbered from 0 to 15. The last one is filled up, which shows that no other follows.
    """
    if position is None:
        return False, False
    number, is_filled, identity = -1, False, -1
    with open_bytes(path) as file:
        _, step = _ts_spacing(file.read(4096)) or (0, TS_PACKET)
        file.seek(position)
        while len(part := file.read(step)[step - TS_PACKET :]) == TS_PACKET:
            sync, pid, flags = struct.unpack(">BHB", part[:4])
            if sync != TS_SYNC:
                is_end = not any(part) and not any(map(any, iter(lambda: file.read(2**20), b"")))
                return is_filled and is_end, is_end
            is_next = number < 0 or flags & 15 == (number + 1) % 16
            if identity < 0:
                identity = pid & 0x1FFF
            elif pid & 0x1FFF != identity:
                continue
            elif pid & 0x4000:  # the next packet
                return is_filled or is_next, is_next and not pid & 0x8000
            if flags & 0x10:  # with data
                if not is_next or pid & 0x8000:  # or a receiver marked it as damaged
                    return False, False
                number, is_filled = flags & 15, False
                if flags & 0x20:  # with a field of its own, which is longer than its clocks need
                    length, marks = part[4], part[5]
                    clocks = 6 * bool(marks & 0x10) + 6 * bool(marks & 8) + bool(marks & 4)
                    is_filled = length == 0 or (length > 1 + clocks and part[4 + length] == 0xFF)
    return is_filled or not part, True


def promised_seconds(path: Video, container: InputContainer, stream: VideoStream, count: int) -> float:
    """The end of the video after time 0, in seconds, that a file states; -inf if it states none.

    Of FLV and ASF, it may be the end of the sound.

    Args:
        count: packets of the stream that were found.
    """
    name = container.format.name
    whole = (container.duration or 0) / av.time_base or -inf
    if name == "avi":
        return float(stream.frames / (stream.average_rate or 25)) or -inf
    if name.startswith("mov"):
        if stream.frames < count:  # in fragments: the duration is that of those that were found
            return -inf
        return float((stream.duration or 0) * (stream.time_base or 0)) or -inf
    if name in ("flv", "asf"):
        # FFmpeg replaces the end that an ASF file states by an estimate if the file is cut.
        return -inf if name == "asf" and is_cut(path) else whole
    if not name.startswith("matroska"):  # transport streams and others state none
        return -inf
    stamp = DURATION.match(stream.metadata.get("DURATION", ""))
    if stamp is not None:
        hours, minutes, seconds = map(float, stamp.groups())
        return hours * 3600 + minutes * 60 + seconds
    return whole if len(container.streams) == 1 else -inf  # else the sound may be what lasts longer


def end_before(seconds: NDArray[np.float64], step: float) -> float:
    """Return the end of the last frame before a gap near the end of frames shown at `seconds` (F,)."""
    # Frames that the decoder still held may be shown after missing ones.
    held = range(max(seconds.size - MOST_HELD, 0), seconds.size - 1)
    last = next((i for i in held if seconds[i + 1] - seconds[i] > 1.5 * step), seconds.size - 1)
    return float(seconds[last]) + step


def missing_end(
    path: Video,
    format_name: str,
    promised: float,
    seconds: NDArray[np.float64],
    step: float,
    *,
    breaks_off: bool,
) -> Iterator[tuple[float, float]]:
    """Yield what is missing at the end, in seconds from the first frame, if anything is; inf: no end known.

    Args:
        promised: the end that the file states, from the first frame; -inf if it states none.
        seconds: when its frames are shown, (F,).
        step: seconds that a frame is shown.
        breaks_off: the last packets cannot be decoded.
    """
    cut = is_cut(path)
    is_strict = breaks_off or cut
    end = end_before(seconds, step) if is_strict else float(seconds[-1]) + step
    least = step / 2 if is_strict else max(CUT_SECONDS, CUT_SHARE * promised)
    is_short = promised - end > least
    if format_name in ("flv", "asf") and (is_strict or is_short) and promised > -inf:
        with open_stream(path) as (container, stream):
            stated = (container.duration or 0) / av.time_base
            others = [other for other in container.streams if other is not stream]
            ends = (
                float((packet.pts + (packet.duration or 0)) * packet.time_base)
                for packet in (packets(path, container, *others) if others else ())
                if packet.pts is not None
            )
            if any(after > stated - CUT_SECONDS for after in ends):
                promised, is_short = -inf, False  # that of the sound
    if is_short and (is_strict or not format_name.startswith(("mov", "avi"))):
        yield end, promised
    elif breaks_off or (cut and (promised == -inf or format_name.startswith("mov"))):
        yield end, inf
