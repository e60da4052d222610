"""Detects files, and packets of a transport stream, that end early, from the bytes of their format."""

from __future__ import annotations

import struct
from typing import BinaryIO, Final

from everest.video.source import Video, open_bytes, video_version

HEAD_BYTES_SEARCHED: Final = 4096  # bytes searched for the mark of a format
MATROSKA_MARK: Final = b"\x1aE\xdf\xa3"
ASF_MARK: Final = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # mark of the object with the file's size
MXF_MARK: Final = bytes.fromhex("060e2b34020501010d0102010102")
OGG_PAGE: Final = 65_307  # largest page in bytes
MEDIA_BOXES: Final = (b"mdat", b"moof")  # boxes of ISO media that hold frames
TS_PACKET: Final = 188  # bytes
TS_SPACINGS: Final = (TS_PACKET, 192, 204)  # plain; with a clock before each packet; with parity after it
TS_SYNC: Final = 0x47


def is_truncated(path: Video) -> bool:
    """Whether a file of ISO media, Matroska, AVI, ASF, FLV, TS, Ogg, GIF or MXF ends early; else False."""
    size = video_version(path)[0]
    with open_bytes(path) as file:
        head = file.read(HEAD_BYTES_SEARCHED)
        if head.startswith(b"ftyp", 4):
            return _is_truncated_iso_media(file, size)
        if head.startswith(MATROSKA_MARK):
            return _is_truncated_matroska(file, size)
        if head.startswith(b"FLV"):  # each part, and so the file, ends with the part's size
            stated = int.from_bytes(_read(file, size - 4, 4))
            return stated != int.from_bytes(_read(file, size - 4 - stated + 1, 3)) + 11
        if head.startswith(b"OggS"):  # truncated: the last page is incomplete, or not marked as last
            page = _read(file, size - OGG_PAGE, OGG_PAGE).rpartition(b"OggS")[2]
            is_last = int.from_bytes(page[1:2]) & 4
            num_segments = int.from_bytes(page[22:23])
            return not is_last or len(page) < 23 + num_segments + sum(page[23 : 23 + num_segments])
        if head.startswith(b"GIF8"):  # truncated: the end mark is missing
            return not _read(file, size - OGG_PAGE, OGG_PAGE).rstrip(b"\0").endswith(b";")
        layout = _find_ts_packets(head)
        if layout is not None:  # truncated: the last packet is incomplete and not zeros after the end
            first, spacing = layout
            remainder = (size - first) % spacing
            return 0 < remainder < TS_PACKET and _read(file, size - remainder, 1)[0] == TS_SYNC
    # The other formats state their size in bytes, or the size of a part.
    if head.startswith(b"RIFF"):
        return 8 + int.from_bytes(head[4:8], "little") > size
    if head.startswith(MXF_MARK):  # the start of the footer, after a length field of 1 to 128 bytes
        length = int.from_bytes(head[16:17])
        offset = 41 + (length & 127 if length & 128 else 0)
        return max(offset + 8, int.from_bytes(head[offset : offset + 8]) + 1) > size
    offset = head.find(ASF_MARK)
    return offset >= 0 and int.from_bytes(head[offset + 40 : offset + 48], "little") > size


def _is_truncated_iso_media(file: BinaryIO, size: int) -> bool:
    """Whether the last box is incomplete and has frames, or the boxes of a fragmented file break off."""
    offset = 0
    is_fragmented = False
    while offset < size:
        header = _read(file, offset, 16)
        length, box_type = int.from_bytes(header[:4]), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16])
        if length == 0 and box_type == b"mdat":  # this box ends with the file
            return False
        if length < 8 or offset + length > size:
            return is_fragmented or (length >= 8 and box_type in MEDIA_BOXES)
        is_fragmented = is_fragmented or box_type == b"moof"
        offset += length
    return False


def _is_truncated_matroska(file: BinaryIO, size: int) -> bool:
    """Whether the last element is incomplete. An element of unknown length is searched."""
    offset = 0
    while offset < size:
        header = _read(file, offset, 12)
        name_bytes = 9 - header[0].bit_length()
        length_bytes = 9 - header[name_bytes].bit_length() if name_bytes < len(header) else 9
        if name_bytes > 4 or length_bytes > 8:  # not an element
            return False
        unknown = (1 << 7 * length_bytes) - 1
        length = int.from_bytes(header[name_bytes : name_bytes + length_bytes]) & unknown
        offset += name_bytes + length_bytes + (length if length != unknown else 0)
    return offset > size


def _find_ts_packets(head: bytes) -> tuple[int, int] | None:
    """The first byte of a transport stream's first complete packet, and the bytes from packet to packet."""
    for spacing in TS_SPACINGS:
        for first in range(spacing):
            syncs = head[first::spacing]
            if len(syncs) > 1 and set(syncs) == {TS_SYNC}:  # any file may have one such byte
                return first, spacing
    return None


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(max(offset, 0))
    return file.read(size)


def pes_state(path: Video, offset: int | None) -> tuple[bool, bool]:
    """Whether a packet (PES) of a transport stream is complete, and whether the next one follows.

    A packet consists of numbered parts of 188 bytes. Only the last one is filled up.

    Args:
        offset: the packet's first byte in the file.
    """
    if offset is None:
        return False, False
    stream: int | None = None
    last_number: int | None = None
    is_filled_up = False
    with open_bytes(path) as file:
        _, spacing = _find_ts_packets(file.read(HEAD_BYTES_SEARCHED)) or (0, TS_PACKET)
        file.seek(offset)
        while len(part := file.read(spacing)[spacing - TS_PACKET :]) == TS_PACKET:
            sync, flags_and_stream, controls = struct.unpack(">BHB", part[:4])
            if sync != TS_SYNC:
                is_end = not any(part) and not any(map(any, iter(lambda: file.read(2**20), b"")))
                return is_filled_up and is_end, is_end
            is_damaged, is_start = flags_and_stream & 0x8000, flags_and_stream & 0x4000
            part_number, has_data = controls & 15, controls & 0x10
            follows = last_number is None or part_number == (last_number + 1) % 16
            if stream is None:
                stream = flags_and_stream & 0x1FFF
            elif stream != flags_and_stream & 0x1FFF:
                continue
            elif is_start:  # the next packet
                return is_filled_up or follows, follows and not is_damaged
            if has_data:
                if not follows or is_damaged:
                    return False, False
                last_number, is_filled_up = part_number, bool(controls & 0x20) and _is_filled_up(part)
    return is_filled_up or not part, True


def _is_filled_up(part: bytes) -> bool:
    """Whether the field of a part of a transport stream is longer than its clocks need."""
    length, contents = part[4], part[5]
    clocks = 6 * bool(contents & 0x10) + 6 * bool(contents & 8) + bool(contents & 4)
    return length == 0 or (length > 1 + clocks and part[4 + length : 5 + length] == b"\xff")
