"""What the memory backend promises beyond the conformance suite."""

from __future__ import annotations

import pytest

from amqptasks.results.memory import MemoryBackend
from amqptasks.results.record import ResultRecord


def test_it_keeps_a_bounded_number_of_results():
    # Given room for two / When three come, the first of them reporting again after the second
    backend = MemoryBackend(max_results=2)
    backend.store(ResultRecord("first", "STARTED"))
    backend.store(ResultRecord("second", "SUCCESS"))
    backend.store(ResultRecord("first", "SUCCESS"))
    backend.store(ResultRecord("third", "SUCCESS"))
    # Then the one written longest ago is gone
    assert backend.fetch("second") is None
    assert backend.fetch("first") is not None
    assert backend.fetch("third") is not None


def test_it_keeps_a_bounded_number_of_groups():
    backend = MemoryBackend(max_results=1)
    backend.save_group("g", [["g", None], []])
    backend.save_group("h", [["h", None], []])
    assert backend.fetch_group("g") is None
    assert backend.fetch_group("h") == [["h", None], []]


def test_room_for_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        MemoryBackend(max_results=0)


def test_values_are_kept_as_they_are():
    backend, value = MemoryBackend(), object()
    backend.store(ResultRecord("t", "SUCCESS", value))
    assert backend.wait("t", 0).result is value


def test_what_is_stored_can_be_read_after_closing():
    backend = MemoryBackend()
    backend.store(ResultRecord("t", "SUCCESS", 4))
    backend.close()
    assert backend.wait("t", None).result == 4
