import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import json_of, run


def test_a_machine_that_runs_these_tests_is_healthy_and_every_problem_has_a_fix():
    told = json_of("doctor")
    found = {finding["name"]: finding for finding in told["findings"]}
    assert told["healthy"] is True
    assert told["summary"].startswith("everest works on this machine, on ")
    assert all(finding["state"] != "broken" for finding in found.values())
    assert found["torch"]["found"] == importlib.metadata.version("torch")
    assert torch.__version__ in found["torch and torchvision"]["found"]
    assert found["decoding"]["state"] == "ok"
    assert {"Python", "processor", "memory", "shared memory"} <= found.keys()
    shown = run("doctor").splitlines()
    assert shown[-1].startswith("everest works on this machine, on ")
    for finding in found.values():
        assert (finding["fix"] is None) == (finding["state"] == "ok")
        assert any(line.startswith(finding["state"]) and finding["name"] in line for line in shown)


@pytest.mark.parametrize(
    ("name", "content", "finding", "message"),
    [
        ("torchvision", "raise RuntimeError('no nms')", "torch", "no nms"),
        ("av", "raise ImportError('wrong ELF class')", "decoding", "wrong ELF class"),
    ],
)
def test_a_broken_package_is_reported_with_its_fix(tmp_path: Path, name, content, finding, message):
    (tmp_path / f"{name}.py").write_text(content)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    command = [sys.executable, "-m", "everest_cli", "doctor", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 5, ended.stderr
    rows = json.loads(ended.stdout)["findings"]
    found = {row["name"]: row for row in rows if row["state"] == "broken"}
    assert message in found[finding]["found"]
    assert "pip install --force-reinstall" in found[finding]["fix"]
