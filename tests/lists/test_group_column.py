"""The column `group` of a list: the recording, animal or person that a video comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everest.data.stages import fingerprint
from everest.errors import DataError
from everest.lists.sample import Sample
from everest.lists.samples import read_samples
from everest.lists.writing import is_listable_group, write_list


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grouped")
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (folder / name).touch()
    return folder


def read(root: Path, text: str, **options):
    (root / "list.csv").write_text(text)
    return read_samples(root / "list.csv", root=root, **options)


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


def test_segments_of_a_file_have_one_source_and_two_ids(root: Path):
    first, second, other = read(
        root, "path,start,end\na.mp4,0,1\na.mp4,1,2\nb.mp4,0,1\n", labeled=False
    ).samples
    assert first.source == second.source != other.source
    assert first.video_id != second.video_id


def test_of_columns_that_differ_in_their_capitals_only_the_exact_one_is_used(root: Path):
    found = read(root, "path,label,Group,group\na.mp4,0,x,y\n")
    assert found.samples[0].group == "y"
    assert found.notice == f"{root}/list.csv: ignored columns: Group"
    found = read(root, "path,label,Group,GROUP\na.mp4,0,x,y\n")
    assert found.samples[0].group is None
    assert found.notice == f"{root}/list.csv: ignored columns: Group, GROUP"


def test_a_column_of_numbers_with_a_similar_name_is_ignored_as_before(root: Path):
    found = read(root, "path,label,groups\na.mp4,0,3\n")
    assert found.samples == (Sample(path=f"{root}/a.mp4", labels=(0,)),)
    assert found.notice == f"{root}/list.csv: ignored columns: groups"


def test_the_column_may_hold_the_classes_if_it_is_named_for_that(root: Path):
    with pytest.raises(DataError, match=r"hold the classes \(group\); .* --class-column group`"):
        read(root, "path,group\na.mp4,salt\nb.mp4,sugar\n")
    found = read(root, "path,group\na.mp4,salt\nb.mp4,sugar\n", class_column="group")
    assert found.class_names == ("salt", "sugar")
    assert [sample.group for sample in found.samples] == [None, None]


GROUPS = st.none() | st.text(min_size=1, max_size=12).filter(is_listable_group)


@given(groups=st.lists(GROUPS, min_size=1, max_size=3), labeled=st.booleans(), has_part=st.booleans())
@settings(max_examples=50, deadline=None)
def test_written_groups_are_read_back(root: Path, groups: list[str | None], labeled: bool, has_part: bool):
    samples = [
        Sample(
            path=f"{root}/{'abc'[i]}.mp4",
            labels=(i,) if labeled else (),
            group=group,
            end_frame=7 if has_part else None,
        )
        for i, group in enumerate(groups)
    ]
    write_list(root / "written.csv", samples, root=root)
    read_back = read_samples(root / "written.csv", root=root, num_classes=3, labeled=labeled).samples
    assert list(read_back) == samples
    columns = (root / "written.csv").read_text(encoding="utf-8").split("\n")[0].split(",")
    assert ("group" in columns) == any(group is not None for group in groups)


@pytest.mark.parametrize("group", ["", " m3", "m3\n", "m\r3", "m\u20283", "m\udce9", "m\0"])
def test_a_group_that_would_not_be_read_back_is_refused_before_anything_is_written(
    tmp_path: Path, group: str
):
    with pytest.raises(DataError, match="no list can hold its group"):
        write_list(tmp_path / "list.csv", [Sample(path=f"{tmp_path}/a.mp4", group=group)], root=tmp_path)
    assert not list(tmp_path.iterdir())
