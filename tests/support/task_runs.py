"""Classifiers of several heads, of several classes and of numbers: their lists, recipes and tiny runs."""

from pathlib import Path

from small_runs import called, small_recipe

# Of the four videos: the second has no tag, and the last has three.
TAGS = ("walk|sit", "", "run", "walk|run|sit")
SCORES = (10.5, 30, -2.25, 41)
NAMES = ("run", "sit", "walk")
COLUMNS = {
    "tags": {"label": TAGS},
    "scores": {"label": SCORES},
    "mixed": {**{"label_verb": (0, 1, 0, 1), "label_tags": ("0|2", "", "1", "0|1|2"), "label_score": SCORES}},
    "heads": {"label_noun": (0, 1, 2, 0), "label_verb": (0, 1, 0, 1)},
    "named": {"label_verb": (0, 1, 0, 1)},
}
SETTINGS = {
    "tags": "task: multi-label",
    "scores": "task: regression",
    "mixed": "heads: {verb: 2, tags: {multi-label: 3}, score: regression}",
    "heads": "heads: {verb: 2, noun: 3}",
    "named": "heads: {verb: 2}",
}


def write_list(path: Path, clip_files: Path, **columns: tuple[object, ...]) -> Path:
    """Write a list of the four videos with these columns."""
    lines = [",".join(["path", *(name.replace("_", ".") for name in columns)])]
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        lines.append(",".join([f"{clip_files}/clip{i}.mp4", *map(str, row)]))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def task_recipe(folder: Path, clip_files: Path, name: str) -> Path:
    """A recipe next to the list `train.csv`, on which it trains, validates and tests."""
    root = folder / name
    root.mkdir()
    write_list(root / "train.csv", clip_files, **COLUMNS[name])
    mixing = {} if name in ("heads", "named") else {"mixup: 0.8": "mixup: 0.0", "cutmix: 1.0": "cutmix: 0.0"}
    return small_recipe(root, root, {"num_classes: 2": SETTINGS[name], **mixing})


def task_run(folder: Path, clip_files: Path, name: str) -> Path:
    """A tiny classifier, trained; its recipe and its list are next to the run folder."""
    recipe = task_recipe(folder, clip_files, name)
    called("finetune --init none -q", "--recipe", recipe, "-o", recipe.parent / "run")
    return recipe.parent / "run"
