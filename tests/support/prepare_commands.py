"""`everest prepare` commands as a user calls them, and the rows of lists."""

from functools import partial
from pathlib import Path

from small_runs import called

from everest.config.heads import named_heads
from everest.lists.reading import read_samples, read_unlabeled

everest = called
index, split, check = (partial(called, f"prepare {name}") for name in ("index", "split", "check"))


def rows_of(file: Path, root: Path, heads=None):
    rows = []
    if "unlabelled" in file.name:
        found = read_unlabeled(file, root=root)
    else:
        found = read_samples(file, root=root, heads=named_heads(heads or {}))
    for sample in found.samples:
        times = {name: getattr(sample, name) for name in ("start", "end", "start_frame", "end_frame")}
        part = {name: value for name, value in times.items() if value is not None}
        path = sample.path.removeprefix(f"{root}/").removeprefix("./")
        rows.append((path, sample.labels, part) if part else (path, sample.labels))
    return rows


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
