"""What a corpus was made of and what each rule removed, with samples, as one HTML page that needs no other file."""

import html
from collections.abc import Mapping, Sequence

from t5x_lite.corpus.rules import RULES

# name -> [pages, lines, bytes, texts], as in the pipeline's summary
Counts = Mapping[str, Sequence]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .25rem .6rem; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } tr { border-bottom: 1px solid #ddd; }
tr.whole { font-weight: 600; background: #f4f4f4; } pre { white-space: pre-wrap; overflow-wrap: anywhere;
background: #f7f7f7; padding: .5rem; margin: .4rem 0; } summary { cursor: pointer; margin: .5rem 0; }
"""


def rows(tally: Counts) -> list[tuple[str, str, str, int, int, int]]:
    """(rule, what it takes, in which case, pages, lines, bytes) of the rules that removed something, in their order."""
    return [(rule, what, case, *tally[rule][:3]) for rule, (what, case) in RULES.items() if rule in tally]


def as_text(tally: Counts) -> str:
    """The counts as lines for a terminal."""
    lines = [f"{'':<20}{'pages':>14}{'lines':>16}{'bytes':>20}"]
    named = [
        ("read", *_whole(tally, "read")),
        *((row[0], *row[3:]) for row in rows(tally)),
        ("kept", *_whole(tally, "kept")),
    ]
    lines += [f"{name:<20}{pages:>14,}{count:>16,}{size:>20,}" for name, pages, count, size in named]
    return "\n".join(lines)


def as_html(title: str, about: Mapping[str, object], tally: Counts, splits: Mapping[str, tuple[int, int]]) -> str:
    """The page.

    Args:
      about: what the corpus was made by, name -> value.
      splits: split -> (pages, bytes).
    """
    read = max(1, _whole(tally, "read")[2])
    body = [f"<h1>{_text(title)}</h1>", "<table>"]
    body += [_row([f"<td>{_text(name)}</td>", f"<td>{_text(value)}</td>"]) for name, value in about.items()]
    body += ["</table>", "<h2>Splits</h2>", "<table>", "<tr><th>split</th>", *_heads("pages", "bytes"), "</tr>"]
    body += [_row([f"<td>{_text(split)}</td>", *_numbers(*counts)]) for split, counts in splits.items()]
    body += [
        "</table>",
        "<h2>What each rule removed</h2>",
        "<p>In the order of the rules. Bytes are those of lines in UTF-8, each with its newline. Records and "
        "pages that could not be read count in the file's bytes and are not part of what was read.</p>",
        "<table>",
        "<tr><th>rule</th><th>takes a</th><th>where</th>",
        *_heads("pages", "lines", "bytes", "% of bytes"),
        "</tr>",
        _total("read", _whole(tally, "read"), read),
    ]
    for rule, what, case, *counts in rows(tally):
        body.append(
            _row(
                [
                    f"<td><a href='#{rule}'>{rule}</a></td><td>{_text(what)}</td><td>{_text(case)}</td>",
                    *_numbers(*counts),
                    f"<td class=n>{100 * counts[2] / read:.2f}</td>",
                ]
            )
        )
    body += [
        _total("kept", _whole(tally, "kept"), read),
        "</table>",
        "<h2>Samples</h2>",
        "<p>Chosen by their hashes. The first is open.</p>",
    ]
    for number, (rule, *_) in enumerate(rows(tally)):
        if samples := tally[rule][3]:
            body.append(f"<details id='{rule}'{' open' if number == 0 else ''}><summary>{rule}</summary>")
            body += [f"<pre>{_text(sample)}</pre>" for sample in samples]
            body.append("</details>")
    return (
        f"<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><title>{_text(title)}</title>"
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _whole(tally: Counts, name: str) -> tuple[int, int, int]:
    return tuple(tally[name][:3]) if name in tally else (0, 0, 0)


def _text(value: object) -> str:
    return html.escape(str(value))


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _heads(*names: str) -> list[str]:
    return [f"<th class=n>{name}</th>" for name in names]


def _numbers(*values: int) -> list[str]:
    return [f"<td class=n>{value:,}</td>" for value in values]


def _total(name: str, counts: tuple[int, int, int], read: int) -> str:
    return (
        f"<tr class=whole><td>{name}</td><td></td><td></td>{''.join(_numbers(*counts))}"
        f"<td class=n>{100 * counts[2] / read:.2f}</td></tr>"
    )
