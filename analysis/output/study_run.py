"""One MLflow run that stands for a study: MLflow's pages lead to its tables, figures and page.

It has the tag kind=study and the study's name, no cell_id, and so is never gathered as a cell's run.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, RunTag
from mlflow.exceptions import MlflowException

from analysis.runs import stores
from relvit.files import moved_from
from relvit.secrets import redacted
from relvit.vocabulary import ANALYSIS, KIND, MOST_NOTE, NOTE, STUDY, STUDY_KIND

_STUDIES = "Tables and figures of the studies:"  # how the experiment's description begins


class AttachError(ValueError):
    """Why the outputs of a study are not, or not all, in MLflow. The files themselves are untouched."""


def attach(
    tracking_uri: str,
    experiment: str,
    study: str,
    files: Iterable[Path],
    *,
    description: str = "",
    tags: Mapping[str, str] | None = None,
) -> str:
    """Log files as artifacts, in the folder "analysis", of the run that stands for a study. Returns its id.

    The run is made on the first call and found again later, where files replace those of the same name; if two
    programs made it at once, the older is used from then on. description: Markdown for the run's page.
    Raises AttachError where the store cannot be reached or written, or the experiment does not exist.
    """
    name = redacted(tracking_uri)
    try:
        client = MlflowClient(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise AttachError(f"there is no experiment {experiment!r} in {name}")
        if moved := moved_from(tracking_uri, experiment, found.artifact_location):
            raise AttachError(
                f"MLflow at {name} was moved and would write to where it was, {moved}: run sweeps/reconcile.py or a "
                "sweep once, which lets it know"
            )
        run = find(client, found.experiment_id, study)
        if run is None:
            marks = {KIND: STUDY_KIND, STUDY: study}
            run = client.create_run(found.experiment_id, tags=marks, run_name=study)
        run_id = run.info.run_id
        for path in files:
            client.log_artifact(run_id, str(path), ANALYSIS)
        texts = {**(tags or {}), NOTE: description}
        client.log_batch(run_id, tags=[RunTag(name, text[:MOST_NOTE]) for name, text in texts.items()])
        client.set_terminated(run_id)
        _list_studies(client, found)
    except (MlflowException, OSError) as error:
        why = stores.reason(error, tracking_uri)
        raise AttachError(f"MLflow at {name} did not take the outputs of {study}: {why}") from error
    return run_id


def _list_studies(client: MlflowClient, experiment: Experiment) -> None:
    """Let the experiment's page lead to the studies' pages, unless somebody has described it otherwise."""
    known = experiment.tags.get(NOTE, "")
    if known and not known.startswith(_STUDIES):
        return
    runs = stores.search(client, experiment.experiment_id, f"tags.{KIND} = '{STUDY_KIND}'")
    of = {run.data.tags[STUDY]: run.info.run_id for run in runs if run.data.tags.get(STUDY)}
    links = [f"[{name}](#/experiments/{experiment.experiment_id}/runs/{of[name]})" for name in sorted(of)]
    client.set_experiment_tag(experiment.experiment_id, NOTE, f"{_STUDIES} {', '.join(links)}"[:MOST_NOTE])


def find(client: MlflowClient, experiment_id: str, study: str) -> Run | None:
    """The run that stands for a study, the oldest of several; None where there is none."""
    # The name is compared here: in a filter its quotes would have to be escaped.
    runs = stores.search(client, experiment_id, f"tags.{KIND} = '{STUDY_KIND}'")
    named = [run for run in runs if run.data.tags.get(STUDY) == study]
    return min(named, key=lambda run: (run.info.start_time, run.info.run_id), default=None)
