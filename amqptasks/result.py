"""Handles of results, under the names Celery's users import them by."""

from __future__ import annotations

from amqptasks.results.context import allow_join_result, assert_will_not_block, denied_join_result
from amqptasks.results.eager import EagerResult
from amqptasks.results.handles import AsyncResult, GroupResult, result_from_tuple
from amqptasks.results.relations import ResultBase
from amqptasks.results.sets import ResultSet

__all__ = [
    "AsyncResult", "EagerResult", "GroupResult", "ResultBase", "ResultSet", "allow_join_result",
    "assert_will_not_block", "denied_join_result", "result_from_tuple",
]  # fmt: skip
