"""The packets of a file, each judged as intact or damaged, from any keyframe on.

Families of containers differ in what shows damage, in which frames are known near it, and in how a keyframe
is found again after a seek.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import ClassVar, Final, NamedTuple

import numpy as np
from av import Packet, VideoCodecContext, VideoFrame, VideoStream
from av.container import InputContainer
from av.error import InvalidDataError

from everest.video.source import Video
from everest.video.stream import decoder_errors, decoder_options, read_packets
from everest.video.truncation import is_truncated, pes_state

Frames = list[VideoFrame]

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


class JudgedPacket(NamedTuple):
    """A packet and its state in the file."""

    number: int
    packet: Packet
    is_damaged: bool
    breaks_off: bool  # the stream breaks off after it


@dataclass(eq=False)
class TimedPackets:
    """Packets with display times, as in ISO media and Matroska. The demuxer marks damaged packets."""

    seeks_by_byte: ClassVar[bool] = False
    path: Video
    container: InputContainer
    stream: VideoStream

    def judge(self, packet: Packet, *, is_last: bool) -> tuple[bool, bool]:
        """Whether a packet is damaged, and whether the stream breaks off after it."""
        return packet.is_corrupt, False

    def known_frames(self, frames: Frames, held: Frames, *, is_end: bool) -> Frames:
        """The frames that are known not to follow missing ones.

        Args:
            frames: the frames that a packet pushed out of the decoder.
            held: the frames that the decoder still held at damage.
            is_end: the frames were pushed out by the end of the file.
        """
        return [*frames, *held]

    def entry_at(self, packet: Packet, number: int) -> Entry:
        """The entry at a keyframe."""
        time_and_byte = repr((packet.pts, packet.pos)).encode()
        return Entry(_decode_time(packet), number, zlib.crc32(time_and_byte, zlib.crc32(packet)))

    def read(self, entry: Entry | None = None) -> Iterator[JudgedPacket]:
        """Yield the packets from an entry, or from the start; none if the entry is not reached."""
        packets = read_packets(self.path, self.container, self.stream)
        if entry is not None:
            with decoder_errors(self.path):
                by_byte = self.seeks_by_byte
                self.container.seek(entry.seek, stream=self.stream, unsupported_byte_offset=by_byte)
            if entry.mark is not None:
                keys = (packet for packet in islice(packets, MAX_SEEK_PACKETS) if packet.is_keyframe)
                found = next((key for key in keys if self.entry_at(key, 0).mark == entry.mark), None)
                packets = chain([found], packets) if found is not None else iter(())
        number = 0 if entry is None else entry.packet
        packet = next(packets, None)
        while packet is not None:
            next_packet = next(packets, None)
            is_last = next_packet is None or not next_packet.size
            yield JudgedPacket(number, packet, *self.judge(packet, is_last=is_last))
            number += 1
            packet = next_packet


@dataclass(eq=False)
class TransportStream(TimedPackets):
    """Packets in numbered parts, which show whether all of a packet is there."""

    seeks_by_byte = True
    was_corrupt: bool = False  # whether the packet before is marked as damaged

    def judge(self, packet: Packet, *, is_last: bool) -> tuple[bool, bool]:
        # A parser passes the mark of a damaged packet on to the frame before it.
        is_suspect = packet.is_corrupt or self.was_corrupt or is_last
        self.was_corrupt = packet.is_corrupt
        if not packet.size or not is_suspect:
            return packet.is_corrupt, False
        is_complete, goes_on = pes_state(self.path, packet.pos)
        return not is_complete, not goes_on

    def entry_at(self, packet: Packet, number: int) -> Entry:
        if packet.pos is None:
            return super().entry_at(packet, number)
        return Entry(packet.pos, number, zlib.crc32(repr(packet.pos).encode(), zlib.crc32(packet)))


class UntimedPackets(TimedPackets):
    """Packets without display times. Where a file breaks off, the decoder may hold frames with gaps."""

    def known_frames(self, frames: Frames, held: Frames, *, is_end: bool) -> Frames:
        return [] if is_end and is_truncated(self.path) else frames


class ProgramStream(UntimedPackets):
    """A program stream, in which only the packets' content is the same after a seek."""

    def entry_at(self, packet: Packet, number: int) -> Entry:
        seek = _decode_time(packet) - 90_000  # in 1/90000 s; seeks to the time itself often end too late
        return Entry(seek, number, zlib.crc32(packet))


@dataclass(eq=False)
class BareStream(UntimedPackets):
    """A stream without a container: no size or time states where the last packet ends."""

    since_key: list[Packet] = field(default_factory=list)  # the last packets, from the last keyframe on

    def judge(self, packet: Packet, *, is_last: bool) -> tuple[bool, bool]:
        is_damaged = packet.is_corrupt
        if packet.size:
            earlier = [] if packet.is_keyframe else self.since_key[-MAX_REPEATED_PACKETS:]
            self.since_key = [*earlier, packet]
            if is_last and self.since_key[0].is_keyframe:
                is_damaged = is_damaged or not self._is_last_complete()
        return is_damaged, False

    def _is_last_complete(self) -> bool:
        """Whether the last packet has all of its picture: the pixels do not depend on the bytes that follow.

        By chance, the first bytes of a small picture may form one that repeats another: with 64 x 48 pixels,
        2 of 540 truncated after 6 to 15 bytes showed a frame twice (46 without this check), none of 1,432
        others.
        """
        *earlier, last = self.since_key
        outputs = set()
        for ending in PICTURE_ENDINGS:
            decoder = single_threaded_decoder(self.stream.codec_context.name)
            checksums = []
            with decoder_errors(self.path):
                for packet in (*earlier, Packet(bytes(last) + ending), None):
                    try:
                        frames = decoder.decode(packet)
                    except InvalidDataError:
                        return False
                    checksums += [checksum(self.path, frame) for frame in frames]
            outputs.add(tuple(checksums))
        return len(outputs) == 1


FAMILIES: Final[dict[str, type[TimedPackets]]] = {  # by FFmpeg's name of the format
    "mpegts": TransportStream,
    "mpeg": ProgramStream,
    **dict.fromkeys(("avi", "asf", "m4v", "mpegvideo"), UntimedPackets),
    **dict.fromkeys(("h264", "hevc"), BareStream),
}


def packets_of(path: Video, container: InputContainer, stream: VideoStream) -> TimedPackets:
    """The packets of an open file."""
    return FAMILIES.get(container.format.name, TimedPackets)(path, container, stream)


def single_threaded_decoder(codec: str) -> VideoCodecContext:
    """A decoder of packets that no demuxer read."""
    decoder = VideoCodecContext.create(codec, "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    decoder.options = decoder_options(codec)
    return decoder


def checksum(path: Video, frame: VideoFrame) -> int:
    """The checksum of a frame's first plane (luma in most formats), without the padding of its rows."""
    with decoder_errors(path):
        plane = frame.planes[0]
        rows = np.frombuffer(bytes(plane), dtype=np.uint8).reshape(plane.height, -1)
        return zlib.crc32(rows[:, : plane.width].tobytes())


def _decode_time(packet: Packet) -> int:
    return packet.dts if packet.dts is not None else packet.pts or 0
