"""What a search leaves in MLflow beside its trials: one run that stands for it; and what it takes from earlier runs."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType

from relvit.cell import FIELDS, parse_value
from relvit.files import Location, sqlite_file
from relvit.vocabulary import LAST_PHASE, SEARCH_RUN, STORAGE, TRIAL_STATE, val_accuracy
from sweeps.tracking.history import create_experiment

_CANDIDATES = 50


def log_search_summary(
    uri: str,
    experiment: str,
    storage: Location,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    folder: Path,
) -> None:
    """Make or renew the run of a search, with the files of its report as artifacts."""
    client = MlflowClient(uri)
    made = client.get_experiment_by_name(experiment)
    experiment_id = made.experiment_id if made else create_experiment(client, experiment)
    found = client.search_runs(
        [experiment_id], f"tags.{SEARCH_RUN} = '{name}' and tags.{STORAGE} = '{storage}'", ViewType.ACTIVE_ONLY, 1
    )
    if found:
        run_id = found[0].info.run_id
    else:
        run_id = client.create_run(experiment_id, run_name=f"search {name}", tags={SEARCH_RUN: name}).info.run_id
    known = found[0].data.params if found else {}
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, int(time.time() * 1000), 0) for key, value in metrics.items()],
        params=[Param(key, value) for key, value in params.items() if key not in known],
        tags=[RunTag(STORAGE, str(storage)), *(RunTag(key, value[:5000]) for key, value in tags.items())],
    )
    client.log_artifacts(run_id, str(folder))
    client.set_terminated(run_id, "FINISHED")


def earlier_runs(uri: str, experiment: str, same: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of earlier cells with these values that were trained to their end, best validation accuracy first.

    Trials of searches count as ordinary runs do; pruned ones do not.
    """
    path = sqlite_file(uri)
    if path and not path.exists():
        return []
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    metric = val_accuracy(LAST_PHASE[same["protocol"]])
    conditions = " and ".join(f"params.{name} = '{value}'" for name, value in same.items())
    runs = client.search_runs(
        [found.experiment_id], conditions, ViewType.ACTIVE_ONLY, _CANDIDATES, [f"metrics.{metric} DESC"]
    )
    complete = [run for run in runs if run.info.status == "FINISHED" or run.data.tags.get(TRIAL_STATE) == "complete"]
    best = {run.info.run_id: _highest(client, run, metric) for run in complete if metric in run.data.metrics}
    ranked = sorted((run for run in complete if run.info.run_id in best), key=lambda run: -best[run.info.run_id])
    return [
        {name: parse_value(name, run.data.params[name]) for name in FIELDS if name in run.data.params} for run in ranked
    ]


def _highest(client: MlflowClient, run: Run, metric: str) -> float:
    return max(point.value for point in client.get_metric_history(run.info.run_id, metric))
