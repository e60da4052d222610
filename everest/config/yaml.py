"""YAML as people expect it: `1e-3` is a number, `on` is text, and a duplicate key is an error.

PyYAML follows YAML 1.1: it reads `1e-3` as text, `on` as true, `010` as 8, and silently takes the last of
duplicate keys. The resolvers here follow YAML 1.2's core schema, without octal and hexadecimal numbers.

A document of a few letters can stand for billions of values, so its size is limited while it is read.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

import yaml

from everest.errors import RecipeError, shown

# The largest recipe of everest has 6 kB, 200 values and 4 levels.
MOST_BYTES: Final = 2**18  # of a document
MOST_VALUES: Final = 10_000  # with those that an alias (`*name`) repeats
MOST_LEVELS: Final = 32
MOST_DIGITS: Final = 100  # of a number

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
    "merge": (re.compile(r"<<$"), ["<"]),
}


def _problem(text: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=event.start_mark)


class _Loader(yaml.SafeLoader):
    """Reads plain data only, with the resolvers above."""

    yaml_implicit_resolvers: ClassVar = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._num_values = 0
        self._values_of: dict[str, int] = {}  # of complete anchors (`&name`)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Checks the limits, and that a tag (`!!name`) is that of its value."""
        event = self.peek_event()
        before, is_alias = self._num_values, isinstance(event, yaml.AliasEvent)
        if is_alias and event.anchor in self.anchors and event.anchor not in self._values_of:
            raise _problem(f"'*{shown(event.anchor)}' is a part of itself", event)
        self._num_values += self._values_of.get(event.anchor, 0) if is_alias else 1
        if self._num_values > MOST_VALUES:
            raise _problem(f"more than {MOST_VALUES} values", event)
        if self._level == MOST_LEVELS:
            raise _problem(f"more than {MOST_LEVELS} levels", event)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.NodeEvent) and not is_alias:
            self._check_tag(event)
            if event.anchor is not None:
                self._values_of[event.anchor] = self._num_values - before
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
        return node

    def _check_tag(self, event: Any) -> None:
        if event.tag in (None, "!", _TAG + "str"):
            return
        if isinstance(event, yaml.ScalarEvent):
            plain = self.resolve(yaml.ScalarNode, event.value, (True, False))
            fits = event.tag == plain or (event.tag, plain) == (_TAG + "float", _TAG + "int")
        else:
            fits = event.tag == _TAG + ("map" if isinstance(event, yaml.MappingStartEvent) else "seq")
        if not fits:
            name = event.tag.replace(_TAG, "!!")
            raise _problem(f"the tag {shown(name)} does not fit the value; leave it out", event)

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        if node.tag == _TAG + "int" and len(node.value) > MOST_DIGITS:
            raise _problem(f"a number of {len(node.value)} digits", node)
        if re.search("[\ud800-\udfff]", node.value):  # a byte of a path that is not UTF-8
            raise _problem(f"'{shown(node.value)}' is not UTF-8 text; rename it", node)
        if "\0" in node.value:
            raise _problem(f"'{shown(node.value)}' has a NUL character, which no text and no name has", node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Checks that keys are text and unique, before `<<` is expanded, which may repeat keys.

        An integer is read as text: it may be the name of a class.
        """
        seen: set[str] = set()
        for number, (key, value) in enumerate(node.value):
            if key.tag == _TAG + "int":
                key = yaml.ScalarNode(_TAG + "str", str(int(key.value)), key.start_mark)
                node.value[number] = (key, value)
            if not isinstance(key.value, str) or key.tag not in (_TAG + "str", _TAG + "merge"):
                raise _problem("a key must be text", key)
            if key.value in seen:
                raise _problem(f"duplicate key '{shown(key.value)}'", key)
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
    if len(text) > MOST_BYTES:
        raise RecipeError(f"{label}: more than {MOST_BYTES // 1024} KiB, which is no recipe")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = error.problem or error.context or ""  # with the user's names of tags and anchors
        raise RecipeError(f"{label}{line}: {shown(problem, most=200)}") from error
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise RecipeError(f"{label}: not YAML: {str(error).splitlines()[0]}") from error


def write_yaml(value: dict[str, Any], *, width: int = 100) -> str:
    """The document that `read_yaml` reads back, with the keys in their order and lines of about `width`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
