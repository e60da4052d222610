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
_INT = re.compile(r"[-+]?(?:0|[1-9]\d*)$", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")  # a byte of a path that is not UTF-8
_FLOAT_STARTS = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    """Reads plain data only, with the resolvers added below."""

    yaml_implicit_resolvers: ClassVar = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._num_values = 0
        self._values_of: dict[str, int] = {}  # of complete anchors (`&name`)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Checks the limits, and that a tag (`!!name`) is that of its value."""
        event = self.peek_event()
        before = self._num_values
        if not isinstance(event, yaml.AliasEvent):
            self._num_values += 1
        elif event.anchor in self._values_of:
            self._num_values += self._values_of[event.anchor]
        elif event.anchor in self.anchors:
            raise _problem(f"'*{shown(event.anchor)}' is a part of itself", event)
        if self._num_values > MOST_VALUES:
            raise _problem(f"more than {MOST_VALUES} values", event)
        if self._level == MOST_LEVELS:
            raise _problem(f"more than {MOST_LEVELS} levels", event)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.NodeEvent) and not isinstance(event, yaml.AliasEvent):
            self._check_tag(event)
            if event.anchor is not None:
                self._values_of[event.anchor] = self._num_values - before
        if isinstance(node, yaml.ScalarNode):
            if node.tag == _TAG + "int" and len(node.value) > MOST_DIGITS:
                raise _problem(f"a number of {len(node.value)} digits", event)
            if _SURROGATE.search(node.value):
                raise _problem(f"'{shown(node.value)}' is not UTF-8 text; rename it", event)
            if "\0" in node.value:
                raise _problem(
                    f"'{shown(node.value)}' has a NUL character, which no text and no name has", event
                )
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

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Checks that keys are text and unique, before `<<` is expanded, which may repeat keys.

        An integer is read as text: it may be the name of a class.
        """
        for number, (key, value) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and key.tag == _TAG + "int":
                text = yaml.ScalarNode(_TAG + "str", str(int(key.value)), key.start_mark, key.end_mark)
                node.value[number] = (text, value)
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            is_text = isinstance(key, str) and key_node.tag in (_TAG + "str", _TAG + "merge")
            if not is_text or key in seen:
                problem = f"duplicate key '{shown(key)}'" if is_text else "a key must be text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _problem(text: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=event.start_mark)


class _Dumper(yaml.SafeDumper):
    """Writes block mappings, lists in one line, and quotes text that YAML 1.1 or 1.2 reads as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    _TAG + "bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(_TAG + "int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", _FLOAT, _FLOAT_STARTS)
_Loader.add_implicit_resolver(_TAG + "merge", re.compile(r"<<$"), ["<"])
_Dumper.add_implicit_resolver(_TAG + "float", _FLOAT, _FLOAT_STARTS)
_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence(_TAG + "seq", value, flow_style=True)
)


def read_yaml(text: str, label: str) -> Any:
    """The value of a YAML document.

    Raises:
        RecipeError: `label:line: problem`.
    """
    if len(text) > MOST_BYTES:
        raise RecipeError(f"{label}: more than {MOST_BYTES // 1024} KiB, which is no recipe")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{label}{line}: {_line(error.problem or error.context)}") from error
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise RecipeError(f"{label}: not YAML: {_line(error)}") from error


def _line(problem: object) -> str:
    """A message of PyYAML in a line; its names of tags and anchors are the user's."""
    first = str(problem).split("\n")[0]
    return shown(first) if len(first) > 200 else first


def write_yaml(value: dict[str, Any], *, width: int = 100) -> str:
    """The document that `read_yaml` reads back, with the keys in their order and lines of about `width`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
