"""Runs the sweeps behind benchmarks/evidence/tables.md, and keeps the results of each as JSON.

    python benchmarks/run_evidence.py FOLDER --videos VIDEOS --jobs 2
    python benchmarks/run_evidence.py FOLDER --only methods,order --seeds 5
    python benchmarks/run_evidence.py FOLDER --quick

The same command continues after an interruption. It keeps the runs of FOLDER: another version of the
program, or other videos, need another folder. VIDEOS has real clips: `pretrain.csv`, and the lists
`NAME_train.csv`, `NAME_val.csv`, `NAME_test.csv` of each labeled set. Without it, the parts on real clips are
left out. The part on LVMAE trains a tokenizer first.

`--quick` trains for a few steps, in FOLDER/quick: it shows that everything runs; its numbers mean nothing.
Its results stay there, in `results`; those for other seeds or for some of the sets are in FOLDER/results.
`evidence_page.py` writes the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from evidence_sets import RESTING, write_events, write_set
from measuring import everest, machine, write_results

from everest.config.yaml import read_yaml, write_yaml
from everest.lists.columns import read_rows
from everest_demo.motions import DEMO_SET

HERE: Final = Path(__file__).parent
FILES: Final = HERE / "evidence"
SHORT_SIDE: Final = 72  # pixels of real clips: a little more than the 64 of a frame
QUICK: Final = ("pretrain.steps=8", "pretrain.warmup_steps=0", "finetune.steps=4", "finetune.warmup_steps=1")
QUICK_FACTOR: Final = 320  # by which the steps of variants with steps of their own are divided
STEPS: Final = tuple(
    f"{stage}.{name}" for stage in ("pretrain", "finetune") for name in ("steps", "warmup_steps")
)
QUICK_SIZES: Final = {"pretrain": 64, "test_per_class": 2}
QUICK_TOKENIZER: Final = ("tokenizer.steps=8", "tokenizer.warmup_steps=0")
LABELED: Final = {  # sets of real clips, with their number of classes
    "surveillance2": 2,
    "interaction6": 6,
    "tennis7": 7,
    "weizmann10": 10,
    "cameramotion8": 8,
}
RENDERED: Final = (
    *("methods", "methods-visible", "methods-gmacs", "order", "distances", "keep-ratios"),
    *("frame-selection", "other-encoders", "frames", "frames-steps", "steps", "views-per-decode"),
)
LVMAE: Final = "lvmae-few"  # on the videos of LVMAE's demo; its variants share a tokenizer
ON_FIVE_SETS: Final = (
    *("methods-clips", "methods-clips-gmacs", "steps-clips", "order-clips", "distances-clips"),
    *("keep-ratios-clips", "other-encoders-clips"),
)
LONG: Final = {name: LABELED[name] for name in LABELED if name != "cameramotion8"}  # its clips have 24 frames
RESTS: Final = {name: LABELED[name] for name in ("interaction6",)}  # see frame-selection-clips.yaml
SEVERAL_VIEWS: Final = {name: LABELED[name] for name in ("surveillance2", "interaction6", "weizmann10")}
FEW_IS_BETTER: Final = {name: LABELED[name] for name in ("weizmann10", "cameramotion8")}  # with few steps
# Parts on real clips, whose variants are repeated for each labeled set.
CLIPS: Final = dict.fromkeys(ON_FIVE_SETS, LABELED) | {
    "finetune-steps-clips": FEW_IS_BETTER,
    "frame-selection-clips": RESTS,
    "frames-clips": LONG,
    "views-per-decode-clips": SEVERAL_VIEWS,
}
OWN_CLIPS: Final = "frame-selection-clips"  # its pre-training reads the clips of one set, not of all
SUBFOLDERS: Final = dict.fromkeys(CLIPS, "clips") | {LVMAE: LVMAE}  # of videos; other parts: rendered
PARTS: Final = (*RENDERED, LVMAE, *CLIPS)
TIMED: Final = "steps"  # its hours are compared, so nothing else may run meanwhile, and it shares no runs


def prepare(folder: Path, videos: Path | None, sets: Sequence[str], *, quick: bool) -> None:
    """Write the rendered set, and real clips of `sets` in a small size, unless they are there."""
    rendered, clips = folder / "videos" / "rendered", folder / "videos" / "clips"
    if not (rendered / f"{RESTING}.csv").is_file():  # the last file
        sizes = {"pretrain": DEMO_SET.pretrain, "test_per_class": DEMO_SET.test_per_class}
        write_set(rendered, **(QUICK_SIZES if quick else sizes))
    if videos is None:
        return
    labeled = [f"{name}_{part}.csv" for name in sets for part in ("train", "val", "test")]
    missing = [videos / name for name in ("pretrain.csv", *labeled) if not (clips / name).is_file()]
    if missing:
        everest("prepare", "encode", *missing, "-o", clips, "--short-side", SHORT_SIDE, "-q", show=True)


def train_tokenizer(folder: Path, recipe: Path, *, quick: bool) -> Path:
    """Write the videos of LVMAE's demo and train a tokenizer on them, unless that is done; its run folder."""
    videos, run = folder / "videos" / LVMAE, folder / "runs" / f"{LVMAE}-tokenizer"
    if not (videos / "test.csv").is_file():  # the last file
        write_events(videos, **(QUICK_SIZES if quick else {}))
    settings = [option for setting in QUICK_TOKENIZER if quick for option in ("--set", setting)]
    everest("train-tokenizer", "--recipe", recipe, "--data", videos, *settings, "-o", run, "-q", show=True)
    return run


def run(
    part: str, folder: Path, sets: Sequence[str], options: Sequence[object], *, quick: bool
) -> dict[str, Any]:
    """Run a part; returns its results with the sizes of its lists and the machine."""
    of_clips = part in CLIPS
    root = folder / "videos" / SUBFOLDERS.get(part, "rendered")
    runs = folder / "runs" / root.name  # parts on the same videos share their runs
    if part == TIMED and not quick:
        runs = runs.with_name(part)
    sweep = sweep_of(part)
    if of_clips:
        sweep["variants"] = of_every_set(sweep["variants"], sets, own_clips=part == OWN_CLIPS)
        sweep["against"] += f", {sets[0]}"
    if quick:
        sweep["variants"] = {variant: shortened(settings) for variant, settings in sweep["variants"].items()}
    if part == LVMAE:
        checkpoint = train_tokenizer(folder, FILES / sweep["recipe"], quick=quick)
        options = [*options, "--set", f"tokenizer.checkpoint={checkpoint}"]
    sweep["recipe"] = str(FILES / sweep["recipe"])
    file = folder / f"{part}.yaml"
    file.write_text(write_yaml(sweep))
    everest("sweep", file, "--data", root, "-o", runs, *options, show=True)
    prefixes = {f"{name}_": f"{name} " for name in sets} if of_clips else {"": ""}
    unlabeled = [RESTING if part == "frame-selection" else "pretrain"]
    if part == OWN_CLIPS:
        unlabeled = [f"{name}_train" for name in sets]
    lists = {"unlabeled": unlabeled}
    for prefix, title in prefixes.items():
        lists |= {f"{title}{name}": [f"{prefix}{name}"] for name in ("train", "test")}
    videos = {
        title: sum(len(read_rows(root / f"{name}.csv")) for name in names) for title, names in lists.items()
    }
    return {
        "part": part,
        "videos": videos,
        "machine": machine(),
        **json.loads((runs / "results.json").read_text()),
    }


def sweep_of(part: str) -> dict[str, Any]:
    """The sweep of a part, whose file may name another file for its variants."""
    sweep: dict[str, Any] = _read(f"{part}.yaml")
    if isinstance(sweep["variants"], str):
        sweep["variants"] = _read(sweep["variants"])["variants"]
    return sweep


def _read(name: str) -> Any:
    return read_yaml((FILES / name).read_text(), name)


def of_every_set(variants: dict[str, Any], sets: Sequence[str], *, own_clips: bool = False) -> dict[str, Any]:
    """Each variant for each labeled set; those of a method share their pre-training, unless `own_clips`."""
    found = {}
    for name in sets:
        lists = {"data.train": f"{name}_train.csv", "data.test": f"{name}_test.csv"}
        own: dict[str, Any] = lists | {"data.num_classes": LABELED[name]}
        if own_clips:
            own |= {"data.pretrain": f"{name}_train.csv"}
        if name == "cameramotion8":
            own |= {"data.flip": False}  # its classes are directions
        found |= {f"{variant}, {name}": {**settings, **own} for variant, settings in variants.items()}
    return found


def shortened(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a variant with fewer steps, if it has steps of its own."""
    least = {name: int(name.endswith(".steps")) for name in STEPS if name in settings}
    return settings | {name: max(settings[name] // QUICK_FACTOR, few) for name, few in least.items()}


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A reader of names with commas between them."""

    def names(text: str) -> list[str]:
        found = text.split(",")
        unknown = next((name for name in found if name not in known), None)
        if unknown is not None:
            raise argparse.ArgumentTypeError(f"no '{unknown}'; there are {', '.join(known)}")
        return found

    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=Path, help="folder with the lists of real clips")
    names = ", ".join(PARTS)
    parser.add_argument("--only", type=names_of(PARTS), default=PARTS, metavar="PART,…", help=f"of {names}")
    sets = names_of(tuple(LABELED))
    parser.add_argument("--sets", type=sets, metavar="NAME,…", help="of real clips [all]")
    parser.add_argument("--seeds", help="a number of seeds, or the seeds")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    for part in CLIPS if arguments.videos is None and arguments.only is not PARTS else ():
        if part in arguments.only:
            parser.error(f"{part} needs --videos")
    folder, quick = arguments.folder.absolute(), arguments.quick
    folder = folder / "quick" if quick else folder  # its videos are fewer
    prepare(folder, arguments.videos, arguments.sets or tuple(LABELED), quick=quick)
    is_whole = not quick and arguments.seeds is None and arguments.sets is None
    results = FILES / "results" if is_whole else folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    seeds = arguments.seeds or ("1" if quick else None)
    options: list[object] = [] if seeds is None else ["--seeds", seeds]
    options += [option for setting in QUICK if quick for option in ("--set", setting)]
    chosen = [part for part in arguments.only if part not in CLIPS or arguments.videos is not None]

    def run_all(parts: Sequence[str], jobs: int) -> None:
        for part in parts:
            sets = arguments.sets or tuple(CLIPS.get(part, ()))
            document = run(part, folder, sets, [*options, "--jobs", jobs], quick=quick)
            path = results / f"{part}.json"
            write_results(path, document)
            print(f"results: {path}", flush=True)

    if not quick or arguments.jobs < 2:
        run_all(chosen, arguments.jobs)
        return
    # Quick jobs are shorter than the start of a sweep, so sweeps on different videos run at once.
    chains = [
        [part for part in chosen if SUBFOLDERS.get(part) == folder] for folder in (None, "clips", LVMAE)
    ]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda parts: run_all(parts, arguments.jobs // 2), chains))


if __name__ == "__main__":
    main()
