"""The Ray Tune trainable: one cell a trial, one epoch a report, the checkpoints in the cell's own folder.

Actors are reused from cell to cell (`reset_config`), so that torch is imported once an actor and not once a trial.
Tune's own checkpoints are not used: they belong to a trial, and a trial ends with its driver. A cell's folder under
the storage path belongs to the cell, whoever trains it.
"""

import gc
import platform
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.util import get_node_ip_address

from relvit.cell import Cell
from relvit.files import location
from relvit.host import collect_as_usual
from relvit.task_files import add_tasks_source, sources_of
from relvit.vocabulary import COMPILE, DATA_FINGERPRINT, DEVICE, HOST, IMAGES_OF
from sweeps.account import leases
from sweeps.account.account import Account
from sweeps.account.failures import BAD_DATA, GPU_OOM, HOST_OOM, NOT_FINITE, Setting
from sweeps.account.work import WorkItem
from sweeps.cluster.nodes import this_driver, verify_node
from sweeps.driver.options import Options
from sweeps.planning.plan import datasets_of

# What a report holds beside Ray's own entries.
ROW, NOTES, WORKER, USAGE, FAILURE, FAILURE_CLASS = "row", "notes", "worker", "usage", "failure", "failure_class"

# Of the configuration of a trial, what `train` takes under the same name.
_AS_GIVEN = ("checkpoint_every", "checkpoint_minutes", "keep", "micro_batches", "compile")
TRIAL = "trial"  # the only entry of a trial's configuration: what `trial_config` makes


def trial_config(item: WorkItem, account: Account, setting: Setting, options: Options, lease: str) -> dict[str, Any]:
    """The configuration of one trial: the item as plain values, and where and with what to train it. lease: the name of
    its driver's."""
    cell, checkpoints = item.cell, options.checkpoints
    # A deviation stays with the cell that has it: its pre-training is neither taken over nor left to others.
    shares = cell.has_pretraining and cell.protocol != "pretrain" and not setting.deviation
    return {
        "cell": cell.as_dict(),
        "folder": str(account.folder(cell)),
        "storage": str(account.storage),
        "driver": this_driver(),
        "lease": lease,
        "pretrained": str(account.folder(cell.pretraining())) if shares else None,
        "data_root": str(options.data_root.absolute()),
        "cpus": setting.cpus,
        "gpus": setting.gpus,
        "micro_batches": setting.micro_batches,
        "checkpoint_every": checkpoints.every,
        "checkpoint_minutes": checkpoints.minutes,
        "keep": checkpoints.keep,
        "compile": options.compile,
        "test": item.test,
        "stop_after": item.stop_after,
        "task_files": sources_of(cell.tasks_digest),
        "forked": str(account.folder(item.forked)) if item.forked else None,
    }


class CellTrainable(tune.Trainable):
    """Trains one cell at a time.

    A failure whose class is known here (a loss that is not finite, bad data, memory that is not enough) is reported
    and ends the trial; anything else raises and ends the process. What follows is for account/failures.py to say.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take up the first cell."""
        import relvit.train  # noqa: F401 -- torch and timm, which take seconds and stay

        collect_as_usual()
        self._begin(config[TRIAL])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another cell in the same process."""
        self.cleanup()
        self._begin(new_config[TRIAL])
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        import torch

        for name, text in config["task_files"]:
            add_tasks_source(name, text)
        torch.set_num_threads(max(1, int(config["cpus"])))
        # Never less than the trial was given: a GPU that torch cannot use is its node's failure.
        self._device = "cuda" if config["gpus"] else "cpu"
        self._worker = {HOST: platform.node(), COMPILE: config["compile"]}
        self._notes: list[str] = []
        self._rows = self._train(config)
        self._last_epoch = config["stop_after"]
        if self._last_epoch is None and not config["test"]:
            self._last_epoch = Cell(**config["cell"]).total_epochs

    def _train(self, config: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        from relvit.data import fingerprint_of, load
        from relvit.train import train
        from sweeps.driver.usage import Usage

        # Inside the generator, so that what is wrong with the data is a report like any other failure. What is wrong
        # with the node ends its process instead: the cell may come to another node.
        cell, on_gpu = Cell(**config["cell"]), self._device == "cuda"
        verify_node(config["storage"], config["driver"], get_node_ip_address(), cell.precision if on_gpu else "")
        name = platform.processor() or platform.machine()
        if on_gpu:
            import torch

            name = torch.cuda.get_device_name()
        self._worker[DEVICE] = f"{self._device} ({name})"
        self._usage = Usage(on_gpu)

        datasets = [load(name, Path(config["data_root"]), size, whole) for name, size, whole in datasets_of([cell])]
        self._worker[DATA_FINGERPRINT] = fingerprint_of(dataset.fingerprint for dataset in datasets)
        _, val = datasets[0].train_val(cell.seed, cell.train_images, cell.val_share)
        for split, images in (("val", val), ("test", datasets[0].test)):
            self._worker[IMAGES_OF[split]] = str(len(images))
        yield from train(
            cell,
            datasets[0],
            location(config["folder"]),
            pretrain_dataset=datasets[-1],
            pretrained=location(config["pretrained"]) if config["pretrained"] else None,
            device=self._device,
            gpu_share=config["gpus"] or 1.0,
            test=config["test"],
            stop_after=config["stop_after"],
            forked=location(config["forked"]) if config["forked"] else None,
            permit=partial(leases.require, location(config["storage"]) / "drivers", config["lease"]),
            note=self._notes.append,
            **{name: config[name] for name in _AS_GIVEN},
        )

    def step(self) -> dict[str, Any]:
        """One epoch, or the result."""
        from torch import OutOfMemoryError

        report: dict[str, Any] = {WORKER: self._worker}
        try:
            row = next(self._rows)
            report |= {
                ROW: row,
                USAGE: self._usage.now(),
                "done": row["phase"] == "test" or row["epoch"] == self._last_epoch,
            }
        except (OutOfMemoryError, MemoryError) as error:
            failure = GPU_OOM if isinstance(error, OutOfMemoryError) else HOST_OOM
            report |= self._failed(failure, error)
        except ArithmeticError as error:
            report |= self._failed(NOT_FINITE, error)
        except ValueError as error:
            report |= self._failed(BAD_DATA, error)
        if report.get(FAILURE_CLASS) in (GPU_OOM, HOST_OOM):
            self.cleanup()  # here, where no exception holds the tensors of its frames any more
        report[NOTES], self._notes[:] = list(self._notes), []
        return report

    def _failed(self, failure: str, error: BaseException) -> dict[str, Any]:
        return {FAILURE: f"{type(error).__name__}: {error}", FAILURE_CLASS: failure, "done": True}

    def cleanup(self) -> None:
        """Let go of the cell, and of the memory that it held: the actor may be waiting for its next while another's
        trial needs it."""
        self._rows.close()
        gc.collect()
        if self._device == "cuda":
            import torch

            torch.cuda.empty_cache()
