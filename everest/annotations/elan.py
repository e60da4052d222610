"""ELAN, `.eaf`: XML with times in milliseconds and tiers of annotations that do not overlap.

The class of a bout is the text of its annotation, else the name of the tier; its subject is the tier's
participant, its origin the tier's annotator. Tiers that refer to a parent tier describe the annotations of
that tier, and are left out.

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

from everest.annotations.bout import Bout, Bouts, from_milliseconds, merge_overlaps, milliseconds, origin_in
from everest.annotations.matching import VideoFinder, VideoTimes

ROOT: Final = "ANNOTATION_DOCUMENT"
TIER_TYPE: Final = "default-lt"
_SCHEMA: Final = "{http://www.w3.org/2001/XMLSchema-instance}noNamespaceSchemaLocation"


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses a document type: it may define entities that fill the memory, and ELAN writes none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a document type (DOCTYPE), which ELAN does not write")


def read(path: Path, fps: float | None, videos: VideoFinder) -> Iterator[Bout]:
    """Read the bouts of the tiers without a parent."""
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoDocumentType()))
    except ElementTree.ParseError as error:
        raise ValueError(f"not XML: {error}") from error
    if root.tag != ROOT:
        raise ValueError(f"its first element is <{root.tag}>, and not <{ROOT}>; save it by ELAN")
    media = root.find("HEADER/MEDIA_DESCRIPTOR")
    # ELAN can align media: its time 0 is then this time of the first of them.
    begin = 0 if media is None else int(media.get("TIME_ORIGIN", 0))
    video = path.stem if media is None else media.attrib["MEDIA_URL"]
    slots = {slot.attrib["TIME_SLOT_ID"]: slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    for tier in root.iterfind("TIER"):
        if tier.get("PARENT_REF") is not None:
            continue
        origin = origin_in(tier.get("ANNOTATOR", ""))
        subject = tier.get("PARTICIPANT", "")
        for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
            times = [slots[annotation.attrib[f"TIME_SLOT_REF{side}"]] for side in (1, 2)]
            if None in times:
                raise ValueError(f"the annotation {annotation.attrib['ANNOTATION_ID']} has no time")
            start, end = from_milliseconds(*(int(time or 0) + begin for time in times))
            label = (annotation.findtext("ANNOTATION_VALUE") or "").strip() or tier.attrib["TIER_ID"]
            yield Bout(video=video, start=start, end=end, label=label, origin=origin, subject=subject)


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
