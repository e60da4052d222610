"""Decodes the frames of a file in display order, from a known keyframe on and past all damage.

Decoders conceal missing data: a frame that refers to a damaged one looks valid, but is not the recorded one.
Everything from the damage to the next keyframe is therefore left out, and counted as lost.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final, NamedTuple

import numpy as np
from av import Packet, VideoCodecContext, VideoFrame, VideoStream
from av.container import InputContainer
from av.error import InvalidDataError

from everest.video.source import Video, open_bytes
from everest.video.stream import MOTION_JPEG, decoder_errors, decoder_options, open_stream, read_packets
from everest.video.truncation import is_truncated, pes_state

# The decoders of these codecs apply `skip_frame` per packet; AV1's also drops frames that it had started.
SKIPPING_CODECS: Final = frozenset({"h264", "hevc"})
# Where a file of these formats breaks off, unknown frames are missing among those that the decoder holds.
UNTIMED_FORMATS: Final = frozenset({"avi", "asf", "mpeg", "h264", "hevc", "m4v", "mpegvideo"})
MAX_HELD_FRAMES: Final = 16  # frames that a decoder holds back
MAX_OUTPUTS: Final = 2**8  # frames that one packet pushes out; the end of a file pushes out up to 32
MAX_SEEK_PACKETS: Final = 4000  # packets from where a seek ended to the keyframe
# A picture that ends early is decoded from the bytes that follow it in memory: it differs with these.
PICTURE_ENDINGS: Final = (b"", b"\xff" * 64, b"\x55" * 64)
MAX_REPEATED_PACKETS: Final = 1000  # heuristic: packets since a keyframe, decoded to check the last one


@dataclass(frozen=True, slots=True)
class Entry:
    """A keyframe at which decoding can begin."""

    seek: int  # where to seek: time in the stream's units, or byte
    packet: int = 0  # number of the keyframe's packet in the file
    mark: int | None = None  # made of the packet's content and time or byte; None: begin where the seek ends


class DecodedFrame(NamedTuple):
    """A frame with its output number: the packet's number times MAX_OUTPUTS, plus its place in the packet."""

    frame: VideoFrame
    output: int


class LostPackets(NamedTuple):
    """Packets that cannot be decoded."""

    frames_before: int
    num_packets: int  # 0: only the times of the frames show the loss


class Skips(NamedTuple):
    """The frames that a reader does not need, by their time stamps."""

    unwanted: Collection[int] = ()  # frames to skip if no other frame refers to them
    droppable: Collection[int] = ()  # frames that can always be skipped
    last: int | None = None  # time stamp of the frame whose packet is the last to be read


@dataclass(slots=True)
class Survey:
    """What decoding shows about a file besides its frames; `decode_frames` fills it."""

    keys: list[Entry] = field(default_factory=list)  # keyframes
    stamps: list[int | None] = field(default_factory=list)  # time stamps of the packets, in decode order
    lost: list[LostPackets] = field(default_factory=list)  # packets that cannot be decoded
    num_frames: int = 0  # frames decoded


class CheckedPacket(NamedTuple):
    """A packet and its state in the file."""

    packet_number: int
    packet: Packet
    is_damaged: bool
    breaks_off: bool  # the stream breaks off after it


@dataclass(slots=True)
class _Recovery:
    """Skips packets up to a keyframe, at the start and after damage."""

    survey: Survey  # receives the lost packets
    awaits_key: bool
    is_broken: bool = False  # whether damage stopped the decoding
    num_lost: int = 0  # packets since the damage

    def skip_to_key(self, packet: Packet, *, is_damaged: bool) -> bool:
        """Whether to skip a packet, because the awaited keyframe has not come."""
        if self.awaits_key:
            self.awaits_key = is_damaged or not packet.is_keyframe
            if self.awaits_key:
                self.num_lost += self.is_broken or is_damaged
            elif self.num_lost or self.is_broken:
                self.add_lost()
        return self.awaits_key

    def add_lost(self) -> None:
        """Add the lost packets to the survey, as packets after the frames decoded until now."""
        self.survey.lost.append(LostPackets(self.survey.num_frames, self.num_lost))
        self.num_lost = 0
        self.is_broken = False


def decode_frames(
    path: Video,
    entry: Entry | None = None,
    *,
    skips: Skips | None = None,
    survey: Survey | None = None,
    starts_anywhere: bool = False,
) -> Generator[DecodedFrame]:
    """Decode frames in display order from an entry, or from the start; none if the entry is not reached.

    Args:
        survey: receives what decoding shows about the file.
        starts_anywhere: begin at any packet, not at the first keyframe.
    """
    skips = skips or Skips()
    survey = survey or Survey()
    recovery = _Recovery(survey, awaits_key=entry is None and not starts_anywhere)
    with open_stream(path) as (container, stream):
        codec = stream.codec_context
        may_skip = codec.name in SKIPPING_CODECS and len(skips.unwanted) > 0
        is_timed = container.format.name not in UNTIMED_FORMATS
        for packet_number, packet, is_damaged, breaks_off in check_packets(path, container, stream, entry):
            if packet.size:
                survey.stamps.append(packet.pts)
                if recovery.skip_to_key(packet, is_damaged=is_damaged):
                    continue
                if packet.is_keyframe:
                    survey.keys.append(_entry_at(container, packet, packet_number))
            if may_skip:
                if packet.pts in skips.droppable:
                    continue
                codec.skip_frame = "NONREF" if packet.pts in skips.unwanted else "DEFAULT"
            is_last = may_skip and skips.last is not None and packet.pts == skips.last
            with decoder_errors(path):
                is_final = is_last or breaks_off
                frames, held, is_lost = _decode(codec, packet, is_damaged=is_damaged, is_final=is_final)
                is_end_of_file = not (packet.size or is_lost or is_timed) and survey.num_frames > 0
                ends_early = is_end_of_file and is_truncated(path)
            if is_timed:
                frames += held
            elif ends_early:  # the frames that the decoder still held may have gaps
                recovery.num_lost += len(frames)
                frames = []
            else:
                recovery.num_lost += len(held)
            for output, frame in enumerate(frames, start=packet_number * MAX_OUTPUTS):
                yield DecodedFrame(frame, output)
            if is_last:
                return
            survey.num_frames += len(frames)
            if is_lost or breaks_off:
                recovery.num_lost += is_lost
                recovery.is_broken = recovery.awaits_key = True
    if recovery.num_lost:
        recovery.add_lost()
    elif recovery.awaits_key and not recovery.is_broken:  # the file has no keyframe
        survey.stamps.clear()
        yield from decode_frames(path, survey=survey, starts_anywhere=True)


def _decode(
    codec: VideoCodecContext, packet: Packet, *, is_damaged: bool, is_final: bool
) -> tuple[list[VideoFrame], list[VideoFrame], bool]:
    """Decode an intact packet, up to its first damaged frame.

    Args:
        is_final: no packet that belongs to this one follows.
    Returns:
        The frames, the frames that the decoder still held at the end, and whether the packet is damaged.
    """
    frames: list[VideoFrame] = []
    held: list[VideoFrame] = []
    if not is_damaged:
        try:
            frames = packet.decode()
        except InvalidDataError:
            is_damaged = True
    intact = list(takewhile(_is_intact, frames))
    if len(intact) < len(frames):  # frames that the decoder still holds may refer to the damaged one
        is_damaged = True
    elif is_damaged or is_final:
        held = list(takewhile(_is_intact, codec.decode(None)))
    if is_damaged or is_final:
        codec.flush_buffers()
    return intact, held, is_damaged


def _is_intact(frame: VideoFrame) -> bool:
    return not frame.is_corrupt


def decode_images(path: Video, byte_ranges: Iterable[tuple[int, int]]) -> Iterator[VideoFrame | None]:
    """Decode packets that are independent images, by their bytes in the file, without a demuxer.

    Args:
        byte_ranges: (offset, size) of each packet in the file.
    Returns:
        The frame of each packet; None if it is damaged.
    """
    codec = VideoCodecContext.create(MOTION_JPEG, "r")
    codec.thread_count = 1
    codec.options = decoder_options(MOTION_JPEG)
    with decoder_errors(path), open_bytes(path) as file:
        for offset, size in byte_ranges:
            file.seek(offset)
            frames: list[VideoFrame] = []
            with suppress(InvalidDataError):
                frames = codec.decode(Packet(file.read(size)))
            yield frames[0] if len(frames) == 1 and _is_intact(frames[0]) else None


def check_packets(
    path: Video, container: InputContainer, stream: VideoStream, entry: Entry | None = None
) -> Iterator[CheckedPacket]:
    """Yield the packets from an entry, or from the start; none if the entry is not reached."""
    packets = read_packets(path, container, stream)
    is_ts = container.format.name == "mpegts"
    is_bare = container.format.name in SKIPPING_CODECS  # no size or time states where the last packet ends
    since_key: list[Packet] = []
    if entry is not None:
        with decoder_errors(path):
            seeks_by_byte = is_ts and entry.mark is not None
            container.seek(entry.seek, stream=stream, unsupported_byte_offset=seeks_by_byte)
    if entry is None or entry.mark is None:
        packet = next(packets, None)
    else:
        keys = (packet for packet in islice(packets, MAX_SEEK_PACKETS) if packet.is_keyframe)
        packet = next((key for key in keys if _entry_at(container, key, 0).mark == entry.mark), None)
    packet_number = 0 if entry is None else entry.packet
    was_corrupt = False
    while packet is not None:
        next_packet = next(packets, None)
        is_whole, goes_on = not packet.is_corrupt, True
        # A parser passes the mark of a damaged packet on to the frame before it.
        is_last = next_packet is None or not next_packet.size
        if is_ts and packet.size and (packet.is_corrupt or was_corrupt or is_last):
            is_whole, goes_on = pes_state(path, packet.pos)
        if is_bare and packet.size:
            since_key = [packet] if packet.is_keyframe else [*since_key[-MAX_REPEATED_PACKETS:], packet]
            if is_last and since_key[0].is_keyframe:
                is_whole = is_whole and _is_complete(path, stream.codec_context, since_key)
        was_corrupt = packet.is_corrupt
        yield CheckedPacket(packet_number, packet, is_damaged=not is_whole, breaks_off=not goes_on)
        packet_number += 1
        packet = next_packet


def _is_complete(path: Video, codec: VideoCodecContext, since_key: Sequence[Packet]) -> bool:
    """Whether the last packet has all of its picture: the pixels do not depend on the bytes that follow.

    By chance, the first bytes of a small picture may form one that repeats another: with 64 x 48 pixels,
    2 of 540 truncated after 6 to 15 bytes showed a frame twice (46 without this check), none of 1,432 others.
    """
    outputs = set()
    for ending in PICTURE_ENDINGS:
        decoder = VideoCodecContext.create(codec.name, "r")
        assert isinstance(decoder, VideoCodecContext)
        decoder.thread_count = 1
        decoder.options = decoder_options(codec.name)
        checksums = []
        with decoder_errors(path):
            for packet in (*since_key[:-1], Packet(bytes(since_key[-1]) + ending), None):
                try:
                    frames = decoder.decode(packet)
                except InvalidDataError:
                    return False
                checksums += [checksum(path, frame) for frame in frames]
        outputs.add(tuple(checksums))
    return len(outputs) == 1


def checksum(path: Video, frame: VideoFrame) -> int:
    """The checksum of a frame's first plane (luma in most formats), without the padding of its rows."""
    with decoder_errors(path):
        plane = frame.planes[0]
        rows = np.frombuffer(bytes(plane), dtype=np.uint8).reshape(plane.height, -1)
        return zlib.crc32(rows[:, : plane.width].tobytes())


def _entry_at(container: InputContainer, packet: Packet, number: int) -> Entry:
    """The entry at a keyframe. In a program stream, only the packets' content is the same after a seek."""
    content = zlib.crc32(packet)
    if container.format.name == "mpegts" and packet.pos is not None:
        return Entry(packet.pos, number, zlib.crc32(repr(packet.pos).encode(), content))
    time = packet.dts if packet.dts is not None else packet.pts or 0
    if container.format.name == "mpeg":
        return Entry(time - 90_000, number, content)  # in 1/90000 s; seeks to it often end too late
    time_and_byte = repr((packet.pts, packet.pos)).encode()
    return Entry(time, number, zlib.crc32(time_and_byte, content))
