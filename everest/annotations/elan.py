"""ELAN, `.eaf`: XML with times in milliseconds and tiers of annotations that do not overlap.

The class of a bout is the text of its annotation, else the name of the tier; its subject is the tier's
participant, its origin the tier's annotator. Tiers that refer to a parent tier describe the annotations of
that tier, and are left out.

Source: the schema EAFv3.0.xsd (mpi.nl/tools/elan).
"""

from __future__ import annotations

import mimetypes
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from everest.annotations.bout import Bout, Bouts, from_milliseconds, merge_overlaps, milliseconds, origin_in
from everest.annotations.matching import VideoFinder, VideoTimes

ROOT: Final = "ANNOTATION_DOCUMENT"
TIER_TYPE: Final = "default-lt"
_SCHEMA: Final = "{http://www.w3.org/2001/XMLSchema-instance}noNamespaceSchemaLocation"


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses a document type: it may define entities that fill the memory, and ELAN writes none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a document type (DOCTYPE), which ELAN does not write")


def read(path: Path, fps: float | None, videos: VideoFinder) -> list[Bout]:
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
    bouts = []
    for tier in root.iter("TIER"):
        if tier.get("PARENT_REF") is not None:
            continue
        origin, subject = origin_in(tier.get("ANNOTATOR", "")), tier.get("PARTICIPANT", "")
        for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
            times = [slots[annotation.attrib[f"TIME_SLOT_REF{side}"]] for side in (1, 2)]
            if None in times:
                raise ValueError(f"the annotation {annotation.attrib['ANNOTATION_ID']} has no time")
            start, end = from_milliseconds(*(int(time or 0) + begin for time in times))
            label = (annotation.findtext("ANNOTATION_VALUE") or "").strip() or tier.attrib["TIER_ID"]
            bouts.append(Bout(video=video, start=start, end=end, label=label, origin=origin, subject=subject))
    return bouts


def write(bouts: Bouts, times: Mapping[str, VideoTimes], classes: Sequence[str]) -> str:
    """The document of one video: a tier for each class, subject and origin. Overlapping bouts are merged.

    Classes without bouts have an empty tier.
    """
    ((video, its_bouts),) = bouts.items()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    root = ElementTree.Element(ROOT, {"AUTHOR": "everest", "DATE": now, "FORMAT": "3.0", "VERSION": "3.0"})
    root.set(_SCHEMA, "http://www.mpi.nl/tools/elan/EAFv3.0.xsd")
    merged = merge_overlaps(its_bouts)
    header = _child(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    _child(
        header,
        "MEDIA_DESCRIPTOR",
        MEDIA_URL=Path(video).absolute().as_uri() if Path(video).exists() else video,
        MIME_TYPE=mimetypes.guess_type(video)[0] or "video/mp4",
    )
    _child(header, "PROPERTY", NAME="lastUsedAnnotationId").text = str(len(merged))
    tiers: dict[tuple[str, str, str], list[tuple[int, int]]] = defaultdict(list)
    labels = {bout.label for bout in merged}
    tiers |= {(name, "", "automated"): [] for name in classes if name not in labels}
    for bout in merged:
        tier = tiers[bout.label, bout.subject, bout.origin]
        start, end = milliseconds(bout)
        start = max(start, tier[-1][1]) if tier else start  # a point event, which lasts 1 ms here, may touch
        if start < end:  # not so for a second point event in the same millisecond
            tier.append((start, end))
    order = _child(root, "TIME_ORDER")
    slots: list[tuple[int, str]] = []  # two for each annotation: ELAN moves all annotations that share a slot
    for (label, subject, origin), tier in sorted(tiers.items()):
        name = " ".join([label, *([f"@{subject}"] if subject else []), f"({origin})"])
        facts = {"LINGUISTIC_TYPE_REF": TIER_TYPE, "TIER_ID": name, "ANNOTATOR": origin}
        element = _child(root, "TIER", **facts, **({"PARTICIPANT": subject} if subject else {}))
        for span in tier:
            names = [f"ts{len(slots) + side}" for side in (1, 2)]
            slots += zip(span, names, strict=True)
            facts = {"ANNOTATION_ID": f"a{len(slots) // 2}"}
            facts |= {f"TIME_SLOT_REF{side}": name for side, name in enumerate(names, start=1)}
            annotation = _child(_child(element, "ANNOTATION"), "ALIGNABLE_ANNOTATION", **facts)
            _child(annotation, "ANNOTATION_VALUE").text = label
    for time, name in sorted(slots, key=lambda slot: slot[0]):
        _child(order, "TIME_SLOT", TIME_SLOT_ID=name, TIME_VALUE=str(time))
    facts = {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": TIER_TYPE, "TIME_ALIGNABLE": "true"}
    _child(root, "LINGUISTIC_TYPE", **facts)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _child(parent: ElementTree.Element, name: str, **attributes: Any) -> ElementTree.Element:
    return ElementTree.SubElement(parent, name, attributes)
