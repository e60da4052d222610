"""A folder of parts: what a kill leaves, who has which units, and the order of what is joined."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from everest.errors import EnvironmentProblem, RecipeError
from everest.system import parts as parts_module
from everest.system.accelerator import Processes
from everest.system.parts import Parts, divide, open_parts

PLAN = {"weights": "w"}


def add(parts: Parts, unit: int, numbers: range) -> None:
    """Add two results for each number of a unit; number 3 is the last one of it."""
    for number in numbers:
        value = 4 * unit + number
        rows = {"x": torch.full((2, 3), value), f"only{value % 3}": torch.full((value,), value)}
        parts.add(unit, [None, str(value)], rows, is_last=number == 3)


def add_all(parts: Parts, num_units: int = 3) -> dict[str, Any]:
    """Do the rest of a job; returns everything that is joined."""
    for unit in parts.own(num_units):
        add(parts, unit, range(len(parts.results(unit)) // 2, 4))
    joined = parts.joined()
    assert joined is not None
    arrays = {name: array.tolist() for name, array in joined.arrays.items()}
    return {"results": joined.results, "counts": joined.counts, **arrays}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Any]:
    with open_parts(tmp_path / "whole", PLAN) as parts:
        return add_all(parts)


@pytest.mark.parametrize("seconds", [0.0, 100.0])
def test_a_killed_job_goes_on_with_the_parts_that_are_complete(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
):
    monkeypatch.setattr(parts_module, "MAX_SECONDS", seconds)
    for unit, number in ((0, 0), (0, 2), (1, 1), (2, 3)):
        killed = tmp_path / f"killed{unit}{number}"
        with open_parts(tmp_path / "open", PLAN, restart=True) as parts:
            for earlier in range(unit):
                add(parts, earlier, range(4))
            add(parts, unit, range(number))
            shutil.copytree(tmp_path / "open", killed)  # as a kill would leave it
        (killed / ".00000002-00000000-00000008-last.safetensors.part").write_bytes(b"half")
        with open_parts(killed, PLAN) as parts:
            assert parts.progress() == ([*range(unit)], 0 if seconds else 2 * number)
            assert add_all(parts) == whole
            parts.remove()
        assert not killed.exists()


def test_after_a_killed_removal_parts_count_up_to_the_first_missing(whole: dict[str, Any], tmp_path: Path):
    shutil.copytree(tmp_path / "whole", folder := tmp_path / "killed")
    (folder / "00000001-00000000-00000008-last.safetensors").rename(
        folder / "00000001-00000004-00000008-last.safetensors"
    )
    with open_parts(folder, PLAN) as parts:
        assert parts.own(3) == [1]
        assert add_all(parts) == whole


def test_processes_divide_the_units_that_are_not_done(tmp_path: Path):
    with open_parts(tmp_path / "rows", PLAN) as parts:
        add(parts, 1, range(4))
    found = []
    for rank in range(2):
        with open_parts(tmp_path / "rows", PLAN) as parts:
            parts.processes = Processes(rank=rank, num_processes=2)
            found.append(parts.own(5))
    assert found == [[0, 3], [2, 4]]


def test_parts_of_another_plan_are_refused_and_removed_on_demand(whole: dict[str, Any], tmp_path: Path):
    assert whole
    folder = tmp_path / "whole"
    with pytest.raises(RecipeError, match="begun with other weights; undo that change, or start"):
        open_parts(folder, {"weights": "others"}).__enter__()
    with open_parts(folder, {"weights": "others"}, restart=True) as parts:
        assert parts.own(3) == [0, 1, 2]
    (folder / "00000000-00000000-00000001-last.safetensors").write_bytes(b"")
    (folder / "plan.json").unlink()
    with pytest.raises(RecipeError, match=r"plan\.json: cannot be read: No such file"):
        open_parts(folder, PLAN).__enter__()


def test_a_full_disk_is_one_sentence(small_disk: Path):
    message = "the disk is full; free some space and run again"
    with open_parts(small_disk / "rows", PLAN) as parts, pytest.raises(EnvironmentProblem, match=message):
        parts.add(0, [None], {"x": torch.zeros(1, 2**20)})
    assert [path.name for path in (small_disk / "rows").iterdir()] == ["plan.json"]


@pytest.mark.parametrize(("count", "batch", "sizes"), [(7, 3, [3, 3, 1]), (0, 1, []), (3, 8, [3])])
def test_units_have_whole_batches(count: int, batch: int, sizes: list[int]):
    assert [len(unit) for unit in divide(count, batch=batch)] == sizes


def test_units_of_long_lists_are_large():
    assert {len(unit) for unit in divide(100_000, batch=10)} == {250, 100_000 % 250 or 250}
    assert len(divide(640, batch=1)) == 64
