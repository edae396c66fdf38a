"""Which runs stand together in one table."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.paper.numbers import METHOD_OF_TASKS
from analysis.paper.published import family
from analysis.runs.comparability import chosen_fields, is_engines


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in tasks (or what else varies by design) and seed, and so belong in one table.

    fields: what they share, as far as it acts in any of them.
    """

    fields: dict[str, Any]
    runs: pd.DataFrame

    @property
    def seeds(self) -> list[int]:
        """All seeds that any of the runs has."""
        return sorted(int(seed) for seed in self.runs["seed"].unique())


def settings(
    runs: pd.DataFrame, varying: Collection[str] = (), protocol: str | None = "pretrain_finetune"
) -> list[Setting]:
    """Split the runs of a protocol (None: of all) into settings, the most recently started last.

    varying: the fields beside tasks that vary by design. A run belongs to a setting if every field that acts in it has
    the setting's value; a supervised run, in which the fewest fields act, may belong to several. A setting that holds
    only cells which a larger one on the same data set and backbone lacks fills that one up, where its numbers get a
    footnote (`comparability.deviations`): a table with a deviating row says more than two with gaps.
    """
    usable = runs[["dataset", "backbone", "protocol", "tasks", "seed"]].notna().all(axis=1)
    runs = runs[usable if protocol is None else usable & (runs["protocol"] == protocol)]
    acting = {
        index: {name: value for name, value in chosen_fields(row).items() if name not in varying}
        for index, row in zip(runs.index, runs.to_dict("records"))
    }
    found: list[tuple[dict[str, Any], list[int]]] = []
    for index in sorted(acting, key=lambda index: -len(acting[index])):
        fields = acting[index]
        fitting = [each for each in found if all(each[0].get(name, value) == value for name, value in fields.items())]
        if not fitting:
            fitting = [({}, [])]
            found += fitting
        for shared, members in fitting:
            shared |= fields
            members.append(index)
    place = ["tasks", "seed", *varying]
    split = [Setting(shared, one_run_per_place(runs.loc[sorted(members)].copy(), place)) for shared, members in found]
    return sorted(_filled(split, varying), key=_newest)


def _newest(setting: Setting) -> pd.Timestamp:
    return setting.runs["start_time"].fillna(pd.Timestamp(0, tz="UTC")).max()


def one_run_per_place(runs: pd.DataFrame, place: Sequence[str]) -> pd.DataFrame:
    """Of several finished runs with the same values in the columns of a place one: the engine's rather than what
    somebody logged by hand, and of those the newest. The column left_out of a run says which others, not the engine's,
    had its place.
    """
    place = list(place)
    found = runs[runs["status"] == "FINISHED"].sort_values("start_time", na_position="first")
    found = found[found.duplicated(place, keep=False)]
    found = found.assign(own=np.array([is_engines(run) for run in found.to_dict("records")], dtype=bool))
    found = found.sort_values("own", kind="stable")
    for _, group in found.groupby(place, sort=False, dropna=False):
        if group["own"].iloc[-1] and not group["own"].all():
            names = ", ".join(group.loc[~group["own"], "run_id"])
            runs.loc[group.index[-1], "left_out"] = f"a run that the engine did not log is left out: {names}"
    return runs.drop(index=found.index[found.duplicated(place, keep="last")])


def _filled(split: list[Setting], varying: Collection[str]) -> list[Setting]:
    def cells(setting: Setting) -> dict[tuple, set[str]]:
        finished = setting.runs[setting.runs["status"] == "FINISHED"]
        keys = finished[["tasks", *varying]].astype(str).agg(tuple, axis=1)
        return finished.groupby(keys)["run_id"].agg(set).to_dict() if len(finished) else {}

    def same_place(one: Setting, other: Setting) -> bool:
        names = ("dataset", "backbone", "image_size", "protocol")
        return all(one.fields.get(name) == other.fields.get(name) for name in names)

    kept: list[Setting] = []
    for one in sorted(split, key=lambda one: (len(cells(one)), _newest(one)), reverse=True):
        for number, other in enumerate(kept):
            theirs = cells(other)
            own = [key for key, ids in cells(one).items() if not ids <= theirs.get(key, set())]
            if own and not set(own) & set(theirs) and same_place(one, other):
                together = pd.concat([other.runs, one.runs]).drop_duplicates("run_id")
                kept[number] = Setting(other.fields, together)
                break
        else:
            kept.append(one)
    return kept


def newest_of_each_place(runs: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """The runs of the methods of Tables 2 and 3, of each data set and kind of backbone those of the newest setting.

    With the further columns family and method.
    """
    runs = runs[runs["tasks"].isin(METHOD_OF_TASKS)]
    chosen: dict[tuple[str, str], pd.DataFrame] = {}
    for setting in settings(runs, protocol=protocol):
        chosen[setting.fields["dataset"], family(setting.fields["backbone"])] = setting.runs
    found = pd.concat([*chosen.values(), runs.head(0)])
    return found.assign(family=found["backbone"].map(family), method=found["tasks"].map(METHOD_OF_TASKS))
