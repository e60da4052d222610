"""Whether a file, or a packet of a transport stream, ends early: judged by the bytes of its format."""

from __future__ import annotations

import struct
from typing import BinaryIO, Final

from everest.video.source import Video, open_bytes, video_version

HEAD_BYTES_SEARCHED: Final = 4096  # for the marks of a format
MATROSKA_MARK: Final = b"\x1aE\xdf\xa3"
ASF_MARK: Final = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # of the object with the file's size
MEDIA_BOXES: Final = (b"mdat", b"moof")  # of ISO media: with frames
TS_PACKET: Final = 188  # bytes
TS_SPACINGS: Final = (TS_PACKET, 192, 204)  # plain, with a clock before each packet, with parity after it
TS_SYNC: Final = 0x47


def is_truncated(path: Video) -> bool:
    """Whether a file of ISO media, Matroska, AVI, ASF or MPEG-TS ends early; False for other formats."""
    size = video_version(path)[0]
    with open_bytes(path) as file:
        head = file.read(HEAD_BYTES_SEARCHED)
        if head[4:8] == b"ftyp":
            return _is_truncated_iso_media(file, size)
        if head.startswith(MATROSKA_MARK):
            return _is_truncated_matroska(file, size)
        layout = _ts_spacing(head)
        if layout is not None:  # the last packet is incomplete, and not zeros that follow the end
            first, spacing = layout
            rest = (size - first) % spacing
            return 0 < rest < TS_PACKET and _read(file, size - rest, 1)[0] == TS_SYNC
    # AVI and ASF state their size.
    if head.startswith(b"RIFF"):
        return 8 + int.from_bytes(head[4:8], "little") > size
    begin = head.find(ASF_MARK)
    return begin >= 0 and int.from_bytes(head[begin + 40 : begin + 48], "little") > size


def _is_truncated_iso_media(file: BinaryIO, size: int) -> bool:
    """The last box is incomplete and has frames, or the boxes of a fragmented file break off."""
    begin = 0
    is_fragmented = False
    while begin < size:
        header = _read(file, begin, 16)
        length, kind = int.from_bytes(header[:4]), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16])
        if length == 0 and kind == b"mdat":  # up to the end of the file
            return False
        if length < 8 or begin + length > size:
            return is_fragmented or (length >= 8 and kind in MEDIA_BOXES)
        is_fragmented = is_fragmented or kind == b"moof"
        begin += length
    return False


def _is_truncated_matroska(file: BinaryIO, size: int) -> bool:
    """The last element is incomplete. An element of unknown length is entered."""
    begin = 0
    while begin < size:
        header = _read(file, begin, 12)
        name_bytes = 9 - header[0].bit_length()
        length_bytes = 9 - header[name_bytes].bit_length() if name_bytes < len(header) else 9
        if name_bytes > 4 or length_bytes > 8:  # no element
            return False
        unknown = (1 << 7 * length_bytes) - 1
        length = int.from_bytes(header[name_bytes : name_bytes + length_bytes]) & unknown
        begin += name_bytes + length_bytes + (length if length != unknown else 0)
    return begin > size


def _ts_spacing(head: bytes) -> tuple[int, int] | None:
    """Where the first complete packet of a transport stream begins, and the bytes from one to the next."""
    for spacing in TS_SPACINGS:
        for first in range(spacing):
            syncs = head[first::spacing]
            if len(syncs) > 1 and set(syncs) == {TS_SYNC}:  # one byte may be any file's
                return first, spacing
    return None


def _read(file: BinaryIO, begin: int, size: int) -> bytes:
    file.seek(begin)
    return file.read(size)


def pes_state(path: Video, begin: int | None) -> tuple[bool, bool]:
    """Whether a packet (PES) of a transport stream is complete, and the next one follows.

    It is in numbered parts of 188 bytes. The last one is filled up, which shows that no other follows.

    Args:
        begin: its first byte in the file.
    """
    if begin is None:
        return False, False
    stream: int | None = None
    last_number: int | None = None
    is_filled_up = False
    with open_bytes(path) as file:
        _, spacing = _ts_spacing(file.read(HEAD_BYTES_SEARCHED)) or (0, TS_PACKET)
        file.seek(begin)
        while len(part := file.read(spacing)[spacing - TS_PACKET :]) == TS_PACKET:
            sync, flags_and_stream, controls, field, contents = struct.unpack(">BHBBB", part[:6])
            if sync != TS_SYNC:
                is_end = not any(part) and not any(map(any, iter(lambda: file.read(2**20), b"")))
                return is_filled_up and is_end, is_end
            is_damaged, is_start = flags_and_stream & 0x8000, flags_and_stream & 0x4000
            number = controls & 15
            follows = last_number is None or number == (last_number + 1) % 16
            if stream is None:
                stream = flags_and_stream & 0x1FFF
            elif stream != flags_and_stream & 0x1FFF:
                continue
            elif is_start:  # the next packet
                return is_filled_up or follows, follows and not is_damaged
            if controls & 0x10:  # has data
                if not follows or is_damaged:
                    return False, False
                last_number = number
                # The field before the data is longer than its clocks need.
                clocks = 6 * bool(contents & 0x10) + 6 * bool(contents & 8) + bool(contents & 4)
                is_stuffed = field > 1 + clocks and part[4 + field : 5 + field] == b"\xff"
                is_filled_up = bool(controls & 0x20) and (field == 0 or is_stuffed)
    return is_filled_up or not part, True
