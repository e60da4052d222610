"""Files are written completely or not at all, and an unwritable path is refused before the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from everest.errors import EnvironmentProblem, RecipeError
from everest.system.files import (
    check_new_file,
    check_new_folder,
    check_writable,
    unfinished_folder,
    write_atomically,
)


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), EnvironmentProblem("differs")])
def test_an_error_while_writing_keeps_the_earlier_file(tmp_path: Path, error: BaseException):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def write(part: Path) -> None:
        part.write_text("half of it")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file.txt", "before")]


def test_checking_that_a_file_can_be_written_changes_nothing(tmp_path: Path):
    check_writable(tmp_path / "new" / "folder" / "file.txt")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there.txt").write_text("before")
    check_writable(tmp_path / "there.txt")
    assert (tmp_path / "there.txt").read_text() == "before"
    with pytest.raises(EnvironmentProblem, match="it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(EnvironmentProblem, match="File exists"):
        check_writable(tmp_path / "there.txt" / "file.txt")


def test_a_new_file_or_folder_must_not_replace_one(tmp_path: Path):
    there, full, empty = tmp_path / "there.txt", tmp_path / "full", tmp_path / "empty"
    there.write_text("before")
    full.mkdir()
    (full / "file.txt").write_text("before")
    empty.mkdir()
    with pytest.raises(RecipeError, match=r"--out .*exists"):
        check_new_file(there, option="--out", overwrite=False)
    with pytest.raises(RecipeError, match=r"--out .*is not empty"):
        check_new_folder(full, "first", option="--out", overwrite=False)
    with pytest.raises(RecipeError, match="a file is in the way"):
        check_new_folder(there, "first", option="--out", overwrite=True)
    check_new_file(there, option="--out", overwrite=True)
    check_new_folder(full, "first", option="--out", overwrite=True)
    check_new_folder(empty, "first", option="--out", overwrite=False)
    assert [path.name for path in full.iterdir()] == ["file.txt"]


def test_a_folder_is_that_of_an_interrupted_call_only_if_the_call_marked_it(tmp_path: Path):
    folder = tmp_path / "folder"

    def check() -> None:
        check_new_folder(folder, "last", option="--out", overwrite=False, is_own=lambda name: name == "first")

    folder.mkdir()
    (folder / "first").write_text("of a user")
    with pytest.raises(RecipeError, match="is not empty"):
        check()
    (folder / "last").write_text("before")
    with pytest.raises(KeyboardInterrupt), unfinished_folder(folder, "last"):
        raise KeyboardInterrupt
    assert not (folder / "last").exists()
    check()
    (folder / "last").write_text("complete, but for the mark")
    check()
    (folder / "other").write_text("of a user")
    with pytest.raises(RecipeError, match="is not empty"):
        check()
    (folder / "other").unlink()
    with unfinished_folder(folder, "last"):
        (folder / "last").write_text("complete")
    assert sorted(path.name for path in folder.iterdir()) == ["first", "last"]
    with pytest.raises(RecipeError, match="is not empty"):
        check()
