"""Cores, memory and shared memory of a machine or container, and what runs make of them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from small_runs import called, sets, small_recipe
from torch import Tensor

from everest.methods.importance import embedding_change
from everest.models.vit import TubeletEmbedding
from everest.system import processes as machine
from everest.system.accelerator import make_accelerator
from everest.system.compute import fuse_functions
from everest.system.processes import JOBS_VARIABLE, num_cores, num_readers


@pytest.fixture(autouse=True)
def default_precision() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


def error_of_a_product() -> float:
    """The error of float32 against float64, relative to the size of the factors."""
    torch.manual_seed(0)
    a, b = torch.randn(300, 400), torch.randn(400, 500)
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    return ((a @ b - exact).abs() / size).max().item()


def test_a_run_on_a_cpu_has_the_precision_of_float32():
    make_accelerator("auto", cpu=True)
    assert error_of_a_product() <= 2**-20


FAULTS = """
import resource
import torch
from everest.system.processes import TRAINER_KEPT_BYTES, keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory(TRAINER_KEPT_BYTES)
for number in range(8):
    before = faults()
    tensors = [torch.ones(5_000_000) for _ in range(20)]  # 20 MB each
    del tensors
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_reuses_the_memory_of_the_step_before():
    assert int(printed_by(FAULTS)) < 1000  # of the 97,656 pages that it requests


ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
del os.environ["OMP_NUM_THREADS"]
from everest.system.launch import Devices, run_processes
from everest.system.processes import num_cores, num_readers
print(num_cores(), num_readers(), flush=True)
run_processes(Devices(type="cpu"), [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"])
"""


def printed_by(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_process_bound_to_one_core_has_one_reader_and_one_thread():
    assert printed_by(ONE_CORE).split() == ["1", "1", "1"]


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    quota, all_cores = tmp_path / "cpu.max", len(os.sched_getaffinity(0))
    monkeypatch.setattr(machine, "CPU_QUOTA_FILE", quota)
    assert num_cores() == all_cores
    limits = {"100000 100000": 1, "150000 100000": 1, "1 100000": 1, "max 100000": all_cores, "": all_cores}
    for text, expected in limits.items():
        quota.write_text(f"{text}\n")
        assert num_cores() == expected


GIB = 2**30


@pytest.fixture
def group_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for `groups` and `own`, the files of control groups; 32 of the 64 GiB are free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=32 * GIB))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=8 * GIB))
    monkeypatch.setattr(machine, "GROUPS_FOLDER", tmp_path / "groups")
    monkeypatch.setattr(machine, "PROCESS_GROUPS_FILE", tmp_path / "own")
    return tmp_path


@pytest.mark.parametrize(
    ("groups", "folder", "limit", "found"),
    [
        ("0::/\n", ".", "1073741824", (1, 0.5)),  # a container that sees its own groups only
        ("1:name=systemd:/\n0::/slurm/job_7/step_0\n", "slurm/job_7", "1073741824", (1, 0.5)),  # around it
        ("0::/docker/a1\n", ".", "1073741824", (1, 0.5)),  # its group is not visible
        ("0::/\n", ".", "max", (64, 32)),
        ("", ".", "1073741824", (64, 32)),
        (None, ".", "1073741824", (64, 32)),  # a system without groups
    ],
)
def test_the_memory_of_a_container_or_job_counts(group_files: Path, groups, folder, limit, found):
    group = group_files / "groups" / folder
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{3 * GIB // 4}\n")
    freed = f"inactive_file {GIB // 8}\nactive_file {GIB // 8}\n"
    (group / "memory.stat").write_text(f"anon 7\n\nodd\n{freed}")
    if groups is not None:
        (group_files / "own").write_text(groups)
    total, free = found
    assert (machine.host_memory(), machine.free_host_memory()) == (total * GIB, free * GIB)
    assert machine.free_host_memory(with_swap=True) == (free + 8) * GIB


def test_the_processes_of_a_run_and_the_jobs_of_a_sweep_share_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "num_cores", lambda: 16)
    monkeypatch.setattr(machine, "READER_BYTES", 1)
    monkeypatch.delenv(JOBS_VARIABLE, raising=False)
    for processes, jobs, readers in ((1, None, 16), (2, "4", 2), (1, "4", 4), (1, "", 16), (9, "9", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        if jobs is not None:
            monkeypatch.setenv(JOBS_VARIABLE, jobs)
        assert num_readers() == readers


def moving_clips(device: str) -> Tensor:
    """(2, 3, 8, 64, 64) uint8: a texture that moves by 3 pixels a frame."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, 12, 18, generator=generator) * 255
    texture = torch.nn.functional.interpolate(noise, size=(64, 96), mode="bicubic").clamp(0, 255).byte()
    return torch.stack([texture[..., 3 * t : 3 * t + 64] for t in range(8)], dim=2).to(device)


@pytest.mark.gpu
def test_on_a_gpu_the_fused_importance_is_the_same_up_to_rounding():
    clips = moving_clips("cuda")
    embed = TubeletEmbedding(64, (2, 16, 16)).to("cuda")
    eager = embedding_change(clips, embed)
    fuse_functions()
    torch.testing.assert_close(embedding_change(clips, embed), eager, rtol=1e-5, atol=0)


REMEDY = "start the container with --shm-size=8g or --ipc=host, or set train.workers=0"


def with_shared(megabytes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program of Python with so much shared memory."""
    mount = f"mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting a small /dev/shm is not allowed here")
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture
def recipe(tmp_path: Path, clip_files: Path) -> Path:
    """Clips of 2.4 MB, read by two workers: five batches of two are 24 MB."""
    changes = {"frames: 4, size: 32": "frames: 16, size: 224", "[2, 8, 8]": "[2, 16, 16]"}
    return small_recipe(tmp_path, clip_files, {**changes, "workers: 0": "workers: 2"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["pretrain"], ["pretrain", "--dry-run"], ["finetune", "--init", "none"]], ids=" ".join
)
def test_a_run_that_does_not_fit_is_refused_before_it_starts(command, recipe, tmp_path):
    arguments = ["-m", "everest_cli", *command, "--recipe", recipe, "-o", tmp_path / "run", "--gpus", "cpu"]
    ended = with_shared(5, *arguments, "-q")
    assert ended.returncode == 5
    error = ended.stderr.splitlines()[-1]
    needed = "the batches of the workers need 24 MB, 5 MB of /dev/shm are free"
    assert error == f"error: too little shared memory ({needed}); {REMEDY}"
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()
    if "--dry-run" in command:
        assert with_shared(5, *arguments, "-q", "--set", "train.workers=0").returncode == 0
        assert with_shared(64, *arguments, "-q").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["shared memory", "size of files"])
def test_a_model_is_used_with_the_workers_that_fit(limit, recipe, clip_files: Path, tmp_path: Path):
    """The recipe asks for 24 MB of batches, and these commands have no option for fewer."""
    run = tmp_path / "run"
    called("finetune", "-r", recipe, "--init", "none", "-o", run, "-q", *sets("train.workers=2"))
    where = ["-c", run, "--gpus", "cpu", "-q"]
    for name, *words in (
        ("predict", clip_files, *where, "-o", tmp_path / "rows.csv"),
        ("extract", clip_files, *where, "-o", tmp_path / "features.npz"),
        ("eval", *where),
    ):
        if limit == "shared memory":
            ended = with_shared(5, "-m", "everest_cli", name, *words)
        else:
            limited = ["sh", "-c", 'ulimit -f 2000; exec "$@"', "sh", sys.executable, "-m", "everest_cli"]
            ended = subprocess.run([*limited, name, *map(str, words)], capture_output=True, text=True)
        assert (ended.returncode, "memory" in ended.stderr) == (0, False), ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("megabytes", "fewer"), [(5, "starts 0 of"), (256, "")])
def test_auto_starts_the_workers_whose_batches_fit(megabytes: int, fewer: str, recipe: Path, tmp_path: Path):
    options = ["--recipe", recipe, "-o", tmp_path / "run", "--gpus", "cpu", "--set", "train.workers=auto"]
    ended = with_shared(megabytes, "-m", "everest_cli", "pretrain", *options, "--set", "pretrain.epochs=1")
    assert ended.returncode == 0, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "--shm-size=8g" in line] or [""]
    assert fewer in line
    assert bool(line) == bool(fewer)


@pytest.mark.slow
def test_the_doctor_finds_a_container_without_shared_memory():
    findings = json.loads(with_shared(64, "-m", "everest_cli", "doctor", "--json").stdout)["findings"]
    (found,) = [finding for finding in findings if finding["name"] == "shared memory"]
    assert (found["state"], found["fix"]) == ("warning", REMEDY)
    assert found["found"] == "0.06 GiB free"


@pytest.mark.slow
def test_a_limit_of_file_sizes_is_reported_with_its_fix(recipe: Path, tmp_path: Path):
    options = ["--recipe", recipe, "-o", tmp_path / "run", "--gpus", "cpu", "-q"]
    command = ["sh", "-c", 'ulimit -f 2000; exec "$@"', "sh", sys.executable, "-m", "everest_cli", "pretrain"]
    ended = subprocess.run([*command, *map(str, options)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 5
    assert ended.stderr.endswith("raise `ulimit -f`, or set train.workers=0\n"), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_task_of_slurm_has_its_cores_for_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "num_cores", lambda: 6)  # those of a task, or of the whole machine
    monkeypatch.setattr(machine, "host_memory", lambda: 2**40)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert num_readers() == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert num_readers() == 3  # of a batch script, whose processes share its cores
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert num_readers() == 6
