import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prepare_commands import everest, split, touch

from everest.lists.groups import set_groups
from everest.lists.reading import read_labeled, read_samples
from everest.lists.sample import Sample
from everest.prepare.split import read_fractions, split_samples
from everest_workflows.suggest.data_section import make_data_section


def samples_of(classes, group_size):
    """`classes` videos of each class, groups of `group_size` within a class."""
    return [
        Sample(path=f"/v/c{label}_g{number // group_size}_{number}.mp4", labels=(label,))
        for label, count in enumerate(classes)
        for number in range(count)
    ]


def groups_in(root, *names):
    """The group of each file in these lists."""
    found = [read_samples(root / f"{name}.csv", root=root).samples for name in names]
    return {Path(sample.path).name: sample.group for samples in found for sample in samples}


def divided(samples, fractions, seed=0, group=None):
    grouped = set_groups(samples, group, root=Path("/v")) if group else samples
    return split_samples(grouped, read_fractions(fractions), seed=seed)


PARTS = ("train", "val", "test")
FRACTIONS = st.sampled_from(["80/10/10", "70/30", "1/1/1", "98/1/1"])
CLASSES = st.lists(st.integers(1, 60), min_size=1, max_size=8)


@given(classes=CLASSES, fractions=FRACTIONS, seed=st.integers(0, 9))
# Two groups have to change lists; the class of 18 gives val and test one video less.
@example(classes=[17, 13, 23, 27, 57, 60], fractions="80/10/10", seed=1)
@example(classes=[3, 3, 18], fractions="80/10/10", seed=0)
@settings(max_examples=50)
def test_single_videos_meet_their_fractions_in_every_class_and_altogether(classes, fractions, seed):
    parts = read_fractions(fractions)
    samples = samples_of(classes, 1)
    lists = divided(samples, fractions, seed)
    assert sorted(s.path for part in lists.values() for s in part) == sorted(s.path for s in samples)
    # A class of too few videos for its fractions still has one in each list, which others give.
    given = sum(count >= len(parts) and count * min(parts.values()) < 1 for count in classes)
    for name, fraction in parts.items():
        counts = Counter(sample.labels[0] for sample in lists[name])
        assert abs(len(lists[name]) - fraction * len(samples)) < 1.5 + given * len(parts)
        for label, count in enumerate(classes):
            least = 1 if count >= len(parts) else 0
            lent = len(parts) - 1 if least and count * min(parts.values()) < 1 else 0
            assert least <= counts[label]
            assert abs(counts[label] - fraction * count) < 1.5 + max(lent, given)


@given(classes=CLASSES, fractions=FRACTIONS, group_size=st.integers(1, 9), seed=st.integers(0, 9))
@settings(max_examples=30)
def test_groups_stay_whole_and_a_class_of_enough_groups_is_in_each_list(classes, fractions, group_size, seed):
    samples = samples_of(classes, group_size)
    lists = divided(samples, fractions, seed, r"(c\d+_g\d+)_")
    assert sum(map(len, lists.values())) == len(samples)
    groups = [{sample.group for sample in part} for part in lists.values()]
    assert len(set().union(*groups)) == sum(map(len, groups))
    for label, count in enumerate(classes):
        if -(-count // group_size) >= len(lists):
            assert all(any(sample.labels == (label,) for sample in part) for part in lists.values())


def test_the_same_seed_cuts_alike_and_another_does_not():
    samples = samples_of([40, 40], 4)
    cuts = [divided(samples, "80/20", seed, r"(c\d_g\d+)_") for seed in (1, 1, 2)]
    assert cuts[0] == cuts[1] != cuts[2]


@pytest.fixture
def ucf_names(tmp_path):
    """Two classes of five groups of three videos, called as UCF101's."""
    names = [
        f"{c}/v_{c}_g{g:02}_c{v:02}.avi" for c in ("Run", "Walk") for g in range(1, 6) for v in range(1, 4)
    ]
    touch(tmp_path, *names)
    (tmp_path / "all.csv").write_text("".join(f"{name} {int('Walk' in name)}\n" for name in names))
    return tmp_path


def test_nothing_is_replaced_and_no_list_of_another_split_remains(ucf_names):
    split(ucf_names / "all.csv")
    before = (ucf_names / "train.csv").read_text()
    for source, options, message in (
        ("all", ["--shares", "80/20", "--overwrite"], "val.csv: would remain from another split; remove it"),
        ("all", [], "train.csv: exists"),
        ("train", ["--overwrite"], "is an input of this command"),
    ):
        assert message in split(ucf_names / f"{source}.csv", *options, code=2).stderr
        assert (ucf_names / "train.csv").read_text() == before
    (ucf_names / "val.csv").unlink()
    split(ucf_names / "all.csv", "--shares", "80/20", "--overwrite")


def test_the_fractions_are_70_15_15_unless_given(tmp_path):
    touch(tmp_path, *(f"{name}/{number}.mp4" for name in ("run", "walk") for number in range(20)))
    told = json.loads(split(tmp_path, "--json").stdout)
    assert {name: row["videos"] for name, row in told["lists"].items()} == {"train": 28, "val": 6, "test": 6}


def test_a_list_is_cut_by_a_part_of_the_names(ucf_names):
    shown = split(ucf_names / "all.csv", "--shares", "60/20/20", "--group", r"_g(\d+)_", "--json")
    groups = [set(groups_in(ucf_names, name).values()) for name in PARTS]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert [len(groups_in(ucf_names, name)) for name in PARTS] == [18, 6, 6]
    (name,) = groups[1]
    assert json.loads(shown.stdout)["lists"]["val"] == {
        **{"videos": 6, "groups": [name], "classes": {"0": 3, "1": 3}, "numbers": None}
    }
    assert f"val: 6 videos (20.0%) of 1 group: {name}\n" in shown.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--shares", "80"], 2, "--shares 80: give two (train/test) or three"),
        (["--shares", "80/x"], 2, "--shares 80/x: give two"),
        (["--shares", "1/0"], 2, "--shares 1/0: give two"),
        (["--shares", "1e308/1e308"], 2, "--shares 1e308/1e308: give two"),
        (["--group", "g(\\d"], 2, "not a regular expression: missing ), unterminated subpattern at "),
        (["--group", "g\\d"], 2, "has 0 pairs of parentheses, not 1; give"),
        (["--group", "_h(\\d+)_"], 4, "--group _h(\\d+)_ does not match; "),
        (["--group", "_g(\\d+)_", "--output", "/dev/null/x"], 5, "cannot write"),
        (["--group", "^(Run|Walk)"], 4, "v_Run_g01_c01.avi: --group ^(Run|Walk) does not match; "),
        (["--group", "column:animal"], 2, "--group column:animal: no such column in"),
        (["--class-column", "animal"], 2, "--class-column animal: no such column in"),
    ],
)
def test_what_cannot_be_meant(ucf_names, options, code, message):
    assert message in split(ucf_names / "all.csv", *options, code=code).stderr


@pytest.fixture
def sheet(ucf_names):
    """A sheet of the videos with a column of classes, one of groups and others."""
    (ucf_names / "all.csv").unlink()
    paths = sorted(path.relative_to(ucf_names) for path in ucf_names.rglob("*.avi"))
    animals = [path.name.split("_g")[1][:2] for path in paths]
    rows = zip(paths, animals, strict=True)
    lines = [f'{path},{path.parent.name.lower()} fast,m{animal},"a, b"\n' for path, animal in rows]
    (ucf_names / "sheet.csv").write_text("file name,Behavior,animal,note\n" + "".join(lines))
    return ucf_names / "sheet.csv"


@pytest.mark.parametrize(("group", "letter"), [("column:animal", "m"), (r"_(g\d+)_", "g")])
def test_a_sheet_is_split_by_its_columns_and_its_lists_keep_the_groups(sheet, group, letter):
    root = sheet.parent
    split(sheet, "--shares", "60/20/20", "--group", group)
    assert [len(groups_in(root, name)) for name in PARTS] == [18, 6, 6]
    assert all(found == letter + name.split("_g")[1][:2] for name, found in groups_in(root, *PARTS).items())
    groups = [set(groups_in(root, name).values()) for name in PARTS]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 5
    assert (root / "classes.txt").read_text() == "run fast\nwalk fast\n"
    assert "walk fast" in (root / "val.csv").read_text()  # needs no file of names
    shown = split(root / "train.csv", "--shares", "1/1", "--output", root / "again")
    assert "without --group" not in shown.stderr  # the column keeps groups together
    assert groups_in(root, "again/train", "again/test") == groups_in(root, "train")


def test_a_list_without_groups_and_one_video_in_two_groups_are_named(ucf_names):
    shown = split(ucf_names / "all.csv", "--output", ucf_names / "plain")
    assert "without --group, clips of one recording" in shown.stderr
    listed = read_labeled(ucf_names / "plain" / "train.csv", root=ucf_names / "plain")  # found from there
    assert all(Path(sample.path).is_relative_to(ucf_names) for sample in listed.samples)
    rows = "".join(f"Run/v_Run_g01_c01.avi,0,{group}\n" for group in "ab")
    (ucf_names / "two.csv").write_text(f"path,label,group\n{rows}")
    for options in ((), ("--group", "column:group")):
        message = split(ucf_names / "two.csv", *options, code=4).stderr
        assert "v_Run_g01_c01.avi: is in the groups 'a' and 'b'; keep one" in message
        assert not (ucf_names / "train.csv").exists()


def test_the_class_column_can_be_named(sheet):
    split(sheet, "--class-column", "animal")
    assert (sheet.parent / "classes.txt").read_text().split() == ["m01", "m02", "m03", "m04", "m05"]
    message = split(sheet, "--class-column", "animals", "--overwrite", code=2).stderr
    assert "did you mean 'animal'?" in message
    folder = split(sheet.parent, "--class-column", "animal", code=2).stderr
    assert "a folder, which has no columns" in folder
    sheet.write_text(sheet.read_text().replace(",m01,", ",,", 1))
    empty = split(sheet, "--group", "column:animal", "--overwrite", code=4).stderr
    assert "no group in the column 'animal'; fill it in" in empty


@pytest.mark.parametrize("group", ["folder", "path:^(Run|Walk)", "^(Run|Walk)/"])
def test_a_group_may_be_the_folder_or_a_part_of_the_path_from_the_root_on(ucf_names, group):
    split(ucf_names / "all.csv", "--shares", "50/50", "--group", group)
    train, test = (groups_in(ucf_names, name) for name in ("train", "test"))
    assert train | test == {path.name: path.parent.name for path in ucf_names.rglob("*.avi")}
    assert len(set(train.values())) == len(set(test.values())) == 1


def test_classes_named_by_integers_and_decimals_are_read_back(tmp_path):
    names = ("0.5", "1", "1.5", "2")
    touch(tmp_path, *(f"{name}/{number}.mp4" for name in names for number in range(10)))
    shown = split(tmp_path)
    written = ("train.csv", "val.csv", "test.csv", "classes.txt")
    assert shown.stdout.splitlines() == [str(tmp_path / name) for name in written]
    assert (tmp_path / "classes.txt").read_text().split() == list(names)
    assert make_data_section(str(tmp_path))["classes"] == "classes.txt"
    for part in PARTS:
        found = read_samples(tmp_path / f"{part}.csv", root=tmp_path, class_names=names)
        assert found.samples
        for sample in found.samples:
            assert sample.labels == (names.index(Path(sample.path).parent.name),)


def test_names_of_classes_that_are_there_already_are_kept(tmp_path):
    touch(tmp_path, *(f"{name}/{number}.mp4" for name in ("run", "walk") for number in range(10)))
    names = tmp_path / "classes.txt"
    names.write_text("run\nwalk\n")
    written = names.stat().st_mtime_ns
    split(tmp_path)
    assert names.stat().st_mtime_ns == written
    for name in PARTS:
        (tmp_path / f"{name}.csv").unlink()
    names.write_text("run\njump\n")
    assert "classes.txt: exists" in split(tmp_path, code=2).stderr
    assert not (tmp_path / "train.csv").exists()


def test_classes_may_have_the_names_of_splits(tmp_path):
    names = ("run", "test", "train", "walk")
    touch(tmp_path, *(f"{name}/{number}.mp4" for name in names for number in range(2)))
    split(tmp_path)
    assert (tmp_path / "classes.txt").read_text().split() == list(names)
    touch(tmp_path / "images", "run/1.png", "train/clip/1.png", "test/1.png")
    split(tmp_path / "images")
    assert (tmp_path / "images" / "classes.txt").read_text().split() == ["run", "test", "train"]


@pytest.mark.parametrize("command", ["split", "check", "shard -o shards"])
@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Validation"), ("Train", "test", "other")])
def test_folders_of_splits_are_no_classes(tmp_path: Path, command: str, names: tuple[str, ...]):
    touch(tmp_path, *(f"{name}/{label}/1.mp4" for name in names for label in ("run", "walk")))
    before = sorted(tmp_path.rglob("*"))
    message = everest(f"prepare {command}", tmp_path, code=4).stderr
    assert f"are lists, not classes; name one of them, such as {tmp_path / names[0]}" in message
    assert len(message.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
