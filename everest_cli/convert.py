"""`everest convert`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.output import print_json, say


def convert(
    checkpoint: Annotated[
        str, typer.Argument(metavar="IN", help="A file, a transformers folder, or hf:OWNER/NAME.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="F", help="The .safetensors file to write.")
    ] = None,
    inspect: Annotated[bool, typer.Option("--inspect", help="Only tell what it is.")] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take what fits; what is missing starts fresh.")
    ] = False,
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            metavar="NAME",
            help="Of those with the same keys: videomae, videomae-v2, everest, mme, mvd.",
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", metavar="N", min=1, help="Frames of its clips [16].")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", metavar="N", min=1, help="Side of its frames in pixels [224].")
    ] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", metavar="N", min=1, help="Attention heads of an own width.")
    ] = None,
    decoder_heads: Annotated[
        int | None, typer.Option("--decoder-heads", metavar="N", min=1, help="The same of its decoder.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option("--classes", metavar="FILE", help="Names of a classifier's classes, one a line."),
    ] = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No report on stderr.")] = False,
) -> None:
    """Turn a checkpoint of another program into one of ours; prints the path written.

    Reads EVEREST, VideoMAE (V2), MME, MVD and transformers. Pickles are read as data only: none can run code.

    Example: everest convert checkpoint-799.pth --out videomae.safetensors
    """
    _check_out(checkpoint, out, inspect=inspect, overwrite=overwrite)

    from everest.checkpoints.convert import convert, describe
    from everest.checkpoints.foreign import locate, read_foreign
    from everest.checkpoints.identify import identify
    from everest.checkpoints.sizes import Hints
    from everest.data.list_text import read_lines

    path = locate(checkpoint, notify=say)
    if _is_own(path, inspect=inspect, as_json=as_json):
        return
    hints = Hints(
        family=family.replace("_", "-") if family else None,
        frames=frames,
        size=size,
        heads=heads,
        decoder_heads=decoder_heads,
    )
    foreign = read_foreign(path)
    if inspect or out is None:
        told = describe(foreign, identify(foreign, hints))
        print_json(told) if as_json else _print_lines(told)
        return
    names = None if classes is None else tuple(line.strip() for _, line in read_lines(classes))
    done = convert(foreign, hints, partial=partial, classes=names)
    done.weights.save(out)
    told = {**describe(foreign, done.identity), "written": str(out)}
    if not quiet:
        _report(told)
    print_json(told) if as_json else typer.echo(out)


def _check_out(checkpoint: str, out: Path | None, *, inspect: bool, overwrite: bool) -> None:
    """Refuse at once what could not be written at the end."""
    from everest.errors import RecipeError
    from everest.system.files import check_new_file

    if inspect:
        return
    if out is None:
        raise RecipeError("Missing option '--out'; with --inspect nothing is written")
    if out.suffix != ".safetensors":
        raise RecipeError(f"--out {out}: what is written is a safetensors file; name it so")
    if out.exists() and out.resolve() == Path(checkpoint).resolve():
        raise RecipeError(f"--out {out}: is the checkpoint to convert; choose another name")
    check_new_file(out, option="--out", overwrite=overwrite)


def _is_own(path: Path, *, inspect: bool, as_json: bool) -> bool:
    """Whether everest wrote the checkpoint: told by --inspect, else there is nothing to convert."""
    from everest.checkpoints.foreign import own_file
    from everest.errors import CheckpointError
    from everest.system.weights import read_weights

    file = own_file(path)
    if file is None:
        return False
    if not inspect:
        raise CheckpointError(f"{path}: everest's own already; every command takes it as it is")
    weights = read_weights(file)
    told = {
        "checkpoint": str(file),
        "family": "everest",
        "title": "written by everest",
        "kind": weights.kind,
        "recipe": weights.recipe,
        "step": weights.step,
        "origin": weights.origin,
    }
    print_json(told) if as_json else _print_lines(told)
    return True


def _print_lines(told: dict[str, Any]) -> None:
    """A line for each thing that is known; long lists by their groups."""
    from everest.checkpoints.convert import grouped

    for name, value in told.items():
        if value is None or value == []:
            continue
        if name in ("missing", "unexpected", "without_effect"):
            value = f"{len(value)} ({', '.join(grouped(value))})"
        elif name == "classes":
            value = f"{', '.join(value[:5])}{', …' if len(value) > 5 else ''}"
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {part}" for key, part in value.items())
        elif isinstance(value, list):
            value = "; ".join(value) if name == "notes" else " x ".join(map(str, value))
        typer.echo(f"{name.replace('_', ' ')}: {value}")


def _report(told: dict[str, Any]) -> None:
    """What became of the tensors, on stderr."""
    from everest.checkpoints.convert import grouped

    say(f"{told['family']} {told['stage']}, {told['backbone']}: {told['used']} tensors used")
    for name, fate in (
        ("without_effect", "left out, without effect"),
        ("missing", "not in the file, starting fresh"),
        ("unexpected", "left out, no place here"),
    ):
        if told[name]:
            say(f"{len(told[name])} {fate}: {', '.join(grouped(told[name]))}")
    for note in told["notes"]:
        say(note)
    say(f"licence: {told['licence'] or 'not stated; see where it comes from'}")
