"""ELAN, `.eaf`: XML with times in milliseconds and tiers of annotations that do not overlap.

The class of a bout is the text of its annotation, else the name of the tier; its subject is the tier's
participant, its origin or observer the tier's annotator. Annotations that refer to another annotation, and
have no times of their own, describe it and are left out.

Source: the schema EAFv3.0.xsd (mpi.nl/tools/elan).
"""

from __future__ import annotations

import mimetypes
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import SubElement

from everest.annotations.bout import (
    ORIGINS,
    Bout,
    Bouts,
    from_milliseconds,
    merge_overlaps,
    milliseconds,
    origin_in,
)
from everest.annotations.matching import VideoFinder, VideoTimes
from everest.annotations.records import LeftOut
from everest.errors import shown

ROOT: Final = "ANNOTATION_DOCUMENT"
TIER_TYPE: Final = "default-lt"
_SCHEMA: Final = "{http://www.w3.org/2001/XMLSchema-instance}noNamespaceSchemaLocation"


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses a document type: it may define entities that fill the memory, and ELAN writes none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a document type (DOCTYPE), which ELAN does not write")


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read the bouts of all tiers whose annotations have times."""
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoDocumentType()))
    except ElementTree.ParseError as error:
        raise ValueError(f"not XML: {error}") from error
    if root.tag != ROOT:
        raise ValueError(f"its first element is <{root.tag}>, and not <{ROOT}>; save it by ELAN")
    video, begin = _shown_media(root, path, videos, left_out)
    slots = {slot.attrib["TIME_SLOT_ID"]: slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    for tier in root.iterfind("TIER"):
        name = tier.attrib["TIER_ID"]
        annotator = tier.get("ANNOTATOR", "").strip()
        who = {"subject": tier.get("PARTICIPANT", ""), "observer": "" if annotator in ORIGINS else annotator}
        if referring := len(list(tier.iter("REF_ANNOTATION"))):
            left_out[f"annotation without times on the tier '{shown(name)}'"] += referring
        annotations = list(tier.iter("ALIGNABLE_ANNOTATION"))
        for annotation, (start, end) in zip(annotations, _times(annotations, slots, name), strict=True):
            start, end = from_milliseconds(start + begin, end + begin)
            label = (annotation.findtext("ANNOTATION_VALUE") or "").strip() or name
            yield Bout(video=video, start=start, end=end, label=label, origin=origin_in(annotator), **who)


def _shown_media(
    root: ElementTree.Element, path: Path, videos: VideoFinder, left_out: LeftOut
) -> tuple[str, int]:
    """The first media file that is one of the user's videos, and its milliseconds at the time 0.

    ELAN can align media: its time 0 is then the time TIME_ORIGIN of each of them.
    """
    media: list[tuple[str, int]] = []
    for descriptor in root.iterfind("HEADER/MEDIA_DESCRIPTOR"):
        url = descriptor.get("MEDIA_URL") or descriptor.get("RELATIVE_MEDIA_URL")
        if url:
            media.append((url, int(descriptor.get("TIME_ORIGIN") or 0)))
    # Without the user's videos, one that is not of sound only.
    media.sort(key=lambda named: (mimetypes.guess_type(named[0])[0] or "").startswith("audio/"))
    if not media:
        return path.stem, 0
    chosen = next((named for named in media if videos.find(named[0])), media[0])
    for url in (url for url, _ in media if url != chosen[0]):
        left_out[f"media file {shown(url)}"] += 1
    return chosen


def _times(
    annotations: Sequence[ElementTree.Element], slots: Mapping[str, str | None], tier: str
) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each annotation of a tier, in milliseconds.

    Borders between the parts of a subdivision that were never moved have no time: ELAN divides the time
    between the neighboring borders evenly.
    """
    pairs = [tuple(each.attrib[f"TIME_SLOT_REF{side}"] for side in (1, 2)) for each in annotations]
    times = {
        slot: int(time) for slot in {s for pair in pairs for s in pair} if (time := slots[slot]) is not None
    }
    following = dict(pairs)
    for first in [start for start, end in pairs if start in times and end not in times]:
        chain = [first]
        while chain[-1] not in times or len(chain) == 1:
            if chain[-1] not in following or len(chain) > len(pairs):
                raise ValueError(f"tier '{shown(tier)}': an annotation has no time")
            chain.append(following[chain[-1]])
        first_time, last_time, parts = times[first], times[chain[-1]], len(chain) - 1
        for place, slot in enumerate(chain[1:-1], start=1):
            times[slot] = first_time + (last_time - first_time) * place // parts
    for pair in pairs:
        if not times.keys() >= set(pair):
            raise ValueError(f"tier '{shown(tier)}': an annotation has no time")
        yield times[pair[0]], times[pair[1]]


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
        start, end = milliseconds(bout)
        if spans:
            start = max(start, spans[-1][1])  # a point event, which lasts 1 ms here, may touch
        if start < end:  # not so for a second point event in the same millisecond
            spans.append((start, end))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    root = ElementTree.Element(ROOT, {"AUTHOR": "everest", "DATE": date, "FORMAT": "3.0", "VERSION": "3.0"})
    root.set(_SCHEMA, "http://www.mpi.nl/tools/elan/EAFv3.0.xsd")
    header = SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
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
            annotation = SubElement(SubElement(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION", ids)
            SubElement(annotation, "ANNOTATION_VALUE").text = label
    for time, name in sorted(slots, key=lambda slot: slot[0]):
        SubElement(order, "TIME_SLOT", TIME_SLOT_ID=name, TIME_VALUE=str(time))
    facts = {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": TIER_TYPE, "TIME_ALIGNABLE": "true"}
    SubElement(root, "LINGUISTIC_TYPE", facts)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"
