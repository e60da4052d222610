"""The list or folder that a stage reads: what the recipe names below `data.root`, or a folder tree there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Final

from everest.config.settings import DataSettings
from everest.errors import DataError, RecipeError
from everest.lists.split_folders import list_folder, split_folders
from everest.system.storage import Location, join_location, parse_location
from everest.video.folders import as_data_error, missing, no_list, subfolders, videos_under

LISTS: Final = {key: f"{key}.csv" for key in ("train", "val", "test")}  # as `everest prepare` writes them


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSource:
    """A list or a folder of videos."""

    root: Location  # that paths in a list are relative to
    location: Location
    notice: str | None = None  # why it is not the list that the recipe names


def find_source(data: DataSettings, key: str, *, labeled: bool) -> StageSource:
    """Returns the list or folder that `data.KEY` names.

    In place of a missing `train.csv`, `val.csv` or `test.csv`, a folder `train`, `val` or `test` is read, or
    one with another name of everest.lists.split_folders. A recipe that does not fix the classes reads all
    videos below `data.root` if no labels are needed.

    Raises:
        RecipeError: `data.KEY` is not set.
        DataError: there is no such folder or list; the message names the command that makes it, if known.
    """
    source = getattr(data, key)
    if source is None:
        raise RecipeError(f"data.{key}: not set; name a list or a folder of videos")
    root = parse_location(data.root)
    with as_data_error(root):
        if not root.is_dir():
            raise DataError(f"data.root: {missing(root, 'folder')}; set it by --data DIR")
        location = join_location(root, source)
        if source != LISTS.get(key) or location.exists():
            return StageSource(root=root, location=location)
        folder = list_folder(root, key, labeled=labeled)
        if folder is not None:
            notice = f"{root}: no {source}, so the folder {folder} is read"
            return StageSource(root=root, location=root / folder, notice=notice)
    folders, any_video = subfolders(root), next(videos_under(root), None) is not None
    is_open = data.num_classes is None and data.heads is None and data.classes is None
    to_divide = is_open and not split_folders(root)
    command = f"everest prepare {'split' if to_divide else 'index'} {shlex.quote(str(root))}"
    if any_video and not labeled and is_open:
        notice = (
            f"{root}: no {source}, so all videos below it are used; `{command}` makes lists that keep test "
            "videos apart"
        )
        return StageSource(root=root, location=root, notice=notice)
    problem = f"{no_list(location)}; set data.root, by --data DIR"
    if any_video and (folders or not labeled):
        from_what = f" from its {len(folders)} folders" if folders and to_divide else ""
        problem += f", or run `{command}`, which writes {source}{from_what}; then repeat this command"
    raise DataError(problem)


def unused_validation(data: DataSettings) -> str | None:
    """Returns a notice if `data.val` is not set although there is a list or folder for it."""
    if data.val is not None:
        return None
    root = parse_location(data.root)
    for name in (LISTS["val"], "val"):
        with as_data_error(root):
            if (root / name).exists():
                return f"{root / name}: not used; --set data.val={name} selects the best weights on it"
    return None
