"""Videos, and a finished project, which several test files of `everest train` use."""

from pathlib import Path

import pytest
from small_projects import BY_PERSON, moving
from small_runs import called


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight videos each, of four persons; their folder is named like one of a plan's lists."""
    folder = tmp_path_factory.mktemp("train") / "my.lists.part"
    for number in range(8):
        for name, step in (("down", (2, 0)), ("right", (0, 2))):
            moving(folder / name / f"p{number % 4}_{number}.mp4", 16 * [step], number)
    return folder


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recordings of 6 s, and `bouts.csv` next to their folder."""
    folder, rows = tmp_path_factory.mktemp("train") / "recordings", ["video,start,end,label"]
    steps = {"down": (2, 0), "right": (0, 2), "still": (0, 0)}
    for number in range(4):
        kinds = [("down", "right", "still")[(number + part) % 3] for part in range(6)]
        moving(folder / f"r{number}.mp4", [steps[kind] for kind in kinds for _ in range(10)], number)
        rows += [f"r{number}.mp4,{at},{at + 1},{kind}" for at, kind in enumerate(kinds) if kind != "still"]
    folder.with_name("bouts.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def trained(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project of the class folders."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    called("train", class_folders, "-o", folder, *BY_PERSON)
    return folder
