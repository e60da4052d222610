import json
import os
import shutil

import pytest
import yaml
from archives import ARCHIVES, MISSING
from prepare_commands import everest, index, rows_of, touch

from everest.prepare.layouts import LAYOUTS

# Every row of every list: data set, list, file, labels, its segment.
TABLE = """
ucf101 train UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 0
ucf101 train UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi 2
ucf101 test UCF-101/ApplyLipstick/v_ApplyLipstick_g01_c01.avi 1
hmdb51 train clap/#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi 1
hmdb51 test brush_hair/#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi 0
ssv2 train 20bn-something-something-v2/78687.webm 2
ssv2 train 20bn-something-something-v2/1.webm 1
ssv2 val 20bn-something-something-v2/3.webm 0
ssv2 test-unlabelled 20bn-something-something-v2/5.webm -
kinetics train train/testifying/---QUuC4vJs_000084_000094.mp4 1
kinetics train train/--3ouPhoy2A_000020_000030.mp4 0
kinetics train train/twice______0_000001_000011.mp4 1
kinetics val val/0wR5jVB-WPk.mkv 1
kinetics test-unlabelled test/zzzzzzzzzz0_000007_000017.mp4 -
oscc train v2/pieces/u-1.mp4 1
oscc train v2/full_scale/v-2.mp4 0 start=100.25 end=108.25
oscc train v2/clips/c-3.mp4 1 start=1.5 end=9.5
oscc val v2/pieces/u-1.mp4 1
oscc test-unlabelled v2/full_scale/v-2.mp4 - start=100.25 end=108.25
diving48 train rgb/-9IAfqZnkXk_00000.mp4 1 start_frame=0 end_frame=148
diving48 test rgb/2x00lRzlTVQ_00001.mp4 0 start_frame=3 end_frame=90
epic-kitchens-100 train P01/P01_01.MP4 3,3 start=0.14 end=3.37
epic-kitchens-100 train P01/P01_01.MP4 6,114 start=3724.37 end=3726.0
epic-kitchens-100 val P02/P02_09.MP4 0,2 start=0.0 end=1.89
epic-kitchens-100 test-unlabelled P01/videos/P01_11.MP4 - start=2.86 end=3.87
"""
ROWS = {}
for _line in TABLE.strip().splitlines():
    _name, _list, _path, _labels, *_times = _line.split()
    _row = (_path, tuple(map(int, _labels.split(","))) if _labels != "-" else ())
    _part = {key: float(value) for key, _, value in (time.partition("=") for time in _times)}
    ROWS.setdefault(_name, {}).setdefault(_list, []).append((*_row, _part) if _part else _row)
COUNTS = {"ucf101": 3, "hmdb51": 2, "ssv2": 3, "kinetics": 2, "oscc": 2, "diving48": 48}
# The keys of a recipe in addition to the lists.
DATA = {name: {"classes": "classes.txt", "num_classes": count} for name, count in COUNTS.items()}
DATA |= {"epic-kitchens-100": {"heads": {"verb": 97, "noun": 300}}, "ssv2": DATA["ssv2"] | {"flip": False}}
NAMES = {
    "ucf101": ["ApplyEyeMakeup", "ApplyLipstick", "HandstandPushups"],
    "hmdb51": ["brush_hair", "clap"],
    "ssv2": ["Dropping something", "Tearing something into two pieces", "Holding something"],
    "kinetics": ["massaging person's head, long", "testifying"],
    "oscc": ["no state change", "state change"],
    "diving48": ["Back 15som 05Twis FREE", "Inward Dive NoTwis PIKE"],
}


@pytest.fixture(params=ARCHIVES)
def archive(request, tmp_path):
    ARCHIVES[request.param](tmp_path)
    return request.param, tmp_path


def test_every_row_of_every_layout(archive):
    name, root = archive
    shown = index(root)
    (root / "mine.yaml").write_text(shown.stdout)
    everest("recipes show", root / "mine.yaml")
    data = yaml.safe_load(shown.stdout)["data"]
    heads = data.get("heads")
    written = {file.stem: file for file in root.glob("*.csv") if file.stem != "index_report"}
    assert {stem: rows_of(file, root, heads) for stem, file in written.items()} == ROWS[name]
    lists = {key: data.pop(key) for key in ("root", "train", "val", "test", "pretrain")}
    assert data == DATA[name]
    assert lists["root"] == str(root)
    assert lists["train"] == "train.csv"
    assert lists["val"] == ("val.csv" if "val" in ROWS[name] else None)
    assert lists["test"] == next((f"{key}.csv" for key in ("test", "val") if key in ROWS[name]), None)
    if name in NAMES:
        assert (root / "classes.txt").read_text().splitlines() == NAMES[name]


def test_what_is_missing_and_what_is_too_much_is_reported(archive):
    name, root = archive
    told = json.loads(index(root, "--json").stdout)
    report = (root / "index_report.csv").read_text().splitlines()
    assert f"missing,{','.join(MISSING[name])}" in report
    assert told["missing"] == sum(line.startswith("missing,") for line in report)
    videos = [path for path in root.rglob("*") if path.suffix.lower() in (".mp4", ".avi", ".webm", ".mkv")]
    listed = {path for rows in ROWS[name].values() for path, *_ in rows}
    extra = {os.path.relpath(video, root) for video in videos} - listed
    assert {line.split(",", 2)[2] for line in report if line.startswith("extra,")} == extra
    assert told["extra"] == len(extra) > 0


def test_annotations_can_be_elsewhere(archive, tmp_path_factory):
    name, root = archive
    lists = tmp_path_factory.mktemp("lists")
    for file in [path for path in root.rglob("*") if path.suffix in (".txt", ".csv", ".json")]:
        (lists / file.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, lists / file.relative_to(root))
    out = tmp_path_factory.mktemp("out")
    shown = index(root, "--annotations", lists, "--output", out, "--json")
    told = json.loads(shown.stdout)
    assert told["layout"] == name
    heads = told["data"].get("heads")
    for place in (root, out):  # `data.root`, and the folder of the list
        for stem, rows in ROWS[name].items():
            found = rows_of(out / f"{stem}.csv", place, heads)
            assert [(path.removeprefix(f"{root}/"), *row) for path, *row in found] == rows
    assert (root / told["data"]["train"]).resolve() == out / "train.csv"
    assert not list(root.glob("*.csv"))


def test_nothing_is_replaced_by_default_and_annotations_never(tmp_path):
    ARCHIVES["ucf101"](tmp_path)
    (tmp_path / "train.csv").write_text("mine")
    message = "train.csv: exists; write elsewhere by --output DIR, or use --overwrite"
    assert message in index(tmp_path, code=2).stderr
    assert (tmp_path / "train.csv").read_text() == "mine"
    assert not (tmp_path / "test.csv").exists()
    assert "cannot write" in index(tmp_path, "--output", tmp_path / "train.csv" / "below", code=5).stderr
    index(tmp_path, "--overwrite")
    assert (tmp_path / "test.csv").exists()
    root = tmp_path / "kinetics"
    ARCHIVES["kinetics"](root)
    annotations = (root / "annotations" / "train.csv").rename(root / "train.csv")
    before = annotations.read_bytes()
    message = "train.csv: is an input of this command; write elsewhere by --output DIR"
    assert message in index(root, "--overwrite", code=2).stderr
    assert annotations.read_bytes() == before


def test_a_split_can_be_named_and_answers_label_the_test_list(tmp_path):
    ARCHIVES["ucf101"](tmp_path / "ucf")
    lipstick = "ApplyLipstick/v_ApplyLipstick_g01_c01.avi"
    (tmp_path / "ucf" / "ucfTrainTestlist" / "trainlist02.txt").write_text(f"{lipstick} 2\n")
    index(tmp_path / "ucf", "--split", 2)
    assert rows_of(tmp_path / "ucf" / "train.csv", tmp_path / "ucf") == [(f"UCF-101/{lipstick}", (1,))]
    ARCHIVES["ssv2"](tmp_path / "ssv2")
    (tmp_path / "ssv2" / "labels" / "test-answers.csv").write_text("5;Holding something\n")
    index(tmp_path / "ssv2")
    rows = rows_of(tmp_path / "ssv2" / "test.csv", tmp_path / "ssv2")
    assert rows == [("20bn-something-something-v2/5.webm", (2,))]


def test_a_folder_without_a_layout_gets_an_error_with_what_is_expected(tmp_path):
    touch(tmp_path, "run/a.mp4", "walk/b.mp4")
    assert "no such folder" in index(tmp_path / "none", code=4).stderr
    message = index(tmp_path, code=4).stderr
    assert f"class folders need no annotations: `everest prepare split {tmp_path}`" in message
    for layout in LAYOUTS.values():
        assert f"  {layout.name}: {layout.expects}" in message


def test_videos_in_one_folder_make_a_list_for_pre_training(tmp_path):
    touch(tmp_path, "b.mp4", "a.avi")
    told = json.loads(index(tmp_path, "--json").stdout)
    assert (told["layout"], told["lists"]) == ("videos", {"pretrain": 2})
    assert told["data"]["pretrain"] == "pretrain.csv"
    assert (tmp_path / "pretrain.csv").read_text() == "path\na.avi\nb.mp4\n"
    assert "none of the known layouts" in index(tmp_path, "--annotations", tmp_path, code=4).stderr


@pytest.mark.parametrize("names", [("a.mp4", "b.mp4", "c.mp4"), ("x/a.mp4", "x/b.mp4", "y/c.mp4")])
def test_a_list_for_pre_training_leaves_out_the_videos_of_other_lists(tmp_path, names):
    root, lists = tmp_path / "set", tmp_path / "lists"
    touch(root, *names)
    lists.mkdir()
    (lists / "test.csv").write_text(f"path,label,start,end\n{root}/{names[1]},0,1,2\n{root}/gone.mp4,1,,\n")
    shown = index(root, "--exclude", lists / "test.csv", "--output", lists / "mine.csv")
    assert yaml.safe_load(shown.stdout) == {"data": {"root": str(root), "pretrain": "../lists/mine.csv"}}
    assert "1 video left out" in shown.stderr
    assert (lists / "mine.csv").read_text() == f"path\n{root}/{names[0]}\n{root}/{names[2]}\n"
    (root / "val.csv").write_text(f"{names[2]}\n")
    index(root, "--exclude", lists / "test.csv", "--exclude", root / "val.csv")
    assert (root / "pretrain.csv").read_text() == f"path\n{names[0]}\n"
    (root / "all.csv").write_text("".join(f"{name}\n" for name in names))
    message = index(root, "--exclude", root / "all.csv", "--overwrite", code=4).stderr
    assert "none of its 3 videos is left for pretrain.csv" in message


def test_two_data_sets_or_annotations_in_one_folder_are_not_mixed(tmp_path):
    ARCHIVES["ucf101"](tmp_path)
    shutil.copytree(tmp_path / "ucfTrainTestlist", tmp_path / "copy")
    assert "2 files with the same annotations" in index(tmp_path, code=4).stderr
    shutil.move(tmp_path / "UCF-101", tmp_path.with_suffix(".away"))
    message = index(tmp_path, "--annotations", tmp_path / "copy", code=4).stderr
    assert "none of their 4 videos (first v_ApplyEyeMakeup_g08_c01) among the 0 below it" in message
    shutil.move(tmp_path.with_suffix(".away"), tmp_path / "UCF-101")
    index(tmp_path, "--annotations", tmp_path / "copy")
    ARCHIVES["diving48"](tmp_path)
    message = "annotations of ucf101, diving48 are below it; name the folder of one by --annotations"
    assert message in index(tmp_path, "--overwrite", code=2).stderr


UCF = "ucfTrainTestlist"
EPIC = "epic-kitchens-100-annotations"
KINETICS_INF = "label,youtube_id,time_start,time_end,split\nx,y,1,inf,train\n"
KINETICS_ROW = "label,youtube_id,split\nx,y,train\n"
OSCC = "v2/annotations/fho_oscc-pnr"
WRONG = [
    ("ucf101", f"{UCF}/trainlist01.txt", "Unknown/v.avi 1\n", "trainlist01.txt:1: no class of the data set"),
    ("ucf101", f"{UCF}/classInd.txt", "ApplyEyeMakeup\n", "a line is `number name`"),
    ("hmdb51", "testTrainMulti_7030_splits/clap_test_split1.txt", "a.avi 3\n", "a line is `file.avi 0|1|2`"),
    ("ssv2", "labels/train.json", "{", "labels/train.json: not a JSON document"),
    ("ssv2", "labels/train.json", '[{"id": 1}]', "train.json: entry 1 has no field 'template'"),
    ("ssv2", "labels/train.json", '[{"id": 1, "template": "Holding [x]"}]', "mean 'Holding something'?"),
    ("ssv2", "labels/labels.json", '{"a": "0", "b": "2"}', "its 2 classes do not have 2 successive numbers"),
    ("kinetics", "annotations/train.csv", "label,youtube_id\nx,y\n", "entry 1 has no field 'time_start'"),
    ("kinetics", "annotations/train.csv", "label,youtube_id,split\nx,y,trian\n", "split 'trian' is none of"),
    ("kinetics", "annotations/train.csv", KINETICS_INF, "train.csv: entry 1: cannot convert float infinity"),
    ("kinetics", "annotations/copy.csv", KINETICS_ROW, "2 files with the same annotations"),
    ("oscc", f"{OSCC}_val.json", "[3]", "a list of objects is expected"),
    ("oscc", f"{OSCC}_val.json", '[{"parent_start_sec": NaN}]', "not a JSON document (NaN is no JSON value)"),
    ("diving48", "Diving48_V2_train.json", '[{"vid_name": "a"}]', "entry 1 has no field 'start_frame'"),
    ("epic-kitchens-100", f"{EPIC}/EPIC_100_train.csv", "start_timestamp\n0:14\n", "'0:14' is no time as"),
    ("epic-kitchens-100", f"{EPIC}/EPIC_100_train.csv", "a,start_timestamp\n1\n", "entry 1 has no field"),
]


@pytest.mark.parametrize(("layout", "file", "text", "message"), WRONG)
def test_annotations_not_as_published_are_reported_with_their_place(tmp_path, layout, file, text, message):
    ARCHIVES[layout](tmp_path)
    (tmp_path / file).write_text(text)
    assert message in index(tmp_path, code=4).stderr
