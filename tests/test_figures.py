"""Figures hold the numbers of their frames: what artists show is worked out here a second time, without the product."""

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from helpers.made_runs import conformed_runs, made_runs, planned
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from analysis.paper.cost import cost, cost_table
from analysis.paper.curves import curves, curves_by_tasks
from analysis.paper.drawing import BLACK, LOOKS, NothingToDraw, kinds, zoom
from analysis.paper.figure2 import figure2a, figure2b
from analysis.paper.figures import draw
from analysis.paper.registry import TABLES, find
from analysis.paper.table4 import table4_accuracy, table4_effects, table4_pretraining
from analysis.runs.comparability import conform
from analysis.stats import effects
from relvit.cell import PAPER_TASKS, task_combinations


@pytest.fixture(scope="module")
def table4(tmp_path_factory):
    return conformed_runs(planned(tmp_path_factory.mktemp("data"), "table4"), "table4")


@pytest.fixture(scope="module")
def figure2(tmp_path_factory):
    return conformed_runs(planned(tmp_path_factory.mktemp("data"), "figure2"), "figure2")


def accuracies(runs: pd.DataFrame, tasks: str) -> np.ndarray:
    return runs[runs["tasks"] == tasks].sort_values("seed")["test_accuracy"].to_numpy()


def interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval by its formula."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values) - half, np.mean(values) + half


def over_epochs(runs: pd.DataFrame, metrics: pd.DataFrame, metric: str) -> np.ndarray:
    """[seeds, epochs] of runs that differ in the seed alone."""
    chosen = metrics[metrics["run_id"].isin(runs["run_id"]) & (metrics["metric"] == metric)]
    return np.stack([group.sort_values("step")["value"] for _, group in chosen.groupby("run_id")])


def line(axes, label: str):
    (found,) = [each for each in axes.get_lines() if each.get_label() == label]
    return found


def points(axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    """x of the points with this label, and the ends [points, 2] of their bars."""
    (bars,) = [each for each in axes.containers if each.get_label() == label]
    return bars.lines[0].get_xdata(), np.array([segment[:, 0] for segment in bars.lines[2][0].get_segments()])


# Table 4


def test_table_4s_points_are_means_with_t_intervals_in_the_papers_order(table4):
    runs, metrics = table4
    figure, caption, _ = table4_accuracy(runs, metrics)
    _, ours, theirs = figure.axes
    means, bars = points(ours, "ours")
    for number, tasks in enumerate(task_combinations()):
        values = accuracies(runs, tasks)
        assert means[number] == pytest.approx(np.mean(values))
        assert bars[number] == pytest.approx(interval(values))
    # The published column, from the paper's Table 4.
    assert list(line(theirs, "paper").get_xdata()) == [
        85.38, 89.02, 89.27, 88.75, 89.39, 89.24, 90.12, 90.13, 89.34, 89.75, 89.90, 88.81, 89.80, 89.73, 89.67, 90.06,
    ]  # fmt: skip
    assert "seeds 0, 1, 2; commit 0123456789." in caption
    assert "not in the paper's Table 4" in caption  # digits stand in for CIFAR-10


def test_the_matrix_beside_the_points_marks_each_rows_tasks(table4):
    figure, *_ = table4_accuracy(*table4)
    matrix = figure.axes[0]
    columns = [label.get_text() for label in matrix.get_xticklabels()]
    assert columns == ["AbsPos", "Ang", "Dist", "SpRel"]
    marked: dict[int, set[str]] = {}
    for each in matrix.get_lines():
        if each.get_color() == BLACK:
            marked[int(each.get_ydata()[0])] = {columns[int(x)].lower() for x in each.get_xdata()}
    named = {row: set(tasks.split("+")) for row, tasks in enumerate(task_combinations()) if tasks != "none"}
    assert marked == named


def test_comparable_runs_share_the_axis_with_the_papers_numbers(tmp_path):
    cells = planned(tmp_path, "table4", recipe="paper", settings=())
    runs, metrics = conformed_runs(cells, "table4")
    figure, caption, _ = table4_accuracy(runs, metrics)
    assert len(figure.axes) == 2
    assert {label.get_label() for label in figure.axes[1].containers} == {"ours"}
    assert line(figure.axes[1], "paper") is not None
    assert "Not comparable" not in caption


def test_effects_are_those_of_the_16_cells_and_the_papers_beside_them(table4):
    runs, metrics = table4
    figure, caption, _ = table4_effects(runs, metrics)
    axes, theirs = figure.axes  # CIFAR-10's effects have an axis of their own beside those on digits
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[:4] == ["SpRel", "Dist", "Ang", "AbsPos"]
    assert len(labels) == 4 + 6 + 4 + 4
    means, bars = points(axes, "ours")
    expected = effects.main_effects_and_interactions(runs)
    for number, task in enumerate(PAPER_TASKS):
        assert means[number] == pytest.approx(expected.loc[task, "mean"])
        assert bars[number] == pytest.approx(tuple(expected.loc[task, ["low", "high"]]))
    # AbsPos in the paper, within the 15 (test_effects.py works the model out).
    assert line(theirs, "paper").get_xdata()[3] == pytest.approx(0.661, abs=1e-3)
    assert "Not comparable with the paper, which has an axis of its own: data set digits" in caption


def test_comparable_effects_share_the_axis_with_the_papers(tmp_path):
    figure, caption, _ = table4_effects(
        *conformed_runs(planned(tmp_path, "table4", recipe="paper", settings=()), "table4")
    )
    (axes,) = figure.axes
    assert line(axes, "paper") is not None
    assert "Not comparable" not in caption


def test_each_panel_of_the_learning_curves_has_its_tasks_beside_the_supervised_cell(table4):
    runs, metrics = table4
    figure, *_ = curves_by_tasks(runs, metrics)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels[:5]] == ["SpRel", "Dist", "Ang", "AbsPos", "SpRel + Dist"]
    for axes, tasks in zip(panels, [tasks for tasks in task_combinations() if tasks != "none"]):
        supervised, relvit = axes.get_lines()
        for drawn, name in ((supervised, "none"), (relvit, tasks)):
            values = over_epochs(runs[runs["tasks"] == name], metrics, "finetune_val_accuracy")
            assert list(drawn.get_xdata()) == [1, 2, 3, 4]  # epochs of fine-tuning, not of the run
            assert drawn.get_ydata() == pytest.approx(values.mean(0))


def test_pre_training_shows_each_task_alone_and_among_all_four(table4):
    runs, metrics = table4
    figure, *_ = table4_pretraining(runs, metrics)
    for axes, task, metric in zip(figure.axes, PAPER_TASKS, ("sprel_accuracy", "dist_mse_x100", "ang_mse_x100")):
        for label, tasks in (("the task alone", task), ("all four tasks", "+".join(PAPER_TASKS))):
            values = over_epochs(runs[runs["tasks"] == tasks], metrics, f"pretrain_val_{metric}")
            assert line(axes, label).get_ydata() == pytest.approx(values.mean(0))
        assert len(axes.get_lines()) == 8  # half of the 16 cells have the task


def test_the_axis_of_curves_is_that_of_what_follows_the_first_quarter_of_the_epochs():
    rising = pd.DataFrame({"mean": [10.0, 90.0, 94.0, 96.0, 98.0], "std": 1.0}, index=[1, 2, 3, 4, 5])
    axes = Figure().subplots()
    assert "begin outside" in zoom(axes, [rising, rising + [0.5, 0.0]])
    assert axes.get_ylim() == pytest.approx((89.0 - 0.525, 99.5 + 0.525))  # of 89 to 99.5, and a twentieth
    assert "begin outside" in zoom(axes, [-rising.assign(std=-1.0)])  # an error falls
    assert axes.get_ylim() == pytest.approx((-99.0 - 0.5, -89.0 + 0.5))
    assert zoom(axes, [rising[1:].set_axis([1, 2, 3, 4]).assign(std=np.nan)[1:]]) == ""


# Figure 2


def test_figure_2a_has_the_four_settings_with_bands_of_one_standard_deviation(figure2):
    runs, metrics = figure2
    figure, caption, _ = figure2a(runs, metrics)
    (axes,) = figure.axes
    settings = {
        "PE": (True, False), "PE + Perm": (True, True), "no PE": (False, False), "no PE + Perm": (False, True),
    }  # fmt: skip
    assert {each.get_label() for each in axes.get_lines()} == set(settings)
    for (label, (embedding, permuted)), band in zip(settings.items(), axes.collections):
        chosen = runs[(runs["pretrain_position_embedding"] == embedding) & (runs["permute_patches"] == permuted)]
        values = over_epochs(chosen[chosen["tasks"] == "sprel"], metrics, "pretrain_val_sprel_accuracy")
        assert values.shape == (3, 3)
        assert line(axes, label).get_ydata() == pytest.approx(values.mean(0))
        corners = band.get_paths()[0].vertices
        mean, std = values.mean(0)[1], values.std(0, ddof=1)[1]
        heights = corners[corners[:, 0] == 2][:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((mean - std, mean + std))
    assert "one standard deviation" in caption


def test_figure_2b_has_random_initialisation_as_the_dashed_line(figure2):
    runs, metrics = figure2
    figure, *_ = figure2b(runs, metrics)
    (axes,) = figure.axes
    random = line(axes, "random initialisation")
    values = over_epochs(runs[runs["tasks"] == "none"], metrics, "joint_val_accuracy")
    assert random.get_ydata() == pytest.approx(values.mean(0))
    assert random.is_dashed()
    chosen = runs[runs["pretrain_position_embedding"] & ~runs["permute_patches"] & (runs["tasks"] == "sprel")]
    assert line(axes, "PE").get_ydata() == pytest.approx(over_epochs(chosen, metrics, "finetune_val_accuracy").mean(0))
    assert list(line(axes, "PE").get_xdata()) == [1, 2, 3, 4]


def test_a_single_seed_has_lines_and_no_bands(tmp_path):
    runs, metrics = conformed_runs(planned(tmp_path, "figure2", seeds=(5,)), "figure2")
    figure, caption, _ = figure2a(runs, metrics)
    assert not figure.axes[0].collections
    assert len(figure.axes[0].get_lines()) == 4
    assert "A single seed: there are no bands." in caption


# Any study


def test_the_front_of_cost_and_accuracy_by_hand(tmp_path):
    cells = planned(tmp_path, "table4", seeds=(0,), combinations=("none", "sprel", "dist", "ang"))
    runs, _ = conformed_runs(cells, "table4")
    runs = runs.set_index("tasks", drop=False)
    # dist costs more than sprel and is worse; ang costs the most and is the best.
    for tasks, seconds, accuracy in (("none", 60, 70), ("sprel", 120, 80), ("dist", 180, 75), ("ang", 240, 81)):
        runs.loc[tasks, ["training_seconds", "test_accuracy"]] = seconds, accuracy
    table = cost_table(runs.reset_index(drop=True)).droplevel(["dataset", "backbone"])
    assert dict(table["minutes"]) == {"Supervised": 1.0, "SpRel": 2.0, "Dist": 3.0, "Ang": 4.0}
    assert dict(table["front"]) == {"Supervised": True, "SpRel": True, "Dist": False, "Ang": True}


def test_cost_on_a_cpu_is_processor_time_whatever_else_the_machine_did(table4):
    runs, metrics = table4
    measured = runs.assign(training_processor_seconds=90.0)
    assert set(cost_table(measured)["minutes"]) == {1.5}
    figure, caption, _ = cost(measured, metrics)
    assert figure.axes[0].get_xlabel() == "Processor time (s)"
    assert "what else the machine did" not in caption
    # On a GPU the processor waits, and a run of an older version knows the clock's time alone.
    for other in (
        measured.assign(device="cuda (made up)"),
        runs,
        measured.assign(training_processor_seconds=[None] + [90.0] * 47),
    ):
        assert set(cost_table(other)["minutes"]) != {1.5}
        figure, caption, _ = cost(other, metrics)
        assert figure.axes[0].get_xlabel() == "Training time (s)"
        assert "depends on what else the machine did" in caption


def test_every_seed_stands_behind_its_mean(table4):
    runs, metrics = table4
    for axes, place in ((table4_accuracy(runs, metrics)[0].axes[1], 0), (cost(runs, metrics)[0].axes[0], 1)):
        seeds = [each.get_data()[place] for each in axes.get_lines() if each.get_markersize() < 2 and each.get_alpha()]
        assert sorted(np.concatenate(seeds)) == pytest.approx(sorted(runs["test_accuracy"]))


def test_runs_that_were_all_measured_otherwise_have_no_cost_of_accuracy(tmp_path):
    runs, _ = made_runs(planned(tmp_path, "table4"), "table4")
    with pytest.raises(NothingToDraw, match="no finished run has both training_seconds and test_accuracy"):
        cost_table(conform(runs.drop(columns="test_accuracy")))


def test_numbers_on_the_front_do_not_overlap_and_the_key_names_them(table4):
    runs, metrics = table4
    tasks_of = runs["tasks"].str.split("+").map(len)
    # Clusters, as where time depends on the number of tasks: half a second apart, each a little better than the last.
    runs = runs.assign(training_seconds=60.0 * tasks_of + np.arange(len(runs)) / 100)
    runs = runs.assign(test_accuracy=80 + runs["training_seconds"] / 100 + 0.3 * (runs["seed"] - 1))
    figure, caption, _ = cost(runs, metrics)
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts]
    assert len(boxes) > 1
    assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])
    ends = [int(end) for text in axes.texts for end in (text.get_text().split("–")[0], text.get_text().split("–")[-1])]
    front = cost_table(runs).query("front").sort_values("minutes").index.get_level_values("kind")
    assert ends == sorted(ends)
    assert (ends[0], ends[-1]) == (1, len(front))
    key = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert [f"{number} {kind}" for number, kind in enumerate(front, start=1)] == key[: len(front)]


def test_of_several_panels_the_caption_names_the_fronts(tmp_path):
    runs, metrics = conformed_runs(planned(tmp_path, "table2", recipe="cpu"), "table2")
    _, caption, _ = cost(runs, metrics)
    front = cost_table(runs).query("front and dataset == 'svhn'").sort_values("minutes").index.get_level_values("kind")
    assert f"SVHN, ViT-XS/8: 1 {front[0]}" in caption


def test_a_short_interval_is_not_hidden_by_its_dot_nor_a_heading_crossed_by_the_zero_line(table4):
    figure, *_ = table4_effects(*table4)
    axes = figure.axes[0]
    (bars,) = [each for each in axes.containers if each.get_label() == "ours"]
    dot, caps, _ = bars.lines
    assert all(cap.get_markersize() > dot.get_markersize() for cap in caps)
    (zero,) = [line for line in axes.get_lines() if list(line.get_xdata()) == [0, 0]]
    for heading in axes.texts:
        assert heading.get_zorder() > zero.get_zorder()
        assert to_rgb(heading.get_bbox_patch().get_facecolor()) == (1, 1, 1)


def test_kinds_are_named_by_what_tells_them_apart(tmp_path, figure2):
    runs, _ = figure2
    assert set(kinds(runs)) == {
        "SpRel, PE, no Perm", "SpRel, PE, Perm", "SpRel, no PE, no Perm", "SpRel, no PE, Perm", "Supervised",
    }  # fmt: skip
    mega, _ = conformed_runs(planned(tmp_path, "mega"), "mega")
    assert set(kinds(mega)) == {f"SpRel + AbsPos, mega_grid={side}" for side in (0, 2, 3)}


def test_a_study_over_data_sets_has_a_panel_for_each(tmp_path):
    runs, metrics = conformed_runs(planned(tmp_path, "table2", recipe="cpu"), "table2")
    figure, *_ = curves(runs, metrics)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert len(panels) == 5
    svhn = runs[(runs["dataset"] == "svhn") & (runs["tasks"] == "sprel+abspos")]
    drawn = line(panels["SVHN, ViT-XS/8"], "SpRel + AbsPos")
    assert drawn.get_ydata() == pytest.approx(over_epochs(svhn, metrics, "finetune_val_accuracy").mean(0))


def test_sixteen_combinations_in_another_protocol_are_drawn_as_table_4s(tmp_path):
    runs, metrics = conformed_runs(
        planned(
            tmp_path, "probe", seeds=(0,), settings=("pretrain_epochs=3", "epochs=4", "warmup_epochs=1", "probe=sgd")
        ),
        "probe",
    )
    figure, caption, _ = curves(runs, metrics)
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 15
    assert figure.get_supxlabel() == "Linear probing epoch"
    assert caption.startswith("Validation accuracy over linear probing with the tasks named")


def test_more_kinds_than_can_be_told_apart_are_refused(tmp_path):
    cells = planned(tmp_path, "table4", seeds=(0,), combinations=("none", "sprel", "dist", "ang", "abspos"))
    other = planned(tmp_path, "table4", seeds=(0,), combinations=("sprel", "dist", "ang"), settings=("epochs=30",))
    runs, metrics = conformed_runs([*cells, *other], "own")
    with pytest.raises(NothingToDraw, match="has 8 kinds of cells, more than the 7 lines"):
        curves(runs, metrics)


# Files

OTHER_DATA = "table4-forest is not drawn: no finished run has a data set and backbone of the paper's table"


def test_files_are_as_wide_as_a_column_or_the_page_and_hold_their_caption(table4, tmp_path):
    paths = draw(TABLES["table4"], *table4, tmp_path).paths
    assert [path.name for path in paths] == [
        f"table4-{name}{suffix}"
        for name in ("accuracy", "effects", "curves", "pretraining", "cost", "order")
        for suffix in (".pdf", ".png")
    ]
    widths = {"accuracy": 3.25, "effects": 3.25, "curves": 6.875, "pretraining": 6.875, "cost": 3.25, "order": 6.875}
    for name, inches in widths.items():
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ", (tmp_path / f"table4-{name}.pdf").read_bytes())
        assert float(box[1]) == pytest.approx(72 * inches)
        with Image.open(tmp_path / f"table4-{name}.png") as image:
            assert image.width == pytest.approx(300 * inches, abs=1)
            assert "commit 0123456789" in image.info["Description"]


def test_the_same_frames_give_the_same_bytes_whatever_the_users_settings(figure2, tmp_path):
    first = draw(TABLES["figure2"], *figure2, tmp_path / "first").paths
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9}):
        second = draw(TABLES["figure2"], *figure2, tmp_path / "second").paths
        assert matplotlib.rcParams["font.size"] == 20  # and leaves them alone
    runs, metrics = figure2  # as they are after Parquet, where repeated texts are categories
    third = draw(
        TABLES["figure2"], runs.convert_dtypes(), metrics.astype({"run_id": "category", "metric": "category"}), tmp_path
    ).paths
    assert third
    for one, other in zip([*first, *first], [*second, *third]):
        assert one.read_bytes() == other.read_bytes()
        assert b"CreationDate" not in one.read_bytes()


def test_a_figure_that_lacks_data_is_left_out_with_a_sentence_and_its_older_file_kept(table4, tmp_path):
    runs, metrics = table4
    (tmp_path / "table4-effects.pdf").write_text("older")
    notes = []
    some = runs[runs["tasks"].isin(["none", "sprel", "dist+ang"])]
    paths = draw(TABLES["table4"], some, metrics, tmp_path, notes.append).paths
    drawn = ("accuracy", "curves", "pretraining", "cost", "order")
    assert {path.stem for path in paths} == {f"table4-{name}" for name in drawn}
    assert notes == [
        "table4-effects is not drawn: no seed has all cells that an effect needs; 39 have no result",  # 3 x 13
        OTHER_DATA,
    ]
    assert (tmp_path / "table4-effects.pdf").read_text() == "older"


@pytest.mark.parametrize("study", ["table4", "figure2", "table2", "own"])
def test_without_a_finished_run_nothing_is_drawn_and_each_figure_says_so(study, table4, tmp_path):
    runs, metrics = table4
    notes = []
    assert draw(find(study, runs), runs.assign(status="FAILED"), metrics, tmp_path, notes.append).paths == []
    assert notes
    assert all(note.endswith(": no run is finished") for note in notes)


def test_runs_without_a_history_still_have_their_points(table4, tmp_path):
    runs, metrics = table4
    notes = []
    paths = draw(TABLES["table4"], runs, metrics[:0], tmp_path, notes.append).paths
    assert {path.stem for path in paths} == {"table4-accuracy", "table4-effects", "table4-cost", "table4-order"}
    assert len(notes) == 3


def test_a_run_that_a_crash_left_without_its_fields_is_passed_over(table4, figure2, tmp_path):
    for study, (runs, metrics) in {"table4": table4, "figure2": figure2}.items():
        known = ["run_id", "cell_id", "status", "start_time", "study"]
        bare = runs[:1].reindex(columns=known).assign(run_id="bare").reindex(columns=runs.columns)
        types = {"tasks": "string", "status": "string", "pretrain_position_embedding": "boolean"}
        both = pd.concat([bare, runs], ignore_index=True).astype(types)
        notes = []
        clean = draw(find(study, runs), runs, metrics, tmp_path / "clean", notes.append).paths
        drawn = draw(find(study, runs), both, metrics, tmp_path / "bare", notes.append).paths
        assert set(notes) <= {OTHER_DATA}
        for one, other in zip(clean, drawn, strict=True):
            assert one.name == other.name
        points = pd.DataFrame([cost_table(each)["mean"].sum() for each in (runs, both)])
        assert points[0][0] == pytest.approx(points[0][1])


def test_two_settings_in_one_figure_are_refused_not_averaged(table4, tmp_path):
    runs, metrics = table4
    twice = pd.concat([runs, runs.assign(run_id=runs["run_id"] + "again")], ignore_index=True)
    notes = []
    assert draw(TABLES["table4"], twice, metrics, tmp_path, notes.append).paths == []
    assert all("several finished runs" in note for note in notes if note != OTHER_DATA)


def test_looks_differ_in_colour_in_dashes_and_in_marker():
    for part in ("color", "linestyle", "marker"):
        assert len({str(getattr(look, part)) for look in LOOKS}) == len(LOOKS)
    # No line is too pale on white paper, printed in grey (ITU-R BT.601 weights).
    assert all(np.dot(to_rgb(look.color), (0.299, 0.587, 0.114)) < 0.75 for look in LOOKS)


def test_a_dollar_in_a_name_is_a_dollar(table4, tmp_path):
    runs, metrics = table4
    some = runs[runs["tasks"].isin(["none", "sprel"])]
    named = some.assign(dataset=np.where(some["tasks"] == "none", "$_$", "a$b"))
    assert draw(find("own", named), named, metrics, tmp_path).paths  # as mathematics "$_$" could not be drawn
