"""Options of commands: how they are declared and parsed, and those that several commands share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, fields, is_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

import typer

from everest.config import run_options
from everest.errors import RecipeError, shorten
from everest.system.launch import read_devices, run_processes
from everest.system.processes import is_launched

if TYPE_CHECKING:
    from everest_workflows.annotations.codings import BoutFilter


def option(names: str, help: str, default: Any = None, **settings: Any) -> Any:
    """Declare an option by its names and the word for its value in help, such as `--output -o DIR`.

    Args:
        default: the default value; ... if the option is required.
        settings: settings of `typer.Option`.
    """
    words = names.split()
    flags = [word for word in words if word.startswith("-")]
    metavar = None if flags == words else words[-1]
    return typer.Option(default, *flags, metavar=metavar, help=help, **settings)


def argument(metavar: str, help: str, default: Any = ..., **settings: Any) -> Any:
    """Declare an argument by its word in help."""
    return typer.Argument(default, metavar=metavar, help=help, **settings)


def local_path(text: str) -> Path:
    """Parse a path on this machine."""
    from everest.system.storage import LOCAL_PREFIX, is_url

    if is_url(text) and not text.startswith(LOCAL_PREFIX):
        raise RecipeError(
            f"{text}: is a URL; this command reads local files only (prepare encode and shard read URLs)"
        )
    return Path(text.removeprefix(LOCAL_PREFIX))


def refuse(problems: Mapping[str, object]) -> None:
    """Raise RecipeError for options that do not fit together: the first text whose condition holds."""
    for text, is_wrong in problems.items():
        if is_wrong:
            raise RecipeError(text)


def find_root(source: Path, data: Path | None) -> Path:
    """Return the folder to which the paths of a list are relative: --data, else the source or its folder."""
    return data or (source if source.is_dir() else source.parent)


def _complete_recipe(incomplete: str) -> list[str]:
    """Complete the name of a shipped recipe in a shell."""
    from everest.config.recipe_files import shipped_names

    return [name for name in shipped_names() if name.startswith(incomplete)]


def refuse_sweep(name: str | None) -> str | None:
    """Refuse a file of `everest sweep` where a recipe is expected."""
    if name is None:
        return None
    from everest.config.recipe_files import find_recipe
    from everest_workflows.sweep.request import is_sweep_file

    file = find_recipe(name)
    if is_sweep_file(file):
        raise RecipeError(f"{file.label}: a sweep file, not a recipe; run `everest sweep {name}`")
    return name


# What to read.
VIDEOS = argument("VIDEO…", "Videos, folders of videos, or lists (.csv, .tsv, .txt).")
VIDEOS_OR_FOLDERS = argument("VIDEO…", "Videos, or folders of videos.")
RECIPE = option(
    "--recipe -r R",
    "A shipped recipe, or a YAML file.",
    ...,
    autocompletion=_complete_recipe,
    callback=refuse_sweep,
)
OVERRIDES = option(*run_options.OVERRIDES)
DATA_ROOT = option(*run_options.DATA)
TEST_DATA = option("--data DIR", "Folder or URL of lists and videos (data.root), or a list to test on.")
LIST_ROOT = option("--data DIR", "Folder that paths in a list are relative to [the list's].")
LOCAL_ROOT = option(
    "--data DIR", "Folder that paths in lists are relative to [the list's].", parser=local_path
)
TASK = option("--task", "One class, classes joined by |, or a number per video [by the labels].")
OBSERVER = option(
    "--observer NAME", "Whose bouts count where several people coded a video; * is any text; repeatable."
)
SUBJECT = option("--subject NAME", "Only the bouts of this subject, such as an animal; * is any text.")
FPS = option("--fps N", "Count frames at N per second [the file's rate].", min=0.001, max=10_000)

# Heuristic: far above useful values; torch and PyAV refuse larger numbers with obscure errors.
MAX_CLIPS = 10**6  # maximum number of clips in a forward pass
MAX_LENGTH = 2**16  # maximum number of frames of a clip, or of pixels of a side

ANY_VIDEOS = "custom"  # recipe for weights that have none; clips and model follow from the weights

# The model.
CHECKPOINT_HELP = "Run folder, .safetensors file, hf:OWNER/NAME, timm:NAME or timm:NAME=FILE."
CHECKPOINT = option("--checkpoint -c C", CHECKPOINT_HELP, ...)
WHICH = option("--which", "Weights of a run folder [best on data.val if present, else newest].")
INIT = ("--init C", "Run folder, file, hf:OWNER/NAME, timm:NAME or timm:NAME=FILE to start from, or none.")
CLIP_RECIPE = option(
    "--recipe -r R", "Recipe for clip size, stride and views [the run's].", callback=refuse_sweep
)
KEEP = option("--keep SHARE", "Keep ratio: fraction of tokens to encode [as in training].")
EMBEDDING = option("--checkpoint -c C", "Model whose embedding measures change [raw pixels].")
VIEWS = option("--views CLIPSxCROPS", "Views of a video, such as 1x1 [as in the run's evaluation].")
BATCH = option("--batch N", "Videos or windows in one forward pass.", 1, min=1, max=MAX_CLIPS)

# Devices.
GPUS = option("--gpus auto|N|cpu|mps", "All visible GPUs (auto), N GPUs, the CPU or MPS.", "auto")
ONE_GPU = option("--gpus auto|1|cpu|mps", "A GPU if there is one (auto), or the CPU.", "auto")
PROCESSES = option("--processes N", "Number of processes with --gpus cpu.", min=1)

# What to write.
OUTPUT_FILE = option("--output -o F", "Write to this file and print its name.")
LISTS_FOLDER = option("--output -o DIR", "Folder for the lists [the videos' folder].")
OVERWRITE = option(*run_options.OVERWRITE, False)
OVERWRITE_FILES = option("--overwrite", "Replace files that exist.", False)
AS_JSON = option("--json", "Print one JSON document.", False)
SEED = option("--seed N", "Random seed.", 0, min=0)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Turn each parameter of a command that is annotated by a dataclass into the options in its fields."""
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    hints = get_type_hints(command)
    for name, parameter in signature(command).parameters.items():
        options = [(name, parameter.default, hints[name])]
        if is_dataclass(hints[name]):
            groups[name], kinds = hints[name], get_type_hints(hints[name], include_extras=True)
            options = [_option_of(each, kinds[each.name]) for each in fields(groups[name])]
        parameters += [
            Parameter(key, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for key, default, kind in options
        ]

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    # typer reads the options of a command from its signature and its annotations.
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = command.__doc__
    return run


def _option_of(field: Field[Any], kind: Any) -> tuple[str, Any, Any]:
    """The name, the default as typer takes it, and the type of a field, which may say how it is shown."""
    if get_origin(kind) is not Annotated:
        return field.name, field.default, kind
    (names, text), *others = kind.__metadata__
    settings = next((each for each in others if isinstance(each, dict)), {})
    return field.name, option(names, text, field.default, **settings), kind.__origin__


def is_on_cpu(gpus: str) -> bool:
    """Choose the device of a command that uses only one, by --gpus; return whether it is the CPU."""
    if gpus in ("auto", "cpu"):
        return gpus == "cpu"
    devices = read_devices(gpus, None)
    if devices.num_processes > 1:
        raise RecipeError(f"--gpus {gpus}: this command uses one device; give auto, 1, cpu or mps")
    os.environ.update(devices.environment)
    return False


def read_keep_ratios(text: str) -> tuple[float, ...]:
    """Parse the keep ratios of --keep, such as `0.5,0.25`."""
    fractions: tuple[float, ...] = ()
    with suppress(ValueError):
        fractions = tuple(float(part) for part in text.split(","))
    are_fractions = all(0 < fraction <= 1 for fraction in fractions)
    if not fractions or not are_fractions or len(set(fractions)) < len(fractions):
        raise RecipeError(
            f"--keep {text}: give keep ratios above 0 and at most 1, each once, such as 0.5,0.25"
        )
    return fractions


def read_numbers(option: str, text: str, pattern: str, *, fix: str) -> list[int]:
    """Parse the numbers in the value of an option, which must match the whole pattern."""
    if not re.fullmatch(pattern, text, re.ASCII):
        raise RecipeError(f"{option} {shorten(text)}: give {fix}")
    return [int(number) for number in re.findall(r"\d+", text)]


def read_size(text: str) -> int | tuple[int, int]:
    """Parse the pixels of --size: `224` for a square frame, `64x96` for height and width."""
    pattern = r"[1-9]\d{0,3}(x[1-9]\d{0,3})?"
    sides = read_numbers("--size", text, pattern, fix="a number of pixels, or HEIGHTxWIDTH")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def read_views(text: str | None) -> tuple[int | None, int | None]:
    """Parse the clips and crops of --views, `2x3`; None for None."""
    if text is None:
        return None, None
    pattern = r"[1-9]\d{0,8}x[1-9]\d{0,8}"
    clips, crops = read_numbers("--views", text, pattern, fix="CLIPSxCROPS, such as 1x1 or 5x3")
    return clips, crops


@dataclass(frozen=True, kw_only=True)
class WhoseOptions:
    """The options that choose whose bouts in annotations count."""

    observer: list[str] | None = OBSERVER
    subject: str | None = SUBJECT

    def read(self, annotations: object, *, option: str) -> BoutFilter:
        """Return the choice; RecipeError if it is made without annotations, which `option` names."""
        from everest_workflows.annotations.codings import BoutFilter

        is_given = self.observer or self.subject
        refuse({f"--observer and --subject need {option}": is_given and not annotations})
        return BoutFilter(observers=self.observer or (), subject=self.subject)


def run_in_each_process(gpus: str, processes: int | None, *, check: Callable[[], None] | None = None) -> bool:
    """Continue in this process if one is enough; otherwise run this command in one process per device.

    Args:
        check: called before processes start; in a single process, the run itself finds the same problems.
    Returns:
        Whether the CPU computes. If processes were started, the command ends with their exit code.
    """
    if is_launched():
        return gpus == "cpu"
    devices = read_devices(gpus, processes)
    if devices.num_processes > 1:
        if check is not None:
            check()
        code, errors = run_processes(devices, [*name_program(), *sys.argv[1:]])
        typer.echo(errors, err=True, nl=False)
        raise typer.Exit(code)
    os.environ.update(devices.environment)
    return devices.type == "cpu"


def name_program() -> list[str]:
    """Return the words that start `everest` again, as this process was started."""
    # Only `python -m` searches the working directory for modules first.
    by_module = Path(sys.argv[0]).name == "__main__.py"
    return [sys.executable, *([] if by_module else ["-P"]), "-m", "everest_cli"]
