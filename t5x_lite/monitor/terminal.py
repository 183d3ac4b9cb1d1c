"""Numbers, times and tables as text."""

import html
from collections.abc import Iterable
from typing import Any


def short_number(value: float) -> str:
    """12345.6 -> "12.3k"; three figures, for numbers that are read at a glance."""
    value = float(f"{value:.3g}")  # rounded first, or 999,999 would become "1000k"
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def duration(seconds: float) -> str:
    """Seconds as "4:05", "1:02:03" or "2d 03:04:05"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{seconds:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Table:
    """Rows of cells, printed aligned as text or as a Markdown table.

    Numbers stand to the right (integers with thousands separated, floats with four figures), other cells to the left.
    `str(table)` is the aligned text, `html()` an element for a page.
    """

    def __init__(self, columns: Iterable[str], title: str | None = None):
        self._columns, self._title = list(columns), title
        self._rows: list[list[Any]] = []

    def add(self, *cells) -> "Table":
        """Adds a row; returns the table.

        Raises:
          ValueError: not one cell for each column.
        """
        if len(cells) != len(self._columns):
            raise ValueError(f"{len(cells)} cells for {len(self._columns)} columns")
        self._rows.append(list(cells))
        return self

    def __str__(self) -> str:
        lines = self._lines("  ", lambda width, right: "-" * width, str)
        return "\n".join(([self._title] if self._title else []) + [line.rstrip() for line in lines])

    def markdown(self) -> str:
        """As a Markdown table, readable as text too."""
        rule = lambda width, right: "-" * (width - 1) + ":" if right else "-" * width  # noqa: E731
        lines = self._lines(" | ", rule, lambda text: text.replace("|", "\\|").replace("\n", " "))
        return "\n".join(([f"**{self._title}**", ""] if self._title else []) + [f"| {line} |" for line in lines])

    def html(self) -> str:
        """As an HTML table; cells that are numbers have the class "number"."""
        right = self._right()

        def row(tag, cells):
            marks = (' class="number"' if r else "" for r in right)
            return (
                "<tr>"
                + "".join(
                    f"<{tag}{mark}>{html.escape(_cell(cell))}</{tag}>" for cell, mark in zip(cells, marks, strict=True)
                )
                + "</tr>"
            )

        head, body = row("th", self._columns), "\n".join(row("td", cells) for cells in self._rows)
        caption = f"<caption>{html.escape(self._title)}</caption>" if self._title else ""
        return f"<table>{caption}<thead>{head}</thead>\n<tbody>{body}</tbody></table>"

    def _right(self) -> list[bool]:
        """Which columns hold numbers alone."""
        columns = list(zip(*self._rows)) if self._rows else [()] * len(self._columns)
        return [bool(cells) and all(_is_number(c) or c is None for c in cells) for cells in columns]

    def _lines(self, between, rule, clean):
        right = self._right()
        cells = [[clean(name) for name in self._columns]] + [[clean(_cell(c)) for c in row] for row in self._rows]
        widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(self._columns))]
        aligned = [[f"{text:{'>' if r else '<'}{w}}" for text, w, r in zip(row, widths, right)] for row in cells]
        lines = [between.join(row) for row in aligned]
        return [lines[0], between.join(rule(w, r) for w, r in zip(widths, right)), *lines[1:]]


def _is_number(cell) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _cell(cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
