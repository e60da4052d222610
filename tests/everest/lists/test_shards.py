import json
import os
import shutil
import tarfile
from functools import partial
from pathlib import Path

import pytest
import torch
from damage import fill
from processes import kill_when
from small_runs import called, contents, refused, run, same_run, sets
from storage import new_bucket, s3_server, upload
from webdataset.tariterators import group_by_keys, tar_file_expander

from everest.config.heads import named_heads
from everest.errors import DataError
from everest.lists.reading import SampleList, read_samples, read_unlabeled
from everest.system.locks import sole_writer
from everest.video.reader import frames_between, read_frames
from everest.video.source import video_bytes

everest, error = partial(called, "prepare shard"), partial(refused, "prepare shard")


def sharded(source: Path, folder: Path, *options: object) -> Path:
    """The index of the shards of a list."""
    return Path(everest(source, "-o", folder, *options).stdout.strip())


def labeled(source: Path, root: Path, **given: object) -> SampleList:
    return read_samples(source, root=root, **given)


@pytest.fixture
def index(videos: Path, tmp_path: Path) -> Path:
    """The index of the shards of `videos/train.csv`, two videos in each."""
    return sharded(videos / "train.csv", tmp_path / "shards", "--count", 2)


def test_members_are_the_files_to_the_byte(index: Path, videos: Path):
    here, there = labeled(videos / "train.csv", videos), labeled(index, videos)
    assert there.samples != here.samples
    for one, other in zip(here.samples, there.samples, strict=True):
        assert (one.video_id, one.labels) == (other.video_id, other.labels)
        assert video_bytes(other.video) == Path(one.path).read_bytes()
        assert torch.equal(read_frames(other.video, [5, 31]), read_frames(one.path, [5, 31]))


def test_paths_classes_and_groups_are_those_of_the_list(videos: Path, tmp_path: Path):
    lines = "".join(f"clip{number}.mp4,{number % 2 or 'zero'},m{number}\n" for number in range(4))
    (videos / "sheet.csv").write_text("file,class,offset\n" + lines.replace("1,m", "one,m"))
    made = labeled(sharded(videos / "sheet.csv", tmp_path / "shards"), videos)
    assert made.class_names == ("one", "zero")
    assert [sample.labels for sample in made.samples] == [(1,), (0,), (1,), (0,)]
    (videos / "groups.csv").write_text("path,label,group\nclip0.mp4,0,m 3\nclip1.mp4,1,\n")
    source = videos / "groups.csv"
    here, there = labeled(source, videos), labeled(sharded(source, tmp_path / "shards"), videos)
    assert [sample.group for sample in there.samples] == ["m 3", None]
    assert [each.group_or_path for each in there.samples] == [each.group_or_path for each in here.samples]


def test_any_reader_of_webdataset_finds_video_and_label(index: Path, videos: Path):
    shards = sorted(index.parent.glob("*.tar"))
    read: list[dict] = []
    for shard in shards:
        with shard.open("rb") as stream:
            read += group_by_keys(tar_file_expander([{"url": str(shard), "stream": stream}]))
    assert [json.loads(sample["json"]) for sample in read] == [
        {"path": f"clip{i}.mp4", "label": i % 2} for i in range(4)
    ]
    assert [sample["__key__"] for sample in read] == [f"{i:09d}" for i in range(4)]
    with tarfile.open(shards[1]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


def test_names_of_all_kinds_survive(videos: Path, tmp_path: Path):
    for name in ("ü ber", 'q"uote', "new\nline", "a.b.c", "-dash", "x" * 180):
        (videos / name).mkdir()
        os.link(videos / "clip0.mp4", videos / name / f"{name}.mp4")
    index = sharded(videos, tmp_path / "out")
    here = read_unlabeled(videos, root=videos)
    there = read_unlabeled(index, root=videos)
    assert [sample.path for sample in there.samples] == [sample.path for sample in here.samples]
    pairs = zip(here.samples, there.samples, strict=True)
    assert all(video_bytes(one.video) == video_bytes(other.video) for one, other in pairs)


def test_class_folders_become_the_same_classes(clip_files: Path, tmp_path: Path):
    for i, name in enumerate(("wave", "hug", "hug", "kick")):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(clip_files / f"clip{i}.mp4", tmp_path / "set" / name)
    everest(tmp_path / "set", "-o", tmp_path / "shards")
    here, there = labeled(tmp_path / "set", tmp_path), labeled(tmp_path / "shards", tmp_path / "set")
    assert there.class_names == here.class_names == ("hug", "kick", "wave")
    assert [(s.path, s.labels) for s in there.samples] == [(s.path, s.labels) for s in here.samples]


def test_segments_and_heads_share_a_member(videos: Path, tmp_path: Path):
    (videos / "parts.csv").write_text(
        "path,start,end,label.verb,label.noun\nclip0.mp4,0.5,1,3,7\nclip1.mp4,,,1,2\nclip0.mp4,1,,0,4\n"
    )
    index = sharded(videos / "parts.csv", tmp_path / "shards")
    heads = named_heads({"verb": 4, "noun": 8})
    here = labeled(videos / "parts.csv", videos, heads=heads).samples
    there = labeled(index, videos, heads=heads).samples
    assert [(s.video_id, s.labels) for s in there] == [(s.video_id, s.labels) for s in here]
    assert there[0].member == there[2].member
    assert frames_between(there[0].video, 0.5, 1) == frames_between(here[0].video, 0.5, 1)
    with tarfile.open(index.parent / "parts-000000.tar") as tar:
        assert tar.getnames() == [f"{i:09d}.{kind}" for i in range(2) for kind in ("json", "mp4")]
        about = tar.extractfile("000000000.json")
        labels = {"label.verb": 3, "label.noun": 7}
        assert json.load(about)["segments"][0] == {"path": "clip0.mp4", "start": 0.5, "end": 1, **labels}


def test_the_same_list_gives_the_same_bytes_and_a_second_call_keeps_them(videos, index, tmp_path):
    everest(videos / "train.csv", "-o", tmp_path / "again", "--count", 2)
    assert contents(tmp_path / "again") == contents(index.parent)
    stamps = {path: path.stat().st_mtime_ns for path in index.parent.glob("*.tar")}
    shown = everest(videos / "train.csv", "-o", index.parent, "--count", 2, "--json", "-q").stdout
    assert json.loads(shown) | {"kept": 2, "shards": 2, "videos": 4, "samples": 4} == json.loads(shown)
    assert {path: path.stat().st_mtime_ns for path in index.parent.glob("*.tar")} == stamps


@pytest.mark.slow
def test_a_killed_call_resumes_to_the_same_bytes(videos: Path, tmp_path: Path):
    rows = []
    for i in range(400):
        os.link(videos / f"clip{i % 4}.mp4", videos / f"copy{i}.mp4")
        rows.append(f"copy{i}.mp4 {i % 3}\n")
    (videos / "many.csv").write_text("".join(rows))
    options = [videos / "many.csv", "--count", 1, "-q"]
    everest(*options, "-o", tmp_path / "whole")
    parts = tmp_path / "parts"
    command = ["prepare", "shard", *options, "-o", parts]
    kill_when(lambda: len(list(parts.glob("*.tar"))) >= 20, *command)
    assert not (parts / "many.index.json").exists()
    with pytest.raises(DataError, match=r"contains no videos|no subfolders"):
        labeled(parts, videos)
    shown = everest(*options, "-o", parts, "--json").stdout
    assert 20 <= json.loads(shown)["kept"] < 400
    assert contents(parts) == contents(tmp_path / "whole")


def test_other_lists_share_a_folder_and_other_contents_are_refused(videos: Path, index: Path, tmp_path: Path):
    before = contents(index.parent)
    for arguments in ([videos / "train.csv"], [videos / "train.csv", "--count", 1]):
        shown = error(*arguments, "-o", index.parent, code=2)
        assert "holds shards of another train, or of other sizes" in shown
    assert contents(index.parent) == before
    (videos / "test.csv").write_text("clip1.mp4 1\n")
    everest(videos / "test.csv", "-o", index.parent)
    assert contents(index.parent).items() > before.items()
    with pytest.raises(DataError, match=r"several lists; name one of test\.index\.json, train\.index\.json"):
        labeled(index.parent, videos)
    everest(videos / "train.csv", "-o", index.parent, "--overwrite")
    assert not (index.parent / "train-000001.tar").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("precious")
    assert "holds other files (thesis.txt)" in error(videos / "train.csv", "-o", tmp_path / "thesis", code=2)


def test_shards_of_a_video_that_changed_or_without_an_index_are_not_replaced(videos: Path, index: Path):
    video = videos / "clip0.mp4"
    content = video.read_bytes()
    video.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(video, ns=(0, 0))
    command = [videos / "train.csv", "-o", index.parent, "--count", 2]
    assert "or of other sizes or versions of the videos" in error(*command, code=2)
    index.unlink()
    (index.parent / "other.index.json").write_text("{}")
    assert "holds shards of another train" in error(*command, code=2)


def test_a_second_writer_is_refused_while_the_first_one_lives(videos: Path, tmp_path: Path):
    with sole_writer(tmp_path / "out" / "train.index.json"):
        shown = error(videos / "train.csv", "-o", tmp_path / "out", code=2)
    assert "another process writes there now" in shown
    everest(videos / "train.csv", "-o", tmp_path / "out")


def test_sources_that_cannot_be_read_are_named(videos: Path, tmp_path: Path):
    (videos / "train.csv").write_text("clip0.mp4 0\nnone.mp4 1\n")
    assert f"train.csv:2: no file {videos}/none.mp4" in error(
        videos / "train.csv", "-o", tmp_path / "out", code=4
    )
    (videos / "none.mp4").mkdir()
    assert "a folder of images; `everest prepare encode` makes a video of it" in error(
        videos / "train.csv", "-o", tmp_path / "out", code=4
    )
    assert not (tmp_path / "out").exists()
    assert "no such list or folder" in error(tmp_path / "gone.csv", "-o", tmp_path / "out", code=4)


def test_damaged_shards_are_named(index: Path, videos: Path):
    tar = index.parent / "train-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-512])
    with pytest.raises(
        DataError, match=r"train-000001\.tar: \d+ bytes where .*index\.json expects \d+ bytes; copy"
    ):
        labeled(index, videos)
    tar.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar: No such file .*index\.json expects"):
        labeled(index, videos)
    index.write_text('{"format": "everest-shards", "version": 99}')
    with pytest.raises(DataError, match=r"train\.index\.json: .*no index of `everest prepare shard`"):
        labeled(index, videos)


def test_a_damaged_video_in_a_shard_is_named_with_its_shard(videos: Path, tmp_path: Path):
    (videos / "clip2.mp4").write_bytes(b"no video")
    index = sharded(videos / "train.csv", tmp_path / "out")
    sample = labeled(index, videos).samples[2]
    with pytest.raises(DataError, match=r"train-000000\.tar#clip2\.mp4: not a video file"):
        read_frames(sample.video, [0])


def test_a_full_disk_is_reported_and_the_next_call_resumes(videos: Path, index: Path, small_disk: Path):
    output = small_disk / "out"
    output.mkdir()
    ballast = fill(small_disk)
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - 12288)  # for the plan, not for a shard
    assert "the disk is full" in error(videos / "train.csv", "-o", output, "--count", 2, code=5)
    assert not list(output.glob(".*.part"))
    ballast.unlink()
    everest(videos / "train.csv", "-o", output, "--count", 2)
    assert contents(output) == contents(index.parent)


def test_a_run_over_shards_is_the_run_over_the_files(recipe, videos, index, tmp_path):
    """From this machine and from S3, by the index or by its folder."""
    options = ["--recipe", recipe, "--set", "train.workers=2", "--gpus", "cpu", "-q"]
    run("pretrain", *options, "--data", videos, "-o", tmp_path / "files")
    here = ["--data", videos, *sets(f"data.train={index}")]
    run("pretrain", *options, *here, "-o", tmp_path / "here")
    assert same_run(tmp_path / "here", tmp_path / "files")
    with s3_server():
        bucket = new_bucket("shards")
        upload(index.parent, f"{bucket}/set")
        run("pretrain", *options, "--data", bucket, "--set", "data.train=set", "-o", tmp_path / "there")
    assert same_run(tmp_path / "there", tmp_path / "files")
