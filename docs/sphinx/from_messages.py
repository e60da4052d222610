"""The messages of errors that a user can cause, collected from the code.

A message is the text of a `UserError` or of a class derived from it. Values that are known only when it is
raised are shown as an ellipsis.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from everest import errors
from everest.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("everest", "everest_workflows", "everest_cli", "everest_demo")
# The file of a message decides under which heading the page lists it. A folder that raises and is not here is
# an error, so that no message is left out.
SUBJECTS = {
    "Recipes, settings and options": (
        "everest_cli",
        "everest/config",
        "everest/methods",
        "everest_workflows/suggest",
        "everest/errors.py",
    ),
    "Lists, labels, folders and annotations": (
        "everest/lists",
        "everest/prepare",
        "everest_workflows/annotations",
        "everest_workflows/recordings",
    ),
    "Videos and clips": ("everest/video", "everest/data"),
    "Weights and checkpoints": (
        "everest/checkpoints",
        "everest/converters",
        "everest/models",
        "everest/tokenizer",
    ),
    "Training, stopping and resuming": (
        "everest/engine",
        "everest/pretraining.py",
        "everest/pretraining_tokenizer.py",
        "everest/finetuning.py",
        "everest/tokenizer_training.py",
        "everest/stages.py",
        "everest_workflows/sweep",
        "everest_workflows/project",
        "everest_demo",
    ),
    "Evaluation, prediction and features": (
        "everest/evaluation",
        "everest/probes",
        "everest/inference",
        "everest/metrics",
        "everest/inference_api.py",
        "everest/api.py",
        "everest/figures",
    ),
    "Files, devices and processes": ("everest/system", "everest/profiling"),
}


@dataclass(frozen=True, order=True)
class Message:
    """The text of an error, its exit code, and the file that raises it."""

    text: str
    code: int
    file: str

    @property
    def subject(self) -> str:
        """The heading of the message.

        Raises:
            KeyError: the folder of the file has none.
        """
        for subject, places in SUBJECTS.items():
            if any(self.file == place or self.file.startswith(f"{place}/") for place in places):
                return subject
        raise KeyError(f"{self.file} raises errors, but has no subject in docs/sphinx/from_messages.py")


def messages() -> list[Message]:
    """All messages whose text is in the code, each once."""
    codes = _codes(trees().values())
    return sorted(
        {
            Message(text, codes[name], file)
            for file, tree in trees().items()
            for name, text in _raised(tree, codes.keys())
        }
    )


@cache
def trees() -> dict[str, ast.Module]:
    """The code of every file, by its path."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in files}


def _codes(trees: Iterable[ast.Module]) -> dict[str, int]:
    """The exit code of every class of errors that is derived from UserError, by name."""
    codes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, UserError)
    }
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while True:
        further = {
            node.name: codes[base.id]
            for node in classes
            for base in node.bases
            if isinstance(base, ast.Name) and base.id in codes and node.name not in codes
        }
        if not further:
            return codes
        codes |= further


def _raised(tree: ast.Module, names: Collection[str]) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        name, first, parts = node.func.id, node.args[0], []
        if name in names:
            parts = [first]
        elif name == "refuse" and isinstance(first, ast.Dict):  # everest_cli.options.refuse
            name, parts = "RecipeError", [key for key in first.keys if key is not None]
        for text in (" ".join(_text(part).split()) for part in parts):
            if any(char.isalpha() for char in text):
                yield name, f"--{text}" if name == "OptionError" else text


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return _text(node.body)
    return "…"


def messages_part() -> str:
    """A list for each subject, with the exit code of each message."""
    found = messages()
    texts = []
    for subject in SUBJECTS:
        of_subject = sorted({(each.text, each.code) for each in found if each.subject == subject})
        lines = [f"- `` {text} `` (code {code})" for text, code in of_subject]
        texts.append(f"## {subject}\n\n" + "\n".join(lines))
    return "\n\n".join(texts)
