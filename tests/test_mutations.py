"""Would the tests notice? Each change of one quirk, count or order must make a test of parity fail.

The package is copied, one place of it changed, and the tests are run against the copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shared_files import shared_folder

ROOT = Path(__file__).resolve().parents[1]
PARITY, SELECTION, FRAMES, CROPS, VIEWS = (
    "tests/test_parity.py",
    "tests/methods/test_selection.py",
    "tests/data/test_frames.py",
    "tests/data/test_transforms.py",
    "tests/methods/test_frame_selection.py",
)

# Changes that are noticed by recorded numbers which are not in the repository.
BY_SHARED_NUMBERS = ("st-mae's last frame", "norm before the mean")
# name: (file, as it stands, as it must not, the test file that notices)
MUTATIONS = {
    "count rounds up": ("methods/grid.py", "return int(num_tokens *", "return round(num_tokens *", PARITY),
    "count in floats": (
        "methods/grid.py",
        "int(num_tokens * Fraction(str(ratio)))",
        "int(num_tokens * (1 - (1 - ratio)))",
        "tests/methods/test_tokens.py",
    ),
    "first slice zero": (
        "methods/importance.py",
        'first if first_slice == "copy"',
        'first if first_slice != "copy"',
        PARITY,
    ),
    "order ascending": (
        "methods/ranked.py",
        'self.order == "descending"',
        'self.order != "descending"',
        PARITY,
    ),
    "one token more": (
        "methods/ranked.py",
        "self.ranked(importance), num_kept(grid.num_tokens, self.keep_ratio)",
        "self.ranked(importance), num_kept(grid.num_tokens, self.keep_ratio) + 1",
        PARITY,
    ),
    "most of the noise": (
        "methods/selector.py",
        "noise.gather(1, candidates).arg",
        "(-noise).gather(1, candidates).arg",
        PARITY,
    ),
    "visible predicted too": (
        "methods/selector.py",
        "ascending(shuffled[:, num_visible:])",
        "ascending(shuffled)",
        PARITY,
    ),
    "tube counts visible": (
        "methods/masks.py",
        "grid.per_slice - num_kept(grid.per_slice, self.mask_ratio)",
        "num_kept(grid.per_slice, 1 - self.mask_ratio)",
        SELECTION,
    ),
    "cells stand still": ("methods/masks.py", "column - move * turn - phase", "column - phase", SELECTION),
    "biased deviation": ("methods/targets.py", "math.sqrt(num_values - 1)", "math.sqrt(num_values)", PARITY),
    "1e-6 to the variance": (
        "methods/targets.py",
        "std + 1e-6",
        "(std**2 + 1e-6).sqrt()",
        PARITY,
    ),
    "channel first": ("methods/targets.py", "movedim(2, -1).flatten(2)", "flatten(2)", PARITY),
    "st-mae's last frame": (
        "methods/targets.py",
        "number * (t - 1) // max(slices - 1, 1)",
        "number * 0",
        PARITY,
    ),
    "positions from one": (
        "models/positions.py",
        "torch.arange(num_tokens, dtype=torch.float64)",
        "1 + torch.arange(num_tokens, dtype=torch.float64)",
        PARITY,
    ),
    "norm after the head": (
        "models/mae.py",
        "self.head(self.norm(x))",
        "self.head(x)",
        PARITY,
    ),
    "mask tokens first": (
        "models/mae.py",
        "torch.cat([visible, masked], dim=1)",
        "torch.cat([masked, visible], dim=1)",
        PARITY,
    ),
    "norm before the mean": (
        "models/classifier.py",
        "self.norm(tokens.mean(dim=1))",
        "self.norm(tokens).mean(dim=1)",
        PARITY,
    ),
    "decay of the mask token": (
        "train/network.py",
        '"mask_token"',
        '"mask"',
        "tests/train/test_optim.py",
    ),
    "peak once": ("train/network.py", "max(warmup - 1, 1)", "warmup", PARITY),
    "embedding in the last layer": (
        "models/video_model.py",
        '"stem": r"encoder',
        '"stem": r"decoder',
        "tests/train/test_optim.py",
    ),
    "last frame reachable": ("data/frames.py", "(length - 2 - start)", "(length - 1 - start)", FRAMES),
    "window open at its end": (
        "data/frames.py",
        "start + window, num=frames)",
        "start + window, num=frames, endpoint=False)",
        FRAMES,
    ),
    "frames by their share alone": (
        "methods/frame_selection.py",
        ".log() / counts",
        ".log() * counts",
        VIEWS,
    ),
    "frames not in order": (
        "methods/frame_selection.py",
        "order[:, :num].sort(dim=1).values",
        "order[:, :num]",
        VIEWS,
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_place_of_a_change_is_where_it_was(name: str):
    file, before, _, _ = MUTATIONS[name]
    assert (ROOT / "everest" / file).read_text().count(before) == 1, "fix this test"


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_change_is_noticed(name: str, tmp_path: Path):
    file, before, after, noticed_by = MUTATIONS[name]
    if name in BY_SHARED_NUMBERS:
        shared_folder()  # skips without it
    for folder in ("everest", "everest_cli", "recipes", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    changed = tmp_path / "everest" / file
    changed.write_text(changed.read_text().replace(before, after))
    shared = os.environ.get("EVEREST_SHARED", str(ROOT.parent / "shared"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "EVEREST_SHARED": shared}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        noticed_by,
    ]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stdout[-2000:]
    assert "1 failed" in ended.stdout
