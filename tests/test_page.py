"""The page of a study, read back by a parser: complete in itself, escaped, and true to what it was made from."""

import base64
import hashlib
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
from helpers.made_runs import conformed_runs, planned

from analysis.paper.figures import draw
from analysis.paper.registry import TABLES
from analysis.report import page
from analysis.report.page import TableHtml, write_page
from analysis.runs.comparability import conform
from sweeps.ablation import parse_arguments, request_of
from sweeps.planning.plan import plan

VOID = {"meta", "link", "img", "br", "hr", "col"}
TABLE = TableHtml("Accuracy", "<table><tbody><tr><td>90.13</td></tr></tbody></table>")


class Page(HTMLParser):
    """Elements with their attributes, the text of each, and whether tags are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in dict.fromkeys(self.open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def table4(tmp_path_factory):
    return conformed_runs(planned(tmp_path_factory.mktemp("data"), "table4"), "table4")


@pytest.fixture(scope="module")
def drawn(table4, tmp_path_factory):
    return draw(TABLES["table4"], *table4, tmp_path_factory.mktemp("figures")).paths


def verdicts(**changes: str) -> pd.DataFrame:
    row = {
        "sentence": "the SpRel one is the most performing",
        "where": "section 3.3",
        "verdict": "contradicted",
        "numbers": "sprel against dist: -1.00",
        "note": "t tests over seeds",
        "not_comparable": "",
        "seeds": 3,
    }
    return pd.DataFrame([row | changes])


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_asks_for_nothing_from_outside(table4, drawn, tmp_path):
    runs, _ = table4
    found = read(write_page("table4", runs, tmp_path / "page.html", tables=[TABLE], figures=drawn, verdicts=verdicts()))
    assert found.all("script") == [{}]  # the one that sorts tables
    for _, attributes in found.elements:
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in found.texts["style"][0]
    assert "@import" not in found.texts["style"][0]
    (policy,) = [each["content"] for each in found.all("meta") if "http-equiv" in each]
    assert policy.startswith("default-src 'none'")
    digest = base64.b64encode(hashlib.sha256(found.texts["script"][0].encode()).digest()).decode()
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_every_link_leads_to_a_section_of_the_page(table4, tmp_path):
    path = tmp_path / "page.html"
    found = read(write_page("table4", table4[0], path, tables=[TABLE], behind=[TABLE], verdicts=verdicts()))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [link["href"] for link in found.all("a")] == [
        f"#section-{name}" for name in ("verdicts", "tables", "behind", "reproduce", "runs")
    ]
    assert {link["href"][1:] for link in found.all("a")} <= set(ids)


def test_pictures_are_the_files_with_their_captions_and_texts_for_who_cannot_see_them(table4, drawn, tmp_path):
    runs, _ = table4
    found = read(write_page("table4", runs, tmp_path / "page.html", figures=drawn))
    pngs = [path for path in drawn if path.suffix == ".png"]
    assert len(found.all("img")) == len(pngs) == 6
    for path, image in zip(pngs, found.all("img")):
        assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == path.read_bytes()
        assert image["alt"]
    assert found.texts["figcaption"][0].startswith("Fine-tuning accuracy by pre-training tasks (Table 4)")
    assert "commit 0123456789" in found.texts["figcaption"][0]


def test_names_that_look_like_markup_stay_text(table4, tmp_path):
    runs = table4[0].assign(dataset='<script>alert("1")</script>', device="<img src=http://x/y.png>", run_id="a&b<i>")
    path = write_page(
        "st<u>dy & 'co'",
        runs,
        tmp_path / "page.html",
        verdicts=verdicts(numbers="</ul><b>1</b>", sentence="a < b & c"),
        notes=["<em>lost</em>"],
        experiment="<q>",
    )
    found = read(path)
    for tag in ("u", "b", "em", "i", "img"):
        assert found.all(tag) == []
    assert "alert" not in "".join(found.texts["script"])
    assert found.texts["h1"] == ["st<u>dy & 'co': <script>alert(\"1\")</script> with ViT-XS/4"]
    assert found.texts["q"] == ["a < b & c"]
    assert "<em>lost</em>." in found.texts["main"][0]
    assert "a&b<i>" in found.texts["table"][0]
    assert shlex.quote("st<u>dy & 'co'") in found.texts["pre"][0]


def test_tables_are_taken_as_they_are_and_can_be_scrolled_with_keys(table4, tmp_path):
    found = read(write_page("table4", table4[0], tmp_path / "page.html", tables=[TABLE]))
    assert found.texts["table"][0] == "90.13"
    regions = [attributes for tag, attributes in found.elements if attributes.get("class") == "scroll"]
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)


def test_a_verdict_says_its_word_and_what_all_have_in_common_is_said_once(table4, tmp_path):
    both = pd.concat([verdicts(not_comparable="8 epochs"), verdicts(verdict="holds", not_comparable="8 epochs")])
    found = read(write_page("table4", table4[0], tmp_path / "page.html", verdicts=both))
    spans = [attributes["class"] for attributes in found.all("span")]
    assert spans == ["verdict open", "verdict open"]
    assert found.texts["span"] == ["not comparable (here: contradicted)", "not comparable (here: holds)"]
    assert found.texts["main"][0].count("8 epochs") == 1
    both.iloc[1, both.columns.get_loc("not_comparable")] = "9 epochs"
    found = read(write_page("table4", table4[0], tmp_path / "page.html", verdicts=both))
    assert [found.texts["ul"][0].count(text) for text in ("8 epochs", "9 epochs")] == [1, 1]


def test_a_verdict_has_a_colour_only_without_a_reservation(table4, tmp_path):
    rows = [verdicts(), verdicts(verdict="holds"), verdicts(seeds=1), verdicts(verdict="undecided")]
    found = read(write_page("table4", table4[0], tmp_path / "page.html", verdicts=pd.concat(rows)))
    spans = [attributes["class"] for attributes in found.all("span")]
    assert list(zip(spans, found.texts["span"])) == [
        ("verdict bad", "contradicted"),
        ("verdict good", "holds"),
        ("verdict open", "one seed: contradicted"),
        ("verdict open", "undecided"),
    ]


def test_every_run_is_listed_with_its_id_and_number(table4, tmp_path):
    runs = table4[0].copy()
    runs.loc[runs.index[3], "status"] = "FAILED"
    runs.loc[runs.index[3], "test_accuracy"] = None
    found = read(write_page("table4", runs, tmp_path / "page.html"))
    text = found.texts["table"][0]
    for row in runs.to_dict("records"):
        number = "–" if row["status"] == "FAILED" else f"{row['test_accuracy']:.2f}"
        assert f"{row['seed']}{row['status'].lower()}{number}{row['run_id']}" in text
    assert "47 of 48 runs finished; seeds 0, 1, 2; commit 0123456789" in found.texts["p"][0]


def test_a_run_that_tells_neither_data_set_nor_backbone_is_listed_with_dashes(table4, tmp_path):
    by_hand = pd.DataFrame(
        [{"run_id": "by-hand", "status": "FINISHED", "study": "table4", "tasks": "sprel", "seed": 0}]
    )
    runs = conform(pd.concat([table4[0], by_hand], ignore_index=True))
    found = read(write_page("table4", runs, tmp_path / "page.html"))
    assert "–, –, sprel0finished–by-hand" in found.texts["table"][0].replace("SpRel", "sprel")


# How to reproduce


def replanned(command: str, folder) -> set[str]:
    """The ids of the cells that the page's sweep command plans."""
    (line,) = [line for line in command.replace("\\\n", " ").splitlines() if "sweeps/ablation.py" in line]
    request = request_of(parse_arguments(shlex.split(line)[2:]))
    return {cell.cell_id for cell in plan(replace(request, data_root=folder))}


@pytest.mark.parametrize(
    ("study", "changes"),
    [
        ("table4", {}),
        ("table4", {"seeds": (3, 7), "combinations": ("none", "sprel+abspos"), "settings": ("drop_path=0.1",)}),
        ("table4", {"recipe": "cpu", "settings": ("learning_rate=0.003",)}),
        ("table4", {"recipe": "reference", "settings": ()}),
        ("figure2", {"recipe": "demo"}),
        ("mega", {}),
    ],
)
def test_the_command_plans_exactly_the_cells_of_the_runs(study, changes, tmp_path):
    cells = planned(tmp_path, study, **changes)
    runs, _ = conformed_runs(cells, study)
    assert replanned(page.commands(study, runs), tmp_path) == {cell.cell_id for cell in cells}


def test_the_command_begins_at_the_runs_commit_unless_there_are_several(table4):
    runs = table4[0]
    assert page.commands("table4", runs).splitlines()[0] == "git checkout 0123456789abcdef"
    mixed = runs.assign(git_commit=["aaaa", "bbbb"] * 24)
    assert "git checkout" not in page.commands("table4", mixed)


def test_what_cannot_be_reproduced_is_said(table4, tmp_path):
    runs = table4[0].assign(git_dirty="true")
    found = read(write_page("table4", runs, tmp_path / "page.html"))
    assert "changes that are in no commit" in found.texts["main"][0]
    runs = table4[0].drop(columns=["git_commit", "git_dirty"])
    found = read(write_page("table4", runs, tmp_path / "page.html"))
    assert "do not say from which commit" in found.texts["main"][0]


def test_the_recipe_lists_what_the_runs_share(table4):
    shared = page.shared_fields(table4[0])
    assert shared["epochs"] == 4
    assert shared["pretrain_epochs"] == 3
    assert "seed" not in shared
    assert "tasks" not in shared


def test_a_page_that_cannot_be_written_leaves_the_older_one(table4, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("older")
    with pytest.raises(KeyError):
        write_page("table4", table4[0].drop(columns="status"), path)
    assert path.read_text() == "older"
