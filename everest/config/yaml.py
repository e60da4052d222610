"""YAML as people expect it: `1e-3` is a number, `on` is text, and a duplicate key is an error.

PyYAML follows YAML 1.1: it reads `1e-3` as text, `on` as true, `010` as 8, and silently takes the last of
duplicate keys. The resolvers here follow YAML 1.2's core schema, without octal and hexadecimal numbers.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from everest.errors import RecipeError

_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$",
    re.ASCII,  # digits of other writing systems are text
)
_INT = re.compile(r"[-+]?(?:0|[1-9]\d*)$", re.ASCII)
_FLOAT_STARTS = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    """Reads plain data only, with the resolvers added below."""

    yaml_implicit_resolvers: ClassVar = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Checks that keys are text and unique, before `<<` is expanded, which may repeat keys."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            is_text = isinstance(key, str) and key_node.tag in (_TAG + "str", _TAG + "merge")
            if not is_text or key in seen:
                problem = f"duplicate key '{key}'" if is_text else "a key must be text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


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
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{label}{line}: {error.problem or error.context}") from error
    except RecursionError as error:
        raise RecipeError(f"{label}: nested too deeply") from error
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise RecipeError(f"{label}: not YAML: {str(error).splitlines()[0]}") from error


def write_yaml(value: dict[str, Any], *, width: int = 100) -> str:
    """The document that `read_yaml` reads back, with the keys in their order and lines of about `width`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
