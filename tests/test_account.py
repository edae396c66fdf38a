"""The account of cells: what is done survives, and one driver holds it."""

import json
import threading
from dataclasses import replace

import pytest
from helpers.accounts import events, finish

from relvit.cell import Cell
from sweeps.account import leases
from sweeps.account.account import FAILED, FINISHED, PLANNED, RUNNING, Account, count_states, remedy
from sweeps.driver.reporter import may_pass
from sweeps.planning.plan import Request, plan_cells


@pytest.fixture
def cells(tmp_path) -> list[Cell]:
    return plan_cells(Request("table4", "demo", tmp_path, combinations=("none", "sprel", "dist")))


def test_a_cell_that_was_never_begun_is_planned(tmp_path, cells):
    assert Account(tmp_path).status(cells[0]).state == PLANNED


def test_states_are_remembered_by_the_next_driver(tmp_path, cells):
    account = Account(tmp_path)
    account.mark(cells[0], RUNNING)
    account.mark(cells[1], FAILED, "loss is nan")
    finish(account, cells[2], [{"epoch": 1, "phase": "test", "test_accuracy": 50.0}])
    again = Account(tmp_path)
    assert [again.status(cell).state for cell in cells] == [RUNNING, FAILED, FINISHED]
    assert again.status(cells[1]).reason == "loss is nan"
    assert again.history(cells[2])[-1]["test_accuracy"] == 50.0
    assert count_states(map(again.status, cells)) == {FINISHED: 1, RUNNING: 1, FAILED: 1, PLANNED: 0}


def test_the_account_names_the_cell_by_its_fields(tmp_path, cells):
    account = Account(tmp_path)
    account.mark(cells[1], RUNNING)
    assert Cell(**json.loads((account.folder(cells[1]) / "cell.json").read_text())) == cells[1]


def test_the_epoch_is_that_of_the_newest_checkpoint(tmp_path, cells):
    account = Account(tmp_path)
    account.mark(cells[0], RUNNING)
    for epoch in (9, 10):
        (account.folder(cells[0]) / f"{epoch:06d}-0123456789abcdef.pt").touch()
    assert account.status(cells[0]).epoch == 10


def test_what_happened_to_a_cell_is_told_in_order(tmp_path, cells):
    account = Account(tmp_path)
    account.mark(cells[0], RUNNING)
    account.mark(cells[0], FAILED, "loss is nan", failure="not_finite")
    Account(tmp_path).mark(cells[0], RUNNING)
    assert events(Account(tmp_path), cells[0]) == [
        (RUNNING, ""),
        (FAILED, "loss is nan"),
        (RUNNING, ""),
    ]
    assert Account(tmp_path).status(cells[0]).failure == ""


def test_all_that_any_command_planned_is_in_the_account(tmp_path, cells):
    Account(tmp_path).plan({cells[0]: ("table4",)})
    Account(tmp_path).plan({cells[1]: ("figure2", "table4")})
    assert Account(tmp_path).planned() == {cells[0]: ("table4",), cells[1]: ("figure2", "table4")}


def test_a_pretraining_that_is_dropped_leaves_nothing(tmp_path, cells):
    account = Account(tmp_path)
    shared = cells[1].pretraining()
    account.folder(shared).mkdir(parents=True)
    for name in ("final-0123456789abcdef.pt", ".final-0123456789abcdef.pt.4711.tmp", "final-0000000000000000.damaged"):
        (account.folder(shared) / name).touch()
    assert account.is_published(shared)
    account.drop_pretraining(shared)
    assert not account.is_published(shared)
    assert not account.folder(shared).exists()


def publish(account, shared):
    account.folder(shared).mkdir(parents=True)
    (account.folder(shared) / "final-0123456789abcdef.pt").touch()


def test_a_pretraining_of_which_all_planned_users_are_finished_is_dropped_whoever_trained_them(tmp_path):
    cell, other = plan_cells(Request("table4", "demo", tmp_path, combinations=("sprel", "dist")))
    account, another = Account(tmp_path), Account(tmp_path)
    same = replace(cell, learning_rate=2 * cell.learning_rate)
    account.plan(dict.fromkeys([cell, same, other], ("table4",)))
    for shared in (cell.pretraining(), other.pretraining()):
        publish(account, shared)
    finish(account, cell, [])
    another.mark(same, FAILED, "loss is nan")  # it will want its pre-training when it is tried again
    account.drop_unused_pretrainings()
    assert account.is_published(cell.pretraining())
    finish(another, same, [])
    account.drop_unused_pretrainings()
    assert not account.is_published(cell.pretraining())
    assert account.is_published(other.pretraining())


def test_a_pretraining_that_is_planned_for_itself_is_not_dropped(tmp_path, cells):
    account, shared = Account(tmp_path), cells[1].pretraining()
    account.plan({cells[1]: ("table4",), shared: ("figure2",)})
    publish(account, shared)
    finish(account, cells[1], [])
    finish(account, shared, [])
    account.drop_unused_pretrainings()
    assert account.is_published(shared)


def test_while_a_search_is_at_work_pretrainings_stay(tmp_path, cells):
    account, shared = Account(tmp_path), cells[1].pretraining()
    account.plan({cells[1]: ("table4",)})
    publish(account, shared)
    finish(account, cells[1], [])
    with leases.hold(tmp_path / "drivers", ["search a"], lost=lambda: None):
        account.drop_unused_pretrainings()
        assert account.is_published(shared)
    account.drop_unused_pretrainings()
    assert not account.is_published(shared)


# A storage path that is something else


def test_a_new_folder_is_marked_as_an_account_and_taken_again(tmp_path):
    assert Account(tmp_path / "results").check() == []
    assert json.loads((tmp_path / "results/account.json").read_text())["form"] == 1
    assert Account(tmp_path / "results").check() == []


def test_the_account_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    (tmp_path / "account.json").write_text('{"form": 2}')
    (problem,) = Account(tmp_path).check()
    assert "a newer version" in problem and "form 2, this one writes 1" in problem
    assert [path.name for path in tmp_path.iterdir()] == ["account.json"]


def test_cells_with_other_fields_are_refused_by_name(tmp_path, cells):
    account = Account(tmp_path)
    account.mark(cells[0], RUNNING)
    path = account.folder(cells[0]) / "cell.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour_space": 0.1}))
    (problem,) = account.check()
    assert "differ in colour_space" in problem


def planned_fields(account, cell, change) -> None:
    """An account that holds nothing but a study, whose cell is changed."""
    account.plan({cell: ("table4",)})
    path = account.storage / "studies/table4.json"
    path.write_text(json.dumps({cell_id: change(fields) for cell_id, fields in json.loads(path.read_text()).items()}))


def test_a_plan_with_other_fields_is_refused_and_not_written_to(tmp_path, cells):
    planned_fields(Account(tmp_path), cells[0], lambda fields: {**fields, "colour_space": 0.1})
    (problem,) = Account(tmp_path).check()
    assert "(studies/table4.json), which differ in colour_space" in problem
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drivers", "studies"]


def test_a_plan_of_before_a_field_came_is_taken(tmp_path, cells):
    planned_fields(Account(tmp_path), cells[0], lambda fields: {k: v for k, v in fields.items() if k != "schedule"})
    assert Account(tmp_path).check() == []


def test_a_plan_that_lacks_a_field_which_always_was_is_refused(tmp_path, cells):
    planned_fields(Account(tmp_path), cells[0], lambda fields: {k: v for k, v in fields.items() if k != "dataset"})
    assert "which differ in dataset" in Account(tmp_path).check()[0]


@pytest.mark.parametrize("content", ["", "[]", '{"a cell": 3}'])
def test_a_plan_that_is_none_is_refused_by_name(tmp_path, content):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/table4.json").write_text(content)
    assert "studies/table4.json does not hold cells" in Account(tmp_path).check()[0]


@pytest.mark.parametrize("content", ['{"form": "one"}', '{"form": null}', "{}", "[]", "no JSON"])
def test_a_marker_that_is_none_is_refused_by_name(tmp_path, content):
    (tmp_path / "account.json").write_text(content)
    assert "account.json is not an account of cells" in Account(tmp_path).check()[0]


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON"])
def test_what_is_no_lease_among_the_leases_is_refused_by_name(tmp_path, content):
    (tmp_path / "drivers").mkdir()
    (tmp_path / "drivers/x.json").write_text(content)
    (tmp_path / "account.json").write_text('{"form": 1}')
    assert "drivers/x.json is not the lease of a driver" in Account(tmp_path).check()[0]


def test_cells_of_before_a_field_came_are_taken(tmp_path, cells):
    account = Account(tmp_path)
    account.mark(cells[0], RUNNING)
    path = account.folder(cells[0]) / "cell.json"
    path.write_text(json.dumps({name: v for name, v in json.loads(path.read_text()).items() if name != "schedule"}))
    assert account.check() == []


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.docx").touch()
    (problem,) = Account(tmp_path).check()
    assert "thesis.docx" in problem
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


@pytest.mark.parametrize("name", ["analysis", "benchmarks"])
def test_a_folder_in_which_only_tables_were_set_or_benchmarks_run_is_taken(tmp_path, name):
    (tmp_path / name).mkdir()
    assert Account(tmp_path).check() == []


def test_a_storage_path_below_a_file_cannot_be_written_and_says_so(tmp_path):
    (tmp_path / "file").touch()
    (problem,) = Account(tmp_path / "file" / "results").check()
    assert problem.startswith(f"the storage path {tmp_path}/file/results cannot be written")


def test_of_a_refused_request_nothing_is_left_where_nothing_was_planned(tmp_path, cells):
    account = Account(tmp_path / "results")
    assert account.check() == []
    with account.hold(cells, lost=lambda: None):
        account.discard_if_empty()
        assert (tmp_path / "results" / "account.json").exists()  # somebody is at work
    account.discard_if_empty()
    assert not (tmp_path / "results").exists()
    account.check()
    account.plan(dict.fromkeys(cells, ("table4",)))
    account.discard_if_empty()
    assert list(account.planned()) == cells
    assert (tmp_path / "results" / "account.json").exists()


def test_a_look_makes_nothing(tmp_path):
    assert Account(tmp_path / "results").look() == []
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("said", "mends"),
    [
        ("AWS Error ACCESS_DENIED during PutObject operation: No response body.", "check AWS_ACCESS_KEY_ID"),
        ("AWS Error INVALID_ACCESS_KEY_ID during PutObject operation: it does not exist", "AWS_ACCESS_KEY_ID"),
        ("AWS Error UNKNOWN (HTTP status 403): SIGNATURE_DOES_NOT_MATCH", "AWS_SECRET_ACCESS_KEY"),
        ("AWS Error NO_SUCH_BUCKET during PutObject operation", "make the bucket"),
        ("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 28", "check endpoint_override"),
        ("No space left on device", "choose another: --storage"),
    ],
)
def test_what_a_store_says_is_told_with_what_mends_it(said, mends):
    assert remedy(OSError(said)).startswith(mends) or mends in remedy(OSError(said))


def test_looking_at_a_storage_path_that_does_not_exist_does_not_make_it(tmp_path, cells):
    account = Account(tmp_path / "results")
    assert account.apparently_held() == set()
    account.status(cells[0])
    assert not (tmp_path / "results").exists()


def test_drivers_that_start_one_study_at_once_lose_nothing_of_what_either_planned(tmp_path):
    cells = plan_cells(Request("table4", "demo", tmp_path))
    together = threading.Barrier(4)

    def plan(part):
        together.wait()
        Account(tmp_path / "results").plan(dict.fromkeys(part, ("table4",)))

    for _ in range(3):
        threads = [threading.Thread(target=plan, args=(cells[number::4],)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert set(Account(tmp_path / "results").planned()) == set(cells)
        (tmp_path / "results/studies/table4.json").unlink()


DAMAGED = ["", '{"state": "fin', "[]", "null", '{"state": "elsewhere"}', "\x00" * 100, '{"state": ["finished"]}']
DAMAGED += ['{"state": "finished", "events": 7}', '{"state": "finished", "micro_batches": "many"}', '{"reason": ""}']
DAMAGED += [r'{"state": "failed", "reason": "\ud800"}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_state_is_named_and_its_cell_is_taken_up_from_its_checkpoints(tmp_path, cells, caplog, content):
    account = Account(tmp_path)
    finish(account, cells[0], [{"epoch": 1, "phase": "test"}])
    account.mark(cells[1], FAILED, "loss is nan")
    state = account.folder(cells[0]) / "state.json"
    state.write_text(content)
    again = Account(tmp_path)
    assert again.check() == []
    assert [status.state for status in again.statuses(cells[:2]).values()] == [PLANNED, FAILED]
    assert f"{state} is damaged" in caplog.text
    again.mark(cells[0], RUNNING)
    assert Account(tmp_path).status(cells[0]).state == RUNNING
    assert state.with_name("state.json.damaged").read_text() == content  # nothing is thrown away


ROW = '{"epoch": 1, "phase": "test", %s}'
NO_ROWS = [
    '[{"epoch"',
    "[7]",
    '[{"phase": "test"}]',
    '[{"epoch": 1, "phase": "lunch"}]',
    '[{"epoch": "1", "phase": "test"}]',
]


@pytest.mark.parametrize(
    "content", [*NO_ROWS, *(f"[{ROW % pair}]" for pair in (r'"\ud800": 1', '"a": "b"', '"a": []'))]
)
def test_a_damaged_history_is_named_and_is_no_history(tmp_path, cells, caplog, content):
    account = Account(tmp_path)
    finish(account, cells[0], [{"epoch": 1, "phase": "test"}])
    (account.folder(cells[0]) / "history.json").write_text(content)
    assert Account(tmp_path).history(cells[0]) == []
    assert "history.json is damaged" in caplog.text


def test_a_folder_in_the_place_of_a_file_is_named_and_set_aside_when_the_file_is_written(tmp_path, cells, caplog):
    account = Account(tmp_path)
    finish(account, cells[0], [{"epoch": 1, "phase": "test"}])
    for name in ("state.json", "history.json"):
        (account.folder(cells[0]) / name).unlink()
        (account.folder(cells[0]) / name / "within").mkdir(parents=True)
    again = Account(tmp_path)
    assert (again.status(cells[0]).state, again.history(cells[0])) == (PLANNED, [])
    assert "state.json is damaged" in caplog.text and "history.json is damaged" in caplog.text
    finish(again, cells[0], [{"epoch": 2, "phase": "test"}])
    assert Account(tmp_path).history(cells[0]) == [{"epoch": 2, "phase": "test"}]
    assert len(list(account.folder(cells[0]).glob("*.damaged/within"))) == 2


@pytest.mark.parametrize("content", ["[]", '{"a": 7}', '{"a": {"tasks": "none"}}', "TASKS"])
def test_a_study_that_holds_no_cells_is_named_with_what_to_do(tmp_path, cells, content):
    account = Account(tmp_path)
    account.plan(dict.fromkeys(cells, ("table4",)))
    path = tmp_path / "studies/table4.json"
    path.write_text(path.read_text().replace('"sprel"', '"lunch"') if content == "TASKS" else content)
    (problem,) = Account(tmp_path).look()
    assert "table4.json" in problem and "another place: --storage" in problem


@pytest.mark.parametrize("content", ['{"form": 99}', '{"form": true}', '{"form": [1]}', "[]", "folder"])
def test_an_account_that_is_none_of_this_version_is_named(tmp_path, content):
    marker = tmp_path / "account.json"
    marker.mkdir() if content == "folder" else marker.write_text(content)
    (problem,) = Account(tmp_path).look()
    assert problem.startswith(str(marker))


def test_a_folder_that_another_user_made_for_himself_is_told_before_the_first_trial(tmp_path, cells, monkeypatch):
    account = Account(tmp_path)
    account.mark(cells[0], RUNNING)
    folder = account.folder(cells[0])
    monkeypatch.setattr("os.access", lambda path, how: path != folder)  # the tests may run as root
    (problem,) = Account(tmp_path).check()
    assert problem.startswith(f"1 folders under the storage path {tmp_path} cannot be written by this user, among them")
    assert str(folder) in problem and "umask 002" in problem


def test_a_permission_that_is_denied_is_not_waited_for():
    assert may_pass(OSError(28, "No space left on device"))
    assert not may_pass(PermissionError(13, "Permission denied"))
