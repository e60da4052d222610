from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everest.config.heads import Head
from everest.errors import DataError
from everest.lists.reading import read_samples, read_unlabeled
from everest.lists.sample import Sample
from everest.lists.writing import write_list

# All that a file system accepts, the hardest more often.
SIGNS = st.one_of(
    st.sampled_from(" ,\t\"'#;\\[]$%é\u0301\u2028\r\n"),
    st.characters(codec="utf-8", exclude_characters="/\0"),
)
NAMES = st.text(SIGNS, min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and name[-1] != " "
)


def is_listable(name):
    """Whether a list can hold a name."""
    return len(name.splitlines()) == 1 and not name[-1].isspace()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lists")


@given(
    names=st.lists(NAMES.filter(is_listable), min_size=1, max_size=6),
    labeled=st.booleans(),
    segment=st.none() | st.tuples(st.floats(0, 1e5), st.floats(0.01, 1e3)),
    data=st.data(),
)
def test_written_lists_are_read_back(folder, names, labeled, segment, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "exists", lambda path: True)
        part = {"start": segment[0]} if segment else {}
        of_name = {name: (data.draw(st.integers(0, 9)),) for name in dict.fromkeys(names)}
        labels = [of_name[name] if labeled else () for name in names]
        samples = [
            Sample(path=str(folder / name), labels=label, **part)
            for name, label in zip(names, labels, strict=True)
        ]
        write_list(folder / "list.csv", samples, root=folder)
        if labeled:
            read = read_samples(folder / "list.csv", root=folder, heads=(Head(outputs=10),))
        else:
            read = read_unlabeled(folder / "list.csv", root=folder)
    assert [Path(sample.path) for sample in read.samples] == [Path(sample.path) for sample in samples]
    assert [(s.labels, s.start) for s in read.samples] == [(s.labels, s.start) for s in samples]


@given(names=st.lists(NAMES, min_size=1, max_size=4))
def test_a_name_is_written_and_read_back_or_refused(folder, names):
    samples = [Sample(path=str(folder / name)) for name in names]
    if not all(map(is_listable, names)):
        with pytest.raises(DataError, match="which no list can hold; rename it"):
            write_list(folder / "list.csv", samples, root=folder)
        return
    write_list(folder / "list.csv", samples, root=folder)
    lines = (folder / "list.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(names) + 1


def test_several_labels_have_a_column_each_and_paths_outside_the_root_stay_absolute(tmp_path):
    sample = Sample(path=str(tmp_path / "a.mp4"), labels=(3, 299), start_frame=7)
    write_list(tmp_path / "list.csv", [sample], root=tmp_path, head_names=["verb", "noun"])
    assert (tmp_path / "list.csv").read_text() == "path,label.verb,label.noun,start_frame\na.mp4,3,299,7\n"
    write_list(tmp_path / "list.csv", [Sample(path="/elsewhere/a.mp4")], root=tmp_path)
    assert (tmp_path / "list.csv").read_text() == "path\n/elsewhere/a.mp4\n"


def test_large_and_fine_numbers_are_read_back(tmp_path):
    segments = [{"start": 1_000_000.00001, "end": 2e17}, {"start_frame": 3, "end_frame": 99_999_999_999}]
    (tmp_path / "v.mp4").touch()
    for number, segment in enumerate(segments):
        samples = [Sample(path=str(tmp_path / "v.mp4"), labels=(0,), **segment)]
        write_list(tmp_path / f"{number}.csv", samples, root=tmp_path)
        found = read_samples(tmp_path / f"{number}.csv", root=tmp_path)
        assert list(found.samples) == samples


def test_a_group_that_would_not_be_read_back_is_refused_before_anything_is_written(tmp_path):
    for group in ("", " m3", "m3\n", "m\r3", "m\u20283", "m\0"):
        with pytest.raises(DataError, match=r"its group .*, which no list can hold"):
            write_list(tmp_path / "list.csv", [Sample(path=f"{tmp_path}/a.mp4", group=group)], root=tmp_path)
        assert not list(tmp_path.iterdir())
