"""The folder of real videos and recorded numbers, where a machine has one."""

import os
from pathlib import Path

import pytest


def shared_folder() -> Path:
    folder = Path(os.environ.get("EVEREST_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; EVEREST_SHARED names another")
    return folder
