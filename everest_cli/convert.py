"""`everest convert`"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from everest.errors import CheckpointError, RecipeError, first_names
from everest_cli import options as o
from everest_cli.option_values import read_size
from everest_cli.output import print_json, say

MOST_NAMES: Final = 20  # of classes that a report lists
FATES: Final = {
    "missing": "not in the file, starting fresh",
    "unexpected": "left out, not part of the model",
    "without_effect": "left out, without effect",
}


def convert(
    checkpoint: Annotated[
        str, typer.Argument(metavar="IN", help="A file, a transformers folder, or hf:OWNER/NAME.")
    ],
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="F", help="The .safetensors file to write.")
    ] = None,
    inspect: Annotated[bool, typer.Option("--inspect", help="Only identify the checkpoint.")] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Convert what fits; initialize the rest.")
    ] = False,
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            metavar="NAME",
            help="For checkpoints with equal parameter names: videomae, videomae-v2, everest, mme, mvd.",
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", metavar="N", min=1, help="Frames of a clip [16].")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="N|HxW", help="Side, or height x width of a frame [224].")
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            "--heads", metavar="N[,M]", help="Attention heads of an unusual width, and of its decoder."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option("--classes", metavar="FILE", help="Class names of a classifier, one per line."),
    ] = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Convert a checkpoint of another program to everest's format; prints the path written.

    Reads EVEREST, VideoMAE (V2), ST-MAE, MME, MVD, transformers (VideoMAE and V-JEPA 2). Pickles are read as
    data: none can run code.

    Example: everest convert checkpoint-799.pth --output videomae.safetensors
    """
    _check_out(out, inspect=inspect, overwrite=overwrite)

    from everest.foreign.convert import convert, describe, identify
    from everest.foreign.facts import Hints
    from everest.foreign.files import locate, read_foreign
    from everest.lists.labels import read_class_names
    from everest.system.files import refuse_inputs

    path = locate(checkpoint, notify=say)
    if out is not None and not inspect:
        files = path.iterdir() if path.is_dir() else ()  # a checkpoint of transformers may have several
        refuse_inputs(out, [path, *files, classes], option="--output")
    if _is_own(path, inspect=inspect, as_json=as_json):
        return
    hints = Hints(
        family=family.replace("_", "-") if family else None,
        frames=frames,
        size=None if size is None else read_size(size),
        **_read_heads(heads),
    )
    foreign = read_foreign(path)
    if inspect or out is None:
        document = describe(identify(foreign, hints))
        print_json(document) if as_json else typer.echo("\n".join(_lines(document)))
        return
    names = None if classes is None else read_class_names(classes)
    conversion = convert(foreign, hints, partial=partial, classes=names)
    conversion.weights.save(out)
    document = {**describe(conversion.identity), "written": str(out)}
    for line in _lines(document):
        say(line)
    print_json(document) if as_json else typer.echo(out)


def _read_heads(text: str | None) -> dict[str, int]:
    """Parse --heads: the attention heads of the encoder, then of the decoder."""
    if text is None:
        return {}
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})?", text, re.ASCII):
        raise RecipeError(f"--heads {text}: give N, or N,M with the heads of the decoder, such as 12,6")
    return dict(zip(("heads", "decoder_heads"), map(int, text.split(",")), strict=False))


def _check_out(out: Path | None, *, inspect: bool, overwrite: bool) -> None:
    """Check early that the output can be written at the end."""
    from everest.system.files import check_new_file

    if inspect:
        return
    if out is None:
        raise RecipeError("--output: missing; name a .safetensors file, or use --inspect")
    if out.suffix != ".safetensors":
        raise RecipeError(f"--output {out}: end its name in .safetensors")
    check_new_file(out, option="--output", overwrite=overwrite)


def _is_own(path: Path, *, inspect: bool, as_json: bool) -> bool:
    """Whether everest wrote the checkpoint: --inspect describes it, otherwise there is nothing to convert."""
    from everest.checkpoints.load import open_model
    from everest.foreign.files import own_file
    from everest.models.spec import ModelSpec

    file = own_file(path)
    if file is None:
        return False
    if not inspect:
        raise CheckpointError(f"{path}: written by everest; use it without conversion")
    opened = open_model(file)
    weights, spec = opened.weights, opened.spec
    is_model = isinstance(spec, ModelSpec)
    document = {
        "checkpoint": str(file),
        "family": "everest",
        "title": "written by everest",
        "kind": weights.kind,
        "frames": spec.frames if is_model else spec.window,
        **(weights.clip or {"stride": None, "sampling": None}),
        "size": list(spec.size),
        "channels": spec.channels if is_model else 3,
        "num_classes": spec.num_classes if is_model else None,
        "heads": spec.heads if is_model else None,
        "classes": list(weights.classes) if weights.classes else None,
        "recipe": weights.recipe,
        "step": weights.step,
        "origin": weights.origin,
    }
    print_json(document) if as_json else typer.echo("\n".join(_lines(document)))
    return True


def _lines(document: dict[str, Any]) -> Iterator[str]:
    """Yield a line per known property; long lists of names by group."""
    from everest.foreign.convert import grouped

    for name, value in document.items():
        title = name.replace("_", " ")
        if name == "licence":
            yield f"license: {value or 'not stated; see its source'}"
        elif value is None or value == []:
            continue
        elif name in FATES:
            yield f"{FATES[name]}: {len(value)} ({', '.join(grouped(value))})"
        elif name == "classes":
            yield f"classes: {first_names(value, MOST_NAMES)}"
        elif name == "origin":  # the file, and the files that it started from
            yield f"origin: {' from '.join(_files(value))}"
        elif isinstance(value, dict):
            yield f"{title}: {', '.join(f'{key} {part}' for key, part in value.items())}"
        elif isinstance(value, list):
            yield f"{title}: {('; ' if name == 'notes' else ' x ').join(map(str, value))}"
        else:
            yield f"{title}: {value}"


def _files(origin: dict[str, Any] | None) -> Iterator[str]:
    """Yield the weights that weights started from, then the ones that these started from, and so on."""
    while origin:
        yield str(origin.get("file") or origin.get("family", "unknown"))
        origin = origin.get("origin")
