"""The index of a video file: where each frame is, and when it is shown.

F frames, K keyframes. There are two kinds of index.

Most files of ISO media and Matroska state in each packet when its frame is shown. Their index is made from
the packets, without decoding: frame number n has the n-th time stamp in rising order.

All other files are decoded once, from the start, to count their frames. So are files whose time stamps are
missing, repeated, or in an order that the decoder cannot produce: the decoder's order is right. A
counted frame is found by the packet that pushes it out of the decoder. A reader may begin at a keyframe that
a seek was seen to reach, with the same images put out by the same packets from there on.

Frames at the start of a recording that refer to frames before it are left out, as players do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import astuple, dataclass
from itertools import islice, pairwise
from typing import Final, NamedTuple

import numpy as np
from av import Packet, VideoCodecContext, VideoFrame, VideoStream
from av.container import InputContainer

from everest.video.decoding import MAX_HELD_FRAMES, DecodedFrame, LostPackets, Skips, Survey, decode_frames
from everest.video.packets import Entry, checksum
from everest.video.source import Video
from everest.video.stream import VideoError, read_packets
from everest.video.times import RepairedTimes, numbers_among_lost, repair_times

STAMPED_FORMATS: Final = ("mov", "matroska")  # first parts of FFmpeg's names of the formats
COUNTED_CODECS: Final = frozenset({"vp8"})  # packets of VP8's hidden reference frames show nothing
MAX_INTERVAL_RATIO: Final = 1.6  # heuristic: an interval / the median, or the reverse; 3:2 pull-down has 1.5
FRAMES_COMPARED: Final = 4  # frames compared after each entry
MIN_ENTRY_DISTANCE: Final = 10  # packets from one entry to the next: nearer entries save no time
MAX_FAILED_ENTRIES: Final = 3  # entries; if none of them is reached, a format cannot seek


class UnitTypes(NamedTuple):
    """How to read the units (NAL) of which a packet of H.264 or HEVC consists."""

    length_at: int  # position of the byte in the codec's header that states the size of a length field
    shift: int  # shift of the type in a unit's first byte
    mask: int
    pictures: range  # types
    restarts: range  # types of pictures that end all references to earlier pictures


UNIT_TYPES: Final = {
    "h264": UnitTypes(length_at=4, shift=0, mask=31, pictures=range(1, 6), restarts=range(5, 6)),
    "hevc": UnitTypes(length_at=21, shift=1, mask=63, pictures=range(32), restarts=range(16, 22)),
}


class StampedPacket(NamedTuple):
    """A packet that shows a frame."""

    time: int  # when it is shown, in the stream's units
    seek: int  # time to seek to
    is_key: bool
    duration: int = 0  # how long it is shown; 0: not stated
    restarts: bool = True  # no frame shown after this keyframe refers to one before it
    offset: int = -1  # first byte in the file; -1: not known
    size: int = 0  # size in bytes


@dataclass(frozen=True, slots=True, eq=False)
class StampedIndex:
    """An index of time stamps, by which frames are found."""

    times: np.ndarray  # (F,) int64 rising: when frames are shown, in the stream's units
    key_times: np.ndarray  # (K,) int64 rising
    key_seeks: np.ndarray  # (K,) int64, times to seek to for the keyframes
    # (F,) int64, position of each frame in decode order; empty if GOPs may be open.
    order: np.ndarray
    last_duration: int  # how long the last frame is shown; 0: not known
    # Each (F,) int64, in bytes: where the image of each frame is, see `decode_images`; usually empty.
    offsets: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, packets: Sequence[StampedPacket], *, are_images: bool) -> StampedIndex:
        """Make the index of a stream from the packets of `read_stamped_packets`.

        Args:
            are_images: each packet is an independent image.
        """
        keys = sorted(packet for packet in packets if packet.is_key)
        times = np.array([packet.time for packet in packets], dtype=np.int64)  # in decode order
        display_order = np.argsort(times)
        # GOPs are closed if every frame, from the first on, is shown after the last keyframe decoded before.
        has_closed_gops = True
        last_key = np.inf
        for packet in packets:
            last_key = packet.time if packet.is_key else last_key
            is_closed = packet.time >= last_key and (packet.restarts or not packet.is_key)
            has_closed_gops = has_closed_gops and is_closed
        return cls(
            times=times[display_order],
            order=display_order if has_closed_gops else display_order[:0],
            key_times=np.array([key.time for key in keys], dtype=np.int64),
            key_seeks=np.array([key.seek for key in keys], dtype=np.int64),
            last_duration=packets[display_order[-1]].duration,
            offsets=np.array([packets[i].offset for i in display_order if are_images], dtype=np.int64),
            sizes=np.array([packets[i].size for i in display_order if are_images], dtype=np.int64),
        )

    def __len__(self) -> int:
        return self.times.size

    def plan_seeks(self, wanted: list[int]) -> list[tuple[Entry | None, list[int]]]:
        """Divide the numbers of `wanted` frames (rising) at keyframes to which a reader can seek.

        Returns:
            The parts, each with the entry from which to decode it; an entry of None is the start of the file.
        """
        keys = np.searchsorted(self.key_times, self.times[wanted], side="right") - 1  # -1: before all keys
        return [
            (Entry(int(self.key_seeks[key])) if key > 0 else None, part)
            for key, part in _divide_at_jumps(keys, wanted)
        ]

    def skips(self, wanted: list[int]) -> Skips:
        """The frames that a reader of the `wanted` frames (rising) may skip.

        A frame that is decoded after all wanted frames of its GOP is droppable: none of them refers to it. If
        GOPs may be open, no frame is known to be droppable.
        """
        # Only frames that a reader may meet count: from the GOP before the first wanted frame to one GOP
        # after the last. A clip from a file of many hours then costs no work for all frames of the file.
        keys = self.key_times
        wanted_ends = self.times[[wanted[0], wanted[-1]]]
        first, last = np.searchsorted(keys, wanted_ends, side="right").tolist()  # number of the GOP, plus 1
        first_nearby = int(np.searchsorted(self.times, keys[first - 2])) if first > 1 else 0
        end = int(np.searchsorted(self.times, keys[last + 1])) if last + 1 < keys.size else len(self)
        nearby = slice(first_nearby, end)
        times = self.times[nearby]
        unwanted = set(times.tolist()).difference(self.times[wanted].tolist())
        if not self.order.size:
            return Skips(unwanted)
        order = self.order[nearby]
        chosen = np.array(wanted) - first_nearby
        gop = np.searchsorted(keys, times, side="right") - 1
        last_of_gop = np.full(len(keys), -1)  # the last wanted frame of each GOP, in decode order
        np.maximum.at(last_of_gop, gop[chosen], order[chosen])
        last_decoded = wanted[int(self.order[wanted].argmax())]
        droppable = set(times[order > last_of_gop[gop]].tolist())
        return Skips(unwanted, droppable, last=int(self.times[last_decoded]))


@dataclass(frozen=True, slots=True, eq=False)
class CountedIndex:
    """An index of decoder outputs, by which frames are found, and the entries that were seen to work."""

    outputs: np.ndarray  # (F,) int64 rising, see `DecodedFrame`
    times: np.ndarray  # (F,) int64 rising; empty if the file does not store when frames are shown
    entry_frames: np.ndarray  # (E,) int64 rising: the first correct frame after each entry
    entry_seeks: np.ndarray  # (E,) int64
    entry_packets: np.ndarray  # (E,) int64
    entry_marks: np.ndarray  # (E,) int64
    last_duration: int  # how long the last frame is shown; 0: not known

    def __len__(self) -> int:
        return self.outputs.size

    def plan_seeks(self, wanted: list[int]) -> list[tuple[Entry | None, list[int]]]:
        """Divide the numbers of `wanted` frames (rising) at the entries, see `StampedIndex.plan_seeks`."""
        entries = np.searchsorted(self.entry_frames, wanted, side="right") - 1
        columns = (self.entry_seeks, self.entry_packets, self.entry_marks)
        return [
            (Entry(*(int(column[entry]) for column in columns)) if entry >= 0 else None, part)
            for entry, part in _divide_at_jumps(entries, wanted)
        ]


FrameIndex = StampedIndex | CountedIndex


def pick_frames(
    index: FrameIndex, decoded: Iterable[DecodedFrame], wanted: Iterable[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the `wanted` frames with their numbers; in a damaged file, time stamps may repeat."""
    is_stamped = isinstance(index, StampedIndex)
    keys = index.times if is_stamped else index.outputs
    frame_numbers: dict[int | None, int] = {int(keys[frame_number]): frame_number for frame_number in wanted}
    for frame, output in decoded:
        frame_number = frame_numbers.pop(frame.pts if is_stamped else output, None)
        if frame_number is not None:
            yield frame_number, frame


def _divide_at_jumps(entries: np.ndarray, wanted: list[int]) -> list[tuple[int, list[int]]]:
    """Divide `wanted` frames (rising) where the `entries` before them, (F,), jump by more than one."""
    bounds = [0, *(np.flatnonzero(np.diff(entries) > 1) + 1), len(wanted)]
    return [(int(entries[start]), wanted[start:end]) for start, end in pairwise(bounds)]


def read_stamped_packets(
    path: Video, container: InputContainer, stream: VideoStream
) -> tuple[list[StampedPacket], bool]:
    """The packets that show a frame, in decode order, and whether their stamps can be trusted.

    Returns:
        No packets if stamps are missing, or if the format or codec has none for each frame.
    """
    codec = stream.codec_context
    if not container.format.name.startswith(STAMPED_FORMATS) or codec.name in COUNTED_CODECS:
        return [], False
    stamped = []
    for packet in read_packets(path, container, stream):
        if not packet.size or packet.is_corrupt or packet.is_discard:
            continue
        if packet.pts is None:
            return [], False
        stamped.append(
            StampedPacket(
                time=packet.pts,
                # mp4 seeks by decode time: in a very short GOP a display time may be after the next keyframe.
                seek=packet.pts if packet.dts is None else packet.dts,
                is_key=packet.is_keyframe,
                duration=packet.duration or 0,
                restarts=packet.is_keyframe and _restarts(codec, packet),
                offset=-1 if packet.pos is None else packet.pos,
                size=packet.size,
            )
        )
    times = np.array([packet.time for packet in stamped], dtype=np.int64)
    delay = (1 if codec.name.startswith("mpeg") else MAX_HELD_FRAMES) if codec.has_b_frames else 0
    return stamped, _is_possible_order(times, delay)


def _restarts(codec: VideoCodecContext, packet: Packet) -> bool:
    """Whether frames shown after a keyframe never refer to frames before it; False if that is not known."""
    types = UNIT_TYPES.get(codec.name)
    if types is None:
        return True
    header = codec.extradata or b""
    data = memoryview(packet)
    offset = 0
    if len(header) <= types.length_at or header[0] != 1:  # the units have no lengths
        return False
    length_bytes = (header[types.length_at] & 3) + 1
    while offset + length_bytes < len(data):
        payload = offset + length_bytes
        unit_type = data[payload] >> types.shift & types.mask
        if unit_type in types.pictures:
            return unit_type in types.restarts
        offset = payload + int.from_bytes(data[offset:payload])
    return False


def _is_possible_order(times: np.ndarray, delay: int) -> bool:
    """Whether time stamps in decode order (F,) can be right: a decoder holds back `delay` frames at most."""
    if times.size < 2:
        return True
    order = np.argsort(times, kind="stable")
    intervals = np.diff(times[order])
    ranks = np.empty_like(order)
    ranks[order] = np.arange(order.size)
    if np.any(intervals == 0) or np.any(np.arange(order.size) - ranks > delay):
        return False
    if delay == 0:
        return True
    if np.all(np.diff(times) > 0):  # decode times, or a decoder that only claims to hold back frames
        return False
    # The order does not reveal a stamp in the wrong place, but it leaves an interval of double length.
    return bool(np.all(np.abs(np.log(intervals / np.median(intervals))) < np.log(MAX_INTERVAL_RATIO)))


def count_frames(
    path: Video, *, frame_interval: float, are_decode_times: bool
) -> tuple[CountedIndex, list[LostPackets], RepairedTimes]:
    """Decode a file to count its frames, and find the entries that work.

    Args:
        frame_interval: time from one frame to the next in the stream's units, by the stated rate.
        are_decode_times: the file stores times of decoding only.
    Returns:
        The index, the packets that cannot be decoded, and the times with their repairs.
    """
    survey = Survey()
    outputs: list[int] = []
    stamps: list[int | None] = []
    entries: list[Entry] = []  # keyframes that are not near each other
    checksums: dict[int, int] = {}  # checksums of the frames after each entry, by output number
    last_duration = compared_until = 0
    with closing(decode_frames(path, survey=survey)) as decoded:
        for frame, output in decoded:
            last = entries[-1].packet if entries else 0
            if survey.keys and survey.keys[-1].packet >= last + MIN_ENTRY_DISTANCE:
                entries.append(survey.keys[-1])
                compared_until = len(outputs) + MAX_HELD_FRAMES + FRAMES_COMPARED
            if len(outputs) < compared_until:
                checksums[output] = checksum(path, frame)
            outputs.append(output)
            stamps.append(frame.pts)
            last_duration = frame.duration or 0
    lost = survey.lost
    repaired_times = repair_times(stamps, survey.stamps, lost, are_decode_times=are_decode_times)
    times = repaired_times.times
    if not times.size and lost:
        times = (numbers_among_lost(lost, len(outputs)) * frame_interval).round().astype(np.int64)
    marks = Counter(key.mark for key in survey.keys)
    distinct = [entry for entry in entries if marks[entry.mark] == 1]
    rows = [(first, *astuple(entry)) for first, entry in _find_entries(path, distinct, outputs, checksums)]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    index = CountedIndex(np.array(outputs, dtype=np.int64), times, *columns, last_duration=last_duration)
    return index, lost, repaired_times


def _find_entries(
    path: Video, entries: Sequence[Entry], outputs: list[int], checksums: dict[int, int]
) -> list[tuple[int, Entry]]:
    """The entries from which decoding gives the same images, each with the number of its first frame."""
    reachable: list[tuple[int, Entry]] = []
    failed = 0
    for entry in entries:
        if failed > MAX_FAILED_ENTRIES + len(reachable):
            break
        actual: dict[int, int] = {}
        with suppress(VideoError), closing(decode_frames(path, entry)) as decoded:
            actual = {output: checksum(path, frame) for frame, output in islice(decoded, FRAMES_COMPARED)}
        first = bisect_left(outputs, min(actual, default=0))
        expected = outputs[first : first + len(actual)]
        if actual and actual == {output: checksums.get(output) for output in expected}:
            reachable.append((first, entry))
        else:
            failed += 1
    return reachable
