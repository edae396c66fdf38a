"""A table in every format: rules, marks, footnotes, and whatever characters a name may hold."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from analysis.output.typeset import (
    Column,
    Entry,
    Row,
    Table,
    for_terminal,
    label,
    latex_text,
    markdown_text,
    to_camera_latex,
    to_html,
    to_html_page,
    to_latex,
    to_markdown,
)

COLUMNS = (
    Column("method", "Method", align="l"),
    Column("ours", "Acc", "(↑)", "Ours"),
    Column("paper", "Acc", "(↑)", "Paper"),
)


def table(*rows: tuple[Entry, ...], columns: tuple[Column, ...] = COLUMNS, caption: str = "A caption.") -> Table:
    return Table("t_1", "A title", columns, tuple(Row(f"row{n}", row) for n, row in enumerate(rows)), caption)


MADE = table(
    (Entry("Supervised"), Entry("85.38", runs=("a",)), Entry("85.38", published=True)),
    (Entry("RelViT"), Entry("90.13 ± 0.20", below="[89.9, 90.4]", runs=("b", "c"), bold=True), Entry("–")),
    (Entry("L_drloc"), Entry("-0.16 ↓", underline=True), Entry("×")),
)


def test_latex_is_booktabs_with_groups_of_columns_marks_and_a_line_below():
    lines = to_latex(MADE).splitlines()
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r" & Ours & Paper \\" in lines
    assert r"\cmidrule(lr){2-2}\cmidrule(lr){3-3}" in lines
    assert r"Method & Acc & Acc \\" in lines
    assert r" & ($\uparrow$) & ($\uparrow$) \\" in lines
    assert r"RelViT & \textbf{90.13 $\pm$ 0.20} & -- \\[1pt]" in lines
    assert r" & {\scriptsize [89.9, 90.4]} &  \\[2pt]" in lines
    assert r"$L_{\mathrm{drloc}}$ & \underline{$-$0.16 $\downarrow$} & $\times$ \\" in lines
    assert r"\label{tab:t_1}" in lines


def test_two_columns_of_one_heading_stay_two_whatever_their_units():
    columns = (Column("cell", "Cell", align="l"), Column("p", "p"), Column("p_holm", "p", "(Holm)"))
    made = table((Entry("SpRel"), Entry("0.01"), Entry("0.02")), columns=columns)
    latex = to_latex(made)
    assert r"Cell & p & p{} \\" in latex
    assert r" &  & (Holm) \\" in latex
    assert "multicolumn" not in latex
    assert "colspan" not in to_html(made)


def test_rules_stand_between_groups_of_rows():
    grouped = replace(MADE, rows=(*MADE.rows[:2], replace(MADE.rows[2], rule=True)))
    lines = to_latex(grouped).splitlines()
    assert (
        lines.index(r"\midrule", lines.index(r"\midrule") + 1)
        == lines.index(r" & {\scriptsize [89.9, 90.4]} &  \\[2pt]") + 1
    )


def test_markdown_and_html_hold_the_same_entries():
    markdown = to_markdown(MADE)
    assert "| RelViT" in markdown
    assert "**90.13 ± 0.20**<br>\\[89.9, 90.4\\]" in markdown
    assert "<u>-0.16 ↓</u>" in markdown
    assert "Ours: Acc (↑)" in markdown
    page = to_html(MADE)
    assert "<strong>90.13&nbsp;±&nbsp;0.20</strong><br><small>[89.9, 90.4]</small>" in page
    assert "<figcaption>A caption.</figcaption>" in page


def test_a_terminal_shows_marks_and_second_lines():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(*for_terminal(MADE))
    shown = console.export_text()
    assert "90.13 ± 0.20" in shown
    assert "[89.9, 90.4]" in shown


# Eight columns of numbers, of which a terminal of 60 columns shows four at a time.
WIDE = Table(
    "wide",
    "Wide",
    (Column("method", "Method", align="l"), *(Column(f"c{i}", "Acc", "(↑)", "Ours") for i in range(8))),
    tuple(
        Row(key, (Entry("RelViT"), *(Entry(f"{10 * place + i}.25 ± 0.50") for i in range(8))))
        for place, key in enumerate(("sprel", "sprel+dist"), start=1)
    ),
    "A caption.",
)


def test_a_narrow_terminal_shows_every_number_whole_in_parts_that_name_their_rows():
    console = Console(width=60, record=True, file=io.StringIO())
    parts = for_terminal(WIDE, 60)
    console.print(*parts, sep="\n")
    shown = console.export_text()
    assert len(parts) > 1
    assert all(f"{10 * place + i}.25 ± 0.50" in shown for place in (1, 2) for i in range(8))
    assert max(map(len, shown.splitlines())) <= 60
    assert shown.count("sprel+dist") == len(parts)  # since all rows are called RelViT
    assert len(for_terminal(WIDE, 200)) == 1


def test_the_camera_ready_table_names_its_rows_and_has_neither_interval_nor_the_papers_numbers():
    columns = (
        Column("method", "Method", align="l"),
        Column("accuracy", "Acc", group="Ours"),
        Column("interval", "95 %", group="Ours"),
        Column("n", "n", group="Ours"),
        Column("paper_accuracy", "Acc", group="Paper"),
    )
    rows = tuple(
        Row(key, (Entry("RelViT"), Entry("90.13", below="[89.9, 90.4]"), Entry("[1, 2]"), Entry("3/3"), theirs))
        for key, theirs in (("sprel", Entry("89.02", published=True)), ("dist", Entry("×")))
    )
    caption = "Mean ± standard deviation over n seeds, and its 95 % t interval; bold: best. Paper: Table 4, 100 epochs."
    lines = to_camera_latex(Table("t", "T", columns, rows, caption), str.upper).splitlines()
    assert lines[0] == r"\begin{table*}[t]"
    assert lines[-1] == r"\end{table*}"
    assert r"SPREL & 90.13 \\" in lines
    assert r"DIST & 90.13 \\" in lines
    assert r"\caption{Mean $\pm$ standard deviation over n seeds; bold: best.}" in lines
    assert r"\label{tab:t-camera}" in lines


# Footnotes


def test_a_footnote_stands_at_every_number_that_rests_on_a_run_with_a_reason():
    noted = MADE.footnoted({"b": ("epochs 30 instead of 20",)}, {"b": 1, "c": 2})
    assert noted.notes == (("a", "epochs 30 instead of 20 (seed 1)"),)
    assert [row.entries[1].marks for row in noted.rows] == [(), ("a",), ()]
    both = MADE.footnoted({"b": ("micro_batches=4",), "c": ("micro_batches=4",)}, {"b": 1, "c": 2})
    assert both.notes == (("a", "micro_batches=4"),)
    assert r"\textbf{90.13 $\pm$ 0.20}$^{a}$" in to_latex(noted)
    assert r"$^{a}$~epochs 30 instead of 20 (seed 1)." in to_latex(noted)
    assert "<sup>a</sup> epochs 30 instead of 20 (seed 1)." in to_markdown(noted)
    assert "<p><sup>a</sup> epochs 30 instead of 20 (seed 1).</p>" in to_html(noted)


def test_the_same_reason_has_one_footnote_and_there_are_letters_enough():
    rows = [(Entry(str(n)), Entry("1", runs=(f"r{n}",)), Entry("–")) for n in range(30)]
    reasons = {f"r{n}": (f"reason {n // 1}",) for n in range(30)}
    noted = table(*rows).footnoted(reasons, {})
    assert [letter for letter, _ in noted.notes][:2] + [noted.notes[26][0], noted.notes[27][0]] == [
        "a",
        "b",
        "aa",
        "ab",
    ]
    same = table(*rows).footnoted(dict.fromkeys(reasons, ("one reason",)), {})
    assert same.notes == (("a", "one reason"),)


# Names


def test_what_is_special_in_latex_is_escaped():
    text = latex_text(r"90 % of data_set ± 1 & {a\b} #1 ~ ^ $ <x> --explain -0.5 a-1")
    assert text == (
        r"90 \% of data\_set $\pm$ 1 \& \{a\textbackslash{}b\} \#1 \textasciitilde{} \textasciicircum{} \$ $<$x$>$ "
        r"-{}-explain $-$0.5 a-1"
    )


def test_what_pdflatex_has_no_letter_for_is_its_base_letter_or_its_code_point():
    assert latex_text("naïve Ångström") == "naive Angstrom"
    assert latex_text("数\x07") == "[U+6570] "


def test_what_is_special_in_html_and_markdown_is_escaped():
    hostile = table((Entry("<script>alert(1)</script>"), Entry("a|b*c"), Entry("&")), caption="<b> & `x`")
    hostile = replace(hostile, title="<title>", name='a"><b>')

    class Tags(HTMLParser):
        seen: set[str] = set()

        def handle_starttag(self, tag, attrs):
            self.seen.add(tag)

    parser = Tags()
    parser.feed(to_html_page(hostile))
    assert not parser.seen & {"script", "b"}
    assert r"a\|b\*c" in to_markdown(hostile)
    assert "<script>" not in to_markdown(hostile)
    assert markdown_text("a_b") == r"a\_b"


@pytest.mark.parametrize(
    ("name", "file"), [("table4", "table4"), ("../../etc/x y", "etc-x-y"), ("<&>", "unnamed"), ("a.b_c", "a.b_c")]
)
def test_names_of_files_stay_in_their_folder(name, file):
    assert label(name) == file
    assert re.fullmatch(r"[A-Za-z0-9._-]+", label(name))
