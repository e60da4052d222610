import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_runs import json_of, run

from everest.profiling.doctor import CheckResult, check_decoders, check_packages, verdict


def named(found: Iterator[CheckResult] | list[CheckResult]) -> dict[str, CheckResult]:
    return {finding.name: finding for finding in found}


def test_a_machine_that_runs_these_tests_is_healthy_and_every_problem_has_a_fix():
    told = json_of("doctor")
    found = {finding["name"]: finding for finding in told["findings"]}
    assert told["healthy"] is True
    assert told["verdict"].startswith("everest works on this machine, on ")
    assert all(finding["state"] != "broken" for finding in found.values())
    assert found["torch"]["found"] == importlib.metadata.version("torch")
    assert torch.__version__ in found["torch and torchvision"]["found"]
    assert found["decoder pyav"]["state"] == "ok"
    assert {"Python", "processor", "memory", "disk", "FFmpeg of PyAV"} <= found.keys()
    shown = run("doctor").splitlines()
    assert shown[-1].startswith("everest works on this machine, on ")
    for finding in found.values():
        assert (finding["fix"] is None) == (finding["state"] == "ok") or finding["name"] == "CUDA"
        assert any(line.startswith(finding["state"]) and finding["name"] in line for line in shown)


SLOWER = pytest.mark.slow
OK = CheckResult("processor", "ok", "2 cores")
SLOW = CheckResult("memory", "warning", "1 GiB", "end other programs")
BROKEN = CheckResult("decoder pyav", "broken", "fails", "install it")
GPU = CheckResult("GPU 0", "ok", "H200")


def test_the_verdict_is_a_sentence():
    works, mac = "everest works on this machine, on", CheckResult("MPS", "ok", "a Mac's GPU")
    begin = "begin with `everest train VIDEOS`."
    for results, sentence in (
        ([OK], f"{works} the CPU: {begin}"),
        ([OK, GPU], f"{works} 1 GPU."),
        ([GPU, GPU, SLOW], f"{works} 2 GPUs; 1 warning: memory."),
        ([GPU, SLOW, BROKEN], "everest does not work on this machine: fix decoder pyav first."),
        ([OK, mac], "on the GPU of this Mac, by --gpus mps."),
    ):
        assert verdict(results).endswith(sentence)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages are found before those that are installed."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(site: Path, name: str, version: str, *lines: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    about = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]
    (folder / "METADATA").write_text("\n".join(about) + "\n")


def test_versions_are_compared_with_the_requirements(site: Path):
    asks = ("av>=14,<=18", "timm>=1.0,<=1.5", "rich<=15", "nowhere>=2", 'nosuch>=1; extra == "export"')
    needs = ["Requires-Python: >=3.11", *(f"Requires-Dist: {text}" for text in asks)]
    install(site, "everest-video", "9.9", *needs, "Provides-Extra: export")
    install(site, "av", "13.2")
    install(site, "timm", "1.6")
    install(site, "rich", "15.0")
    found = named(check_packages())
    assert (found["everest-video"].found, found["Python"].state) == ("9.9", "ok")
    assert (found["av"].state, found["av"].found) == ("broken", "13.2, too old")
    assert "pip install 'av<=18,>=14'" in str(found["av"].fix)
    assert (found["timm"].state, found["timm"].found) == ("warning", "1.6, newer than tested")
    assert found["rich"].state == "ok"
    assert (found["nowhere"].state, found["nowhere"].fix) == ("broken", "run `pip install 'nowhere>=2'`")
    assert (found["nosuch"].state, found["nosuch"].found) == ("absent", "not installed (export)")
    assert "fix: run `pip install 'nowhere>=2'`" in run("doctor", code=5)


def test_a_python_that_is_too_old_is_broken(site: Path):
    install(site, "everest-video", "9.9", "Requires-Python: >=4")
    assert named(check_packages())["Python"].state == "broken"


@pytest.mark.parametrize(
    ("name", "content", "finding", "message"),
    [
        ("torch", "raise OSError('libcudart.so.99: cannot open')", "torch", "libcudart.so.99"),
        ("torchvision", "raise RuntimeError('no nms')", "torch and torchvision", "no nms"),
        pytest.param("av", "raise ImportError('wrong ELF class')", "PyAV", "wrong ELF class", marks=SLOWER),
        pytest.param("psutil", "raise ImportError('no module')", "devices", "no module", marks=SLOWER),
    ],
)
def test_a_broken_package_is_reported_with_its_fix(site, name, content, finding, message):
    (site / f"{name}.py").write_text(content)
    environment = {**os.environ, "PYTHONPATH": f"{site}:{Path(__file__).parents[2]}"}
    command = [sys.executable, "-m", "everest_cli", "doctor", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 5, ended.stderr
    found = {row["name"]: row for row in json.loads(ended.stdout)["findings"]}
    assert found[finding]["state"] == "broken"
    assert message in found[finding]["found"]
    assert "pip install --force-reinstall" in found[finding]["fix"]


def test_a_missing_decoder_is_no_problem_and_the_others_decode(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "decord", None)  # as where it has no wheel
    found = named(check_decoders())
    assert (found["decoder decord"].state, found["decoder pyav"].state) == ("absent", "ok")
