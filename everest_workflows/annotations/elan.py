"""ELAN, `.eaf`: XML with times in milliseconds and tiers of annotations that do not overlap.

The class of a bout is the text of its annotation, else the name of the tier; its subject is the tier's
participant, its origin or observer the tier's annotator. A tier below another is read like any other if its
annotations have times. Annotations of the kind Symbolic_Association have the times of the annotation that
they refer to. Those of a Symbolic_Subdivision have no times and are left out.

Source: the schema EAFv3.0.xsd (mpi.nl/tools/elan).
"""

from __future__ import annotations

import mimetypes
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from everest.errors import shorten
from everest.video.frame_borders import VideoTimes
from everest_workflows.annotations.bout import (
    ORIGINS,
    Bout,
    Bouts,
    from_milliseconds,
    merge_overlaps,
    read_origin,
    to_milliseconds,
)
from everest_workflows.annotations.matching import VideoFinder, is_sound
from everest_workflows.annotations.records import LeftOut, Unread, record_errors

ROOT: Final = "ANNOTATION_DOCUMENT"
TIME_UNIT: Final = "milliseconds"
ALIGNED: Final = "ALIGNABLE_ANNOTATION"  # an annotation with times
REFERENCE: Final = "REF_ANNOTATION"  # an annotation that refers to another one
ASSOCIATION: Final = "Symbolic_Association"
MAX_LEVELS: Final = 9  # heuristic: of annotations that refer to each other
# All values of a tier that states when the behavior in its name happens.
HAPPENS: Final = frozenset({"yes", "y", "true", "1", "x", "+"})
URL_KEYS: Final = ("MEDIA_URL", "RELATIVE_MEDIA_URL")
TIER_TYPE: Final = "default-lt"
Milliseconds = tuple[int, int]  # start and end
_SCHEMA: Final = "{http://www.w3.org/2001/XMLSchema-instance}noNamespaceSchemaLocation"


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses a document type, which may define entities that fill the memory; ELAN writes none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a document type (DOCTYPE), which ELAN does not write")


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read the bouts of all tiers whose annotations have times.

    Their video is the first media file that is one of the user's videos: other cameras show the same scene.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoDocumentType()))
    except ElementTree.ParseError as error:
        raise ValueError(f"not XML: {error}") from error
    if root.tag != ROOT:
        raise ValueError(f"its first element is <{root.tag}>, and not <{ROOT}>; save it by ELAN")
    media: list[tuple[list[str], int]] = []  # names of each file, and its time at ELAN's time 0, in ms
    for descriptor in root.iterfind("HEADER/MEDIA_DESCRIPTOR"):
        with record_errors("a media file"):
            urls = [url for key in URL_KEYS if (url := descriptor.get(key, "").strip())]
            if urls:
                media.append((urls, int(descriptor.get("TIME_ORIGIN") or 0)))
    media.sort(key=lambda file: is_sound(file[0][0]))
    media = media or [([path.stem], 0)]
    names: list[str] = []
    found: list[Path | None] = []
    for urls, _ in media:
        # The name of a sound may fit several videos, but does not matter if a video is named.
        is_needed = not (is_sound(urls[0]) and any(found))
        names.append(next(filter(videos.find, urls if is_needed else ()), urls[0]))
        found.append(videos.find(names[-1]) if is_needed else None)
    shown = next((index for index, video in enumerate(found) if video is not None), 0)
    bouts: list[Bout] = []
    with left_out.reading("", [names[shown]]):
        units = root.find("HEADER[@TIME_UNITS]")
        if units is not None and (unit := units.attrib["TIME_UNITS"]) != TIME_UNIT:
            raise ValueError(f"its times are {unit}, and not {TIME_UNIT}; save it by ELAN")
        bouts += _read_bouts(root, names[shown], media[shown][1], left_out)
    yield from bouts
    for index, name in enumerate(names):
        if bouts and index != shown:
            # Further videos of the user get no bouts, and are named; if no file is the user's, all are named.
            is_further = found[shown] is None or found[index] not in (None, found[shown])
            left_out[f"media file {shorten(name)}" if is_further else "other media file"] += 1


def _read_bouts(root: Element, video: str, offset: int, left_out: LeftOut) -> Iterator[Bout]:
    """Yield the bouts of all tiers in a video, which is at `offset` milliseconds at ELAN's time 0."""
    slots = {slot.attrib["TIME_SLOT_ID"]: slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    kinds = {kind.get("LINGUISTIC_TYPE_ID"): kind.get("CONSTRAINTS") for kind in root.iter("LINGUISTIC_TYPE")}
    spans: dict[Element, Milliseconds] = {}  # of each annotation with times
    tiers: list[Element] = []  # whose times can be read
    for tier in root.iterfind("TIER"):
        with _reading_tier(tier, video, left_out):
            spans |= _align(list(tier.iter(ALIGNED)), slots)
            tiers.append(tier)
    by_id = {each.get("ANNOTATION_ID"): each for each in spans}
    associated = [tier for tier in tiers if kinds.get(tier.get("LINGUISTIC_TYPE_REF")) == ASSOCIATION]
    for _ in range(MAX_LEVELS):
        for annotation in (each for tier in associated for each in tier.iter(REFERENCE)):
            if (parent := by_id.get(annotation.get("ANNOTATION_REF"))) is not None:
                spans[annotation] = spans[parent]
                by_id.setdefault(annotation.get("ANNOTATION_ID"), annotation)
    for tier in tiers:
        name = tier.attrib["TIER_ID"]
        annotations = list(tier.iter(ALIGNED))
        for annotation in tier.iter(REFERENCE):
            if annotation in spans and _text(annotation):
                annotations.append(annotation)
            else:
                what = "text" if annotation in spans else "times"
                left_out[f"annotation without {what} of the tier '{shorten(name)}'"] += 1
        texts = list(map(_text, annotations))
        is_mark = len(set(texts)) == 1 and texts[0].casefold() in HAPPENS
        if is_mark and tier.get("ANNOTATOR") in ORIGINS:  # `write` names a tier of the class `1` so
            is_mark = not name.startswith(f"{texts[0]} ")
        with _reading_tier(tier, video, left_out) as record:
            person: Any = {"subject": record.subject, "observer": record.observer}
            person["origin"] = read_origin(tier.get("ANNOTATOR", "").strip())
            for annotation, text in zip(annotations, texts, strict=True):
                first, last = (time + offset for time in spans[annotation])
                if first < 0 and last <= 0:
                    left_out["annotation before the first frame"] += 1
                    continue
                start, end = from_milliseconds(max(first, 0), last)
                label = name if is_mark else text or name
                yield Bout(video=video, start=start, end=end, label=label, **person)


def _text(annotation: Element) -> str:
    return (annotation.findtext("ANNOTATION_VALUE") or "").strip()


@contextmanager
def _reading_tier(tier: Element, video: str, left_out: LeftOut) -> Iterator[Unread]:
    """Keep an error about a tier, with its annotator and participant."""
    annotator = tier.get("ANNOTATOR", "").strip()
    name = f"tier '{shorten(tier.attrib['TIER_ID'])}'"
    with left_out.reading(name, [video], "" if annotator in ORIGINS else annotator) as record:
        record.subject = tier.get("PARTICIPANT", "")
        yield record


def _align(annotations: Sequence[Element], slots: Mapping[str, str | None]) -> dict[Element, Milliseconds]:
    """The start and end in milliseconds of each annotation of a tier, in the order of time.

    Borders between the parts of a subdivision that were never moved have no time: ELAN divides the time
    between the neighboring borders evenly.
    """
    spans: dict[Element, Milliseconds] = {}
    parts: list[Element] = []  # the annotations since the last border with a time
    start: int | None = None
    for annotation in annotations:
        first, last = (slots[annotation.attrib[f"TIME_SLOT_REF{side}"]] for side in (1, 2))
        if first:
            parts, start = [], int(first)
        parts.append(annotation)
        if last and start is not None:
            length = int(last) - start
            borders = [start + length * index // len(parts) for index in range(len(parts) + 1)]
            spans |= zip(parts, pairwise(borders), strict=True)
            parts, start = [], None
    for annotation in annotations:
        if annotation not in spans:
            raise ValueError(f"the annotation {annotation.get('ANNOTATION_ID')} has no time")
    return spans


def write(bouts: Bouts, times: Mapping[str, VideoTimes], classes: Sequence[str]) -> str:
    """The document of one video: a tier for each class, subject and origin. Overlapping bouts are merged.

    Classes without bouts have an empty tier.
    """
    ((video, video_bouts),) = bouts.items()
    labels = {bout.label for bout in video_bouts}
    tiers: dict[tuple[str, str, str], list[tuple[int, int]]] = defaultdict(list)  # spans in milliseconds
    tiers |= {(name, "", "automated"): [] for name in classes if name not in labels}
    for bout in merge_overlaps(video_bouts):
        spans = tiers[bout.label, bout.subject, bout.origin]
        start, end = to_milliseconds(bout)
        if spans:
            start = max(start, spans[-1][1])  # a point event, which lasts 1 ms here, may overlap
        if start < end:  # false for a second point event in the same millisecond
            spans.append((start, end))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    root = Element(ROOT, {"AUTHOR": "everest", "DATE": date, "FORMAT": "3.0", "VERSION": "3.0"})
    root.set(_SCHEMA, "http://www.mpi.nl/tools/elan/EAFv3.0.xsd")
    header = SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS=TIME_UNIT)
    url = Path(video).absolute().as_uri() if Path(video).exists() else video
    mime = mimetypes.guess_type(video)[0] or "video/mp4"
    SubElement(header, "MEDIA_DESCRIPTOR", MEDIA_URL=url, MIME_TYPE=mime)
    last_id = SubElement(header, "PROPERTY", NAME="lastUsedAnnotationId")
    last_id.text = str(sum(map(len, tiers.values())))
    order = SubElement(root, "TIME_ORDER")
    tier_names: set[str] = set()
    slots: list[tuple[int, str]] = []  # two for each annotation: ELAN moves all annotations that share a slot
    for (label, subject, origin), spans in sorted(tiers.items()):
        name = " ".join([label, *([f"@{subject}"] if subject else []), f"({origin})"])
        while name in tier_names:  # a label may look like another label with its subject
            name += " 2"
        tier_names.add(name)
        tier = SubElement(root, "TIER", LINGUISTIC_TYPE_REF=TIER_TYPE, TIER_ID=name, ANNOTATOR=origin)
        if subject:
            tier.set("PARTICIPANT", subject)
        for span in spans:
            first, last = f"ts{len(slots) + 1}", f"ts{len(slots) + 2}"
            slots += zip(span, (first, last), strict=True)
            ids = {"ANNOTATION_ID": f"a{len(slots) // 2}", "TIME_SLOT_REF1": first, "TIME_SLOT_REF2": last}
            annotation = SubElement(SubElement(tier, "ANNOTATION"), ALIGNED, ids)
            SubElement(annotation, "ANNOTATION_VALUE").text = label
    for time, name in sorted(slots, key=lambda slot: slot[0]):
        SubElement(order, "TIME_SLOT", TIME_SLOT_ID=name, TIME_VALUE=str(time))
    attributes = {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": TIER_TYPE, "TIME_ALIGNABLE": "true"}
    SubElement(root, "LINGUISTIC_TYPE", attributes)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"
