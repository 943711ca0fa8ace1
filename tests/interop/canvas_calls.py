"""What any program may expect of any worker when it sends workflows; as `Calls`, one list for each pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interop import tasks
from tests.interop.calls import Client, get, lines


class CanvasCalls:
    """The list."""

    def test_maps_run_in_one_call(self, client: Client) -> None:
        add, total = client.task("add"), client.task("total")

        assert get(add.starmap([(1, 2), (3, 4)]).apply_async()) == [3, 7]
        assert get(total.map([[1, 2], [3, 4], []]).apply_async()) == [3, 7, 0]

    def test_a_map_stands_in_a_chain_and_in_a_group(self, client: Client) -> None:
        add, total = client.task("add"), client.task("total")
        doubled = add.starmap([(1, 1), (2, 2)])

        assert get((add.s(1, 1) | doubled | total.s()).apply_async()) == 6
        assert get(client.package.group([doubled, add.s(1, 1)]).apply_async()) == [[2, 4], 2]

    def test_chunks_run_side_by_side(self, client: Client) -> None:
        chunks = client.task("add").chunks(((i, i) for i in range(7)), 3)

        assert get(chunks.group().skew(start=0.1, stop=0.2, step=0.1).apply_async()) == [[0, 2, 4], [6, 8, 10], [12]]

    def test_chains_and_groups_nest(self, client: Client) -> None:
        add, group, chain = client.task("add"), client.package.group, client.package.chain
        inner = chain(add.s(10), group([add.s(100), add.s(200)]))

        assert get(chain(add.s(1, 1), group([add.s(1), inner])).apply_async()) == [3, [112, 212]]
        assert get(chain(group([]), add.s(1, 1), group([]), group([add.s(2)]), add.s(3)).apply_async()) == 7
        assert get(group([group([add.s(1), add.s(2)]), add.s(3)]).apply_async((10,))) == [11, 12, 13]

    def test_links_of_a_step_and_of_a_member_are_called(self, client: Client, tmp_path: Path) -> None:
        # Given callbacks on a step, on a member of a group, and on the whole chain
        path = str(tmp_path / "written")
        add, write = client.task("add"), client.task("write")
        step, member = add.s(10), add.s(100)
        step.link(write.s(path))
        member.link(write.s(path))
        chain = add.s(1, 1) | step | client.package.group([member, add.s(200)])

        # When it runs / Then each is called with its value
        assert get(chain.apply_async()) == [112, 212]
        assert lines(Path(path), 2) == ["112", "12"]

    def test_an_errback_of_a_group_hears_of_each_member(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "written"
        group = client.package.group([client.task("refuse").s("one"), client.task("refuse").s("two")])
        group.link_error(client.task("on_error_id").s(str(path)))
        result = (client.task("add").s(1, 1) | group).apply_async()

        with pytest.raises(tasks.Refused):
            get(result)
        assert lines(path, 2) == sorted(f"id {member.id}" for member in result)

    def test_stamps_are_seen_by_everything_that_is_called(self, client: Client) -> None:
        # Given a canvas that is stamped, and again by a visitor
        stamps = client.task("stamps")

        class Visitor(client.package.canvas.StampingVisitor):  # type: ignore[misc, name-defined]
            def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
                return {"task": sig["task"]}

        canvas = stamps.s() | client.package.group([stamps.s(), stamps.s()])
        canvas.stamp(tenant="acme")
        canvas.stamp(visitor=Visitor())

        # When it runs / Then each of its tasks has both stamps
        result = canvas.apply_async()
        expected = {"tenant": "acme", "task": "interop.stamps"}
        assert get(result) == [expected, expected]
        assert get(result.parent) == expected

    def test_a_replacement_hands_on_to_what_follows(self, client: Client, tmp_path: Path) -> None:
        # Given a task in a chain that becomes two others
        add, become, path = client.task("add"), client.task("become"), tmp_path / "written"
        chain = become.s(add.s(2, 2) | add.s(3)) | add.s(10) | client.task("write").s(str(path))

        # When it runs / Then the rest goes on with their value, under the ids that it had
        result = chain.apply_async()
        assert get(result) == 17
        assert get(result.parent) == 17
        assert lines(path, 1) == ["17"]
