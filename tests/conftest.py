"""What several test files need: recorded numbers, real videos, and a tiny data set made here."""

import gc
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import typer.testing
from hypothesis import settings
from safetensors.torch import save_file
from shared_files import shared_folder

from everest.video.writer import write_video

HERE = Path(__file__).resolve().parent

settings.register_profile("any machine", deadline=None)  # a busy one is no fault of what is tested
settings.load_profile("any machine")
# To build all commands takes 80 ms, longer than many of them: they are built once, as in a user's process.
typer.testing._get_command = cache(typer.testing._get_command)
# One thread here and in the processes that tests start: sums of one thread and of two differ in the last bit.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# The tests that run at the same time share the cores, as the jobs of a sweep do, and know it.
os.environ.setdefault("EVEREST_JOBS", os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Leave the objects of all modules and tests out of every later garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # libraries with their own counts of references report objects that are left at the end


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["EVEREST_CACHE"] = str(tmp_path_factory.mktemp("everest-cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real videos and all recorded numbers, where a machine has them."""
    return shared_folder()


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """Finds a file of numbers that the official code computed; the small ones are in the repository."""

    def find(name: str) -> Path:
        kept = HERE / "golden" / name
        return kept if kept.is_file() else shared_folder() / "golden" / name

    return find


@pytest.fixture(scope="session")
def clip_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four videos of 32 frames, 48 x 64 pixels, and the list `train.csv` of two classes."""
    folder = tmp_path_factory.mktemp("clips")
    names = [f"clip{i}.mp4" for i in range(4)]
    generator = torch.Generator().manual_seed(0)
    for i, name in enumerate(names):
        picture = torch.randint(0, 256, (6, 8, 3), generator=generator, dtype=torch.uint8)
        picture = picture.repeat_interleave(8, 0).repeat_interleave(8, 1)  # (48, 64, 3)
        moving = torch.stack([picture.roll(frame * (i + 1), dims=1) for frame in range(32)])
        write_video(folder / name, moving, fps=16)
    (folder / "train.csv").write_text("".join(f"{name} {i % 2}\n" for i, name in enumerate(names)))
    return folder


@pytest.fixture
def videos(clip_files: Path, tmp_path: Path) -> Path:
    """A copy of `clip_files` for tests that change it."""
    return shutil.copytree(clip_files, tmp_path / "videos")


@pytest.fixture
def bouts(tmp_path: Path) -> Path:
    """Annotations of `clip_files`."""
    from small_runs import BOUTS

    (tmp_path / "bouts.csv").write_text(BOUTS)
    return tmp_path / "bouts.csv"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    """A recipe of `clip_files` for a tiny model."""
    from small_runs import small_recipe

    return small_recipe(tmp_path_factory.mktemp("recipe"), clip_files)


@pytest.fixture(scope="session")
def classifier_run(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    """The run folder of a tiny classifier of two classes, trained on `clip_files`."""
    from small_runs import small_run

    return small_run(tmp_path_factory.mktemp("classifier"), clip_files, "finetune")


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory, classifier_run: Path) -> Path:
    """The classifier of `classifier_run` as an ONNX file that takes frames as decoded."""
    from small_runs import run

    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "fp32.onnx"
    run("export", classifier_run, "--to", "onnx", "-o", path)
    return path


@pytest.fixture(scope="session")
def autoencoder_run(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    """The run folder of a tiny autoencoder."""
    from small_runs import small_run

    return small_run(tmp_path_factory.mktemp("autoencoder"), clip_files, "pretrain")


def _task_run(name: str) -> Callable[..., Path]:
    @pytest.fixture(scope="session", name=f"{name}_run")
    def made(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
        from task_runs import task_run

        return task_run(tmp_path_factory.mktemp("task"), clip_files, name)

    return made


# Classifiers of any number of three tags, of a number, with a head of each task, and with two heads.
tags_run, scores_run, mixed_run, heads_run = map(_task_run, ("tags", "scores", "mixed", "heads"))


@pytest.fixture(scope="session")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's vit_tiny_patch16_224 with its head, in float16."""
    import timm  # here: it takes a second to import

    torch.manual_seed(0)
    tensors = timm.create_model("vit_tiny_patch16_224").state_dict()
    path = tmp_path_factory.mktemp("image") / "weights.safetensors"
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path)
    return path
