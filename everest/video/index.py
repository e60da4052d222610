"""The index of a video file: where each frame is, and when it is shown.

F frames, K keyframes. There are two kinds of index.

Most files of ISO media and Matroska state in each packet when its frame is shown. Their index is made from
the packets, without decoding: frame number n has the n-th time stamp in rising order.

All other files are decoded once, from the start, and their frames counted. So are those whose time stamps
are missing, repeated, or in an order that their decoder cannot have: the decoder's order is the right one. A
counted frame is found by its place: the packet that pushes it out of the decoder. A reader may begin at a
keyframe that a seek was seen to reach, with the same images at the same places from there on.

Frames at the start of a recording that refer to frames before it are left out, as players do.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import astuple, dataclass
from itertools import islice, pairwise
from typing import Final, NamedTuple

import av
import numpy as np
from av import VideoCodecContext, VideoFrame, VideoStream
from av.container import InputContainer

from everest.video.cuts import MOST_HELD
from everest.video.decoding import Decoded, Entry, Loss, Skips, Survey, decode_frames
from everest.video.source import Video
from everest.video.stream import VideoError, decoder_errors, packets
from everest.video.times import Repaired, places_with, repaired

STAMPED_FORMATS: Final = ("mov", "matroska")  # beginnings of FFmpeg's names
# Of H.264 and HEVC: the byte of the header with the length of a unit's size, the lowest bit of a unit's type,
# its mask, the types of pictures, and those that end all references to earlier ones.
UNITS: Final = {
    "h264": (4, 0, 31, range(1, 6), range(5, 6)),
    "hevc": (21, 1, 63, range(32), range(16, 22)),
}
COUNTED_CODECS: Final = frozenset({"vp8"})  # packets of its hidden reference frames show nothing
EVEN: Final = 1.6  # our choice: how much longer or shorter than usual a step may be; 3:2 pull-down has 1.5
COMPARED: Final = 4  # frames from each entry on
LEAST_BETWEEN: Final = 10  # packets from one entry to the next: nearer ones save no time
TRIED: Final = 3  # entries; if none of them is reached, a format cannot seek


class Packet(NamedTuple):
    """A packet that shows a frame."""

    time: int  # when it is shown, in the stream's units
    seek: int  # where to seek for it
    is_key: bool
    duration: int = 0  # how long it is shown; 0: not stated
    restarts: bool = True  # no frame shown after this keyframe refers to one before it
    offset: int = -1  # the place of its bytes in the file; -1: not known
    size: int = 0  # bytes


@dataclass(frozen=True, slots=True, eq=False)
class StampedIndex:
    """The time stamps of a file by which its frames are found."""

    times: np.ndarray  # (F,) int64 rising: when frames are shown, in the stream's units
    key_times: np.ndarray  # (K,) int64 rising
    key_seeks: np.ndarray  # (K,) int64, where to seek for them
    # (F,) int64, position of each frame in decode order; empty if GOPs may be open.
    order: np.ndarray
    last_duration: int  # how long the last frame is shown; 0: not known
    # (F,) int64 each, in bytes: where the image of each frame is, see `decode_places`; usually empty.
    offsets: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, packets: Sequence[Packet], *, are_images: bool) -> StampedIndex:
        """Make the index of a stream from the packets of `stamped_packets`.

        Args:
            are_images: each packet is an image of its own.
        """
        keys = sorted(packet for packet in packets if packet.is_key)
        times = np.array([packet.time for packet in packets], dtype=np.int64)  # as decoded
        shown = np.argsort(times)
        # Closed: from the first on, every frame is shown after the keyframe that it follows in decode order.
        has_closed_gops, last_key = True, None
        for packet in packets:
            last_key = packet.time if packet.is_key else last_key
            is_closed = last_key is not None and packet.time >= last_key
            has_closed_gops = has_closed_gops and is_closed and (packet.restarts or not packet.is_key)
        return cls(
            times=times[shown],
            order=shown if has_closed_gops else shown[:0],
            key_times=np.array([key.time for key in keys], dtype=np.int64),
            key_seeks=np.array([key.seek for key in keys], dtype=np.int64),
            last_duration=packets[shown[-1]].duration,
            offsets=np.array([packets[i].offset for i in shown if are_images], dtype=np.int64),
            sizes=np.array([packets[i].size for i in shown if are_images], dtype=np.int64),
        )

    @property
    def frames(self) -> int:
        """F."""
        return self.times.size

    def runs(self, wanted: list[int]) -> list[tuple[Entry | None, list[int]]]:
        """Split the numbers of `wanted` frames (rising) at keyframes to which a reader can seek.

        Returns:
            Each part with the entry from which to decode it; None is the start of the file.
        """
        keys = np.searchsorted(self.key_times, self.times[wanted], side="right") - 1  # -1: before the first
        return [
            (Entry(int(self.key_seeks[key])) if key > 0 else None, run) for key, run in _runs(keys, wanted)
        ]

    def skips(self, wanted: list[int]) -> Skips:
        """All frames that the `wanted` ones (rising) do not need.

        Frames are needless to which no wanted frame refers, because they are decoded after all wanted frames
        of their GOP; this is not known if GOPs may be open.
        """
        # Only those that a reader may meet: of the GOPs from the first wanted frame to the last, and of one
        # GOP at each side. A clip of a file of many hours then does not cost work for all its frames.
        near, keys = slice(0, self.times.size), self.key_times
        if keys.size:
            ends = self.times[[wanted[0], wanted[-1]]]
            first, last = np.searchsorted(keys, ends, side="right").tolist()  # GOP + 1
            start = int(np.searchsorted(self.times, keys[first - 2])) if first > 1 else 0
            stop = int(np.searchsorted(self.times, keys[last + 1])) if last + 1 < keys.size else near.stop
            near = slice(start, stop)
        times = self.times[near]
        unwanted = set(times.tolist()).difference(self.times[wanted].tolist())
        if not self.order.size:
            return Skips(unwanted)
        order, chosen = self.order[near], np.array(wanted) - near.start
        gop = np.searchsorted(keys, times, side="right") - 1
        final_of_gop = np.full(len(keys), -1)  # the last wanted frame of each GOP, in decode order
        np.maximum.at(final_of_gop, gop[chosen], order[chosen])
        final = wanted[int(self.order[wanted].argmax())]
        needless = set(times[order > final_of_gop[gop]].tolist())
        return Skips(unwanted, needless, last=int(self.times[final]))


@dataclass(frozen=True, slots=True, eq=False)
class CountedIndex:
    """The places of a file's frames in the output of the decoder, and the entries that were seen to work."""

    places: np.ndarray  # (F,) int64 rising
    times: np.ndarray  # (F,) int64 rising; empty if the file does not store when frames are shown
    entry_frames: np.ndarray  # (E,) int64 rising: the first frame that is right after each entry
    entry_seeks: np.ndarray  # (E,) int64
    entry_packets: np.ndarray  # (E,) int64
    entry_marks: np.ndarray  # (E,) int64
    last_duration: int  # how long the last frame is shown; 0: not known

    @property
    def frames(self) -> int:
        """F."""
        return self.places.size

    def runs(self, wanted: list[int]) -> list[tuple[Entry | None, list[int]]]:
        """Split the numbers of `wanted` frames (rising) at the entries, see `StampedIndex.runs`."""
        entries = np.searchsorted(self.entry_frames, wanted, side="right") - 1
        columns = (self.entry_seeks, self.entry_packets, self.entry_marks)
        return [
            (Entry(*(int(column[entry]) for column in columns)) if entry >= 0 else None, run)
            for entry, run in _runs(entries, wanted)
        ]

    def skips(self, wanted: list[int]) -> Skips:
        """None: a place depends on all frames before it."""
        return Skips()


FrameIndex = StampedIndex | CountedIndex


def numbered(
    index: FrameIndex, decoded: Iterable[Decoded], wanted: Iterable[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """The `wanted` ones of decoded frames, each with its number; a damaged file may repeat a time stamp."""
    is_stamped = isinstance(index, StampedIndex)
    keys = index.times if is_stamped else index.places
    numbers: dict[int | None, int] = {int(keys[number]): number for number in wanted}
    for frame, place in decoded:
        number = numbers.pop(frame.pts if is_stamped else place, None)
        if number is not None:
            yield number, frame


def _runs(starts: np.ndarray, wanted: list[int]) -> list[tuple[int, list[int]]]:
    """Split `wanted` frames where the start before them (F,) is not the last one or its successor."""
    begins = [0, *(np.flatnonzero(np.diff(starts) > 1) + 1), len(wanted)]
    return [(int(starts[begin]), wanted[begin:end]) for begin, end in pairwise(begins)]


def stamped_packets(path: Video, container: InputContainer, stream: VideoStream) -> tuple[list[Packet], bool]:
    """The packets that show a frame, in decode order, and whether their stamps can be trusted.

    Returns:
        No packets if stamps are missing, or if the format or codec has none for each frame.
    """
    codec = stream.codec_context
    if not container.format.name.startswith(STAMPED_FORMATS) or codec.name in COUNTED_CODECS:
        return [], False
    stamped = []
    for packet in packets(path, container, stream):
        if not packet.size or packet.is_corrupt or packet.is_discard:
            continue
        if packet.pts is None:
            return [], False
        # mp4 seeks by decode time: in a very short GOP a display time may be after the next keyframe.
        seek = packet.pts if packet.dts is None else packet.dts
        restarts = packet.is_keyframe and _restarts(codec, packet)
        place = -1 if packet.pos is None else packet.pos
        stamped.append(
            Packet(packet.pts, seek, packet.is_keyframe, packet.duration or 0, restarts, place, packet.size)
        )
    times = np.array([packet.time for packet in stamped], dtype=np.int64)
    delay = (1 if codec.name.startswith("mpeg") else MOST_HELD) if codec.has_b_frames else 0
    return stamped, _are_in_a_possible_order(times, delay)


def _restarts(codec: VideoCodecContext, packet: av.Packet) -> bool:
    """Whether no frame that is shown after a keyframe refers to one before it; False if that is not known."""
    if codec.name not in UNITS:
        return True
    header, data, at = codec.extradata or b"", memoryview(packet), 0
    place, shift, mask, pictures, restarting = UNITS[codec.name]
    if len(header) <= place or header[0] != 1:  # units without sizes
        return False
    length = (header[place] & 3) + 1
    while at + length < len(data):
        kind = data[at + length] >> shift & mask
        if kind in pictures:
            return kind in restarting
        at += length + int.from_bytes(data[at : at + length])
    return False


def _are_in_a_possible_order(times: np.ndarray, delay: int) -> bool:
    """Whether time stamps in decode order (F,) can be right: a decoder holds back `delay` frames at most."""
    order = np.argsort(times, kind="stable")
    steps = np.diff(times[order])
    if times.size < 2:
        return True
    ranks = np.empty_like(order)
    ranks[order] = np.arange(order.size)
    if np.any(steps == 0) or np.any(np.arange(order.size) - ranks > delay):
        return False
    if delay == 0:
        return True
    if np.all(np.diff(times) > 0):  # times of decoding, or a decoder that is only said to hold back frames
        return False
    # A stamp in a wrong place is not noticed by its order; but it leaves a step of double length.
    return bool(np.all(np.abs(np.log(steps / np.median(steps))) < np.log(EVEN)))


def count_frames(path: Video, *, step: float, of_decoding: bool) -> tuple[CountedIndex, list[Loss], Repaired]:
    """Decode a file to count its frames, and find the entries that work.

    Args:
        step: from one frame to the next in the stream's units, by the stated rate.
        of_decoding: the file stores times of decoding only.
    Returns:
        The index, what cannot be decoded, and the times with what was repaired of them.
    """
    survey = Survey()
    keys, losses = survey.keys, survey.losses
    chosen: list[Entry] = []
    places: list[int] = []
    stamps: list[int | None] = []
    checksums: dict[int, int] = {}  # of frames after entries, by their places
    duration, compared_until = 0, 0
    with closing(decode_frames(path, survey=survey)) as frames:
        for frame, place in frames:
            if keys and keys[-1].packet >= LEAST_BETWEEN + (chosen[-1].packet if chosen else 0):
                chosen.append(keys[-1])
                compared_until = len(places) + MOST_HELD + COMPARED
            if len(places) < compared_until:
                checksums[place] = _checksum(path, frame)
            places.append(place)
            stamps.append(frame.pts)
            duration = frame.duration
    fixed = repaired(stamps, survey.stamps, losses, of_decoding=of_decoding)
    times = fixed.times
    if not times.size and losses:
        times = (places_with(losses, len(places)) * step).round().astype(np.int64)
    marks = Counter(key.mark for key in keys)
    entries = _working(path, [key for key in chosen if marks[key.mark] == 1], places, checksums)
    columns = np.array([(first, *astuple(entry)) for first, entry in entries], dtype=np.int64).reshape(-1, 4)
    index = CountedIndex(np.array(places, dtype=np.int64), times, *columns.T, last_duration=duration or 0)
    return index, losses, fixed


def _working(
    path: Video, keys: Sequence[Entry], places: Sequence[int], checksums: Mapping[int, int]
) -> list[tuple[int, Entry]]:
    """The entries that give the same images at the same places, each with the number of its first frame."""
    working: list[tuple[int, Entry]] = []
    failed = 0
    for entry in keys:
        if failed > TRIED + len(working):
            break
        reached: dict[int, int] = {}
        with suppress(VideoError), closing(decode_frames(path, entry)) as frames:
            reached = {place: _checksum(path, frame) for frame, place in islice(frames, COMPARED)}
        first = bisect_left(places, min(reached, default=0))
        expected = {place: checksums.get(place) for place in places[first : first + len(reached)]}
        if reached and reached == expected:
            working.append((first, entry))
        else:
            failed += 1
    return working


def _checksum(path: Video, frame: VideoFrame) -> int:
    """Of the first plane, which is the luma of most formats, without the padding of its rows."""
    with decoder_errors(path):
        plane = frame.planes[0]
        rows = np.frombuffer(bytes(plane), dtype=np.uint8).reshape(plane.height, -1)
        return zlib.crc32(rows[:, : plane.width].tobytes())
