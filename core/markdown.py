"""Tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown, whose cells are written as they are: a text "1e3" stays one."""
    return tabulate(list(rows), columns, "pipe", disable_numparse=True)
