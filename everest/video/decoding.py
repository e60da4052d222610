"""Decodes the frames of a file in display order, from a known keyframe on and past all damage.

Decoders conceal missing data: a frame that refers to a damaged one looks valid, but is not the recorded one.
Everything from the damage to the next keyframe is therefore left out, and counted as lost.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final, NamedTuple

from av import Packet, VideoCodecContext, VideoFrame
from av.error import InvalidDataError

from everest.video.packets import Entry, packets_of, single_threaded_decoder
from everest.video.source import Video, open_bytes
from everest.video.stream import MOTION_JPEG, decoder_errors, open_stream

# The decoders of these codecs apply `skip_frame` per packet; AV1's also drops frames that it had started.
SKIPPING_CODECS: Final = frozenset({"h264", "hevc"})
MAX_HELD_FRAMES: Final = 16  # frames that a decoder holds back
MAX_OUTPUTS: Final = 2**8  # frames that one packet pushes out; the end of a file pushes out up to 32


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


@dataclass(slots=True)
class _Recovery:
    """Skips packets up to a keyframe, at the start and after damage."""

    survey: Survey  # receives the lost packets
    awaits_key: bool
    is_broken: bool = False  # whether damage stopped the decoding
    num_lost: int = 0  # packets since the damage

    def begin(self, *, num_lost: int) -> None:
        """Await a keyframe, because packets are lost or the stream breaks off."""
        self.num_lost += num_lost
        self.is_broken = self.awaits_key = True

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
        packets = packets_of(path, container, stream)
        for number, packet, is_damaged, breaks_off in packets.read(entry):
            if packet.size:
                survey.stamps.append(packet.pts)
                if recovery.skip_to_key(packet, is_damaged=is_damaged):
                    continue
                if packet.is_keyframe:
                    survey.keys.append(packets.entry_at(packet, number))
            if may_skip:
                if packet.pts in skips.droppable:
                    continue
                codec.skip_frame = "NONREF" if packet.pts in skips.unwanted else "DEFAULT"
            is_last = may_skip and skips.last is not None and packet.pts == skips.last
            with decoder_errors(path):
                is_final = is_last or breaks_off
                frames, held, is_lost = _decode(codec, packet, is_damaged=is_damaged, is_final=is_final)
                is_end = not packet.size and not is_lost and survey.num_frames > 0
                known = packets.known_frames(frames, held, is_end=is_end)
            for output, frame in enumerate(known, start=number * MAX_OUTPUTS):
                yield DecodedFrame(frame, output)
            if is_last:
                return
            survey.num_frames += len(known)
            recovery.num_lost += len(frames) + len(held) - len(known)
            if is_lost or breaks_off:
                recovery.begin(num_lost=int(is_lost))
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
    codec = single_threaded_decoder(MOTION_JPEG)
    with decoder_errors(path), open_bytes(path) as file:
        for offset, size in byte_ranges:
            file.seek(offset)
            frames: list[VideoFrame] = []
            with suppress(InvalidDataError):
                frames = codec.decode(Packet(file.read(size)))
            yield frames[0] if len(frames) == 1 and _is_intact(frames[0]) else None
