"""Handles of results, under the names Celery's users import them by."""

from __future__ import annotations

from amqptasks.results.context import allow_join_result, assert_will_not_block, denied_join_result
from amqptasks.results.handles import AsyncResult, EagerResult, GroupResult, ResultBase, ResultSet, result_from_tuple

__all__ = [
    "AsyncResult", "EagerResult", "GroupResult", "ResultBase", "ResultSet", "allow_join_result",
    "assert_will_not_block", "denied_join_result", "result_from_tuple",
]  # fmt: skip
