"""States of a stopped run, which is then resumed, and the files of run folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from .bases import Bases
from .case import Case, Kind, case_of
from .mutations import damage_content, damage_text, damage_tree, nasty, remove_file, replace_by_folder
from .safetensors_file import METADATA, damage_file, damage_metadata, join_file, split_file

STATE_CODES = frozenset({6})
RUN_CODES = frozenset({2, 4, 6})
RUN_FILES = ("env.json", "metrics.jsonl", "recipe.yaml", "bad_videos.csv", "nonfinite.json")
RESUME = "pretrain -r recipe.yaml -o stopped --gpus cpu -q"


def make_state(rng: Random, folder: Path, bases: Bases) -> Case:
    """A stopped run with damaged states, resumed: the same weights as without a stop, or exit code 6."""
    run = _copy_stopped(folder, bases)
    notes = []
    for _ in range(rng.choice((1, 1, 2))):
        states = sorted(path for path in (run / "state").glob("step-*") if path.is_file())
        if states:
            damage = rng.choice(_STATE_DAMAGES)
            damage(rng, rng.choice([*states, states[-1], states[-1]]))
            notes.append(damage.__name__.strip("_"))
    codes, check = STATE_CODES | _if_folders(run), _same_weights(bases.root / "pretrained")
    return case_of(RESUME, codes, outputs=("stopped/*",), check=check, note=" and ".join(notes))


def make_run(rng: Random, folder: Path, bases: Bases) -> Case:
    """A run folder with one or two damaged files, and a command that reads it."""
    bases.copy("clips", folder)
    command = rng.choice(("runs", "runs", "plot", "predict", "eval", "resume", "resume"))
    run = _copy_stopped(folder, bases) if command == "resume" else bases.copy("classifier", folder)
    for name in rng.sample(RUN_FILES, k=rng.choice((1, 1, 1, 2, 3))):
        _damage_run_file(rng, run / name)
    match command:
        case "runs":
            return case_of(f"runs . {rng.choice(('', '--json'))}", RUN_CODES)
        case "plot":
            x = rng.choice(("steps", "hours", "gflops"))
            return case_of(f"plot classifier --x {x} -o out.png", RUN_CODES, outputs=("out.png",))
        case "predict":
            return case_of("predict clips/clip0.mp4 -c classifier --gpus cpu --json -q", RUN_CODES)
        case "eval":
            return case_of("eval -c classifier --data clips --gpus cpu --json -q", RUN_CODES)
        case _:
            check = _same_weights(bases.root / "pretrained")
            return case_of(RESUME, RUN_CODES, outputs=("stopped/*",), check=check)


def _copy_stopped(folder: Path, bases: Bases) -> Path:
    for name in ("clips", "recipe.yaml"):
        if not (folder / name).exists():
            bases.copy(name, folder)
    return bases.copy("stopped", folder)


def _if_folders(run: Path) -> frozenset[int]:
    """Exit code 5 fits a run in which a folder is in the place of a file: the file cannot be written."""
    found = [path for path in run.rglob("*") if path.is_dir() and path.name != "state"]
    return frozenset({5} if found else ())


def _same_weights(whole: Path) -> Callable[[Path, int], str | None]:
    def check(folder: Path, code: int) -> str | None:
        if code:
            return None
        from safetensors.torch import load_file

        expected, found = (load_file(run / "model.safetensors") for run in (whole, folder / "stopped"))
        same = expected.keys() == found.keys() and all(expected[k].equal(found[k]) for k in expected)
        return None if same else "resumed to other weights without an error"

    return check


def _anything(rng: Random, state: Path) -> None:
    state.write_bytes(damage_file(rng, state.read_bytes()))


def _texts(rng: Random, state: Path) -> None:
    parts = split_file(state.read_bytes())
    if parts is not None:
        header, tensors = parts
        state.write_bytes(join_file(damage_metadata(rng, header), tensors))


def _tensor_bit(rng: Random, state: Path) -> None:
    """One bit of a tensor: no reader of safetensors notices it."""
    data = bytearray(state.read_bytes())
    place = rng.randint(len(data) // 2, len(data) - 1) if data else 0
    if data:
        data[place] ^= 1 << rng.randrange(8)
    state.write_bytes(data)


def _rename(rng: Random, state: Path) -> None:
    others = ("000000001", "000000003", "000000004", "999999999")
    number = rng.choice(("0", *others, "-1", "x", "\u0663", "9" * 100))
    target = state.with_name(f"step-{number}.safetensors")
    if target.is_dir():  # of another damage
        target.rmdir()
    state.rename(target)


def _exchange(rng: Random, state: Path) -> None:
    """The weights file in the state's place, or the state of the other step."""
    run = state.parent.parent
    others = [run / "model.safetensors", *(p for p in state.parent.glob("step-*") if p.is_file())]
    other = rng.choice(sorted(others))
    if other != state:
        shutil.copy(other, state)


def _step(rng: Random, state: Path) -> None:
    parts = split_file(state.read_bytes())
    if parts is None:
        return
    header, tensors = parts
    step = rng.choice((0, 1, 3, 4, 5, -1, 2.0, "", "2 ", "\uff11", nasty(rng)))
    header.setdefault(METADATA, {})["step"] = str(step)
    state.write_bytes(join_file(header, tensors))


_STATE_DAMAGES = (
    *(_anything, _texts, damage_content, _tensor_bit, _rename, remove_file, replace_by_folder),
    *(_exchange, _step),
)


def _damage_run_file(rng: Random, path: Path) -> None:
    """Damage a file of a run folder; one that is not there is made of nonsense."""
    if not path.is_file():
        samples = (b"", b"{}", b"[]", b"null", b"path,reason\nx\n", b"\xff", b'{"pid": 1, "host": "x"}')
        path.write_bytes(rng.choice(samples))
        if rng.random() < 0.3:
            path.write_text(json.dumps({"pid": nasty(rng), "host": nasty(rng)}))
        return
    data = path.read_bytes()
    draw = rng.random()
    if draw < 0.1:
        path.unlink()
        if rng.random() < 0.3:
            path.mkdir()
    elif draw < 0.3:
        damage_content(rng, path)
    elif path.suffix == ".json" and draw < 0.9:
        path.write_text(json.dumps(damage_tree(rng, json.loads(data))))
    elif path.suffix == ".jsonl" and draw < 0.9:
        rows = [json.loads(line) for line in data.splitlines()]
        damaged = [damage_tree(rng, row) if rng.random() < 0.5 else row for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in damaged))
    else:
        path.write_bytes(damage_text(rng, data.decode()))


RUN_KINDS = (
    Kind(name="states", make=make_state, share=900, needs=("pretrained", "stopped")),
    Kind(name="runs", make=make_run, share=1200, needs=("pretrained", "stopped", "classifier")),
)
