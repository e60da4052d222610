"""The column `group` in the lists that `everest prepare split` reads and writes."""

import os
from pathlib import Path

import pytest
from prepare_commands import everest, rows_of, touch

from everest.lists.groups import grouping, with_groups
from everest.lists.sample import Sample
from everest.lists.samples import read_samples


@pytest.fixture
def ucf_names(tmp_path):
    """Two classes of five groups of three videos, called as UCF101's."""
    names = [
        f"{c}/v_{c}_g{g:02}_c{v:02}.avi" for c in ("Run", "Walk") for g in range(1, 6) for v in range(1, 4)
    ]
    touch(tmp_path, *names)
    (tmp_path / "all.csv").write_text("".join(f"{name} {int('Walk' in name)}\n" for name in names))
    return tmp_path


def groups_of(file, root):
    return {Path(x.path).name: x.group for x in read_samples(file, root=root).samples}


@pytest.mark.parametrize("options", [["--group", "column:animal"], ["--group", r"_(g\d+)_"]])
def test_the_groups_of_a_split_are_a_column_of_its_lists(ucf_names, options):
    sheet = ucf_names / "sheet.csv"
    names = [line.split()[0] for line in (ucf_names / "all.csv").read_text().splitlines()]
    rows = [f"{name},{name.split('/')[0]},m{name.split('_g')[1][:2]}\n" for name in names]
    sheet.write_text("file,behavior,animal\n" + "".join(rows))
    everest("prepare", "split", sheet, "--shares", "60/20/20", *options)
    lists = [sheet.parent / f"{name}.csv" for name in ("train", "val", "test")]
    for file in lists:
        for name, group in groups_of(file, sheet.parent).items():
            assert group == ("m" if "animal" in options[1] else "g") + name.split("_g")[1][:2]
    everest("prepare", "split", "--check", *lists, "--group", "column:group")
    everest("prepare", "split", lists[0], "--group", "column:group", "--output", sheet.parent / "again")
    first = groups_of(lists[0], sheet.parent)
    again = [groups_of(file, sheet.parent) for file in (sheet.parent / "again").glob("*.csv")]
    assert {name: group for part in again for name, group in part.items()} == first


def test_folders_are_written_relative_to_the_root(ucf_names):
    everest("prepare", "split", ucf_names / "all.csv", "--group", "folder", "--shares", "1/1")
    found = groups_of(ucf_names / "train.csv", ucf_names) | groups_of(ucf_names / "test.csv", ucf_names)
    assert found == {path.name: path.parent.name for path in ucf_names.rglob("*.avi")}


def test_a_split_without_groups_keeps_the_column_and_divides_as_before(ucf_names):
    plain = (ucf_names / "all.csv").read_text().splitlines()
    lines = [f"{line.replace(' ', ',')},{line.split('_g')[1][:2]}\n" for line in plain]
    (ucf_names / "grouped.csv").write_text("path,label,group\n" + "".join(lines))
    everest("prepare", "split", ucf_names / "all.csv", "--output", ucf_names / "plain")
    shown = everest("prepare", "split", ucf_names / "grouped.csv", "--output", ucf_names / "grouped")
    assert "the column 'group' is not used; --group column:group keeps groups together" in shown.stderr
    assert "ignored columns" not in shown.stderr
    for name in ("train", "val", "test"):
        before, after = (ucf_names / folder / f"{name}.csv" for folder in ("plain", "grouped"))
        assert rows_of(before, ucf_names) == rows_of(after, ucf_names)
        assert before.read_text().startswith("path,label\n")
        assert after.read_text().startswith("path,label,group\n")
        assert all(group == name.split("_g")[1][:2] for name, group in groups_of(after, ucf_names).items())
    lists = [ucf_names / "grouped" / f"{name}.csv" for name in ("train", "test")]
    checked = everest("prepare", "split", "--check", *lists, "--data", ucf_names)
    assert "--group column:group" in checked.stderr


def test_one_video_with_two_groups_in_the_column_group_is_refused(ucf_names):
    (ucf_names / "two.csv").write_text(
        "path,label,group\nRun/v_Run_g01_c01.avi,0,a\nRun/v_Run_g01_c01.avi,0,b\n"
    )
    message = everest("prepare", "split", ucf_names / "two.csv", "--group", "column:group", code=4).stderr
    assert "two.csv:3: the column 'group' is 'b', and 'a' in another row of" in message


def test_a_group_without_a_name_is_refused_before_anything_is_written(ucf_names):
    message = everest("prepare", "split", ucf_names / "all.csv", "--group", r"^(x*)v_", code=4).stderr
    assert "no list can hold its group, ''; rename the group" in message
    assert not (ucf_names / "train.csv").exists()


def test_bytes_that_are_not_utf_8_are_written_as_their_numbers(tmp_path):
    samples = [Sample(path=os.fsdecode(b"/v/caf\xe9/a.mp4"))]
    (found,) = with_groups(samples, grouping("folder"), base=Path("/v"))
    assert found.group == r"caf\xe9"
