"""The table of any other study."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.output.typeset import CROSS, DASH, UP, Column, Entry, Row, Table
from analysis.paper.cost import cost
from analysis.paper.curves import curves
from analysis.paper.drawing import combination_name
from analysis.paper.entries import Entries, PaperTable
from analysis.paper.numbers import how_to_read, measured, number_entry, recipe_sentence, task_column
from analysis.paper.settings import one_run_per_place
from analysis.paper.task_effects import effects_of_swept_tasks
from analysis.runs.comparability import chosen_fields
from analysis.runs.splits import split_of
from relvit.cell import FIELDS, NONE, TASKS
from relvit.paper import dataset_name
from relvit.vocabulary import TEST_ACCURACY, TEST_KNN_ACCURACY


def layout_listing(entries: Entries, name: str) -> Table:
    """Any study: a row for each kind of cell, by the fields in which the study's cells differ, and its accuracy."""
    study, runs, varying = entries.of.name, entries.labelled.dropna(subset="seed"), list(entries.of.varying)
    keys = runs[varying].astype(object).map(_plain)
    trained = {task for tasks in runs["tasks"].unique() for task in tasks.split("+")}
    own = {
        task.name: _measured(entries, runs, f"test_{task.metric_name}", task.metric.higher_is_better)
        for task in TASKS.values()
        if task.name in trained and f"test_{task.metric_name}" in runs
    }
    columns = [Column(field, field.replace("_", " "), align="l") for field in varying]
    columns += map(task_column, own)
    # A pre-training alone is tested by k-NN, where it is.
    by_knn = (runs["protocol"] == "pretrain") & (TEST_KNN_ACCURACY in runs)
    tests = {}
    if by_knn.any():
        tests["knn", "k-NN accuracy"] = _measured(entries, runs[by_knn], TEST_KNN_ACCURACY)
    if not by_knn.all():
        tests["accuracy", f"{split_of(runs).capitalize()} accuracy"] = _measured(entries, runs[~by_knn], TEST_ACCURACY)
    columns += [*(Column(*column, f"(Acc {UP})") for column in tests), Column("n", "n")]
    rows = []
    seen = {field: list(dict.fromkeys(keys[field])) for field in varying}
    ranks = {
        place: [_rank(key["tasks"]) if field == "tasks" else (seen[field].index(key[field]), []) for field in varying]
        for place, key in keys.iterrows()
    }
    for place in sorted(runs.index, key=lambda each: ranks[each]):
        key = runs.loc[place, "label"]
        if key in [row.key for row in rows]:
            continue
        texts = [Entry(keys.loc[place, field]) for field in varying]
        has = runs.loc[place, "tasks"].split("+")
        texts += [_plain_number(numbers.loc[key]) if task in has else Entry(CROSS) for task, numbers in own.items()]
        texts += [_plain_number(each.loc[key]) if key in each.index else Entry(CROSS) for each in tests.values()]
        runs_of_cell = next((each.loc[key, "runs"] for each in tests.values() if key in each.index), ())
        texts.append(Entry(f"{len(runs_of_cell)}/{len(entries.seeds)}", runs=runs_of_cell, noted=False))
        rows.append(Row(key, tuple(texts)))
    told: dict[str, list[Entry]] = {}
    groups = dict.fromkeys(entries.of.group(row.key) for row in rows)
    for row in rows:
        for place, (_, title) in enumerate(tests, -len(tests) - 1):
            of = f"{title}, {_place(entries.of.group(row.key))}" if len(groups) > 1 else title
            told.setdefault(of, []).append(row.entries[place])
    how = how_to_read("below it the", told)
    how += " Bold within one data set and protocol." * (len(groups) > 1)
    titles = " and ".join(title for _, title in tests)
    caption = f"{titles} in % of the cells of {study}. {recipe_sentence(runs)} {how}"
    made = Table(name, f"Study {study}", tuple(columns), tuple(rows), caption)
    return entries.footnoted(made)


def _measured(entries: Entries, runs: pd.DataFrame, metric: str, larger: bool = True) -> pd.DataFrame:
    """`measured`, bold within each group, as differences are compared there."""
    parts = runs.groupby(runs["label"].map(entries.of.group), sort=False)
    return pd.concat([measured(part, "label", metric, larger) for _, part in parts])


def _place(group: str) -> str:
    """ "CIFAR-10, pretrain" for "cifar10 pretrain"."""
    dataset, _, protocol = group.rpartition(" ")
    return f"{dataset_name(dataset)}, {protocol}"


def _rank(tasks: str) -> tuple[int, list[int]]:
    """Sorts as Table 4 does: supervised first, then single tasks, pairs and so on."""
    names = [] if tasks == NONE else tasks.split("+")
    return len(names), [list(TASKS).index(name) if name in TASKS else len(TASKS) for name in names]


def _plain_number(row: pd.Series) -> Entry:
    return replace(number_entry(row, interval=True), underline=False)


def _plain(value: Any) -> str:
    if pd.isna(value):
        return DASH
    return f"{value:g}" if isinstance(value, float) else str(value)


def table_of(study: str, runs: pd.DataFrame) -> PaperTable:
    """What stands for a study that is none of the paper's, made of these conformed runs.

    An entry goes by its tasks where no two share them, else by the values of the fields in which the study's cells
    differ. Each is compared with the supervised entry of its data set, backbone and protocol, of several with the one
    that shares most of its values; where none is supervised and the entries differ in one field alone, other than the
    data set or the protocol, with the first.
    """
    varying = _varying(runs)
    known = runs.dropna(subset=["tasks"]).to_dict("records")
    # The tasks alone name an entry where no two share them: learning rates may differ with them and need no mention.
    cells = {tuple(_plain(run.get(name)) for name in varying) for run in known}
    alone = len(cells) == len({run["tasks"] for run in known})
    naming = ("tasks",) if alone else varying

    def label(run: Mapping[str, Any]) -> str:
        return " ".join(_plain(run.get(name)) for name in naming)

    groups = {label(run): f"{run['dataset']} {run['protocol']}" for run in known}
    backbones = {label(run): run["backbone"] for run in known}
    values = {label(run): [_plain(run.get(name)) for name in varying] for run in known}
    supervised = list(dict.fromkeys(label(run) for run in known if run["tasks"] == NONE))

    def pairs(labels: Sequence[str]) -> list[tuple[str, str]]:
        if not supervised:
            one_field = len(varying) == 1 and len(set(groups.values())) == 1
            return [(each, labels[0]) for each in labels[1:]] if one_field else []
        found = []
        for each in labels:
            alike = [one for one in supervised if groups[one] == groups[each] and backbones[one] == backbones[each]]
            shared = {one: sum(map(str.__eq__, values[each], values[one])) for one in alike}
            nearest = [one for one, count in shared.items() if count == max(shared.values())]
            if each not in supervised and len(nearest) == 1:
                found.append((each, nearest[0]))
        return found

    def newest(runs: pd.DataFrame) -> list[pd.DataFrame]:
        place = ["label", "seed"]
        kept = one_run_per_place(runs.assign(label=[label(row) for row in runs.to_dict("records")]), place)
        last = kept.sort_values("start_time", kind="stable").drop_duplicates([*place, "status"], keep="last")
        return [kept[kept.index.isin(last.index)].drop(columns="label")]

    return PaperTable(
        name=study,
        title=f"Study {study}",
        layout=layout_listing,
        split=newest,
        label=label,
        label_name=combination_name if alone else str,
        pairs=pairs,
        baseline="the supervised cell" if supervised else "the first cell",
        group=lambda each: groups.get(each, ""),
        varying=varying,
        figures={"-curves": curves, "-cost": cost},
        behind=effects_of_swept_tasks,
    )


def _varying(runs: pd.DataFrame) -> tuple[str, ...]:
    """The fields in which the cells of these runs differ, the seed left out, and the data set of a pre-training where
    it is always that of the cell; the tasks where there are none."""
    known = runs.dropna(subset=["tasks", "seed"]).to_dict("records")
    acting = [chosen_fields(row) | {"tasks": row["tasks"]} for row in known]
    values = {name: {fields[name] for fields in acting if name in fields} for name in FIELDS}
    if all(fields.get("pretrain_dataset", row["dataset"]) == row["dataset"] for row, fields in zip(known, acting)):
        del values["pretrain_dataset"]  # it is the data set's own
    return tuple(name for name, found in values.items() if len(found) > 1) or ("tasks",)
