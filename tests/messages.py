"""Which error messages of the package no test reads; knows nothing of how they are reached.

A message is the text of an error where it is made, with {} for what stands in it only when the program runs. A test
reads it if one of its strings holds four words in a row that no other message has, of which one may be such a {}.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

ERRORS = ("UserError", "MissingExtra", "ImageError", "TooManyErrors")
WORDS = 4
Row = tuple[str, ...]


def unread(sources: dict[str, str], tests: Iterable[str]) -> list[str]:
    """file:line and text of each message in `sources` (file -> Python) that none of `tests` (Python) reads."""
    messages = {f"{file}:{line}": text for file, source in sources.items() for line, text in messages_of(source)}
    read = {seen for test in tests for text in texts_of(test) for row in rows_of(text) for seen in likely_told(row)}
    owners = Counter(row for text in set(messages.values()) for row in rows_of(text))
    return [
        f"{place}: {text}"
        for place, text in messages.items()
        if not any(owners[row] == 1 and row in read for row in rows_of(text))
    ]


def messages_of(source: str) -> Iterator[tuple[int, str]]:
    """The line and the text of each error that is made; what only passes another's text on has none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args:
            text = " ".join(literal(node.args[-1]).split())  # the last: ImageError's first is its code
            if re.search("[a-z]", text):
                yield node.lineno, text


def texts_of(test: str) -> Iterator[str]:
    """The strings of a test but for docstrings; those of patterns as the text they match."""
    tree = ast.parse(test)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in docstrings:
            yield re.sub(r"\\(\W)", r"\1", literal(node).replace(".*", "{}"))


def literal(node: ast.expr) -> str:
    """The text of an expression, with {} for each part that is no text yet."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    if isinstance(node, ast.BinOp):
        return literal(node.left) + literal(node.right)
    return "{}"


def rows_of(text: str) -> set[Row]:
    """All WORDS words in a row, without the punctuation around them; one of them may be a {}."""
    words = ["{}" if "{}" in word else re.sub(r"^[(\[\"'^]+|\W+$", "", word) for word in text.split()]
    rows = zip(*(islice(words, i, None) for i in range(WORDS)))
    return {row for row in rows if row.count("{}") <= 1}


def likely_told(row: Row) -> set[Row]:
    """The row of a test, and what it is where one of its words stands for a {} of the message."""
    return {row} | {(*row[:i], "{}", *row[i + 1 :]) for i in range(WORDS) if "{}" not in row}


def python_files(folder: Path) -> dict[str, str]:
    """The text of each Python file below a folder, by its path."""
    return {str(file.relative_to(folder.parent)): file.read_text() for file in sorted(folder.rglob("*.py"))}
