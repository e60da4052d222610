"""YAML as people expect it: `1e-3` is a number, `on` is text, and a duplicate key is an error.

PyYAML follows YAML 1.1: it reads `1e-3` as text, `on` as true, `010` as 8, and silently takes the last of
duplicate keys. The resolvers here follow YAML 1.2's core schema, without octal and hexadecimal numbers.

Anchors, aliases and tags are refused: with them, a few letters can stand for billions of values.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from everest.errors import RecipeError, shorten

_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$",
    re.ASCII,  # digits of other writing systems are text
)
_RESOLVERS = {  # by type: the form of its values, and the letters with which they begin
    "null": (re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"[-+]?(?:0|[1-9]\d*)$", re.ASCII), list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
}


_NO_VALUE = "expected the node content, but found '<stream end>'"


def _problem(text: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=event.start_mark)


class _Loader(yaml.SafeLoader):
    """Reads plain data only, with the resolvers above."""

    yaml_implicit_resolvers: ClassVar = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Checks that a value is written out."""
        event = self.peek_event()
        if event.anchor or getattr(event, "tag", None):
            raise _problem("anchors, aliases and tags are not read; write the value itself", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Checks that keys are text and unique. An integer is read as text: it may be the name of a class."""
        seen: set[str] = set()
        for number, (key, value) in enumerate(node.value):
            if key.tag == _TAG + "int":
                key = yaml.ScalarNode(_TAG + "str", str(int(key.value)), key.start_mark)
                node.value[number] = (key, value)
            if not isinstance(key.value, str) or key.tag != _TAG + "str":
                raise _problem("a key must be text", key)
            if key.value in seen:
                raise _problem(f"duplicate key '{shorten(key.value)}'", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes block mappings, lists in one line, and quotes text that YAML 1.1 or 1.2 reads as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_form, _starts) in _RESOLVERS.items():
    _Loader.add_implicit_resolver(_TAG + _name, _form, _starts)
_Dumper.add_implicit_resolver(_TAG + "float", *_RESOLVERS["float"])
_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence(_TAG + "seq", value, flow_style=True)
)


def read_yaml(text: str, label: str) -> Any:
    """The value of a YAML document."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = error.problem or error.context or ""  # with the user's names of tags and anchors
        if type(error) is not yaml.MarkedYAMLError:  # of the parser, not of `_problem`
            problem = (
                f"not valid YAML: {problem.replace(_NO_VALUE, 'the file ends where a value is expected')}"
            )
        raise RecipeError(f"{label}{line}: {shorten(problem, most=200)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also numbers and nesting beyond Python's
        raise RecipeError(f"{label}: not YAML: {str(error).splitlines()[0]}") from error


def write_yaml(value: dict[str, Any], *, width: int = 100) -> str:
    """The document that `read_yaml` reads back, with the keys in their order and lines of about `width`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


def split_values(text: str) -> list[str]:
    """Divide `a,[b,c],'d,e'` into values as they were written; empty if one is missing or no YAML."""
    source = f"[{text}]"
    try:
        parts = yaml.compose(source, Loader=yaml.SafeLoader).value
    except yaml.YAMLError:
        return []
    values = [source[part.start_mark.index : part.end_mark.index].strip() for part in parts]
    return values if all(values) else []
