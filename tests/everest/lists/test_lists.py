import errno
from pathlib import Path

import pytest

from everest.config.heads import Head, named_heads
from everest.data.recipe_clips import fingerprint
from everest.errors import DataError, RecipeError
from everest.lists.labels import read_class_names
from everest.lists.reading import read_labeled, read_samples, read_unlabeled
from everest.lists.sample import Sample

NAMES = ("jump", "run", "walk")


@pytest.fixture
def root(tmp_path):
    """A folder with a.mp4 ... e.mp4, one with a space, one with a comma. Lists do not open them."""
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4", "with space.mp4", "with,comma.mp4"):
        (tmp_path / name).touch()
    return tmp_path


def read(root, text, *, name="train.csv", labeled=True, **options):
    (root / name).write_text(text, encoding="utf-8")
    return (read_samples if labeled else read_unlabeled)(root / name, root=root, **options)


def short(found, root):
    return [(sample.path.removeprefix(f"{root}/"), *sample.labels) for sample in found.samples]


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", "])
@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_separators_and_headers_are_recognised(root, separator, header, end):
    lines = [("path", "label")] * header + [("a.mp4", "2"), ("b.mp4", "0")]
    found = read(root, "".join(separator.join(line) + end for line in lines))
    assert short(found, root) == [("a.mp4", 2), ("b.mp4", 0)]
    assert found.class_names is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('"with space.mp4" 1\na.mp4 0\n', "with space.mp4"),
        ("with space.mp4\t1\na.mp4\t0\n", "with space.mp4"),
        ("with space.mp4,1\na.mp4,0\n", "with space.mp4"),
        ('\ufeffpath,label\n"with space.mp4",1\na.mp4,0\n', "with space.mp4"),
        ("with,comma.mp4 1\na.mp4 0\n", "with,comma.mp4"),
    ],
)
def test_paths_with_spaces_and_commas_are_read_relative_to_root(root, text, name):
    assert short(read(root, text), root) == [(name, 1), ("a.mp4", 0)]
    found = read(root, f"{root}/a.mp4 0\nb.mp4 0\n")
    assert [sample.path for sample in found.samples] == [f"{root}/a.mp4", f"{root}/b.mp4"]
    (root / "lists").mkdir()  # not to the folder of the list
    assert short(read(root, "a.mp4 0\n", name="lists/train.csv"), root) == [("a.mp4", 0)]


def test_class_names_are_labels(root):
    text = "a.mp4,walk\nb.mp4,jump\n"
    assert short(read(root, text, class_names=NAMES), root) == [("a.mp4", 2), ("b.mp4", 0)]
    found = read(root, text)
    assert short(found, root) == [("a.mp4", 1), ("b.mp4", 0)]
    assert found.class_names == ("jump", "walk")
    found = read(root, "a.mp4 2\n", class_names=NAMES)
    assert short(found, root) == [("a.mp4", 2)]
    assert found.class_names == NAMES
    numbers = ("0", "1", "10", "2")  # a number that is a name means that class, and no other is taken
    assert short(read(root, "a.mp4 2\nb.mp4 10\n", class_names=numbers), root) == [("a.mp4", 3), ("b.mp4", 2)]
    with pytest.raises(DataError, match="unknown class '3'"):
        read(root, "a.mp4 3\n", class_names=numbers)


def test_segments_are_read(root):
    found = read(root, "path,label,start,end\na.mp4,1,0.5,2\nb.mp4,0,,\nb.mp4,0,3,\n")
    assert found.samples[0] == Sample(path=f"{root}/a.mp4", labels=(1,), start=0.5, end=2.0)
    assert found.samples[1] == Sample(path=f"{root}/b.mp4", labels=(0,))
    assert found.samples[2].end is None
    found = read(root, "start_frame end_frame path\n10 20 a.mp4\n", labeled=False)
    assert found.samples == (Sample(path=f"{root}/a.mp4", start_frame=10, end_frame=20),)


def test_labels_of_several_heads_come_in_the_order_of_the_heads(root):
    heads = named_heads({"verb": 97, "noun": 300})
    text = "path label.noun label.verb\na.mp4 299 3\n"
    assert short(read(root, text, heads=heads), root) == [("a.mp4", 3, 299)]
    with pytest.raises(DataError, match=r":2: label\.verb 97 is out of range: labels count from 0 to 96"):
        read(root, "path label.noun label.verb\na.mp4 1 97\n", heads=heads)
    missing = (
        r"the list has no column label\.verb, which data\.heads names; its columns are path, label\.noun"
    )
    with pytest.raises(DataError, match=missing):
        read(root, "path label.noun\na.mp4 1\n", heads=heads)


def test_pretraining_needs_no_labels_and_ignores_those_there(root):
    assert short(read(root, "a.mp4\nb.mp4\n", labeled=False), root) == [("a.mp4",), ("b.mp4",)]
    assert short(read(root, "a.mp4 7\nb.mp4 x\n", labeled=False), root) == [("a.mp4",), ("b.mp4",)]


NO_CLASSES = (
    r"train\.csv:1: no column is known to hold the classes \(class, behavior\); rename one to 'label', or "
    r"run `everest prepare split .*/train\.csv --class-column NAME`, which writes lists"
)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a.mp4 0\nwith space.mp4 1\n", {}, r"train\.csv:2: 3 fields where path, label are .*; quote paths"),
        (f"a.mp4 0\n{'b' * 200_000} 1\n", {}, r"csv:2: field larger than field limit .*; a line is `path"),
        (f"a.mp4 0\n{'b' * 300} 1\n", {}, r"train\.csv:2: cannot look for .*bbb: File name too long"),
        ("a.mp4 0\nnone.mp4 0\nb.mp4 1\n", {}, r"train\.csv:2: no file .*/none\.mp4$"),
        ("x.mp4 0\ny.mp4 1\n", {}, "none of its videos were found, .*x.mp4; paths are rel.*--data"),
        (f"a.mp4 {'6' * 6000}\n", {}, "is not an integer from 0"),
        ("da\0ria.mp4 0\neli.mp4 1\n", {}, "csv: not a text file"),
        ("a.mp4 0\nb.mp4 3", {"heads": (Head(outputs=3),)}, r"csv:2: label 3 is out .* from 0 to 2"),
        ("a.mp4 -1\n", {}, r":1: label -1 is out of range"),
        ("a.mp4 3\n", {"class_names": NAMES}, r":1: label 3 is out of range"),
        ("a.mp4,wolk\n", {"class_names": NAMES}, r":1: unknown class 'wolk'; did you mean 'walk'"),
        ("a.mp4 0\na.mp4 1\n", {}, r":2: .*a\.mp4 has the class '1' here and '0' in line 1; keep one"),
        ("a.mp4 0\nb.mp4 x\n", {}, r":2: unknown class 'x'; other labels are numbers, and data\.classes"),
        ("a.mp4\nb.mp4\n", {}, r":1: no label"),
        ("path,label\na.mp4,\n", {}, r":2: no label"),
        ("path label starts\na.mp4 0 1\n", {}, r":1: unknown column 'starts', which may name a segment"),
        ("path label strat\na.mp4 0 1\n", {}, r":1: unknown column 'strat', which may name a segment"),
        ("label start\n0 1\n", {}, r":1: the header needs the column 'path'"),
        ("path path\na b\n", {}, r":1: the header needs .* every column once"),
        ("path,start,end\na.mp4,2,2\n", {"labeled": False}, r":2: the segment ends at 2\.0 and starts"),
        ("path,start_frame,end_frame\na.mp4,5,3\n", {"labeled": False}, r":2: the segment ends at 3"),
        ("path,start\na.mp4,soon\n", {"labeled": False}, r":2: start 'soon' is not a time in a video"),
        ("path,start\na.mp4,-1\n", {"labeled": False}, r":2: start '-1' is not a time"),
        ("path,start\na.mp4,nan\n", {"labeled": False}, r":2: start 'nan' is not a time"),
        ("path,start,end_frame\na.mp4,1,7\n", {"labeled": False}, r":2: a segment either in seconds"),
        ("path,label\n,0\n", {}, r":2: no path"),
        ("", {}, "the list is empty"),
        ("\n  \n", {}, "the list is empty"),
        ("path label\n", {}, "a header and no line under it"),
        ("a.mp4,jump\nb.mp4,run\n", {"heads": (Head(outputs=5),)}, r"has 2 .*but data.num_classes is 5"),
        ("# my list\na.mp4 0\n", {}, r":1: '# my list' looks like a comment, and a list has none"),
        ("a.mp4 0\n#b.mp4 1\n", {}, r":2: '#b.mp4 1' looks like a comment"),
        ("a.mp4\nb.mp4 1\n", {}, r":1: 1 field where path, label are .*; quote .*; the line is 'a.mp4'"),
        ("a.mp4,0,\nb.mp4,1,\n", {}, r":1: 3 fields where path, label are expected"),
        ("filename,class,behavior\na.mp4,1,walk\n", {}, NO_CLASSES),
        ("path,lable\na.mp4,salt\n", {}, r"no column is known to hold the classes \(lable\)"),
        ("file,video,class\na.mp4,a.mp4,walk\n", {}, r":1: the header needs the column 'path'"),
        ("path,label,start_time\na.mp4,1,2.5\n", {}, r":1: unknown column 'start_time', which may name"),
        ("path,label,animal,animal\na.mp4,1,2,3\n", {}, r":1: the header needs .* every column once"),
    ],
)  # fmt: skip
def test_wrong_lists_are_refused_with_their_line_and_the_expected_format(root, text, options, message):
    with pytest.raises(DataError, match=message):
        read(root, text, **options)


def test_first_ten_wrong_lines_are_named_and_all_counted(root):
    with pytest.raises(DataError) as caught:
        read(root, "a.mp4 9\n" * 12, heads=(Head(outputs=5),))
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[9].startswith(f"{root}/train.csv:10: label 9")
    assert lines[10] == "and 2 more problems"


def test_names_of_a_list_that_names_no_classes_are_refused(root):
    words = r"names \(jump, run\), and the checkpoint or training list has no class"
    with pytest.raises(DataError, match=words):
        read(root, "a.mp4,run\nb.mp4,jump\n", is_fixed=True)
    assert read(root, "a.mp4,run\n", is_fixed=True, class_names=NAMES).samples[0].labels == (1,)
    assert read(root, "a.mp4,1\n", is_fixed=True).samples[0].labels == (1,)


def test_what_is_no_list_is_named_with_the_fix(root):
    with pytest.raises(DataError, match="bbb: cannot be read: File name too long"):
        read_samples(root / ("b" * 300), root=root)
    with pytest.raises(DataError, match=r"none\.csv: no such list or folder; set data\.root"):
        read_samples(root / "none.csv", root=root)
    with pytest.raises(DataError, match="/dev/zero: expected a list or a folder of videos, not a"):
        read_class_names(Path("/dev/zero"))
    for content, problem in (
        (b"a\x00\x01", "not a text file"),
        ("a.mp4 0\ncafé.mp4 1\n".encode("latin-1"), r"list\.csv:2: not in UTF-8; save it in that encoding"),
    ):
        (root / "list.csv").write_bytes(content)
        with pytest.raises(DataError, match=problem):
            read_samples(root / "list.csv", root=root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1;Swiping Left\n2;Swiping Right\n", r":1: separate path and label by a comma or a tab, not by"),
        ("path,label\nleft\\x.mp4,0\n", r":2: write the path with / instead of \\"),
        ("video_name,tag\na,left\nb,right\n", r":2: the path has no ending; write a\.mp4"),
        ("no/a.mp4 0\nno/b.mp4 1\n", "paths are relative to .*; move the list into the folder of its videos"),
        ("label,youtube_id,split\nx,y,train\n", "`everest prepare index FOLDER` makes lists of Kinetics"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("labeled", [True, False])
def test_the_reason_why_no_video_is_found_is_named(root, text, message, labeled):
    with pytest.raises(DataError, match=message):
        read(root, text, labeled=labeled)


@pytest.fixture
def folder(tmp_path):
    hidden = (".hidden/d.mp4", "jump/.e.mp4")
    for path in ("run/a.mp4", "run/deep/b.AVI", "jump/c.webm", "jump/notes.txt", *hidden):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "jump" / "pictures").mkdir()
    (tmp_path / "jump" / "pictures" / "0.jpg").touch()
    return tmp_path


def read_folder(folder, *, labeled=True, **options):
    return (read_samples if labeled else read_unlabeled)(folder, root=folder, **options)


FOUND = [("jump/c.webm", 0), ("jump/pictures", 0), ("run/a.mp4", 1), ("run/deep/b.AVI", 1)]


def test_subfolders_are_classes_and_other_files_and_folders_are_none(folder):
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "a.mp4").touch()
    (folder / "jump" / "poster.jpg").touch()  # an image next to videos or folders is no video
    (folder / "run" / "deep" / "thumbnail.png").touch()
    found = read_folder(folder)
    assert found.class_names == ("jump", "run")
    assert short(found, folder) == FOUND
    assert read_folder(folder, class_names=NAMES[:2]).samples[-1].labels == (1,)
    assert read_folder(folder, class_names=("run", "jump")).samples[0].labels == (0,)


def test_any_folder_of_videos_serves_pretraining(folder):
    found = read_folder(folder, labeled=False)
    assert short(found, folder) == [(path,) for path, _ in FOUND]
    assert found.class_names is None


def test_files_of_cameras_discs_and_bare_streams_are_videos(tmp_path):
    names = ["0.3g2", "1.asf", "2.divx", "3.dv", "4.f4v", "5.h264", "6.hevc", "7.m1v", "8.m2ts", "9.m2v"]
    names += ["a.mpe", "b.MTS", "c.mxf", "d.VOB", "e.y4m"]
    for name in [*names, "f.txt", "g.mp3", "h.jpg"]:
        (tmp_path / name).touch()
    assert [path for (path,) in short(read_folder(tmp_path, labeled=False), tmp_path)] == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ("jump", "rum")}, r"run: unknown class; did you mean 'rum'"),
        ({"heads": (Head(outputs=3),)}, r"has 2 classes \(jump, run\), but data.num_classes is 3"),
        ({"is_fixed": True}, r"names \(jump, run\), .*set data\.classes or use numbers"),
        ({"heads": named_heads({"verb": 3})}, r"data\.heads, or .* needs a list"),
    ],
)
def test_folders_that_do_not_fit_are_refused_with_the_reason(folder, options, message):
    with pytest.raises(DataError, match=message):
        read_folder(folder, **options)


def test_folders_without_videos_are_refused_and_make_no_class(tmp_path):
    with pytest.raises(DataError, match="no subfolders"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="contains no videos"):
        read_folder(tmp_path, labeled=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no videos in its 1 subfolders"):
        read_folder(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.mp4").touch()
    with pytest.raises(DataError, match=r"empty: no videos in this class folder; remove it, or name"):
        read_folder(tmp_path)
    found = read_folder(tmp_path, class_names=("empty", "run"))
    assert {sample.labels for sample in found.samples} == {(1,)}


def test_links_to_folders_are_followed_once(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "f.mp4").touch()
    (folder / "run" / "linked").symlink_to(elsewhere)
    (folder / "run" / "again").symlink_to(elsewhere)
    (folder / "run" / "loop").symlink_to(folder / "run")
    (folder / "jump" / "up").symlink_to(folder)
    (folder / "jump" / "other").symlink_to(folder / "run")
    assert short(read_folder(folder), folder) == sorted([*FOUND, ("run/again/f.mp4", 1)])
    names = [Path(path).name for (path,) in short(read_folder(folder, labeled=False), folder)]
    assert sorted(names) == ["a.mp4", "b.AVI", "c.webm", "f.mp4", "pictures"]


@pytest.mark.parametrize("labeled", [True, False])
def test_unreadable_folder_is_named(folder, labeled, monkeypatch):
    allowed = Path.iterdir

    def refusing(path):  # as without permission
        if path.name == "deep":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return allowed(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    with pytest.raises(DataError, match="run/deep: cannot be read: Permission denied"):
        read_folder(folder, labeled=labeled)


SHEET = (
    "clip_id,filename,behavior,animal,date\n7,a.mp4,walk,m3,2024-05-01\n8,b.mp4,run,m4,\n9,c.mp4,walk,m3,\n"
)


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_a_sheet_with_a_class_column_is_a_list(root, separator):
    found = read(root, SHEET.replace(",", separator), name="sheet.csv")
    assert short(found, root) == [("a.mp4", 1), ("b.mp4", 0), ("c.mp4", 1)]
    assert found.class_names == ("run", "walk")
    assert found.notices == (
        f"{root}/sheet.csv: path from the column 'filename'; label from the column 'behavior'; "
        "ignored columns: clip_id, animal, date",
    )


def test_a_quoted_header_may_be_separated_by_semicolons(root):
    text = '"";"path";"label"\n"1";"a.mp4";"walk; slow"\n"2";"b.mp4";"run"\n'  # as R's write.csv2 writes it
    found = read(root, text)
    assert short(found, root) == [("a.mp4", 1), ("b.mp4", 0)]
    assert found.class_names == ("run", "walk; slow")
    assert found.notices == (f"{root}/train.csv: ignored columns: column 1",)
    assert short(read(root, '"path";"label"\n"a.mp4";1\n"b.mp4";0\n'), root) == [("a.mp4", 1), ("b.mp4", 0)]


def test_further_columns_of_a_list_are_ignored_with_a_notice(root):
    for text, ignored in (
        ("path,label,animal\na.mp4,0,m3\nb.mp4,1,m4\n", "animal"),
        (",path,label\n0,a.mp4,run\n1,b.mp4,walk\n", "column 1"),  # the index of pandas
        ("path,label,state\na.mp4,0,Ohio\nb.mp4,1,Iowa\n", "state"),  # words: no misspelled start
        ("path,label,endoscope\na.mp4,0,3\nb.mp4,1,4\n", "endoscope"),
    ):
        found = read(root, text)
        assert short(found, root) == [("a.mp4", 0), ("b.mp4", 1)]
        assert found.notices == (f"{root}/train.csv: ignored columns: {ignored}",)
    assert not read(root, "path,label\na.mp4,0\nb.mp4,1\n").notices


def test_the_columns_of_a_sheet_are_chosen_by_name(root):
    (root / "sheet.csv").write_text("path,label,treatment,animal\na.mp4,1,salt,x\nb.mp4,1,sugar,y\n")
    found = read_labeled(root / "sheet.csv", root=root, columns={"label": "treatment", "group": "animal"})
    assert found.class_names == ("salt", "sugar")
    assert [sample.group for sample in found.samples] == ["x", "y"]
    assert found.notices == (
        f"{root}/sheet.csv: label from the column 'treatment'; group from the column 'animal'; "
        "ignored columns: label",
    )


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("path,label,label.verb", {}, r"sheet\.csv: has columns label and label\.NAME; rename label"),
        ("path,label.verb,x", {"task": "multi-label"}, r"^--task: has no effect on labels in .*sheet"),
        ("path,label.verb,x", {"class_names": ["0", "1"]}, r"^--classes: has no effect on .*NAME.*out"),
        ("path,label,x", {"class_names": ["0"], "task": "regression"}, r"^--classes: has no effect"),
        ("video,action,x", {"columns": {"group": "action"}}, r"^--group column:action: holds .*:1"),
        ("path,x,y", {"columns": {"label": "x", "group": "x"}}, r"^--group column:x: holds the labels"),
        ("path,label.s,x", {"columns": {"group": "label.s"}}, r"^--group column:label\.s: holds"),
        ("path,class,class", {"columns": {"group": "class"}}, r"needs the column 'path', and every"),
        ("path,label,x", {"columns": {"label": "y"}}, r"^--class-column y: no such column in .*csv:1"),
        ("a.mp4,1,2", {"columns": {"label": "y"}}, r"^--class-column y: no such column in .*csv:1$"),
    ],
)  # fmt: skip
def test_labels_and_options_that_would_be_ignored_are_refused(root, header, options, message):
    (root / "sheet.csv").write_text(f"{header}\na.mp4,0,1\n")
    with pytest.raises((DataError, RecipeError), match=message):
        read_labeled(root / "sheet.csv", root=root, **options)


def test_a_sheet_without_classes_is_a_list_for_pretraining(root):
    text = "filename,animal,treatment\na.mp4,m3,salt\nb.mp4,m4,salt\n"
    assert short(read(root, text, labeled=False), root) == [("a.mp4",), ("b.mp4",)]
    for name in ("video", "file", "clip"):  # folders of images named like a column are no header
        (root / name).mkdir()
        assert len(read(root, f"{name} 0\nb.mp4 1\n").samples) == 2


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("name", ["group", "Group", " GROUP "])
def test_the_column_is_read_and_is_not_ignored(root, name, labeled):
    found = read(root, f"path,label,{name},note\na.mp4,0,m 3,x\nb.mp4,1,,x\nc.mp4,1,04,x\n", labeled=labeled)
    assert [sample.group for sample in found.samples] == ["m 3", None, "04"]
    assert [sample.group_or_path for sample in found.samples] == ["m 3", f"{root}/b.mp4", "04"]
    assert found.notices == (f"{root}/train.csv: ignored columns: note",)
    assert not read(root, "path,label,group\na.mp4,0,m3\n").notices


def test_a_group_does_not_change_which_clips_a_run_resumes_with(root):
    plain = read(root, "path,label\na.mp4,0\nb.mp4,1\n").samples
    grouped = read(root, "path,label,group\na.mp4,0,m3\nb.mp4,1,m3\n").samples
    assert fingerprint(grouped, root, None) == fingerprint(plain, root, None)
    assert [sample.video_id for sample in grouped] == [sample.video_id for sample in plain]
    segments = read(root, "path,start,end\na.mp4,0,1\na.mp4,1,2\nb.mp4,0,1\n", labeled=False).samples
    assert segments[0].group_or_path == segments[1].group_or_path != segments[2].group_or_path
    assert segments[0].video_id != segments[1].video_id


def test_of_columns_with_similar_names_only_the_exact_one_is_used(root):
    for names, group, ignored in (("Group,group", "y", "Group"), ("Group,GROUP", None, "Group, GROUP")):
        found = read(root, f"path,label,{names}\na.mp4,0,x,y\n")
        assert found.samples == (Sample(path=f"{root}/a.mp4", labels=(0,), group=group),)
        assert found.notices == (f"{root}/train.csv: ignored columns: {ignored}",)


def test_the_column_may_hold_the_classes_if_it_is_named_for_that(root):
    with pytest.raises(DataError, match=r"hold the classes \(group\); .* --class-column NAME`"):
        read(root, "path,group\na.mp4,salt\nb.mp4,sugar\n")
    found = read_labeled(root / "train.csv", root=root, columns={"label": "group"})
    assert found.class_names == ("salt", "sugar")
    assert [sample.group for sample in found.samples] == [None, None]
