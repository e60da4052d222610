"""Words that the project does not use, what to write in their place, and a checker for files.

    python tests/support/retired_words.py README.md docs everest

prints `file:line: word → suggestion` for every retired word and exits with 1 if there is one. It reads string
literals, docstrings, comments and names in Python files, everything but code in Markdown, comments and
descriptions in YAML and TOML, and everything in HTML.
"""

from __future__ import annotations

import io
import re
import sys
import token
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Regular expressions for text; case is ignored outside of (?-i:…). A match with the group `ok` is no alarm:
# `own videos` is retired, `your own videos` is not.
WORDS: dict[str, str] = {
    # Things that speak.
    r"told": "reported, printed, shown, given",
    r"retold": "translated, re-raised as",
    r"tell(?:s|ing)?\s+apart": "distinguish",
    r"tell(?:s|ing)?": "report, show, print, state",
    r"says?|said": "state, specify, print",
    r"mend(?:s|ed|ing)?": "fix",
    r"troubles?": "problem",
    r"asked|asks?\s+for|asking\s+for": "requested, expected, request",
    r"unasked": "by default",
    # Private idioms.
    r"anew": "again",
    r"as\s+ever": "as always",
    r"all\s+the\s+same(?=[,.;:)]|\Z)": "still",
    r"at\s+hand": "available",
    r"besides?": "next to, in addition to",
    r"begun": "started",
    r"by\s+chance": "at random",
    r"by\s+heart": "overfit",
    r"cut\s+over": "sharded over",
    r"for\s+want\s+of": "because … is missing",
    r"(?:go|goes|going|went)\s+on": "resume, continue",
    r"hand(?:s|ed|ing)\s+(?:in|on|over)": "pass",
    r"judge[sd]?": "check, validate",
    r"lies?": "is",
    r"nobody|somebody": "no one, someone",
    r"whoever": "anyone who",
    r"plays": "is active, shows",
    r"seldom": "rarely",
    r"so\s+many": "n, a number of",
    r"stands?(?!\s+(?:for|in)\b)": "is",
    r"to\s+play\s+with": "interactive",
    r"lest|whence|hitherto|scarcely|nought|oneself": "a common word",
    # Free pronouns, and `what` as a subject.
    r"theirs": "name the thing",
    r"(?<=[a-z] )ours": "our choice, everest's …; name the thing",
    r"those\s+of": "name the thing",
    r"what\s+cannot": "name the thing: unreadable videos, missing keys, …",
    r"(?-i:(?:What|Who))(?!['\u2019])(?=(?:(?!\n\n)[^?.!:;|])*(?:[.!:;|]|\n\n|\Z))": "a noun as the subject",
    # Terms of the field.
    r"bad\s+(?:videos?|files?)": "unreadable file",
    r"(?:(?P<ok>standard|absolute|relative)\s+)?deviations?(?!\s+from)": "std, difference",
    r"films?": "video, animation",
    r"(?<![./])pictures?(?!\.py)": "image, figure",
    r"kept\s+shares?|shares\s+of\s+(?:the\s+)?tokens": "keep ratio",
    r"(?:(?P<ok>your|their|its|our)\s+)?own\s+(?:videos?|clips|images|data(?:\s+sets?)?|lists?)": "your own",
    r"(?:videos?|clips?)\s+without\s+labels?": "unlabeled videos",
    r"whole\s+numbers?": "integer",
    r"tested\s+classifiers?": "evaluated classifier",
}

# American spelling. Names in code (followed by a bracket, after a dot) keep theirs.
_ISE = (
    "normal initial recogn optim quant standard organ summar visual general synchron serial token random"
    " minim maxim categor penal regular parallel vector material custom memor equal final util real"
    " discret factor emphas local special stabil character binar prior capital canonical symbol"
)
_IZE = "-ize, -ization"
SPELLINGS: dict[str, str] = {
    rf"(?:re|un|de|pre|over|under)?-?(?:{'|'.join(_ISE.split())})is(?:e|es|ed|er|ers|ing|ation|ations)": _IZE,
    r"(?:un|re|mis)?-?labell(?:ed|ing)": "labeled",
    r"(?:model|travel|cancel|signal|channel)l(?:ed|ing)": "one l: modeled, canceled",
    r"analys(?:e|ed|ing)": "analyze",
    r"(?:anti|counter)clock-?wise(?<!counterclockwise)": "counterclockwise",
    r"artefacts?": "artifact",
    r"behaviours?": "behavior",
    r"cent(?:re|red|res)": "center",
    r"(?:multi)?colour(?:s|ed|ing|less)?": "color",
    r"favour(?:s|ed|ite|able)?": "favor",
    r"fulfils?": "fulfill",
    r"grey": "gray",
    r"honours?": "honor",
    r"licen[c]es?": "license",
    r"neighbour(?:s|ing|hood)?": "neighbor",
    r"whilst|amongst": "while, among",
}

# Whole names in code; single-word strings (keys of files, values of settings) are not names.
NAMES: dict[str, str] = {
    r"_?(?:re)?told|.*_told|told_.*|_?retell": "digest, document, lines, output, warning, to_dict(), …",
    r"_?asked|asked_.*|.*_asked": "requested, request, expected",
    r".*beside.*": "next to: sidecar, neighbor, …",
    r".*(?<!_)trouble.*|_trouble": "problem",
    r"_?mends|_mend|mended": "fix",
    r"ours|is_ours|theirs": "the thing: expected, our_name (only in checkpoints/)",
    r"begun": "start_or_resume, started",
    r"explained": "explain_out_of_memory, …",
    r"leaves?_out": "should_skip",
    r"exchanged": "reduce_over_processes",
    r"released_afterwards|release_lock_after": "claimed",
    r"as_part_of": "like_sharded",
    r"test_(?:clips|views)": "evaluation_clips, evaluation_views",
}
CLASSES: dict[str, str] = {
    "Place": "RunContext, VideoRef",
    "Row": "VideoScore, ListRow, FigureRow",
    "Part": "CachePart, JobShare",
    "Encoded": "Features, EncodeSummary",
    "Finding": "CheckResult, Inspection",
    "Entry": "ShardEntry, AnnotatedSample",
    "Choices": "TrainOptions, ProfileOverrides",
    "Judge": "Validation",
    "Look": "MaskRequest",
    "Draw": "FrameDraw",
    "Evidence": "ForeignFacts",
    "Inert": "IgnoredObject",
    "Original": "SourceList",
}


def _compiled(words: dict[str, str], before: str, after: str) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(f"{before}(?:{word}){after}", re.IGNORECASE), hint) for word, hint in words.items()]


_TEXT = _compiled(WORDS, r"(?<![\w-])", r"(?![\w-])") + _compiled(SPELLINGS, r"(?<![\w.])", r"(?![\w(])")
_NAMES = [(re.compile(name), hint) for name, hint in NAMES.items()]


@dataclass(frozen=True)
class Hit:
    line: int
    word: str
    hint: str

    def __str__(self) -> str:
        return f"{self.line}: {self.word} → {self.hint}"


@dataclass(frozen=True)
class Passage:
    """A text that is read in one piece, and the line on which each of its parts starts."""

    parts: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)

    def line(self, position: int) -> int:
        for text, line in self.parts:
            if position < len(text):
                return line + text.count("\n", 0, position)
            position -= len(text)
        raise ValueError(f"no position {position}")


def in_text(passage: Passage) -> Iterator[Hit]:
    """The retired words of a passage; what is in backticks is code and not read."""
    text = re.sub(r"(`+)[^`]+\1", lambda code: "¤" * len(code[0]), passage.text)
    taken: list[tuple[int, int]] = []
    for pattern, hint in _TEXT:
        for match in pattern.finditer(text):
            allowed = match.groupdict().get("ok") is not None
            inside = any(start <= match.start() and match.end() <= end for start, end in taken)
            if allowed or inside:
                continue
            taken.append(match.span())
            yield Hit(passage.line(match.start()), " ".join(match[0].split()), hint)


def in_python(source: str) -> Iterator[Hit]:
    for passage in _python_passages(source):
        yield from in_text(passage)
    before = ""
    for item in tokenize.generate_tokens(io.StringIO(source).readline):
        if item.type == token.NAME:
            if before == "class" and item.string in CLASSES:
                yield Hit(item.start[0], f"class {item.string}", CLASSES[item.string])
            for pattern, hint in _NAMES:
                if pattern.fullmatch(item.string):
                    yield Hit(item.start[0], item.string, hint)
                    break
        before = item.string


def _python_passages(source: str) -> Iterator[Passage]:
    """Comments on lines that follow each other, and string literals that Python joins."""
    comments: list[tuple[str, int]] = []
    strings: list[tuple[str, int]] = []
    depth = 0  # of f-strings, whose expressions are tokens of their own from Python 3.12 on
    starts, ends = getattr(token, "FSTRING_START", -1), getattr(token, "FSTRING_END", -1)
    middle = getattr(token, "FSTRING_MIDDLE", -1)
    for item in tokenize.generate_tokens(io.StringIO(source).readline):
        line = item.start[0]
        if item.type == token.COMMENT:
            if comments and line - comments[-1][1] > 1:
                yield Passage(tuple(comments))
                comments = []
            comments.append((re.sub(r"^#:?\s?", "", item.string) + "\n", line))
        elif item.type == starts:
            depth += 1
        elif item.type == ends:
            depth -= 1
        elif item.type == middle:
            strings.append((_unescaped(item.string), line))
        elif depth:
            if strings and not strings[-1][0].endswith("¤"):
                strings.append(("¤", line))
        elif item.type == token.STRING:
            strings.append((_content(item.string), line))
        elif item.type not in (token.NL, token.COMMENT):
            if strings and not _is_key(strings):
                yield Passage(tuple(strings))
            strings = []
    if comments:
        yield Passage(tuple(comments))


def _content(literal: str) -> str:
    match = re.fullmatch(r"([a-zA-Z]*)(\"{3}|'{3}|\"|')(.*)\2", literal, flags=re.DOTALL)
    assert match is not None, literal
    prefix, text = match[1], match[3]
    if "f" in prefix.lower():
        text = re.sub(r"\{[^{}]*\}", lambda hole: "¤" * len(hole[0]), text)
    return text if "r" in prefix.lower() else _unescaped(text)


def _unescaped(text: str) -> str:
    return re.sub(r"\\[nt\n]", "  ", text)


def _is_key(strings: list[tuple[str, int]]) -> bool:
    return re.fullmatch(r"[\w.\-/¤]*", "".join(text for text, _ in strings)) is not None


def in_markdown(source: str) -> Iterator[Hit]:
    """Words outside code; of code blocks the comments."""
    lines, fence = [], None
    for line in source.splitlines():
        opening = re.match(r"\s*(```+)\s*(\w*)", line)
        if opening and fence is None:
            fence, line = opening[2] or "output", ""
        elif opening:
            fence, line = None, ""
        elif fence in ("sh", "yaml", "python"):
            line = comment[1] if (comment := re.search(r"(?:^|\s)#\s(.*)", line)) else ""
        elif fence is not None:
            line = ""
        lines.append(re.sub(r"\]\([^)]*\)", "]", line))
    return in_text(Passage((("\n".join(lines), 1),)))


def in_settings(source: str) -> Iterator[Hit]:
    """Comments and descriptions of YAML and TOML."""
    parts = []
    for number, line in enumerate(source.splitlines(), 1):
        if match := re.match(r"\s*(?:summary:|description =)(.*)", line) or re.search(r"(?:^|\s)#(.*)", line):
            if parts and number - parts[-1][1] > 1:
                yield from in_text(Passage(tuple(parts)))
                parts = []
            parts.append((match[1] + "\n", number))
    if parts:
        yield from in_text(Passage(tuple(parts)))


def in_help(output: str) -> list[Hit]:
    """Words of a help page; the frames that are drawn around its options do not split phrases."""
    return _sorted(in_text(Passage(((re.sub(r"[│╭╮╰╯─]", " ", output), 1),))))


READERS = {
    ".py": in_python,
    ".md": in_markdown,
    ".yaml": in_settings,
    ".toml": in_settings,
    ".html": lambda source: in_text(Passage(((source, 1),))),
}


def in_file(path: Path) -> list[Hit]:
    read = READERS.get(path.suffix, READERS[".html"])  # files without a reader of their own are all text
    return _sorted(read(path.read_text(encoding="utf-8")))


def _sorted(hits: Iterable[Hit]) -> list[Hit]:
    return sorted(hits, key=lambda hit: (hit.line, hit.word))


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Each path that is a file, and of folders the files that can be read."""
    for path in paths:
        if path.is_dir():
            yield from (file for file in sorted(path.rglob("*")) if file.suffix in READERS)
        else:
            yield path


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    hits = [f"{file}:{hit}" for file in files(map(Path, arguments)) for hit in in_file(file)]
    print("\n".join(hits) if hits else "no retired words")
    return 1 if hits else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
