"""From ended searches to recipes, cells to test and reports."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from relvit.cell import Cell
from relvit.files import write_atomic
from relvit.messages import counted
from relvit.vocabulary import SEARCH_SPACE, TUNED_BY, TUNING_BUDGET
from sweeps.account.account import FINISHED, Account
from sweeps.cli.options import Places
from sweeps.cli.progress import duration
from sweeps.planning.recipes import recipe, recipe_file
from sweeps.search.request import SearchRequest
from sweeps.search.search import Search
from sweeps.search.space import text


def finals_study(request: SearchRequest, searches: list[Search]) -> str:
    """The study that the tested cells belong to: of --per-cell, "table4-tuned" beside "table4"."""
    name = searches[0].name.partition("/")[0]
    return f"{name}-tuned" if request.per_cell else f"hpo-{name}"


def folder(search: Search, account: Account) -> Path:
    """Where the results of a search are."""
    local = account.storage if isinstance(account.storage, Path) else Path("results")
    return local / "hpo" / search.name


def finals(request: SearchRequest, searches: list[Search], account: Account) -> dict[str, list[Cell]]:
    """Write each search's recipe. Returns by search the cells of its best configuration, one a seed."""
    found = {}
    for search in searches:
        best = search.best()
        if best is None:
            continue
        cell = search.cell_of(best)
        fields = {**{name: search.space.base[name] for name in _settings(request, search, cell)}}
        fields |= search.fields_of(best)
        content = {
            **recipe_file(request.recipe, fields),
            "tuned_for": {name: getattr(cell, name) for name in ("dataset", "backbone", "protocol", "tasks")},
            "search": {
                "name": search.name,
                "budget": budget_text(search),
                "trial": best.number,
                "val_accuracy": best.values[0],
                "cell_id": cell.cell_id,
            },
        }
        write_atomic(folder(search, account) / "recipe.json", json.dumps(content, indent=2).encode() + b"\n")
        found[search.name] = [dataclasses.replace(cell, seed=seed) for seed in request.seeds]
    return found


def _settings(request: SearchRequest, search: Search, best: Cell) -> list[str]:
    """Fields that differ from the recipe by --set, or by a plain value in a space file; where the backbone was
    searched, also from what the recipe has for the best one."""
    set_here = [setting.partition("=")[0] for setting in request.settings]
    original = recipe(request.recipe).for_backbone(best.backbone, search.space.base["image_size"])
    changed = [
        name
        for name, value in search.space.base.items()
        if name in original and name not in search.space.domains and request.space and value != original[name]
    ]
    return [name for name in dict.fromkeys([*set_here, *changed]) if name in original]


def budget_text(search: Search) -> str:
    """What a search was allowed and spent, for a caption."""
    return (
        f"{search.budget}, {search.method.sampler} with {search.method.scheduler}; "
        f"spent {counted(len(search.trials), 'trial')}, {search.training_epochs} epochs"
    )


def report(
    places: Places, searches: list[Search], finals: Mapping[str, list[Cell]], account: Account, tracker: Any
) -> Iterator[str]:
    """Write each search's report, attach it to an MLflow run that stands for the search, tag the tested cells with the
    budget. Yields a line for each search."""
    from sweeps.search.report import write_report
    from sweeps.tracking.search_runs import log_search_summary

    for search in searches:
        tests = []
        for cell in finals.get(search.name, []):
            if account.status(cell).state == FINISHED:
                tests.append(account.history(cell)[-1]["test_accuracy"])
                tracker.tag(
                    cell.cell_id,
                    {
                        TUNED_BY: search.name,
                        TUNING_BUDGET: budget_text(search),
                        SEARCH_SPACE: ", ".join(search.space.domains),
                    },
                )
        into = folder(search, account)
        write_report(search, into, budget_text(search), tests)
        best = search.best()
        params = {
            "searcher": search.method.sampler,
            "scheduler": search.method.scheduler,
            "search_seed": str(search.method.seed),
            **{f"space.{name}": text(domain) for name, domain in search.space.domains.items()},
            **{name: str(value) for name, value in search.space.base.items() if name not in search.space.domains},
        }
        numbers = {f"trials_{state}": float(count) for state, count in search.counts().items()}
        numbers |= {"epochs_spent": float(search.training_epochs), "training_seconds": search.training_seconds}
        if best is not None:
            numbers["best_val_accuracy"] = best.values[0]
        if tests:
            numbers["tuned_test_accuracy"] = sum(tests) / len(tests)
        log_search_summary(
            places.tracking_uri, places.experiment, account.storage, search.name, params,
            {TUNING_BUDGET: budget_text(search)}, numbers, into,
        )  # fmt: skip
        yield summary(search, tests, into)


def summary(search: Search, tests: list[float], into: Path) -> str:
    """A search in one line. tests: test accuracies of its winner; into: the folder of its report."""
    best = search.best()
    if best is None:
        return f"{search.name}: no complete trial; report in {into}"
    recipe_trial = search.trials[0]
    stopped = " when it was stopped" if recipe_trial.state == TrialState.PRUNED else ""
    own = f", the recipe's own {recipe_trial.values[0]:.2f} %{stopped}" if recipe_trial.values else ""
    tested = f"; test accuracy {sum(tests) / len(tests):.2f} % over {counted(len(tests), 'seed')}" if tests else ""
    return (
        f"{search.name}: best validation accuracy {best.values[0]:.2f} % (trial {best.number}{own}){tested}; "
        f"{search.training_epochs} epochs, {duration(search.training_seconds)} of training; {into}/recipe.json"
    )
