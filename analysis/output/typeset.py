"""Tables as data, and how they are set: LaTeX (booktabs), Markdown, HTML, and for a terminal.

A table knows nothing of its format. Its texts are plain Unicode with arrows, crosses and dashes; each format escapes
what is special in it. Every entry says which runs its number rests on, so that provenance and footnotes need no second
look at the data.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd
from rich.table import Table as RichTable
from rich.text import Text

DASH, CROSS, UP, DOWN = "–", "×", "↑", "↓"  # nothing measured; not trained; larger is better; smaller is better

FORMATS = {"latex": ".tex", "markdown": ".md", "html": ".html"}


@dataclass(frozen=True)
class Entry:
    """One entry of a table.

    text: what is printed; below: a smaller second line (an interval, how many seeds). numbers: the value and what goes
    with it (std, n, low, high), unrounded. runs: the ids of the runs that it rests on. published: it is the paper's.
    marks: letters of the table's footnotes. noted: whether those on its runs stand at it, and not only at the number
    beside it that rests on the same. remark: what a footnote says of it whatever its runs are.
    """

    text: str = ""
    below: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    noted: bool = True
    published: bool = False
    bold: bool = False
    underline: bool = False
    marks: tuple[str, ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class Column:
    """key: its name in provenance. heading, and unit below it; group: what neighbouring columns share above.

    align: "l", "c" or "r", or a width in centimetres for text that is broken into lines.
    """

    key: str
    heading: str
    unit: str = ""
    group: str = ""
    align: str | float = "c"

    @property
    def title(self) -> str:
        """In one line."""
        name = " ".join(part for part in (self.heading, self.unit) if part)
        return f"{self.group}: {name}" if self.group else name


@dataclass(frozen=True)
class Row:
    """key: its name in provenance ("sprel+abspos"). entries: one for each column. rule: a line above it."""

    key: str
    entries: tuple[Entry, ...]
    rule: bool = False


@dataclass(frozen=True)
class Table:
    """name: of its files, and its label. title: of a few words. notes: footnotes by their letter."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str
    notes: tuple[tuple[str, str], ...] = ()

    def entry(self, row: str, column: str) -> Entry:
        """The entry at two keys. Raises KeyError for one that does not exist."""
        for each in self.rows:
            if each.key == row:
                for place, entry in zip(self.columns, each.entries):
                    if place.key == column:
                        return entry
        raise KeyError(f"{self.name}:{row}:{column}")

    def texts(self, column: str) -> dict[str, str]:
        """What is printed in a column, by row."""
        return {row.key: self.entry(row.key, column).text for row in self.rows}

    def footnoted(self, reasons: Mapping[str, tuple[str, ...]], seeds: Mapping[str, int]) -> "Table":
        """The same table with a footnote on every number that rests on a run with a reason, or has a remark.

        reasons: by run id, sentences; seeds: by run id, to name the runs where not all of an entry's have the reason.
        """
        letters: dict[str, str] = {}

        def mark(entry: Entry) -> Entry:
            note = "; ".join(filter(None, [entry.remark, _note(entry.runs, reasons, seeds) if entry.noted else ""]))
            if not note:
                return entry
            letters.setdefault(note, _letter(len(letters)))
            return replace(entry, marks=(letters[note],))

        rows = tuple(replace(row, entries=tuple(mark(entry) for entry in row.entries)) for row in self.rows)
        return replace(self, rows=rows, notes=tuple((letter, note) for note, letter in letters.items()))


def _note(runs: tuple[str, ...], reasons: Mapping[str, tuple[str, ...]], seeds: Mapping[str, int]) -> str:
    found: dict[str, list[str]] = {}
    for run in runs:
        for reason in reasons.get(run, ()):
            found.setdefault(reason, []).append(run)
    parts = []
    for reason, having in found.items():
        if len(having) == len(runs):
            parts.append(reason)
        else:
            which = sorted({seeds[run] for run in having if run in seeds})
            parts.append(f"{reason} (seed{'s' * (len(which) > 1)} {', '.join(map(str, which))})")
    return "; ".join(parts)


def _letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    more, last = divmod(number, 26)
    return (_letter(more - 1) if more else "") + chr(ord("a") + last)


# LaTeX

_LATEX = {
    **{symbol: rf"\{symbol}" for symbol in "%_&#${}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': "''",  # where it stands alone; OT1 has no straight quote
    UP: r"$\uparrow$",
    DOWN: r"$\downarrow$",
    CROSS: r"$\times$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    DASH: "--",
    "—": "---",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "…": r"\ldots{}",
    "\n": " ",
    "\u200b": "{}",  # no ligature of two hyphens to a dash
}


def latex_text(text: str) -> str:
    """Any text so that pdflatex sets it in its standard fonts: what they lack stands as its letter or code point."""
    quoted = re.sub(r'"([^"]*)"', "“\\1”", text).replace("--", "-\u200b-")
    escaped = "".join(_LATEX.get(symbol) or _plain(symbol) for symbol in quoted)
    # A minus before a number, not the hyphen in a name.
    escaped = re.sub(r"(?<![\w\-.}])-(?=\d)", "$-$", escaped)
    return escaped.replace(r"L\_drloc", r"$L_{\mathrm{drloc}}$")


def _plain(symbol: str) -> str:
    if symbol.isascii():
        return symbol if symbol.isprintable() else " "
    base = "".join(part for part in unicodedata.normalize("NFKD", symbol) if not unicodedata.combining(part))
    return base if base and base.isascii() and base.isprintable() else f"[U+{ord(symbol):04X}]"


def label(name: str) -> str:
    """A name for files and for LaTeX's labels: letters, digits, ".", "_" and "-" as they are."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "unnamed"


def camera_ready(table: Table, name: Callable[[str], str] | None) -> Table:
    """What an author prints of a table: its own numbers with their deviations, each row by its name.

    Left out are the published numbers, intervals and the numbers of seeds. name: by a row's key, where the texts of its
    first column are not all different; None leaves them.
    """
    kept = [
        number
        for number, column in enumerate(table.columns)
        if column.key not in ("interval", "n") and not any(row.entries[number].published for row in table.rows)
    ]
    first = [row.entries[0].text for row in table.rows]
    rows = []
    for row in table.rows:
        entries = [replace(row.entries[number], below="") for number in kept]
        if name and len(set(first)) < len(first):
            entries[0] = replace(entries[0], text=name(row.key))
        rows.append(replace(row, entries=tuple(entries)))
    columns = tuple(replace(table.columns[number], group="") for number in kept)
    caption = re.sub(r", (?:and its|below it the) 95 % t interval|,? ?Paper: .*$", "", table.caption)
    return replace(table, name=f"{table.name}-camera", columns=columns, rows=tuple(rows), caption=caption)


def to_camera_latex(table: Table, name: Callable[[str], str] | None = None) -> str:
    """`camera_ready` as a float over both columns of a two-column paper, in type of 7 pt or more."""
    return to_latex(camera_ready(table, name)).replace("{table}", "{table*}")


def to_latex(table: Table, position: str = "t") -> str:
    """A table float over the width of a page. It needs booktabs, and graphicx where it has to be made smaller."""
    shown, width = _latex_frame(table)
    formats = "".join(_latex_align(column.align) for column in table.columns)
    tabular = (
        shown.style.hide(axis="index")
        .to_latex(hrules=True, column_format=formats, multicol_align="c", sparse_columns=True)
        .splitlines()
    )
    tabular = _with_rules(tabular, table, shown.columns.nlevels)
    size, space = next((size, space) for limit, size, space in _SIZES if width <= limit)
    if width > _WIDEST:
        tabular = [r"\resizebox{\linewidth}{!}{%", *tabular[:-1], tabular[-1] + "}"]
    parts = [
        rf"\begin{{table}}[{position}]",
        r"\centering",
        rf"\caption{{{latex_text(table.caption)}}}",
        rf"\label{{tab:{label(table.name)}}}",
        size,
        rf"\setlength{{\tabcolsep}}{{{space}}}",
        *tabular,
    ]
    if table.notes:
        notes = " ".join(rf"$^{{{letter}}}$~{latex_text(note)}." for letter, note in table.notes)
        parts += ["", r"\smallskip", rf"\parbox{{\linewidth}}{{\footnotesize {notes}}}"]
    return "\n".join([*parts, r"\end{table}", ""])


# By how many characters a row has: size of type and space between columns, for a text width of about 17 cm.
_SIZES = (
    (86, r"\small", "4pt"),
    (100, r"\footnotesize", "3.5pt"),
    (10_000, r"\scriptsize", "2.5pt"),
)
_WIDEST = 118


def _latex_align(align: str | float) -> str:
    return align if isinstance(align, str) else rf"p{{{align:g}cm}}"


def _latex_frame(table: Table) -> tuple[pd.DataFrame, int]:
    """The escaped texts, lines below as rows of their own, and the characters that the widest row would have."""
    lines = []
    for row in table.rows:
        lines.append(
            [
                _latex_entry(entry, not isinstance(column.align, str))
                for entry, column in zip(row.entries, table.columns)
            ]
        )
        if any(entry.below for entry in row.entries):
            lines.append(
                [rf"{{\scriptsize {latex_text(entry.below)}}}" if entry.below else "" for entry in row.entries]
            )
    columns = _headings(table, latex_text, "{}")
    width = 0
    for number, column in enumerate(table.columns):
        texts = [row.entries[number] for row in table.rows]
        longest = max([len(column.heading), len(column.unit), *(len(entry.text) for entry in texts)])
        longest = max([longest, *(round(0.8 * len(entry.below)) for entry in texts)])
        width += (longest if isinstance(column.align, str) else round(column.align * 6.5)) + 2
    return pd.DataFrame(lines, columns=columns, dtype=object), width


def _headings(table: Table, escape: Callable[[str], str], nothing: str) -> pd.Index:
    """Group, heading and unit of each column, levels that are empty throughout left out.

    Styler merges neighbours that are alike, as groups should be. Two columns of one heading must stay two: `nothing`,
    which the format does not show, makes them differ.
    """
    names = [(escape(column.group), escape(column.heading), escape(column.unit)) for column in table.columns]
    kept = [level for level in range(3) if level == 1 or any(name[level] for name in names)]
    unique: list[tuple[str, str, str]] = []
    for group, heading, unit in names:
        # Also with another unit: "p" and "p (Holm)" share nothing but a letter.
        while (group, heading) in [place[:2] for place in unique]:
            heading += nothing
        unique.append((group, heading, unit))
    if len(kept) == 1:
        return pd.Index([heading for _, heading, _ in unique])
    return pd.MultiIndex.from_tuples([tuple(name[level] for level in kept) for name in unique])


def _latex_entry(entry: Entry, in_lines: bool) -> str:
    text = latex_text(entry.text)
    if entry.underline:
        text = rf"\underline{{{text}}}"
    if entry.bold:
        text = rf"\textbf{{{text}}}"
    text += "".join(rf"$^{{{mark}}}$" for mark in entry.marks)
    return rf"{{\raggedright {text}\par}}" if in_lines and text else text


def _with_rules(lines: list[str], table: Table, levels: int) -> list[str]:
    """Rules below groups of columns, and between groups of rows."""
    top, middle = lines.index(r"\toprule"), lines.index(r"\midrule")
    spans = []
    start = 0
    for number in range(1, len(table.columns) + 1):
        if number == len(table.columns) or table.columns[number].group != table.columns[start].group:
            if table.columns[start].group:
                spans.append(rf"\cmidrule(lr){{{start + 1}-{number}}}")
            start = number
    head = lines[: top + 2] + ["".join(spans)] * bool(spans) + lines[top + 2 : middle + 1]
    body, place = [], middle + 1
    for number, row in enumerate(table.rows):
        height = 2 if any(entry.below for entry in row.entries) else 1
        body += [r"\midrule"] * (row.rule and number > 0) + lines[place : place + height]
        if height == 2:  # an underline above, and the next row below, keep their distance
            body[-2:] = [body[-2] + "[1pt]", body[-1] + "[2pt]"]
        place += height
    return head + body + lines[place:]


# Markdown


def to_markdown(table: Table) -> str:
    """A heading, a pipe table, its caption and its footnotes."""
    rows = [[_markdown_entry(entry) for entry in row.entries] for row in table.rows]
    frame = pd.DataFrame(rows, columns=[markdown_text(column.title) for column in table.columns], dtype=object)
    alignment = ["left" if column.align != "c" else "center" for column in table.columns]
    text = frame.to_markdown(index=False, colalign=alignment, disable_numparse=True)
    notes = "".join(f"\n\n<sup>{letter}</sup> {markdown_text(note)}." for letter, note in table.notes)
    return f"## {markdown_text(table.title)}\n\n{text}\n\n{markdown_text(table.caption)}{notes}\n"


def markdown_text(text: str) -> str:
    """Any text so that Markdown, which may hold HTML and emphasis, shows it as it is."""
    escaped = html.escape(text.replace("\n", " "), quote=False).replace("\\", "\\\\")
    return re.sub(r"([|`*_\[\]])", r"\\\1", escaped)


def _markdown_entry(entry: Entry) -> str:
    text = markdown_text(entry.text)
    text = f"<u>{text}</u>" if entry.underline else text
    text = f"**{text}**" if entry.bold else text
    text += "".join(f"<sup>{mark}</sup>" for mark in entry.marks)
    return text + f"<br>{markdown_text(entry.below)}" * bool(entry.below)


# HTML


def to_html(table: Table) -> str:
    """A <figure> with the table, its caption and its footnotes; no style, no identifiers but the table's name."""
    rows = [
        [_html_entry(entry, isinstance(column.align, str)) for entry, column in zip(row.entries, table.columns)]
        for row in table.rows
    ]
    frame = pd.DataFrame(rows, columns=_headings(table, html.escape, "<!-- -->"), dtype=object)
    styler = frame.style.hide(axis="index")
    styler.cell_ids = False
    body = styler.to_html(table_uuid=label(table.name), sparse_columns=True, exclude_styles=True)
    notes = "".join(f"<p><sup>{letter}</sup> {html.escape(note)}.</p>" for letter, note in table.notes)
    kind = "table sortable" if not any(row.rule for row in table.rows) else "table"  # rules keep rows together
    return (
        f'<figure class="{kind}" id="{label(table.name)}">\n<div class="scroll">\n{body}</div>\n'
        f"<figcaption>{html.escape(table.caption)}{notes}</figcaption>\n</figure>\n"
    )


def _html_entry(entry: Entry, in_one_line: bool) -> str:
    text = html.escape(entry.text)
    text = text.replace(" ", "&nbsp;") if in_one_line else text
    text = f"<u>{text}</u>" if entry.underline else text
    text = f"<strong>{text}</strong>" if entry.bold else text
    text += "".join(f"<sup>{mark}</sup>" for mark in entry.marks)
    text += f"<br><small>{html.escape(entry.below)}</small>" * bool(entry.below)
    return f'<span class="number">{text}</span>' if entry.numbers else text


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 Georgia, serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; border-bottom: 2px solid; border-top: 2px solid; font-size: 14px; }}
td, th {{ padding: 0.15em 0.6em; text-align: center; }}
thead tr:last-child th {{ border-bottom: 1px solid; }}
figure {{ margin: 0; }}
figcaption {{ margin-top: 0.8em; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}</body>
</html>
"""


def to_html_page(table: Table) -> str:
    """The table as a file that a browser opens by itself."""
    return _PAGE.format(title=html.escape(table.title), body=to_html(table))


# Terminal


def for_terminal(table: Table, width: int = 10_000) -> list[RichTable]:
    """The table for a person at a terminal of so many columns: in parts, each with the rows' names, where one is too
    narrow to show every number whole."""
    sizes = [max(map(len, _lines(table, number))) + 2 for number in range(len(table.columns))]
    if sum(sizes) <= width:
        return [_rich(table, range(len(table.columns)))]
    names = [number for number, column in enumerate(table.columns) if column.align == "l"]
    if len({tuple(row.entries[number].text for number in names) for row in table.rows}) < len(table.rows):
        table = replace(
            table,
            columns=(Column("row", "Row", align="l"), *table.columns),
            rows=tuple(replace(row, entries=(Entry(row.key), *row.entries)) for row in table.rows),
        )
        sizes, names = [max(len(row.key) for row in table.rows) + 2, *sizes], [0]
    parts: list[list[int]] = [[]]
    for number, column in enumerate(table.columns):
        if column.align == "l":
            continue
        if parts[-1] and sum(sizes[each] for each in (*names, *parts[-1], number)) > width:
            parts.append([])
        parts[-1].append(number)
    return [_rich(table, [*names, *part]) for part in parts]


def _lines(table: Table, number: int) -> list[str]:
    """All that stands in a column, line by line."""
    column, entries = table.columns[number], [row.entries[number] for row in table.rows]
    marked = [entry.text + "".join(f" {mark})" for mark in entry.marks) for entry in entries]
    return [column.group, column.heading, column.unit, *marked, *(entry.below for entry in entries)]


def _rich(table: Table, shown: Iterable[int]) -> RichTable:
    """These columns of the table."""
    result, shown = RichTable(box=None, header_style="underline"), list(shown)
    for column in (table.columns[number] for number in shown):
        heading = "\n".join(part for part in (column.group, column.heading, column.unit) if part)
        result.add_column(Text(heading), justify="center" if column.align == "c" else "left", no_wrap=True)
    for row in table.rows:
        texts = []
        for entry in (row.entries[number] for number in shown):
            style = " ".join(["bold"] * entry.bold + ["underline"] * entry.underline)
            text = Text(entry.text, style=style)
            text.append("".join(f" {mark})" for mark in entry.marks), style="dim")
            if entry.below:
                text.append(f"\n{entry.below}", style="not bold not underline dim")
            texts.append(text)
        result.add_row(*texts)
    return result


WRITERS = {"latex": to_latex, "markdown": to_markdown, "html": to_html_page}
