from pathlib import Path

import pytest

from everest.data.recipe_clips import fingerprint
from everest.errors import DataError
from everest.lists.columns import SheetColumns
from everest.lists.reading import read_labeled, read_samples, read_unlabeled
from everest.lists.sample import Sample
from everest.lists.writing import write_list


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grouped")
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (folder / name).touch()
    return folder


def read(root: Path, text: str, *, labeled: bool = True, **options):
    (root / "list.csv").write_text(text)
    return (read_samples if labeled else read_unlabeled)(root / "list.csv", root=root, **options)


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("name", ["group", "Group", " GROUP "])
def test_the_column_is_read_and_is_not_ignored(root: Path, name: str, labeled: bool):
    found = read(root, f"path,label,{name},note\na.mp4,0,m 3,x\nb.mp4,1,,x\nc.mp4,1,04,x\n", labeled=labeled)
    assert [sample.group for sample in found.samples] == ["m 3", None, "04"]
    assert [sample.source for sample in found.samples] == ["m 3", f"{root}/b.mp4", "04"]
    assert found.notice == f"{root}/list.csv: ignored columns: note"
    assert read(root, "path,label,group\na.mp4,0,m3\n").notice is None


def test_a_group_does_not_change_which_clips_a_run_resumes_with(root: Path):
    plain = read(root, "path,label\na.mp4,0\nb.mp4,1\n").samples
    grouped = read(root, "path,label,group\na.mp4,0,m3\nb.mp4,1,m3\n").samples
    assert fingerprint(grouped, root, None) == fingerprint(plain, root, None)
    assert [sample.video_id for sample in grouped] == [sample.video_id for sample in plain]
    segments = read(root, "path,start,end\na.mp4,0,1\na.mp4,1,2\nb.mp4,0,1\n", labeled=False).samples
    assert segments[0].source == segments[1].source != segments[2].source
    assert segments[0].video_id != segments[1].video_id


def test_of_columns_with_similar_names_only_the_exact_one_is_used(root: Path):
    for names, group, ignored in (("Group,group", "y", "Group"), ("Group,GROUP", None, "Group, GROUP")):
        found = read(root, f"path,label,{names}\na.mp4,0,x,y\n")
        assert found.samples == (Sample(path=f"{root}/a.mp4", labels=(0,), group=group),)
        assert found.notice == f"{root}/list.csv: ignored columns: {ignored}"


def test_the_column_may_hold_the_classes_if_it_is_named_for_that(root: Path):
    with pytest.raises(DataError, match=r"hold the classes \(group\); .* --class-column NAME`"):
        read(root, "path,group\na.mp4,salt\nb.mp4,sugar\n")
    found = read_labeled(root / "list.csv", root=root, columns=SheetColumns("group"))
    assert found.class_names == ("salt", "sugar")
    assert [sample.group for sample in found.samples] == [None, None]


def test_a_group_that_would_not_be_read_back_is_refused_before_anything_is_written(tmp_path: Path):
    for group in ("", " m3", "m3\n", "m\r3", "m\u20283", "m\0"):
        with pytest.raises(DataError, match=r"its group .*, which no list can hold"):
            write_list(tmp_path / "list.csv", [Sample(path=f"{tmp_path}/a.mp4", group=group)], root=tmp_path)
        assert not list(tmp_path.iterdir())
