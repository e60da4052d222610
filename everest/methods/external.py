"""Strategies and targets of other packages, which a recipe names by import path: `package.module:Name`.

Importing a module runs its code, which a file that is not trusted must not cause. `import_named` imports
what a user names. A path in weights, or in a recipe next to weights, is looked up among the modules that are
imported already, and those on Python's path whose source defines the class for everest: `import_known`.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeGuard, TypeVar

from pydantic import PydanticUserError, TypeAdapter, ValidationError, WrapSerializer, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

from everest.errors import RecipeError, shorten

_NAME: Final = r"[^\W\d]\w*"
_PATH: Final = re.compile(rf"{_NAME}(?:\.{_NAME})*:{_NAME}")
NOT_A_CLASS: Final = "import_path"  # the type of pydantic's error for a path that names no such class

Base = TypeVar("Base")
_imported: Final[set[str]] = set()  # the top-level packages of modules that a user has named


def is_import_path(name: object) -> TypeGuard[str]:
    """Whether a name in a recipe means a class of another package: everest's own names have no colon."""
    return isinstance(name, str) and ":" in name


def name_by_class(instance: object, key: str) -> None:
    """Set the field `key`, the name of a class in a recipe, to its import path if the class has no name.

    Every shipped class has one; a subclass of another package has inherited it.
    """
    cls = type(instance)
    name = getattr(instance, key)
    if not name or (key not in vars(cls) and name == getattr(cls, key)):
        object.__setattr__(instance, key, f"{cls.__module__}:{cls.__qualname__}")


def import_named(path: str) -> None:
    """Import the module of an import path that a user names."""
    if not _PATH.fullmatch(path):
        raise RecipeError(f"'{shorten(path)}' is no import path such as package.module:Name")
    import_code(path.partition(":")[0])


def import_code(module: str) -> None:
    """Import a module that a user names."""
    _imported.add(module.partition(".")[0])
    try:
        import_module(module)
    except Exception as error:  # the code of a module may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        advice = f" ({Path(frame.filename).name}:{frame.lineno})"
        if isinstance(error, ModuleNotFoundError):
            advice = "; install it, or put its folder on PYTHONPATH"
        reason = f"{type(error).__name__}: {shorten(error)}"
        raise RecipeError(f"importing '{module}' fails: {reason}{advice}") from error


def import_known(path: str) -> None:
    """Import the module of an import path in weights, if its source mentions everest and defines the class.

    Modules are found without running their code, nor that of their packages.

    Raises:
        ValueError: there is no such module.
    """
    module, _, name = path.partition(":")
    if not _PATH.fullmatch(path):
        raise ValueError(f"'{shorten(path)}' is no import path such as package.module:Name")
    packages = module.split(".")
    found = find_spec(packages[0])
    for number in range(2, len(packages) + 1):
        folders = found and found.submodule_search_locations
        found = PathFinder.find_spec(".".join(packages[:number]), folders) if folders else None
    if found is None:
        raise ValueError(
            f"'{shorten(path)}' is of another package: install it, or put its folder on PYTHONPATH"
        )
    file = Path(found.origin or "")
    source = file.read_text("utf-8", errors="replace") if file.suffix == ".py" else ""
    if "everest" not in source or not re.search(rf"^class {name}\b", source, re.MULTILINE):
        raise ValueError(
            f"'{shorten(path)}' is no class in the source of its module: if you trust it, "
            f"everest --import {shorten(module)} ..."
        )
    try:
        import_code(module)
    except RecipeError as error:
        raise ValueError(str(error)) from error


def find_own_error(error: Exception) -> RecipeError | None:
    """An error that the code of an imported package has caused, in one line; None for any other error."""
    own = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _imported - {"everest"}
    ]
    if not own:
        return None
    text = " ".join(str(error).split())
    advice = ""
    if "meta" in text:
        advice = "; everest also calls it on tensors without values (device 'meta'), to count its tokens"
    return RecipeError(f"{own[-1]}: {type(error).__name__}: {shorten(text, most=300)}{advice}")


def named_class(path: str, base: type[Base]) -> type[Base]:
    """Return the class of an import path, whose module a user has named or `import_known` accepts."""
    module_name, _, name = path.partition(":")
    if module_name not in sys.modules:
        import_known(path)
    cls = vars(sys.modules[module_name]).get(name)  # no `__getattr__` of a module, which may import
    if cls is None:
        raise ValueError(f"module '{module_name}' has no '{shorten(name)}'")
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ValueError(f"'{path}' is no subclass of {base.__name__} ({base.__module__})")
    if "__dataclass_fields__" not in vars(cls):
        raise ValueError(f"'{path}' needs the decorator @dataclass(frozen=True, kw_only=True)")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(vars(cls)["__abstractmethods__"]))
        raise ValueError(f"'{path}' does not define {missing}")
    return cls


def must_be(requirement: str) -> WrapValidator:
    """Replace all errors of a value by one."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"must be {requirement}") from None

    return WrapValidator(check)


def external(base: type, key: str) -> tuple[WrapValidator, WrapSerializer]:
    """Return annotations of a field that may also hold a subclass of `base` from another package.

    Args:
        key: the key of the value that names the class.
    """

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        path = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
        if not is_import_path(path) or not isinstance(value, (dict, base)):
            return handler(value)
        if not isinstance(value, dict):
            return value
        settings = {name: setting for name, setting in value.items() if name != key}
        try:
            instance = TypeAdapter(named_class(path, base)).validate_json(json.dumps(settings), strict=True)
        except ValidationError as error:
            # Locations begin with the path, as those of a union begin with the name of the choice.
            problems: list[Any] = [{**each, "loc": (path, *each["loc"])} for each in error.errors()]
        except (ValueError, PydanticUserError) as error:
            reason = {"reason": str(error).split("\n")[0]}
            error_type = PydanticCustomError(NOT_A_CLASS, "{reason}", reason)
            problems = [InitErrorDetails(type=error_type, loc=(path, key), input=path)]
        else:
            object.__setattr__(instance, key, path)
            return instance
        raise ValidationError.from_exception_data(path, problems)

    def dump(value: Any, handler: Callable[[Any], Any]) -> Any:
        if is_import_path(getattr(value, key, None)):
            # A subclass of a shipped class may have a name that the type of its field does not allow.
            return TypeAdapter(type(value)).dump_python(value, mode="json", warnings=False)
        return handler(value)

    return WrapValidator(validate), WrapSerializer(dump)
