"""The names that runs carry in MLflow: tags, artifacts, phases and results. Standard library only.

sweeps/tracking writes them and analysis/runs reads them back; neither spells one itself. A run's parameters are the
fields of its cell (relvit/cell.py), so they need no names here.
"""

# Tags of a cell's run
CELL_ID = "cell_id"
STUDY = "study"  # every study that the cell belongs to, sorted and joined by commas: "figure2,table4"
STORAGE = "storage"  # the storage path whose account says what is done
ACCOUNT_ID = "account_id"  # that account's own; two machines may each have one at the same path
METHOD = "method"
PHASE = "phase"  # the phase of the last row that was logged
REASON = "reason"  # why the run failed or was interrupted
FAILURE = "failure"  # the class of that (sweeps/account/failures.py)
DEVIATION = "deviation"  # in what the training differs from the cell's own settings: "micro_batches=4"
DUPLICATE = "duplicate_of"  # another run stands for the cell; a run with this tag has no cell_id
HISTORY_POINTS = "history_points"  # how many points the artifact HISTORY holds
TASK_ROWS = "task_rows"  # what is known of its tasks that come from a file, without their functions
PICTURES_DRAWN = "pictures"  # the pictures that were logged, or "none"

# Where a run comes from: which code, which data, which machine
GIT_COMMIT, GIT_DIRTY, SOURCE_DIGEST = "git_commit", "git_dirty", "source_digest"
DATA_FINGERPRINT = "data_fingerprint"  # of the decoded images and labels
IMAGES_OF = {"val": "images_of_val", "test": "images_of_test"}  # how many images a result of a split is of
DRIVER_HOST, HOST, DEVICE = "driver_host", "host", "device"
COMPILE = "compile"  # the setting: auto, always or never
PACKAGES = ("torch", "timm", "ray")
PYTHON_VERSION = "python_version"
VERSIONS = (PYTHON_VERSION, *(f"{package}_version" for package in PACKAGES))

# Tags of a search's trials, of the cells that it tuned, and of the run that stands for the search
SEARCH, TRIAL, TRIAL_STATE, STOPPED_EPOCH = "search", "trial", "trial_state", "stopped_epoch"
TUNED_BY, TUNING_BUDGET, SEARCH_SPACE = "tuned_by", "tuning_budget", "search_space"
SEARCH_RUN = "search_run"

# Of the run that stands for a study: KIND is STUDY_KIND, and STUDY its name
KIND, STUDY_KIND = "kind", "study"
NOTE, RUN_NAME = "mlflow.note.content", "mlflow.runName"  # what MLflow's own pages show
MOST_NOTE = 5000  # characters that every MLflow store takes for a tag

# Artifacts. Those of a SQLite file lie in `mlruns` beside it, though MLflow keeps absolute paths: see `relvit.files`.
HISTORY = "history.parquet"  # every metric of a run that has ended
CLASSES_TABLE, CONFUSION_TABLE = "evaluation/classes.csv", "evaluation/confusion.csv"  # of the test split
PICTURES = "pictures"  # the folder of sweeps/pictures.py
ANALYSIS = "analysis"  # the folder of analysis/make_tables.py in the run of a study

# Results: the row that a run ends with
SELECTED_EPOCH, TRAINING_SECONDS, TEST_ACCURACY = "selected_epoch", "training_seconds", "test_accuracy"
TEST_KNN_ACCURACY = "test_knn_accuracy"  # what tells of a pre-training alone
PROCESSOR_SECONDS = "training_processor_seconds"
TEST = "test"  # the phase of that row, and the split that it is of
SPLIT = "split"  # of which a study reports its results
# All that the rows of two equal runs may differ in.
SPEEDS = ("images_per_second", "epoch_seconds", "epoch_processor_seconds", TRAINING_SECONDS, PROCESSOR_SECONDS)

# By protocol, the phase that a cell is tested after, with whose name its metrics start.
LAST_PHASE = {"joint": "joint", "pretrain_finetune": "finetune", "pretrain_probe": "probe", "pretrain": "pretrain"}


def val_accuracy(phase: str) -> str:
    """The metric that selects a phase's weights, in per cent of the validation split."""
    return f"{phase}_val_accuracy"
