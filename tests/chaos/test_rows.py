"""The rows of the chaos table that are quick and need nothing special, small. ``scripts/chaos`` runs all in full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.rows import LONG, NEEDS, ROWS
from tests.chaos.scene import Scene
from tests.support import PrivateBroker


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    """A broker that the rows may restart and kill."""
    made = PrivateBroker(tmp_path_factory.mktemp("chaos-broker"))
    made.start()
    yield made
    made.delete()


@pytest.mark.deadline(240)
@pytest.mark.parametrize("name", sorted(ROWS.keys() - NEEDS.keys() - LONG))
def test_nothing_is_lost_whatever_fails(name: str, broker: PrivateBroker, tmp_path: Path) -> None:
    # Given tasks that are sent and run, When this fails, and is mended
    verdict = ROWS[name](Scene(tmp_path / name, broker, 0.05))

    # Then everything confirmed has ended, and no more ended twice than is promised
    assert verdict.is_kept, f"{ROWS[name].__doc__}: {verdict}"
    assert verdict.sent > 0
