"""The reference of commands, from the Typer app: what each one does, its arguments and its options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from page_table import table
from typer.main import get_command

from everest_cli.main import GROUPS, app


def commands_part() -> str:
    """A heading for every subject of `everest --help`, and below it one for each command."""
    everest: Any = get_command(app)
    texts = [
        "## Options of everest itself",
        "They come before the command: `everest --debug eval …`.",
        _options(everest),
    ]
    for title, commands in GROUPS.items():
        texts.append(f"## {title}")
        for name in commands:
            for words, command in _with_children(f"everest {name}", everest.commands[name]):
                texts += [f"### {words}", _about(command), _usage(words, command), _options(command)]
    return "\n\n".join(filter(None, texts))


def _with_children(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command, or the commands of a group."""
    children = getattr(command, "commands", {})
    if children and not getattr(command, "invoke_without_command", False):
        for name, child in children.items():
            yield from _with_children(f"{words} {name}", child)
    else:
        yield words, command


def _about(command: Any) -> str:
    """The text of `--help`; an example is a line of code."""
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    return "\n\n".join(_paragraph(text) for text in paragraphs if text)


def _paragraph(text: str) -> str:
    lead, found, example = text.partition(": everest ")
    return f"{lead}:\n\n```console\n$ everest {example}\n```" if found else text.replace("<", "&lt;")


def _usage(words: str, command: Any) -> str:
    return f"```text\n{' '.join([words, *command.collect_usage_pieces(None)])}\n```"


def _options(command: Any) -> str:
    rows = []
    for each in command.params:
        if getattr(each, "hidden", False) or "--help" in each.opts:
            continue
        is_flag = getattr(each, "is_flag", False)
        names = ", ".join(f"`{name}`" for name in _names(each))
        metavar = _metavar(each)
        shown = (
            f"`{metavar}`"
            if each.param_type_name == "argument"
            else names + ("" if is_flag else f" `{metavar}`")
        )
        default = "required" if each.required else _default(each)
        rows.append([shown, (getattr(each, "help", None) or "").replace("<", "&lt;"), default])
    return table(["option", "meaning", "default"], rows) if rows else ""


def _names(each: Any) -> list[str]:
    names = [*each.opts, *each.secondary_opts]
    return sorted(names, key=len, reverse=True) if each.param_type_name == "option" else names


def _metavar(each: Any) -> str:
    """The value of an option: its name, or the choices."""
    return each.metavar or "|".join(map(str, get_args(each.type_descriptor.annotation)))


def _default(each: Any) -> str:
    value = each.default
    value = getattr(value, "value", value)
    if value is None or value is False or callable(value) or value == []:
        return ""
    return f"`{value}`"
