"""Lists of videos (csv, tsv, txt) and indexes of shards."""

import json
from pathlib import Path
from random import Random

from .bases import Bases
from .case import Case, Kind, case_of
from .mutations import damage_bytes, damage_text, damage_tree

CODES = frozenset({2, 4})
LISTS = (
    ("txt", "clip0.mp4 0\nclip1.mp4 1\nclip2.mp4 0\nclip3.mp4 1\n"),
    ("csv", "path,label\nclip0.mp4,walk\nclip1.mp4,run\nclip2.mp4,walk\nclip3.mp4,run\n"),
    ("tsv", "path\tlabel\tstart\tend\nclip0.mp4\t0\t0\t0.5\nclip1.mp4\t1\t0.1\t0.9\nclip2.mp4\t0\t0\t1\n"),
    ("csv", "path,label,start_frame,end_frame\nclip0.mp4,0,0,8\nclip1.mp4,1,2,12\nclip3.mp4,1,0,4\n"),
    ("csv", 'path,label.verb,label.noun\n"clip0.mp4",0,1\n"clip1.mp4",1,0\nclip2.mp4,0,0\nclip3.mp4,1,1\n'),
    ("txt", "clip0.mp4\nclip1.mp4\nclip2.mp4\n"),
)
CLASSES = "walk\nrun\n"


def make_list(rng: Random, folder: Path, bases: Bases) -> Case:
    """A damaged list, sometimes with a damaged file of class names."""
    bases.copy("clips", folder)
    suffix, text = rng.choice(LISTS)
    name = f"my.{rng.choice((suffix, suffix, 'csv', 'txt', 'tsv'))}"
    (folder / "clips" / name).write_bytes(damage_text(rng, text))
    classes: list[str] = []
    if rng.random() < 0.2:
        names = damage_text(rng, CLASSES) if rng.random() < 0.7 else CLASSES.encode()
        (folder / "classes.txt").write_bytes(names)
        classes = ["--classes", "classes.txt"]
    path = f"clips/{name}"
    command = rng.choices(("split", "shard", "try", "predict", "check splits"), weights=(8, 3, 5, 3, 1))[0]
    if command == "split":
        return case_of(f"prepare split {path} -o out --json", CODES, *classes)
    if command == "check splits":
        return case_of(f"prepare split --check {path} clips/train.csv", CODES, *classes)
    if command == "shard":
        return case_of(f"prepare shard {path} -o out -q --json", CODES)
    if command == "predict":
        bases.copy("classifier", folder)
        return case_of(f"predict {path} -c classifier --gpus cpu --json -q", CODES)
    bases.copy("recipe.yaml", folder)
    changes = [f"data.train={name}", "data.num_classes=null", "data.val=null"]
    if classes:
        changes.append("data.classes=../classes.txt")
    if "label.verb" in text and rng.random() < 0.5:
        changes.append("data.heads={verb: 2, noun: 2}")
    return _dry_run(rng, *(f"--set={change}" for change in changes))


def _dry_run(rng: Random, *options: str) -> Case:
    stage = rng.choice(("pretrain", "finetune --init none"))
    return case_of(f"{stage} -r recipe.yaml --gpus cpu --dry-run -q", CODES, *options)


def make_shards(rng: Random, folder: Path, bases: Bases) -> Case:
    """An index of shards or a shard, damaged."""
    bases.copy("shards", folder)
    bases.copy("recipe.yaml", folder)
    index = folder / "shards" / "train.index.json"
    draw = rng.random()
    if draw < 0.7:
        index.write_text(json.dumps(damage_tree(rng, json.loads(index.read_text()))))
    elif draw < 0.85:
        index.write_bytes(damage_bytes(rng, index.read_bytes()))
    else:
        shard = rng.choice(sorted((folder / "shards").glob("*.tar")))
        shard.write_bytes(damage_bytes(rng, shard.read_bytes()))
    lists = [f"data.{name}=train.index.json" for name in ("train", "test")]
    changes = [f"--set={change}" for change in (*lists, "data.val=null", "data.max_bad=1")]
    if rng.random() < 0.25:
        bases.copy("classifier", folder)
        command = "eval -c classifier --data shards --set train.workers=0 --gpus cpu --json -q"
        return case_of(command, CODES, *changes)
    return _dry_run(rng, "--data", "shards", *changes)


LIST_KINDS = (
    Kind(name="lists", make=make_list, share=1200, needs=("classifier",)),
    Kind(name="shards", make=make_shards, share=700, needs=("classifier", "shards")),
)
