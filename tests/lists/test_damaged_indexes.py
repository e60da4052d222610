import json
import re
import shutil
from pathlib import Path

import pytest
from damage import damaged_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import called, refused

from everest.errors import DataError
from everest.lists.reading import read_samples
from everest.lists.shards import read_index
from everest.system.files import write_text
from everest.video.source import video_bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    """The index of four videos in two shards."""
    folder = tmp_path_factory.mktemp("shards")
    written = called("prepare", "shard", clip_files / "train.csv", "-o", folder, "--count", 2, "-q")
    return Path(written.stdout.strip())


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_index_is_one_error_or_names_parts_of_its_shards(made: Path, data):
    document = json.loads(made.read_text())
    index = made.with_name("damaged.index.json")
    index.write_bytes(data.draw(damaged_json(document)))
    sizes = {path: path.stat().st_size for path in made.parent.glob("*.tar")}
    problem = None
    try:
        rows = read_index(index)
        samples = read_samples(index, root=made.parent, labeled=data.draw(st.booleans())).samples
    except DataError as error:
        problem = str(error)
    if problem is not None:
        assert problem.startswith((str(index), *map(str, sizes)))
        assert "\n" not in re.sub(r"sample \d+.*\n", "", problem)  # the problems of labels are listed
        return
    assert len(rows) == len(samples) > 0
    for sample in samples:
        assert sample.member is not None
        assert sizes[sample.member.shard] >= sample.member.offset + sample.member.size
        assert len(video_bytes(sample.member)) == sample.member.size
        write_text(made.with_name("listed.txt"), sample.video_id)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tar": "../secret.tar"}, r"samples.0.tar: '../secret.tar' is not among the shards"),
        ({"offset": -1}, r"samples.0.offset: Input should be greater than or equal to 0"),
        ({"offset": 10**12}, r"samples.0: ends after its shard"),
        ({"size": 2**62}, r"samples.0: ends after its shard"),
        ({"size": "12"}, r"samples.0.size: Input should be a valid integer"),
        ({"path": None}, r"samples.0.path: Input should be an instance of str"),
        ({"label": 0}, r"samples.0: 'label' is no column of a list, or has no text"),
        ({"lable": "0"}, r"samples.0: 'lable' is no column of a list"),
    ],
)
def test_the_wrong_value_of_an_index_is_named(made: Path, changes: dict[str, object], problem: str):
    document = json.loads(made.read_text())
    document["samples"][0] |= changes
    index = made.with_name("wrong.index.json")
    index.write_text(json.dumps(document))
    with pytest.raises(DataError, match=rf"wrong\.index\.json: damaged \({problem}"):
        read_index(index)


def test_a_shard_outside_of_the_folder_is_not_opened(made: Path, tmp_path: Path):
    (tmp_path / "secret.tar").write_bytes(bytes(100))
    folder = shutil.copytree(made.parent, tmp_path / "shards")
    document = json.loads(made.read_text())
    for name in ("../secret.tar", str(tmp_path / "secret.tar"), "..", "sub/secret.tar", "a\0.tar", "\ud800"):
        document["shards"][0] = {"file": name, "bytes": 100}
        document["samples"] = [document["samples"][0] | {"tar": name, "offset": 0, "size": 100}]
        (folder / "train.index.json").write_text(json.dumps(document))
        words = r"train\.index\.json: damaged \(shards: .* is not the name of a file"
        with pytest.raises(DataError, match=words):
            read_index(folder / "train.index.json")


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "{", '{"format": "everest-shards", "version": 1, "samples": [{}]}']
)
def test_commands_end_with_one_line_for_a_damaged_index(text, recipe, clip_files, tmp_path):
    index = tmp_path / "train.index.json"
    index.write_text(text)
    message = refused("pretrain", "--recipe", recipe, f"--set=data.train={index}", code=4)
    assert message.startswith(f"error: {index}: ")
    assert message.count("\n") == 1
    (tmp_path / ".train.plan.json").write_text(text)
    called("prepare", "shard", clip_files / "train.csv", "-o", tmp_path, "-q")  # as without an index
    assert len(read_index(index)) == 4
