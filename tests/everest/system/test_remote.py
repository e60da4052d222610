import json
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from processes import everest
from s3fs import S3FileSystem
from small_runs import contents, refused, run, same_run
from storage import new_bucket, put, s3_server, upload

from everest.data.clip_dataset import ClipDataset
from everest.data.loader import read_batches
from everest.data.views import PretrainViews
from everest.errors import DataError, EnvironmentProblem
from everest.lists.reading import SampleList, read_unlabeled
from everest.prepare.check import check_video
from everest.system.run_folder import RunFolder
from everest.system.storage import RemotePath, join_location, parse_location
from everest.video.reader import VideoError, read_frames, video_info


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def bucket(server: None) -> str:
    """The URL of a bucket that no test had before: what was read is kept in memory."""
    return new_bucket(f"videos-{uuid.uuid4().hex}")


@pytest.fixture
def stored(bucket: str, clip_files: Path) -> str:
    """The URL of a folder with the data set of `clip_files`."""
    upload(clip_files, f"{bucket}/set")
    return f"{bucket}/set"


@pytest.fixture
def nobody(server: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No credentials and no server."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


def unlabelled(source: str, root: str) -> SampleList:
    return read_unlabeled(parse_location(source), root=parse_location(root))


def test_a_url_keeps_its_protocol_and_joins_like_a_path():
    root = parse_location("s3://bucket/dir/")
    assert root == RemotePath("s3://bucket/dir")
    assert str(join_location(root, "./a b/../c.mp4")) == "s3://bucket/dir/c.mp4"
    assert str(root.parent) == "s3://bucket"
    assert root.parent.parent == parse_location("s3://") == RemotePath("s3://")
    assert (root / "x.tar.GZ").suffix == ".GZ"
    assert join_location(root, "/data/a.mp4") == Path("/data/a.mp4")
    assert join_location(Path("/data"), "hf://datasets/o/n/a.mp4") == RemotePath("hf://datasets/o/n/a.mp4")
    assert parse_location("file:///data/a b.mp4") == Path("/data/a b.mp4")


def test_every_decoder_reads_the_same_frames_of_a_storage(stored: str, clip_files: Path):
    url, file = f"{stored}/clip1.mp4", clip_files / "clip1.mp4"
    assert video_info(url) == video_info(file)
    assert torch.equal(read_frames(url, [31, 0, 7]), read_frames(file, [31, 0, 7]))
    for decoder in ("auto", "decord"):
        frames = read_frames(file, [3, 9], decoder=decoder)
        assert torch.equal(read_frames(url, [3, 9], decoder=decoder), frames)
    there, here = check_video(url), check_video(str(file))
    assert replace(there, path=here.path, version=here.version) == here


@pytest.mark.slow
def test_real_files_of_all_kinds_are_read_as_here(bucket: str, shared: Path):
    upload(shared / "videos" / "odd", f"{bucket}/odd")
    for file in sorted((shared / "videos" / "odd").iterdir()):
        url = f"{bucket}/odd/{file.name}"
        assert first_frame(url) == first_frame(file), file.name


def first_frame(video: str | Path) -> bytes | str:
    """The frame, or why there is none."""
    try:
        return read_frames(video, [0]).numpy().tobytes()
    except VideoError as error:
        return error.reason


def test_folders_of_a_storage_list_as_here(bucket: str, clip_files: Path, tmp_path: Path):
    for name in ("b/clip.mp4", "a b/c.mp4", "a b/a.mp4", "a.x/é.mp4", ".hidden/x.mp4", "b/b/z.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip_files / "clip0.mp4", tmp_path / name)
    upload(tmp_path, f"{bucket}/tree")
    put(f"{bucket}/tree/b/", b"")  # how consoles make a folder
    here, there = unlabelled(str(tmp_path), "."), unlabelled(f"{bucket}/tree", bucket)
    names = [sample.path.removeprefix(f"{bucket}/tree/") for sample in there.samples]
    assert names == [sample.path.removeprefix(f"{tmp_path}/") for sample in here.samples]
    assert len(names) == 5


def pretraining(samples: SampleList) -> ClipDataset:
    views = PretrainViews(frames=4, stride=2, size=(32, 32), flip=True, sampling="dense", views_per_decode=1)
    options = {"seed": 3, "num_noise": 5, "decoder": "auto", "replace_bad": True}
    return ClipDataset(samples.samples, views=views, **options)


def test_workers_made_after_the_first_request_read_too(stored: str, clip_files: Path):
    here = pretraining(unlabelled(str(clip_files / "train.csv"), str(clip_files)))
    there = pretraining(unlabelled(f"{stored}/train.csv", stored))
    there.read((0, 0))  # connections and a thread of fsspec are open when the workers are forked
    keys = [[(0, index)] for index in range(4)]
    ours = read_batches(there, keys, workers=2, timeout=60)
    theirs = read_batches(here, keys, workers=0, timeout=60)
    pairs = zip(ours, theirs, strict=True)
    assert [(torch.equal(a.frames, b.frames), a.failed_reads) for a, b in pairs] == [(True, [[]])] * 4


def test_what_is_not_there_is_a_line(stored: str, bucket: str, recipe: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no such list or folder"):
        unlabelled(f"{bucket}/none.csv", bucket)
    with pytest.raises(VideoError, match="No such file or directory"):
        read_frames(f"{bucket}/none.mp4", [0])
    with pytest.raises(DataError, match="xyz://a: Protocol not known: xyz; use file, s3, hf"):
        read_frames("xyz://a", [0])
    command = ["pretrain", "--recipe", recipe, "--data", f"{bucket}/none", "-o", tmp_path / "run"]
    missing = f"data.root: {bucket}/none: no such folder; set it (in most commands: --data DIR)"
    assert refused(*command, code=4) == f"error: {missing}\n"
    put(f"{stored}/wrong.csv", b"clip0.mp4 0\nnone.mp4 1\nelsewhere/clip.mp4 1\n")
    with pytest.raises(DataError) as error:
        unlabelled(f"{stored}/wrong.csv", stored)
    assert str(error.value).splitlines() == [
        f"{stored}/wrong.csv:2: no file {stored}/none.mp4",
        f"{stored}/wrong.csv:3: no file {stored}/elsewhere/clip.mp4",
    ]


def test_missing_credentials_and_a_storage_that_does_not_answer_are_told(nobody: None, monkeypatch):
    with pytest.raises(DataError, match=r"s3://private/a\.mp4: .*redentials.* AWS_ACCESS_KEY_ID"):
        read_frames("s3://private/a.mp4", [0])
    S3FileSystem.clear_instance_cache()
    known = {"ACCESS_KEY_ID": "somebody", "SECRET_ACCESS_KEY": "secret", "MAX_ATTEMPTS": "1"}
    for name, value in {**known, "ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    with pytest.raises(DataError, match=r"s3://lost/a\.mp4: .*check the address, the network") as error:
        read_frames("s3://lost/a.mp4", [0])
    assert not isinstance(error.value, VideoError)  # no bad video


def test_a_missing_package_is_an_error_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"].__dict__["_registry"], "s3", raising=False)
    with pytest.raises(EnvironmentProblem, match=r'pip install "everest-video\[remote\]"'):
        read_frames("s3://bucket/a.mp4", [0])


def test_a_run_over_a_storage_is_the_run_over_the_files(stored, recipe, autoencoder_run, tmp_path):
    options = ["--recipe", recipe, "--data", stored, "--set", "train.workers=2", "--gpus", "cpu", "-q"]
    run("pretrain", *options, "-o", tmp_path / "there")
    assert same_run(autoencoder_run, tmp_path / "there")
    assert f"root: {stored}" in (tmp_path / "there" / "recipe.yaml").read_text()
    plans = [RunFolder(folder).read_environment().plan for folder in (autoencoder_run, tmp_path / "there")]
    assert plans[0].samples == plans[1].samples


@pytest.mark.slow
def test_videos_of_a_storage_are_encoded_and_put_into_shards(stored: str, clip_files: Path, tmp_path: Path):
    for name, source in (("here", clip_files), ("there", stored)):
        # A process of its own: those that encode keep the environment that the first of them was started in.
        everest("prepare", "encode", f"{source}/train.csv", "-o", tmp_path / name, "-q")
        run("prepare", "shard", f"{source}/train.csv", "-o", tmp_path / name / "shards", "-q")
    (tmp_path / "urls.csv").write_text(f"{stored}/clip0.mp4 0\n{stored}/clip1.mp4 1\n")
    said = [everest("prepare", "check", tmp_path / "urls.csv", "-o", tmp_path).stderr for _ in range(2)]
    assert ["2 of 2 videos were checked before" in text for text in said] == [False, True]
    here, there = (without_versions(tmp_path / name) for name in ("here", "there"))
    assert len(here) == 8  # four videos, their list, who wrote it, a shard, its index
    assert here == there


def without_versions(folder: Path) -> dict[Path, object]:
    """What the files of a folder hold, but for the place and the version of their sources."""
    found: dict[Path, object] = dict(contents(folder))
    for path in found:
        if path.suffix == ".mp4":
            with av.open(folder / path) as container:
                found[path] = [bytes(packet) for packet in container.demux(video=0)]
        elif path.name.endswith(".index.json"):
            found[path] = json.loads((folder / path).read_text()) | {"plan": ""}
    return found
