"""The tasks of the quickstart: read one source file and count what is in it."""

from __future__ import annotations

import ast
import collections
import os
import re
import warnings
from collections.abc import Iterator
from typing import TypedDict

from amqptasks import App

# A queue of its own, so that the example is a good guest on a RabbitMQ that others use too.
app = App("proj", broker=os.environ.get("AMQPTASKS_BROKER_URL", "amqp://guest@localhost//"), backend="rpc://")
app.conf.task_default_queue = os.environ.get("QUICKSTART_QUEUE", "amqptasks-quickstart")

WORD = re.compile(r"\w+")


class Counts(TypedDict):
    """What one file holds. JSON on the wire."""

    lines: int
    words: int
    identifiers: dict[str, int]


def identifiers(text: str) -> Iterator[str]:
    """Every use of a name in the source: variables, attributes, parameters, functions, classes, modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            return  # some of the library's test data is wrong on purpose
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield name


@app.task
def count(path: str) -> Counts:
    """Count the lines, the words and every identifier of one Python source file."""
    with open(path, encoding="utf-8", errors="replace") as source:
        text = source.read()
    names = collections.Counter(identifiers(text))
    return {"lines": text.count("\n"), "words": len(WORD.findall(text)), "identifiers": dict(names)}
