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

from everest.profiling.doctor import CheckResult, check_decoders


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
    assert found["decoder auto"]["state"] == "ok"
    assert {"Python", "processor", "memory", "disk", "FFmpeg of PyAV"} <= found.keys()
    shown = run("doctor").splitlines()
    assert shown[-1].startswith("everest works on this machine, on ")
    for finding in found.values():
        assert (finding["fix"] is None) == (finding["state"] == "ok") or finding["name"] == "CUDA"
        assert any(line.startswith(finding["state"]) and finding["name"] in line for line in shown)


SLOWER = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "content", "finding", "message"),
    [
        ("torch", "raise OSError('libcudart.so.99: cannot open')", "torch", "libcudart.so.99"),
        ("torchvision", "raise RuntimeError('no nms')", "torch and torchvision", "no nms"),
        pytest.param("av", "raise ImportError('wrong ELF class')", "PyAV", "wrong ELF class", marks=SLOWER),
        pytest.param("psutil", "raise ImportError('no module')", "devices", "no module", marks=SLOWER),
    ],
)
def test_a_broken_package_is_reported_with_its_fix(tmp_path: Path, name, content, finding, message):
    (tmp_path / f"{name}.py").write_text(content)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
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
    assert (found["decoder decord"].state, found["decoder auto"].state) == ("absent", "ok")
