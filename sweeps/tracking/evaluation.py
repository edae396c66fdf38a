"""How a finished run did on each class, as artifacts that MLflow's pages show as tables."""

import csv
import io
import json
import logging

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from relvit.evaluation import EVALUATION, by_class
from relvit.files import Location
from relvit.vocabulary import CLASSES_TABLE, CONFUSION_TABLE

_LOGGER = logging.getLogger(__name__)


def attach_evaluation(client: MlflowClient, run_id: str, folder: Location) -> None:
    """Log the tables of the cell in `folder`: accuracy by class, and the confusion matrix with a row a true class.

    A cell that an older version finished, or that classifies nothing, has none. What cannot be read or logged is left
    out with a warning: the folder has it all.
    """
    try:
        found = json.loads((folder / EVALUATION).read_text())
        rows = by_class(found)
        matrix = [[name, *answers] for name, answers in zip(found["classes"], found["confusion"], strict=True)]
        client.log_text(run_id, _csv([[*rows[0]], *([*row.values()] for row in rows)]), CLASSES_TABLE)
        client.log_text(run_id, _csv([["true class", *found["classes"]], *matrix]), CONFUSION_TABLE)
    except FileNotFoundError:
        return
    except (MlflowException, OSError, ImportError, ValueError, LookupError, TypeError, AttributeError) as error:
        _LOGGER.warning("run %s ends without %s: %s", run_id, CLASSES_TABLE, error)


def _csv(rows: list[list]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(
        [f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row] for row in rows
    )
    return buffer.getvalue()
