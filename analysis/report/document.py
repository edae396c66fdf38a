"""A study as one LaTeX document that pdflatex compiles: summary, tables, figures, provenance."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from PIL import Image

from analysis.output.typeset import Table, latex_text, to_latex
from analysis.runs.comparability import commits

_PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[a4paper,margin=1.75cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[font=small,labelfont=bf]{caption}
\usepackage[hidelinks]{hyperref}
\renewcommand{\topfraction}{0.95}
\renewcommand{\bottomfraction}{0.95}
\renewcommand{\textfraction}{0.02}
\renewcommand{\floatpagefraction}{0.7}
\setcounter{topnumber}{9}
\setcounter{totalnumber}{9}
\emergencystretch=2em
\makeatletter
\setlength{\@fptop}{0pt}
\makeatother
"""


def report(
    study: str, runs: pd.DataFrame, tables: Iterable[Table], figures: Mapping[Path, str], notes: Iterable[str] = ()
) -> str:
    """The document. runs: all of the study. figures: PDF files beside the document, and their captions.

    notes: sentences on what is missing or was left out.
    """
    parts = [
        _PREAMBLE,
        rf"\title{{RelViT sweeps: {latex_text(study)}}}",
        r"\author{}",
        rf"\date{{Code of commit {latex_text(', '.join(commits(runs)))}}}",
        r"\begin{document}",
        r"\maketitle",
        latex_text(summary(study, runs)),
    ]
    notes = list(notes)
    if notes:
        parts += [r"\begin{itemize}", *(rf"\item {latex_text(note)}" for note in notes), r"\end{itemize}"]
    for table in tables:
        parts.append(to_latex(table, position="!htbp"))
    for path, caption in figures.items():
        # At their own size, which is that of the paper's columns.
        parts += [
            r"\begin{figure}[!htbp]",
            r"\centering",
            rf"\includegraphics{{{path.name}}}",
            rf"\caption{{{latex_text(caption)}}}",
            r"\end{figure}",
        ]
    return "\n".join([*parts, r"\end{document}", ""])


def captions(drawn: Iterable[Path]) -> dict[Path, str]:
    """The PDF files among figures, and the captions that the pictures beside them hold."""
    return {path: _caption(path.with_suffix(".png")) for path in drawn if path.suffix == ".pdf"}


def _caption(picture: Path) -> str:
    if not picture.exists():
        return picture.stem
    with Image.open(picture) as image:
        return image.info.get("Description", picture.stem)


def summary(study: str, runs: pd.DataFrame) -> str:
    """How many runs there are, in which state, and where their numbers can be followed."""
    states = runs["status"].fillna("unknown").value_counts()
    told = ", ".join(f"{number} {state.lower()}" for state, number in states.items())
    return (
        f"Study {study}: {len(runs)} runs ({told}). Every number of this document can be followed to its runs, seeds "
        f"and commit: python analysis/make_tables.py --explain {study}. Whether it still matches the data: --check."
    )
