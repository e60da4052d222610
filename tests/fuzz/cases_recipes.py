"""Recipes as files and `--set` overrides: YAML with wrong structure, wrong values and damaged bytes."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import yaml

from everest.config.recipe import load_recipe, recipe_values
from everest.config.recipe_files import shipped_names

from .bases import RECIPE, Bases
from .case import Case, Kind, case_of
from .mutations import NASTY_TEXTS, damage_bytes, damage_text, damage_tree, nasty

CODES = frozenset({2})
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
YAML_PIECES = (
    *("<<: {a: 1}", "<<: *x", "a: &x [1]", "a: &x {b: *x}", "!!python/object/apply:os.system [true]"),
    *("--- 1", "a: !!binary aGk=", "a: !!set {1, 2}", "a: !!timestamp 2026-01-01", "a: !!omap [a: 1]"),
    *("? [1, 2]\n: 3", "a: !!int x", "a: !!float ''", "a: !unknown 1", "%YAML 9.9", "\t- a"),
    *("a: |\n  b\n c", "a: 'b", "{", "]"),
    *("[" * 3000, "{a: " * 3000, "a: " + "[" * 1500 + "]" * 1500, "- " * 2000, "...", "---", "a: b: c"),
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]",
)


def make_recipe(rng: Random, folder: Path, bases: Bases) -> Case:
    """A recipe file, damaged, and a command that reads it."""
    source = rng.choice([RECIPE, *((RECIPES / f"{name}.yaml").read_text() for name in _names())])
    (folder / "my.yaml").write_bytes(_damaged_recipe(rng, source))
    commands = ("pretrain --print-config", "finetune --init none --print-config", "profile")
    command = rng.choices(commands, weights=(6, 2, 2))[0]
    if rng.random() < 0.25:
        return case_of("recipes show my.yaml", CODES)
    as_json = ["--json"] if command == "profile" and rng.random() < 0.5 else []
    return case_of(f"{command} --recipe my.yaml", CODES, *as_json)


def make_override(rng: Random, folder: Path, bases: Bases) -> Case:
    """A good recipe and one to four options that change it."""
    values = recipe_values(load_recipe(rng.choice(_names())))
    options: list[str] = []
    for _ in range(rng.randint(1, 4)):
        options += _option(rng, values)
    command = rng.choices(("pretrain", "finetune --init none", "profile --json"), (6, 2, 2))[0]
    name = rng.choice(_names())
    if command == "profile --json":
        options = _only_set(options)
        return case_of(f"{command} -r {name}", CODES, *options)
    return case_of(f"{command} -r {name} --print-config", CODES, *options)


def _names() -> list[str]:
    return sorted(shipped_names())


def _damaged_recipe(rng: Random, source: str) -> bytes:
    draw = rng.random()
    if draw < 0.55:
        return _dumped(rng, damage_tree(rng, yaml.safe_load(source)))
    if draw < 0.65:
        lines = source.splitlines(keepends=True)
        place = rng.randint(0, len(lines))
        indent = rng.choice(("", "  ", "    ", "\t"))
        return "".join([*lines[:place], indent + rng.choice(YAML_PIECES) + "\n", *lines[place:]]).encode()
    if draw < 0.7:
        bases = ("my.yaml", "./my.yaml", "ucf101", "nope", "..", "/", "", [], {"a": 1}, ["ucf101"], None)
        return _dumped(rng, {"base": rng.choice(bases), **(yaml.safe_load(source) or {})})
    return damage_text(rng, source) if draw < 0.85 else damage_bytes(rng, source.encode())


def _dumped(rng: Random, value: Any) -> bytes:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=rng.random() < 0.5, default_flow_style=None)
    return text.encode()


def _option(rng: Random, values: dict[str, Any]) -> list[str]:
    draw = rng.random()
    if draw < 0.08:
        return [rng.choice(("--precision", "--seed", "--data")), _argument(str(nasty(rng)))]
    path, before = rng.choice(list(_nodes(values)))
    key = ".".join(path)
    if draw < 0.15:
        key = rng.choice((key.upper(), key + ".x", key.rpartition(".")[0], key.replace("_", "-"), key[:-1]))
    elif draw < 0.2:
        key = rng.choice(NASTY_TEXTS)
    value = nasty(rng) if rng.random() < 0.5 else damage_tree(rng, before, most=1)
    text = rng.choice((str(value), rng.choice(YAML_PIECES))) if draw > 0.9 else _flow(value)
    equals = rng.choices(("=", "", "==", " = ", ":"), weights=(40, 1, 1, 1, 1))[0]
    return ["--set", _argument(f"{key}{equals}{text}")]


def _nodes(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting and every section, by its path of keys."""
    for key, value in values.items():
        yield (*path, key), value
        if isinstance(value, dict):
            yield from _nodes(value, (*path, key))


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def _argument(text: str) -> str:
    """A text that a shell can pass: without NUL."""
    return text.replace("\x00", "")


def _only_set(options: list[str]) -> list[str]:
    pairs = zip(options[::2], options[1::2], strict=True)
    return [part for name, value in pairs if name == "--set" for part in (name, value)]


RECIPE_KINDS = (
    Kind(name="recipes", make=make_recipe, share=2500),
    Kind(name="overrides", make=make_override, share=2000),
)
