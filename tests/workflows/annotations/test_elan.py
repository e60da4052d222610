from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from everest.errors import DataError
from everest_workflows.annotations.bout import Bout
from everest_workflows.annotations.codings import read_video_annotations
from everest_workflows.annotations.formats import read_annotations, recognize_format, write_annotations
from everest_workflows.annotations.matching import VideoFinder
from everest_workflows.annotations.records import LeftOut

EAF = """\
<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="anna" DATE="2024-05-02T09:12:44+01:00" FORMAT="3.0" VERSION="3.0"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
    xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
    <LICENSE LICENSE_URL=""/>
    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
        <MEDIA_DESCRIPTOR MEDIA_URL="file:///D:/my%20videos/cage1.wav" MIME_TYPE="audio/x-wav"/>
        <MEDIA_DESCRIPTOR MEDIA_URL="file:///D:/my%20videos/cage1.mp4" MIME_TYPE="video/mp4"
            RELATIVE_MEDIA_URL="./cage1.mp4" {origin}/>
        <MEDIA_DESCRIPTOR MEDIA_URL="" RELATIVE_MEDIA_URL="./side.mp4" MIME_TYPE="" TIME_ORIGIN="-900"/>
        <PROPERTY NAME="URN">urn:nl-mpi-tools-elan-eaf:7a4f0ad5-9b4b-4c3b-8a29-0d7e5b6ad0a1</PROPERTY>
        <PROPERTY NAME="lastUsedAnnotationId">5</PROPERTY>
    </HEADER>
    <TIME_ORDER>
        <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="500"/>
        <TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1250"/>
        <TIME_SLOT TIME_SLOT_ID="ts3"/>
        <TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="1800"/>
        <TIME_SLOT TIME_SLOT_ID="ts5" TIME_VALUE="1801"/>
    </TIME_ORDER>
    <TIER ANNOTATOR="anna" LINGUISTIC_TYPE_REF="default-lt" PARTICIPANT="female" TIER_ID="behavior">
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
            <ANNOTATION_VALUE>groom &amp; rest</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="parts" PARENT_REF="behavior" TIER_ID="parts">
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts3">
            <ANNOTATION_VALUE>left wing</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a5" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts2">
            <ANNOTATION_VALUE>right wing</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="notes" PARENT_REF="behavior" TIER_ID="notes">
        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a3" ANNOTATION_REF="a1">
            <ANNOTATION_VALUE>?</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
    </TIER>
    <TIER ANNOTATOR="curated" LINGUISTIC_TYPE_REF="default-lt" TIER_ID="peck">
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a4" TIME_SLOT_REF1="ts4" TIME_SLOT_REF2="ts5">
            <ANNOTATION_VALUE></ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    </TIER>
    <LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>
    <LINGUISTIC_TYPE CONSTRAINTS="Time_Subdivision" LINGUISTIC_TYPE_ID="parts" TIME_ALIGNABLE="true"/>
    <LINGUISTIC_TYPE CONSTRAINTS="Symbolic_Association" LINGUISTIC_TYPE_ID="notes" TIME_ALIGNABLE="false"/>
    <CONSTRAINT DESCRIPTION="1-1 association with a parent annotation" STEREOTYPE="Symbolic_Association"/>
</ANNOTATION_DOCUMENT>
"""
PLAIN = EAF.replace("{origin}", "")
BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;">]>
<ANNOTATION_DOCUMENT>&c;</ANNOTATION_DOCUMENT>
"""
OUTSIDE = """<?xml version="1.0"?>
<!DOCTYPE x [<!ENTITY file SYSTEM "file:///etc/hostname">]><ANNOTATION_DOCUMENT>&file;</ANNOTATION_DOCUMENT>
"""
# Of EAFv3.0.xsd: the attributes that an element must and may have, and its children in their order.
SCHEMA = """
ANNOTATION_DOCUMENT: DATE AUTHOR VERSION | FORMAT LOCATION | HEADER TIME_ORDER TIER LINGUISTIC_TYPE CONSTRAINT
HEADER: | MEDIA_FILE TIME_UNITS | MEDIA_DESCRIPTOR LINKED_FILE_DESCRIPTOR PROPERTY
MEDIA_DESCRIPTOR: MEDIA_URL MIME_TYPE | RELATIVE_MEDIA_URL TIME_ORIGIN EXTRACTED_FROM |
PROPERTY: | NAME |
TIME_ORDER: | | TIME_SLOT
TIME_SLOT: TIME_SLOT_ID | TIME_VALUE |
TIER: TIER_ID LINGUISTIC_TYPE_REF | PARTICIPANT ANNOTATOR DEFAULT_LOCALE PARENT_REF | ANNOTATION
ANNOTATION: | | ALIGNABLE_ANNOTATION
ALIGNABLE_ANNOTATION: ANNOTATION_ID TIME_SLOT_REF1 TIME_SLOT_REF2 | SVG_REF EXT_REF | ANNOTATION_VALUE
ANNOTATION_VALUE: | |
LINGUISTIC_TYPE: LINGUISTIC_TYPE_ID | TIME_ALIGNABLE CONSTRAINTS GRAPHIC_REFERENCES |
CONSTRAINT: STEREOTYPE | DESCRIPTION |
""".replace("LOCATION", "{http://www.w3.org/2001/XMLSchema-instance}noNamespaceSchemaLocation")
ELEMENTS = {
    name: [part.split() for part in parts.split("|")]
    for name, _, parts in (line.partition(":") for line in SCHEMA.strip().splitlines())
}


def check_schema(root: ElementTree.Element) -> None:
    """Whether a document has the structure of EAFv3.0.xsd, its unique ids and its references."""
    for element in root.iter():
        required, allowed, order = ELEMENTS[element.tag]
        assert {*required} <= element.attrib.keys() <= {*required, *allowed}, element.tag
        places = [order.index(child.tag) for child in element]
        assert places == sorted(places), element.tag
    datetime.fromisoformat(root.attrib["DATE"])
    slots = {slot.attrib["TIME_SLOT_ID"]: int(slot.attrib["TIME_VALUE"]) for slot in root.iter("TIME_SLOT")}
    assert list(slots.values()) == sorted(slots.values())
    annotations = list(root.iter("ALIGNABLE_ANNOTATION"))
    ids = [*slots, *(annotation.attrib["ANNOTATION_ID"] for annotation in annotations)]
    assert len(set(ids)) == len(ids)
    assert len(slots) == 2 * len(annotations)  # ELAN would move all annotations of a shared slot
    types = {each.attrib["LINGUISTIC_TYPE_ID"] for each in root.iter("LINGUISTIC_TYPE")}
    names = [tier.attrib["TIER_ID"] for tier in root.iter("TIER")]
    assert len(set(names)) == len(names)
    for tier in root.iter("TIER"):
        assert tier.attrib["LINGUISTIC_TYPE_REF"] in types
        after = 0
        for annotation in tier.iter("ALIGNABLE_ANNOTATION"):  # in their order, without overlap
            start, end = (slots[annotation.attrib[f"TIME_SLOT_REF{side}"]] for side in (1, 2))
            assert after <= start < end
            after = end


@pytest.mark.parametrize(("origin", "later"), [("", 0.0), ('TIME_ORIGIN="2000"', 2.0)])
def test_all_annotations_with_times_are_bouts(tmp_path: Path, origin: str, later: float):
    file = tmp_path / "cage1.eaf"
    file.write_text(EAF.replace("{origin}", origin))
    assert recognize_format(file) == "elan"
    left_out = LeftOut()
    video = "file:///D:/my%20videos/cage1.mp4"
    assert read_annotations(file, left_out=left_out) == [
        Bout(video=video, start=0.5 + later, end=1.25 + later, label="groom & rest", subject="female"),
        Bout(video=video, start=0.5 + later, end=0.875 + later, label="left wing"),
        Bout(video=video, start=0.875 + later, end=1.25 + later, label="right wing"),
        Bout(video=video, start=0.5 + later, end=1.25 + later, label="?"),  # the times of its parent
        Bout(video=video, start=1.8 + later, end=1.8 + later, label="peck", origin="curated"),
    ]
    assert left_out == {
        "media file ./side.mp4": 1,
        "media file file:///D:/my%20videos/cage1.wav": 1,
    }


def test_the_media_file_that_is_the_users_video_counts(tmp_path: Path):
    file = tmp_path / "cage1.eaf"
    file.write_text(PLAIN)

    def read(*names: str) -> tuple[set[str], list[tuple[float, float, str]], LeftOut]:
        left_out = LeftOut()
        bouts = read_annotations(file, videos=VideoFinder(map(Path, names)), left_out=left_out)
        return {b.video for b in bouts}, [(b.start, b.end, b.label) for b in bouts], left_out

    names, bouts, left_out = read("side.mp4")  # begins 0.9 s after the time 0 of ELAN
    assert names == {"./side.mp4"}
    assert bouts == [(0, 0.35, label) for label in ("groom & rest", "right wing", "?")] + [(0.9, 0.9, "peck")]
    assert left_out["annotation before the first frame"] == 1
    assert left_out["other media file"] == 2
    names, bouts, left_out = read("cage1.mp4", "side.mp4")
    assert names == {"file:///D:/my%20videos/cage1.mp4"}
    assert len(bouts) == 5
    assert left_out["media file ./side.mp4"] == left_out["other media file"] == 1
    names, _, _ = read("cage1.mov", "cage1.mp4")  # the name of the sound fits both
    assert names == {"file:///D:/my%20videos/cage1.mp4"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "it has a document type"),
        (OUTSIDE, "it has a document type"),
        ("<ANNOTATION_DOCUMENT>", "not XML: no element found"),
        (PLAIN.replace(' TIME_VALUE="1250"', ""), "the annotation a1 has no time"),
        (PLAIN.replace('TIME_SLOT_ID="ts1"', 'TIME_SLOT_ID="t"'), "'ts1' is missing"),
        (PLAIN.replace('REF2="ts2"', 'REF2="ts3"'), "tier 'behavior': the annotation a1 "),
        (EAF.replace("{origin}", 'TIME_ORIGIN="x"'), "a media file: invalid literal"),
        (PLAIN.replace('"milliseconds"', '"PAL-frames"'), "its times are PAL-frames"),
        (PLAIN.replace("ALIGNABLE_", "REF_"), "is read, only annotation without times of"),
        (PLAIN.replace('"1250"', '"100"'), "starts at 0.5 s and ends at 0.1 s"),
    ],
)
def test_a_damaged_or_dangerous_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str):
    file = tmp_path / "cage1.eaf"
    file.write_text(text)
    with pytest.raises(DataError) as error:
        read_annotations(file)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_written_file_follows_the_schema(tmp_path: Path, clip_files: Path):
    video = str(clip_files / "clip0.mp4")
    groom: Any = {"video": video, "label": "groom <&> rest"}
    peck: Any = {"video": video, "label": "peck", "origin": "automated"}
    spans = [(0.0, 0.5), (0.5, 1.0), (0.75, 1.5)]  # the last overlaps
    bouts = [
        *(Bout(start=start, end=end, origin="automated", **groom) for start, end in spans),
        Bout(start=0.25, end=1.0, **groom),
        Bout(start=0.25, end=1.0, subject="female", **groom),
        *(Bout(start=1.0, end=end, **peck) for end in (1.0, 2.0)),
        Bout(video=video, start=0.0, end=1.0, label="peck @female", origin="automated"),
        Bout(start=0.0, end=1.0, subject="female", **peck),
    ]
    file = tmp_path / "clip0.eaf"
    write_annotations(file, bouts, "elan")
    root = ElementTree.fromstring(file.read_bytes())
    check_schema(root)
    media = root.find("HEADER/MEDIA_DESCRIPTOR")
    assert media.attrib == {"MEDIA_URL": (clip_files / "clip0.mp4").as_uri(), "MIME_TYPE": "video/mp4"}
    found = {(bout.label, bout.subject, bout.origin, bout.start, bout.end) for bout in read_annotations(file)}
    assert found == {
        ("groom <&> rest", "", "automated", 0.0, 0.5),
        ("groom <&> rest", "", "automated", 0.5, 1.5),
        ("groom <&> rest", "", "manual", 0.25, 1.0),
        ("groom <&> rest", "female", "manual", 0.25, 1.0),
        ("peck", "", "automated", 1.0, 1.0),
        ("peck", "", "automated", 1.001, 2.0),
        ("peck @female", "", "automated", 0.0, 1.0),
        ("peck", "female", "automated", 0.0, 1.0),
    }


CHILD = EAF.replace("{origin}", "").replace("anna", "").replace("curated", "")


@pytest.mark.parametrize(
    ("before", "after", "labels", "left_out"),
    [
        (">?<", "> <", {"groom & rest"}, {"annotation without text of the tier 'notes'": 1}),
        (
            'CONSTRAINTS="Symbolic_Association"',
            'CONSTRAINTS="Symbolic_Subdivision"',
            {"groom & rest"},
            {"annotation without times of the tier 'notes'": 1},
        ),
        # A tier that only says yes is named by its behavior; a tier with yes and no is not.
        (">?<", ">Yes<", {"groom & rest", "notes"}, {}),
        (">left wing<", ">yes<", {"groom & rest", "?"}, {}),
    ],
)
def test_an_associated_annotation_has_the_times_of_its_parent(tmp_path, before, after, labels, left_out):
    file, counted = tmp_path / "cage1.eaf", LeftOut()
    assert before in CHILD
    file.write_text(CHILD.replace(before, after))
    bouts = read_annotations(file, left_out=counted)
    assert {bout.label for bout in bouts if (bout.start, bout.end) == (0.5, 1.25)} == labels
    first_part = after[1:-1] if "left" in before else "left wing"
    assert {bout.label for bout in bouts if bout.end == 0.875} == {first_part}
    assert {reason: count for reason, count in counted.items() if "media" not in reason} == left_out


def test_a_file_that_names_only_the_sound_is_of_the_video(tmp_path: Path):
    file = tmp_path / "talk.eaf"
    for ending in ("wav", "WAV", "mp3", "m4a", "flac"):
        file.write_text(PLAIN.replace("cage1.mp4", f"cage1.{ending}").replace("side.mp4", f"side.{ending}"))
        labels = read_video_annotations([file], ["rec/cage1.mp4", "rec/other.mp4"])
        assert len(labels.bouts["rec/cage1.mp4"]) == 5
        assert labels.left_out == {"other media file": 2}
    with pytest.raises(DataError, match=r"cage1\.wav may be a/cage1\.avi or a/cage1\.mp4; give only one"):
        read_video_annotations([file], ["a/cage1.avi", "a/cage1.mp4"])
    with pytest.raises(DataError, match=r"it names file:///D:/my%20videos/cage1\.wav; the videos are x\.mp4"):
        read_video_annotations([file], ["x.mp4"])


def test_a_class_that_is_named_like_a_mark_comes_back(tmp_path: Path):
    bouts = [
        Bout(video="a.mp4", start=at, end=at + 1, label=label, subject=subject)
        for at, label, subject in ((0.0, "1", ""), (2.0, "y", "anna"))
    ]
    write_annotations(tmp_path / "a.eaf", bouts, "elan")
    assert {bout.label for bout in read_annotations(tmp_path / "a.eaf")} == {"1", "y"}
