"""Who listens for the states of a task over rpc:// hears of each, however fast they follow each other."""

from __future__ import annotations

import uuid

from amqptasks import App
from amqptasks.results.record import ResultRecord


def test_no_state_is_missed_while_the_listener_is_busy(broker_url: str) -> None:
    # Given a caller that waits and listens, and takes its time over the first state
    with App("listeners", broker=broker_url, backend="rpc://", set_as_current=False) as app:
        backend, task_id = app.backend, str(uuid.uuid4())
        seen: list[str] = []

        def on_record(record: ResultRecord) -> None:
            seen.append(record.status)
            if record.status == "FIRST":
                # When two more come in meanwhile
                backend.store(ResultRecord.now(task_id, "SECOND"))
                backend.store(ResultRecord.now(task_id, "SUCCESS", "done"))

        backend.expect(task_id)
        backend.store(ResultRecord.now(task_id, "FIRST"))

        # Then it hears of all three, in order, and each once
        assert backend.wait(task_id, 20, on_record).result == "done"
        assert seen == ["FIRST", "SECOND", "SUCCESS"]
