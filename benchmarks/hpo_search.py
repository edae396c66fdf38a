"""What the hyperparameter search reaches: four measurements, each a subcommand, figures printed and kept as JSON.

    python benchmarks/hpo_search.py samplers   TPE with ASHA against random search at the same number of epochs
    python benchmarks/hpo_search.py overhead   wall time over plain Optuna with two joblib workers on the same trials
    python benchmarks/hpo_search.py kill       SIGKILL at random moments: no trial lost, none trained twice
    python benchmarks/hpo_search.py share      the searcher's own time per trial, up to 500 trials

The claims: `overhead` at most 1.10 times; `kill` ten times without a loss; `share` under 50 ms a trial at the end. All
four train a small ViT on scikit-learn's digits; --epochs, --images, --trials and --repeats scale them. `samplers` takes
other images too, by the recipe `cpu`: --data-root DIR with DIR/cifar10/train/CLASS/*.jpg, and --dataset cifar10.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import optuna
from optuna.trial import TrialState

from relvit.cell import Cell, make_cell
from sweeps.planning.recipes import recipe
from sweeps.search.search import Budget, Method, Search
from sweeps.search.space import make_space


def base_cell(epochs: int, images: int, seed: int, dataset: str = "digits", name: str = "demo") -> Cell:
    """One phase on classification alone: what a trial trains. name: of the recipe."""
    backbone, size = ("vit_xs4", 16) if dataset == "digits" else ("vit_xs8", 32)
    fields = {**recipe(name).for_backbone(backbone, size), "epochs": epochs, "warmup_epochs": 0}
    what = {"dataset": dataset, "pretrain_dataset": dataset, "backbone": backbone, "image_size": size, "seed": seed}
    return make_cell(**{**fields, **what, "protocol": "joint", "tasks": "none", "train_images": images})


def rows_of(cell: Cell, data_root: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a cell's epochs, trained here."""
    from relvit.data import load
    from relvit.train import train

    yield from train(
        cell, load(cell.dataset, data_root, cell.image_size), folder, test=False, checkpoint_every=cell.total_epochs
    )


def samplers(options: argparse.Namespace) -> dict[str, Any]:
    """Best validation accuracy against epochs spent, for both, `--repeats` times."""
    from relvit.data import prepare

    kinds = {"random": Method("random", "none"), "tpe with asha": Method("tpe", "asha")}
    curves: dict[str, list[list[tuple[int, float]]]] = {kind: [] for kind in kinds}
    total = options.trials * options.epochs
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data_root = options.data_root or folder
        prepare(options.dataset, data_root, 16 if options.dataset == "digits" else 32)
        for repeat in range(options.repeats):
            for kind, method in kinds.items():
                seed = 100 + repeat
                method = Method(method.sampler, method.scheduler, None, seed)
                base = base_cell(options.epochs, options.images, seed, options.dataset, "cpu")
                space = make_space(base.as_dict())
                # No point is given: the recipe's own would be the first trial of both.
                url = f"sqlite:///{folder}/{kind.replace(' ', '-')}-{repeat}.db"
                search = Search("benchmark", space, method, Budget(trials=100_000), url)
                curves[kind].append(spend(search, total, data_root, folder))
                spent, best = curves[kind][-1][-1]
                print(f"repeat {repeat}: {kind}: best {best:.2f} % after {spent} epochs, {search.counts()}", flush=True)
            target = curves["random"][repeat][-1][1]
            reached = {kind: first_at(curves[kind][repeat], target) for kind in kinds}
            spent = reached["tpe with asha"]
            ratios.append(spent / reached["random"] if spent else None)
            print(f"repeat {repeat}: epochs to reach random search's best {target:.2f} %: {reached}", flush=True)
    picture(curves, options.out)
    finals = {kind: [curve[-1][1] for curve in each] for kind, each in curves.items()}
    print(f"best validation accuracy: {finals}")
    print(f"epochs of tpe with asha to reach random search's best, over random search's own: {ratios} (None: never)")
    print(f"the same over random search's whole budget of {total} epochs: {relative(curves, total)}")
    return {"epochs": total, "final": finals, "ratio": ratios, "ratio_of_budget": relative(curves, total)}


def relative(curves: dict[str, list[list[tuple[int, float]]]], total: int) -> list[float | None]:
    """Epochs that TPE with ASHA took to random search's final best, as a share of random search's budget."""
    found = []
    for ours, theirs in zip(curves["tpe with asha"], curves["random"]):
        spent = first_at(ours, theirs[-1][1])
        found.append(spent / total if spent else None)
    return found


def spend(search: Search, total: int, data_root: Path, folder: Path) -> list[tuple[int, float]]:
    """Train trials one after the other until `total` epochs are spent. Returns epochs spent and the best so far."""
    spent, best, curve = 0, 0.0, []
    while spent < total:
        asked = search.next()
        place = folder / f"{search.method.sampler}-{asked.cell.cell_id}"
        for row in rows_of(asked.cell, data_root, place):
            spent += 1
            ends = search.report(asked, row)
            if asked.value > best:
                best = asked.value
                curve.append((spent, best))
            if ends or spent >= total:
                break
        if asked.state is not None:
            search.settle(asked)
    return [*curve, (spent, best)]


def first_at(curve: list[tuple[int, float]], target: float) -> int | None:
    """Epochs spent when the best first reached the target."""
    return next((spent for spent, best in curve if best >= target), None)


def picture(curves: dict[str, list[list[tuple[int, float]]]], out: Path) -> None:
    """Both kinds' curves, each repetition thin."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (kind, each), colour in zip(curves.items(), ("#999999", "#3b6ea5")):
        for number, curve in enumerate(each):
            axes.step(*zip(*curve), where="post", color=colour, alpha=0.8, label=kind if number == 0 else None)
    axes.set(xlabel="epochs spent by all trials", ylabel="best validation accuracy in %")
    axes.grid(alpha=0.3)
    axes.legend()
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "hpo_samplers.png", dpi=120)


def share(options: argparse.Namespace) -> dict[str, Any]:
    """Trials of an objective that takes no time: all the time is the searcher's, database included."""
    with tempfile.TemporaryDirectory() as scratch:
        base = base_cell(9, 0, 0)
        base = make_cell(**{**base.as_dict(), **_two_phases()})
        space = make_space(base.as_dict())
        url = f"sqlite:///{scratch}/optuna.db"
        search = Search("benchmark", space, Method("tpe", "asha"), Budget(trials=options.trials), url)
        times, busy = [], []
        while True:
            started, worked = time.perf_counter(), time.process_time()
            asked = search.next()
            if asked is None:
                break
            for epoch in range(1, asked.cell.total_epochs + 1):
                quality = 50 - 10 * abs(asked.cell.learning_rate - 1e-3) / 1e-3 + epoch
                row = {"epoch": epoch, "epoch_seconds": 0.1, "finetune_val_accuracy": quality}
                if search.report(asked, row):
                    break
            search.settle(asked)
            times.append(1000 * (time.perf_counter() - started))
            busy.append(1000 * (time.process_time() - worked))
    print(f"{len(space.domains)} parameters, TPE with ASHA, SQLite, {len(times)} trials")
    for start in range(0, len(times), 100):
        part = times[start : start + 100]
        print(f"trials {start} to {start + len(part) - 1}: mean {statistics.fmean(part):.1f} ms, median "
              f"{statistics.median(part):.1f} ms a trial")  # fmt: skip
    end, work = times[-50:], statistics.fmean(busy[-50:])
    print(f"the last 50: mean {statistics.fmean(end):.1f} ms, median {statistics.median(end):.1f} ms (claim: "
          f"under 50); processor time, without other programs, {work:.1f} ms")  # fmt: skip
    return {"mean_ms": statistics.fmean(end), "median_ms": statistics.median(end), "processor_ms": work}


def _two_phases() -> dict[str, Any]:
    demo = recipe("demo").for_backbone("vit_xs4", 16)
    names = ("pretrain_epochs", "pretrain_learning_rate", "pair_head", "sprel_weight", "abspos_weight", "patch_crop")
    names = (*names, "jitter_probability", "jitter_strength", "greyscale_probability")
    return {**{name: demo[name] for name in names}, "protocol": "pretrain_finetune", "tasks": "sprel+abspos",
            "pretrain_dataset": "digits"}  # fmt: skip


def command(options: argparse.Namespace, *arguments: str) -> list[str]:
    """sweeps/hpo.py on the same kind of trials."""
    settings = {"epochs": options.epochs, "warmup_epochs": 0, "train_images": options.images}
    fields = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    kind = ("--protocol", "joint", "--tasks", "none", "--seeds", "none", "--name", "benchmark")
    return [sys.executable, str(ROOT / "sweeps/hpo.py"), *kind, *fields, "--trials", str(options.trials), *arguments]


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """The command, from its start until the last trial is decided, against two joblib processes of plain Optuna that
    train the same cells, alternating. What the command does then, report and end, is said beside it."""
    ratios = []
    for repeat in range(options.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            started = time.perf_counter()
            arguments = ("--searcher", "random", "--scheduler", "none", "--search-seed", str(500 + repeat))
            with (Path(scratch) / "log").open("w") as log:
                subprocess.run(command(options, *arguments), cwd=scratch, check=True, stdout=log, stderr=log)
            whole, ended = time.perf_counter() - started, datetime.now()
            study = optuna.load_study(study_name="benchmark", storage=f"sqlite:///{scratch}/results/optuna.db")
            after = (ended - max(trial.datetime_complete for trial in study.trials)).total_seconds()
            ours = whole - after
            cells = [json.loads(path.read_text()) for path in Path(scratch).glob("results/cells/*/cell.json")]
            trials = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
            Path(scratch, "cells.json").write_text(json.dumps(cells))
            started = time.perf_counter()
            plain = [sys.executable, str(Path(__file__).resolve()), "plain", "--out", scratch]
            subprocess.run(plain, cwd=scratch, check=True)
            theirs = time.perf_counter() - started
        ratios.append(ours / theirs)
        print(f"repeat {repeat}: {len(trials)} trials: {ours:.1f} s here, {theirs:.1f} s plain Optuna with two joblib "
              f"workers: {ours / theirs:.3f} times; with {after:.1f} s for the report, which plain Optuna does not "
              f"write, {whole / theirs:.3f} times", flush=True)  # fmt: skip
    print(f"median {statistics.median(ratios):.3f} times (claim: at most 1.10)")
    return {"ratios": ratios}


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """Plain Optuna: two processes that take the cells of --out/cells.json one after the other from one SQLite study."""
    from joblib import Parallel, delayed

    cells = json.loads((options.out / "cells.json").read_text())
    url = f"sqlite:///{options.out}/plain.db"
    study = optuna.create_study(storage=url, study_name="plain", direction="maximize")
    for number in range(len(cells)):
        study.enqueue_trial({"cell": number})
    Parallel(n_jobs=2)(delayed(_work)(url, str(options.out), count) for count in (-(-len(cells) // 2), len(cells) // 2))
    return {}


def _work(url: str, folder: str, trials: int) -> None:
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    cells = json.loads((Path(folder) / "cells.json").read_text())

    def objective(trial: optuna.Trial) -> float:
        from relvit.data import load
        from relvit.train import train

        cell = Cell(**cells[trial.suggest_int("cell", 0, len(cells) - 1)])
        best = 0.0
        dataset = load(cell.dataset, Path(folder) / "data", cell.image_size)
        # Checkpoints as our trials write them: what is compared is the engine, not what it keeps.
        for row in train(cell, dataset, Path(folder) / "plain" / cell.cell_id, test=False):
            best = max(best, row["joint_val_accuracy"])
            trial.report(best, row["epoch"])
        return best

    optuna.load_study(study_name="plain", storage=url).optimize(objective, n_trials=trials)


def kill(options: argparse.Namespace) -> dict[str, Any]:
    """Kill the command at a random moment, `--repeats` times, then let it end; count what the database holds."""
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        log = (Path(scratch) / "log").open("w")
        seen: dict[int, tuple[Any, ...]] = {}
        kills = lost = changed = 0
        while kills < options.repeats:
            driver = subprocess.Popen(command(options), cwd=scratch, stdout=log, stderr=log, start_new_session=True)
            # Counted from the first thing that this driver enters: how long a start takes is another matter.
            before = written(scratch)
            while written(scratch) == before and driver.poll() is None:
                time.sleep(0.1)
            wait = generator.uniform(0, options.longest)
            try:
                driver.wait(timeout=wait)
                break  # it ended before it could be killed
            except subprocess.TimeoutExpired:
                os.kill(driver.pid, signal.SIGKILL)
                driver.wait()
                kills += 1
            state = trials_in(scratch)
            lost += len(set(seen) - set(state))
            changed += sum(seen[number] != state.get(number) for number in seen if seen[number][0] != "RUNNING")
            seen = state
            counts = [entry[0] for entry in state.values()]
            states = [entry[0] for entry in state.values()]
            counts = {each: states.count(each) for each in sorted(set(states))}
            print(f"kill {kills} after {wait:.0f} s: {counts}", flush=True)
        status = subprocess.run(command(options), cwd=scratch, stdout=log, stderr=log).returncode
        final = trials_in(scratch)
        lost += len(set(seen) - set(final))
        changed += sum(seen[number] != final.get(number) for number in seen if seen[number][0] != "RUNNING")
        states = [entry[0] for entry in final.values()]
        own = [entry[2] for entry in final.values() if entry[3] is None]
        twice = len(own) - len(set(own))
    print(f"{kills} kills; exit status {status}; trials {len(final)} of {options.trials}: "
          f"{ {each: states.count(each) for each in sorted(set(states))} }")  # fmt: skip
    print(f"lost {lost}, changed after they had ended {changed}, cells trained by two trials {twice} (claim: none)")
    return {"kills": kills, "trials": len(final), "lost": lost, "changed": changed, "twice": twice}


def written(folder: str) -> list[float]:
    """When the database's files were written last."""
    return sorted(path.stat().st_mtime for path in Path(folder).glob("results/optuna.db*"))


def trials_in(folder: str) -> dict[int, tuple[Any, ...]]:
    """Each trial by number: state, value, cell, whose outcome it took over."""
    path = Path(folder) / "results/optuna.db"
    if not path.exists():
        return {}
    url = f"sqlite:///{path}"
    if "benchmark" not in optuna.get_all_study_names(url):
        return {}
    study = optuna.load_study(study_name="benchmark", storage=url)
    return {
        trial.number: (
            trial.state.name,
            tuple(trial.values or ()) if trial.state == TrialState.COMPLETE else None,
            trial.user_attrs.get("cell_id"),
            trial.user_attrs.get("same_as"),
        )
        for trial in study.get_trials(deepcopy=False)
    }


def main() -> None:
    measurements = {"samplers": samplers, "overhead": overhead, "kill": kill, "share": share, "plain": plain}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=measurements)
    parser.add_argument("--trials", type=int, help="trials (default: 40; share: 500)")
    parser.add_argument("--epochs", type=int, default=9, help="epochs of a trial (default: %(default)s)")
    parser.add_argument("--images", type=int, default=500, help="training images (default: %(default)s)")
    parser.add_argument("--repeats", type=int, help="repetitions, or kills (default: 3; kill: 10)")
    parser.add_argument(
        "--longest", type=float, default=20.0, help="seconds of work before a kill, at most (default: 20)"
    )
    parser.add_argument("--dataset", default="digits", help="of samplers: digits or cifar10 (default: %(default)s)")
    parser.add_argument("--data-root", type=Path, help="where its class folders are")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="(default: %(default)s)")
    options = parser.parse_args()
    options.trials = options.trials or (500 if options.what == "share" else 40)
    options.repeats = options.repeats or (10 if options.what == "kill" else 3)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.what in ("samplers", "plain"):
        import torch

        torch.set_num_threads(1)  # the models are so small that a second thread costs more than it brings
    figures = measurements[options.what](options)
    if figures:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"hpo_{options.what}.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
