"""The frames of a file, decoded in display order from a known place on and past every damage.

Decoders conceal missing data: a frame that refers to a damaged one looks valid, but is not the recorded one.
Everything from the damage to the next keyframe is therefore left out, and counted as a loss.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final, NamedTuple

from av import Packet, VideoCodecContext, VideoFrame, VideoStream
from av.container import InputContainer
from av.error import InvalidDataError

from everest.video.cuts import is_cut, pes_state
from everest.video.source import Video, open_bytes
from everest.video.stream import IMAGES, decoder_errors, decoder_options, open_stream, packets

# Their decoders apply `skip_frame` per packet; AV1's also drops frames that it had started before.
SKIPPING_CODECS: Final = frozenset({"h264", "hevc"})
# Where they break off, it is not known which frames are missing among those that the decoder still holds.
UNTIMED_FORMATS: Final = frozenset({"avi", "asf", "mpeg", "h264", "hevc", "m4v", "mpegvideo"})
PLACES: Final = 2**8  # of the frames that one packet pushes out; the end of a file pushes out up to 32
REACHED_WITHIN: Final = 4000  # packets from where a seek ended to the keyframe


@dataclass(frozen=True, slots=True)
class Entry:
    """A keyframe at which decoding can begin."""

    seek: int  # time in the stream's units, or byte
    packet: int = 0  # its number in the file
    mark: int | None = None  # of its content and place; None: begin wherever the seek ends


class Decoded(NamedTuple):
    """A frame, and where it came out of the decoder: the number of the packet times PLACES, plus its own."""

    frame: VideoFrame
    place: int


class Loss(NamedTuple):
    """Packets that cannot be decoded."""

    frames: int  # that came before it
    packets: int  # 0: known by the times of the frames only


class Skips(NamedTuple):
    """The frames that a reader does not need, by their time stamps."""

    unwanted: Collection[int] = ()  # may be skipped if no other frame refers to them
    needless: Collection[int] = ()  # can always be skipped
    last: int | None = None  # of the frame whose packet is the last to be read


@dataclass(slots=True)
class Survey:
    """What decoding shows about a file besides its frames."""

    keys: list[Entry] = field(default_factory=list)  # keyframes
    stamps: list[int | None] = field(default_factory=list)  # of the packets, as decoded
    losses: list[Loss] = field(default_factory=list)  # what cannot be decoded


def decode_frames(
    path: Video,
    entry: Entry | None = None,
    *,
    skips: Skips | None = None,
    survey: Survey | None = None,
    from_any: bool = False,
) -> Generator[Decoded]:
    """Decode frames in display order from an entry, or from the start; nothing if it is not reached.

    Args:
        survey: is filled.
        from_any: begin at any packet, not at the first keyframe.
    """
    skips, survey = skips or Skips(), survey or Survey()
    with open_stream(path) as (container, stream):
        codec = stream.codec_context
        may_skip = codec.name in SKIPPING_CODECS and len(skips.unwanted) > 0
        count, lost = 0, 0
        is_timed = container.format.name not in UNTIMED_FORMATS
        awaits_key = entry is None and not from_any  # at the start and after a damage
        is_broken = False
        for number, packet, is_damaged, breaks_off in judged_packets(path, container, stream, entry):
            is_key = packet.is_keyframe and packet.size > 0
            if packet.size:
                survey.stamps.append(packet.pts)
            if awaits_key and packet.size:
                if not is_key or is_damaged:
                    lost += is_broken or is_damaged
                    continue
                awaits_key = False
                if lost or is_broken:
                    survey.losses.append(Loss(count, lost))
                lost, is_broken = 0, False
            if is_key:
                survey.keys.append(_entry(container, packet, number))
            if may_skip:
                if packet.pts in skips.needless:
                    continue
                codec.skip_frame = "NONREF" if packet.pts in skips.unwanted else "DEFAULT"
            is_last = may_skip and skips.last is not None and packet.pts == skips.last
            frames: list[VideoFrame] = []
            with decoder_errors(path):
                if not is_damaged:
                    try:
                        frames = packet.decode()
                    except InvalidDataError:
                        is_damaged = True
                sound = list(takewhile(_is_sound, frames))
                if len(sound) < len(frames):  # what the decoder still holds may refer to this frame
                    is_damaged = True
                elif is_last or is_damaged or breaks_off:
                    held = list(takewhile(_is_sound, codec.decode(None)))
                    if is_timed:
                        sound += held
                    else:
                        lost += len(held)
                elif not is_timed and not packet.size and count and is_cut(path):
                    lost += len(sound)
                    sound = []
                if is_damaged or breaks_off:
                    codec.flush_buffers()
            for place, frame in enumerate(sound, start=number * PLACES):
                yield Decoded(frame, place)
            if is_last:
                return
            count += len(sound)
            lost += is_damaged
            is_broken = is_broken or is_damaged or breaks_off
            awaits_key = awaits_key or is_damaged or breaks_off
        if lost:
            survey.losses.append(Loss(count, lost))
        has_keyframe = not awaits_key or is_broken or lost > 0
    if not has_keyframe:
        survey.stamps.clear()
        yield from decode_frames(path, survey=survey, from_any=True)


def _is_sound(frame: VideoFrame) -> bool:
    return not frame.is_corrupt


def decode_places(path: Video, places: Iterable[tuple[int, int]]) -> Iterator[VideoFrame | None]:
    """Decode packets that are images of their own, by their places in the file, without a demuxer.

    Args:
        places: (offset, size) in bytes of each packet.
    Returns:
        Of each packet its frame; None if it is damaged.
    """
    codec = VideoCodecContext.create(IMAGES, "r")
    codec.thread_count, codec.options = 1, decoder_options(IMAGES)
    with decoder_errors(path), open_bytes(path) as file:
        for offset, size in places:
            file.seek(offset)
            frames: list[VideoFrame] = []
            with suppress(InvalidDataError):
                frames = codec.decode(Packet(file.read(size)))
            yield frames[0] if len(frames) == 1 and not frames[0].is_corrupt else None


def judged_packets(
    path: Video, container: InputContainer, stream: VideoStream, entry: Entry | None = None
) -> Iterator[tuple[int, Packet, bool, bool]]:
    """Yield each packet from an entry on, with its number.

    Also whether it is damaged, and whether the stream breaks off after it.
    """
    read = packets(path, container, stream)
    is_ts = container.format.name == "mpegts"
    begin = entry or Entry(0)
    if entry is not None:
        with decoder_errors(path):
            by_byte = is_ts and entry.mark is not None
            container.seek(entry.seek, stream=stream, unsupported_byte_offset=by_byte)
    first: Iterator[Packet] = read
    if begin.mark is not None:
        passed = islice(read, REACHED_WITHIN)
        first = (p for p in passed if p.is_keyframe and _entry(container, p, 0).mark == begin.mark)
    number, held = begin.packet, next(first, None)
    was_corrupt = False
    while held is not None:
        following = next(read, None)
        is_damaged, breaks_off = held.is_corrupt, False
        # A parser passes the mark of a damaged packet on to the frame before it.
        is_last = following is None or not following.size
        if is_ts and held.size and (held.is_corrupt or was_corrupt or is_last):
            is_whole, goes_on = pes_state(path, held.pos)
            is_damaged, breaks_off = not is_whole, not goes_on
        was_corrupt = held.is_corrupt
        yield number, held, is_damaged, breaks_off
        number, held = number + 1, following


def _entry(container: InputContainer, packet: Packet, number: int) -> Entry:
    """The entry at a keyframe. Of a program stream, only the content of packets is independent of seeks."""
    content = zlib.crc32(packet)
    if container.format.name == "mpegts" and packet.pos is not None:
        return Entry(packet.pos, number, zlib.crc32(repr(packet.pos).encode(), content))
    time = packet.dts if packet.dts is not None else packet.pts or 0
    if container.format.name == "mpeg":
        return Entry(time - 90_000, number, content)  # of 1/90000 s; its seeks often end too late
    place = repr((packet.pts, packet.pos)).encode()
    return Entry(time, number, zlib.crc32(place, content))
