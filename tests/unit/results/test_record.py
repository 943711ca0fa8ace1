"""The record: Celery's result message, read with tolerance."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from amqptasks.exceptions import DecodeError
from amqptasks.results.record import ResultRecord, supersedes

CELERYS = {
    "task_id": "t", "status": "SUCCESS", "result": 4, "traceback": None, "children": [],
    "date_done": "2026-01-02T03:04:05+00:00", "group_id": "g", "parent_id": "p",
}  # fmt: skip


def test_celerys_message_comes_back_key_for_key():
    assert ResultRecord.from_plain(CELERYS).to_plain() == CELERYS


def test_what_is_not_there_is_left_out():
    assert ResultRecord("t", "STARTED", {"pid": 1}).to_plain() == {
        "task_id": "t", "status": "STARTED", "result": {"pid": 1}, "traceback": None, "children": [], "date_done": None,
    }  # fmt: skip


def test_extended_results_and_stamps_stand_beside_the_rest():
    plain = {**CELERYS, "name": "tasks.add", "args": [1], "retries": 0, "stamped_headers": ["x"], "x": 1}
    record = ResultRecord.from_plain(plain)
    assert record.extra == {"name": "tasks.add", "args": [1], "retries": 0, "stamped_headers": ["x"], "x": 1}
    assert record.to_plain() == plain


def test_extra_cannot_replace_a_field():
    assert ResultRecord("t", "SUCCESS", 4, extra={"status": "FAILURE", "x": 1}).to_plain()["status"] == "SUCCESS"


def test_only_a_final_state_is_dated():
    assert ResultRecord.now("t", "STARTED").date_done is None
    done = datetime.fromisoformat(ResultRecord.now("t", "SUCCESS").date_done or "")
    assert done.tzinfo == timezone.utc


@pytest.mark.parametrize(
    "hostile",
    [None, 5, "text", [], {}, {"task_id": "t"}, {"status": "SUCCESS"}, {"task_id": 5, "status": "SUCCESS"},
     {"task_id": "", "status": "SUCCESS"}, {"task_id": "t", "status": ["SUCCESS"]}, {"task_id": "t", "status": {}}],
)  # fmt: skip
def test_what_does_not_say_which_task_or_state_is_refused(hostile):
    with pytest.raises(DecodeError, match="result message"):
        ResultRecord.from_plain(hostile)


def test_ornaments_of_the_wrong_type_are_dropped():
    record = ResultRecord.from_plain(
        {"task_id": "t", "status": "SUCCESS", "result": 4, "traceback": 5, "children": "x", "date_done": 7,
         "group_id": [], "parent_id": {}, 9: "x"}
    )  # fmt: skip
    assert record == ResultRecord("t", "SUCCESS", 4, children=None)


def test_a_date_that_was_decoded_already_is_taken():
    moment = datetime(2026, 1, 2, tzinfo=timezone.utc)
    assert ResultRecord.from_plain({**CELERYS, "date_done": moment}).date_done == "2026-01-02T00:00:00+00:00"


@pytest.mark.parametrize(
    ("known", "new", "replaces"),
    [
        (None, "STARTED", True), ("STARTED", "PROGRESS", True), ("STARTED", "SUCCESS", True),
        ("RETRY", "STARTED", True),
        ("FAILURE", "STARTED", False), ("FAILURE", "SUCCESS", True), ("FAILURE", "FAILURE", True),
        ("REVOKED", "RETRY", False), ("SUCCESS", "FAILURE", False), ("SUCCESS", "SUCCESS", False),
        ("SUCCESS", "STARTED", False),
    ],
)  # fmt: skip
def test_which_report_may_replace_which(known, new, replaces):
    before = None if known is None else ResultRecord("t", known)
    assert supersedes(ResultRecord("t", new), before) is replaces
