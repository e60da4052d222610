"""Small imitations of published data sets: their annotations in form, their videos in name.

Each has a file too many and one too few, and names as odd as the real ones.
"""

import json
from collections.abc import Callable
from pathlib import Path

from prepare_commands import touch

MISSING = {  # list and name, as the report tells it
    "ucf101": ("test", "v_HandstandPushups_g02_c01"),
    "hmdb51": ("train", "April_09_brush_hair_u_nm_np1_ba_goo_0"),
    "ssv2": ("val", "4"),
    "kinetics": ("train", "-abc_123xyz_000005_000015"),
    "oscc": ("train", "u-gone"),
    "diving48": ("test", "-mmq0PT-u8k_00155"),
    "epic-kitchens-100": ("val", "P02_103"),
}


def _write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8", newline="")


def ucf101(root: Path) -> None:
    """Windows line ends, as in the archive; the files of a class are spelled otherwise than it."""
    lists = root / "ucfTrainTestlist"
    _write(lists, "classInd.txt", "1 ApplyEyeMakeup\r\n2 ApplyLipstick\r\n3 HandstandPushups\r\n")
    train = (
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
        "HandstandPushups/v_HandStandPushups_g08_c01.avi 3\r\n"
    )
    test = "ApplyLipstick/v_ApplyLipstick_g01_c01.avi\r\nHandstandPushups/v_HandstandPushups_g02_c01.avi\r\n"
    for split in (1, 2, 3):
        _write(lists, f"trainlist0{split}.txt", train)
        _write(lists, f"testlist0{split}.txt", test)
    touch(
        root / "UCF-101",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g25_c07.avi",  # in no list
        "HandstandPushups/v_HandStandPushups_g08_c01.avi",
        "ApplyLipstick/v_ApplyLipstick_g01_c01.avi",
    )


def hmdb51(root: Path) -> None:
    """Names with #, &, brackets; the same name in two classes."""
    brush = "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi 2 \n"
    clap = "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi 1 \n(HQ)_Rock&Roll_[x]_clap_f_cm_np1_le_med_0.avi 0 \n"
    for split in (1, 2, 3):
        _write(root / "testTrainMulti_7030_splits", f"brush_hair_test_split{split}.txt", brush)
        _write(root / "testTrainMulti_7030_splits", f"clap_test_split{split}.txt", clap)
    touch(
        root,
        "brush_hair/#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi",
        "clap/#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi",
        "clap/(HQ)_Rock&Roll_[x]_clap_f_cm_np1_le_med_0.avi",
    )


def ssv2(root: Path) -> None:
    """Labels in another order than their names; tests with their answers apart."""
    labels = {"Tearing something into two pieces": "1", "Holding something": "2", "Dropping something": "0"}
    _write(root, "labels/labels.json", json.dumps(labels))
    potato = {"label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]}
    train = [
        {"id": "78687", **potato},
        {"id": "1", "label": "tearing paper", "template": "Tearing [something] into two pieces"},
    ]
    _write(root, "labels/train.json", json.dumps(train))
    val = [{"id": "3", "template": "Dropping [something]"}, {"id": "4", "template": "Holding [something]"}]
    _write(root, "labels/validation.json", json.dumps(val))
    _write(root, "labels/test.json", json.dumps([{"id": "5"}]))
    touch(root / "20bn-something-something-v2", "78687.webm", "1.webm", "3.webm", "5.webm", "999.webm")


def kinetics(root: Path) -> None:
    """Files by ID and seconds, in class folders, by ID alone; an ID of two samples; tests without labels."""
    train = (
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        'testifying,---QUuC4vJs,84,94,train,0\n"massaging person\'s head, long",--3ouPhoy2A,20,30,train,0\n'
        "testifying,-abc_123xyz,5,15,train,0\ntestifying,twice______0,1,11,train,0\n"
    )
    val = "label,youtube_id,time_start,time_end,split\ntestifying,0wR5jVB-WPk,417,427,validate\n"
    test = "youtube_id,time_start,time_end,split\nzzzzzzzzzz0,7.0,17.0,test\ntwice______0,50,60,test\n"
    for name, text in (("train", train), ("validate", val), ("test", test)):
        _write(root, f"annotations/{name}.csv", text)
    touch(
        root,
        "train/testifying/---QUuC4vJs_000084_000094.mp4",
        "train/--3ouPhoy2A_000020_000030.mp4",
        "train/twice______0_000001_000011.mp4",
        "train/twice______0.mp4",  # which of the two?
        "val/0wR5jVB-WPk.mkv",
        "test/zzzzzzzzzz0_000007_000017.mp4",
    )


def oscc(root: Path) -> None:
    """A full video, a canonical clip, a piece cut for one sample."""

    def clip(unique: str, video: str, uid: str | None, state: bool) -> dict[str, object]:
        return {"unique_id": unique, "video_uid": video, "clip_uid": uid, "state_change": state} | {
            "clip_start_sec": 1.5,
            "clip_end_sec": 9.5,
            "parent_start_sec": 100.25,
            "parent_end_sec": 108.25,
        }

    train = [
        *(clip("u-1", "v-1", "c-1", True), clip("u-2", "v-2", "c-2", False)),
        *(clip("u-3", "v-3", "c-3", True), clip("u-gone", "v-gone", None, False)),
    ]
    unlabelled = clip("u-4", "v-2", None, False)
    del unlabelled["state_change"]
    for split, clips in (("train", train), ("val", train[:1]), ("test_unannotated", [unlabelled])):
        document = {"split": split, "clips": clips}
        _write(root, f"v2/annotations/fho_oscc-pnr_{split}.json", json.dumps(document))
    touch(root / "v2", "pieces/u-1.mp4", "full_scale/v-2.mp4", "clips/c-3.mp4", "full_scale/other.mp4")


def diving48(root: Path) -> None:
    """Segments in frames; classes by the parts of a dive."""
    vocabulary = [["Back", "15som", "05Twis", "FREE"], ["Inward", "Dive", "NoTwis", "PIKE"]]
    _write(root, "Diving48_vocab.json", json.dumps(vocabulary))
    train = [{"vid_name": "-9IAfqZnkXk_00000", "label": 1, "start_frame": 0, "end_frame": 148}]
    test = [
        {"vid_name": "2x00lRzlTVQ_00001", "label": 0, "start_frame": 3, "end_frame": 90},
        {"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48},
    ]
    _write(root, "Diving48_V2_train.json", json.dumps(train))
    _write(root, "Diving48_V2_test.json", json.dumps(test))
    touch(root / "rgb", "-9IAfqZnkXk_00000.mp4", "2x00lRzlTVQ_00001.mp4", "unused_00000.mp4")


def epic(root: Path) -> None:
    """Segments of long videos; a byte order mark; narrations with commas."""
    columns = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp"
    header = f"\ufeff{columns},start_frame,stop_frame,narration,verb,verb_class,noun,noun_class\n"
    train = (
        'P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,"open door, slowly",open,3,door,3\n'
        "P01_01_1,P01,P01_01,00:00:02.629,01:02:04.370,01:02:06,262,370,turn-on light,turn-on,6,light,114\n"
    )
    val = (
        "P02_09_0,P02,P02_09,00:00:00.560,00:00:00.00,00:00:01.89,1,113,take plate,take,0,plate,2\n"
        "P02_103_0,P02,P02_103,00:00:00.560,00:00:00.00,00:00:01.89,1,113,take plate,take,0,plate,2\n"
    )
    test = "P01_11_0,P01,P01_11,00:00:02.851,00:00:02.86,00:00:03.87,143,193\n"
    _write(root, "epic-kitchens-100-annotations/EPIC_100_train.csv", header + train)
    _write(root, "epic-kitchens-100-annotations/EPIC_100_validation.csv", header + val)
    timestamps = f"{columns},start_frame,stop_frame\n{test}"
    _write(root, "epic-kitchens-100-annotations/EPIC_100_test_timestamps.csv", timestamps)
    touch(root, "P01/P01_01.MP4", "P01/videos/P01_11.MP4", "P02/P02_09.MP4", "P02/P02_77.MP4")


ARCHIVES: dict[str, Callable[[Path], None]] = {
    archive.__name__: archive for archive in (ucf101, hmdb51, ssv2, kinetics, oscc, diving48)
}
ARCHIVES["epic-kitchens-100"] = epic
