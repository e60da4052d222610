"""Would the tests notice? Each change of one quirk, count or order must make a test of parity fail.

The package is copied, one position of it changed, and the tests are run against the copy.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Changes that are noticed by recorded numbers which are not in the repository.
BY_SHARED_NUMBERS = ("st-mae's last frame", "norm before the mean")
# By the test that notices and the file that is changed: name: as it stands => as it must not be
TABLE = """
tests/everest/test_parity.py::test_every_token_count_equals_the_released_rule
  everest/methods/grid.py
    count rounds up: return int(num_tokens * => return round(num_tokens *
tests/everest/methods/test_tokens.py
  everest/methods/grid.py
    count in floats: int(num_tokens * Fraction(str(ratio))) => int(num_tokens * (1 - (1 - ratio)))
tests/everest/test_parity.py::test_everest_pretraining_equals_the_official_code
  everest/methods/importance.py
    first time index zero: if first_slice == "copy" else => if first_slice != "copy" else
  everest/methods/selection.py
    order ascending: self.order == "descending" => self.order != "descending"
    one token more: num_kept(grid.num_tokens, self.keep => 1 + num_kept(grid.num_tokens, self.keep
    most of the noise: noise.gather(1, kept).arg => (-noise).gather(1, kept).arg
    visible predicted too: ascending(shuffled[:, num_visible:]) => ascending(shuffled)
  everest/methods/targets.py
    biased deviation: math.sqrt(num_values - 1) => math.sqrt(num_values)
    1e-6 to the variance: std + 1e-6 => (std**2 + 1e-6).sqrt()
    channel first: movedim(2, -1).flatten(2) => flatten(2)
  everest/models/mae.py
    norm after the head: self.head(self.norm(x)) => self.head(x)
    mask tokens first: torch.cat([visible, masked], dim=1) => torch.cat([masked, visible], dim=1)
tests/everest/test_parity.py::test_st_mae_targets_give_the_same_loss
  everest/methods/targets.py
    st-mae's last frame: time_indices * (t - 1) // max(num_time_indices - 1, 1) => time_indices * 0
tests/everest/test_parity.py::test_position_table_equals_the_released_sinusoid
  everest/models/positions.py
    positions from one: torch.arange(grid.num_tokens, => 1 + torch.arange(grid.num_tokens,
tests/everest/test_parity.py::test_classification_equals_the_official_code
  everest/models/classifier.py
    norm before the mean: self.norm(tokens.mean(dim=1)) => self.norm(tokens).mean(dim=1)
tests/everest/test_parity.py::test_learning_rates_equal_the_released_schedule
  everest/engine/schedule.py
    peak once: max(warmup - 1, 1) => warmup
tests/everest/methods/test_selection.py
  everest/methods/strategies.py
    tube counts visible: grid.num_positions - num_kept(grid.num_positions, => num_kept(grid.num_positions, 1 -
    cells stand still: column - move * time_index - phase => column - phase
tests/everest/engine/test_schedule.py
  everest/engine/network.py
    decay of the mask token: "mask_token" => "mask"
  everest/models/base.py
    embedding in the last layer: "stem": r"encoder => "stem": r"decoder
tests/everest/data/test_frames.py
  everest/data/frames.py
    last frame reachable: (length - 2 - start) => (length - 1 - start)
    window open at its end: start + window, num=frames) => start + window, num=frames, endpoint=False)
tests/everest/methods/test_frame_selection.py
  everest/methods/selection.py
    frames by their fraction alone: .log() / counts => .log() * counts
    frames not in order: order[:, :num].sort(dim=1).values => order[:, :num]
"""


def mutations() -> dict[str, tuple[str, str, str, str]]:
    """name: (file, as it stands, as it must not, the test that notices)"""
    found, noticed_by, file = {}, "", ""
    for line in TABLE.strip().splitlines():
        name, _, change = line.strip().partition(": ")
        if change:
            found[name] = (file, *change.split(" => "), noticed_by)
        elif line.startswith(" "):
            file = name
        else:
            noticed_by = name
    return found


MUTATIONS = mutations()


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_place_of_a_change_is_where_it_was(name: str):
    file, before, _, _ = MUTATIONS[name]
    assert (ROOT / file).read_text().count(before) == 1, "fix this test"


# Runs the test of each change in a copy of a process that has imported the large packages.
RUN = """
import json, os, sys
from pathlib import Path
import accelerate, pytest, scipy.stats, timm, torch, torchvision
sys.path.insert(0, os.getcwd())
for name, (file, before, after, noticed_by) in json.loads(sys.argv[1]).items():
    path = Path(file)
    text = path.read_text()
    path.write_text(text.replace(before, after))
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()
    if not (process := os.fork()):
        os.dup2(os.open(f"{name}.txt", os.O_WRONLY | os.O_CREAT), 1)
        code = pytest.main(["-qx", "-p", "no:cacheprovider", noticed_by])
        sys.stdout.flush()
        os._exit(code)
    Path(f"{name}.code").write_text(str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])))
    path.write_text(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()
"""


@pytest.mark.slow
def test_each_change_is_noticed(tmp_path: Path):
    shared = os.environ.get("EVEREST_SHARED", str(ROOT.parent / "shared"))
    left_out = () if Path(shared).is_dir() else BY_SHARED_NUMBERS
    changes = {name: change for name, change in MUTATIONS.items() if name not in left_out}
    for folder in ("everest", "everest_workflows", "everest_cli", "recipes", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "EVEREST_SHARED": shared}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # pytest would warn of packages that are imported
    command = [sys.executable, "-c", RUN, json.dumps(changes)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    for name in changes:
        output = (tmp_path / f"{name}.txt").read_text()[-2000:]
        assert (tmp_path / f"{name}.code").read_text() == "1", f"{name}: {output}"
        assert "1 failed" in output, f"{name}: {output}"
