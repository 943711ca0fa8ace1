"""The text format of Prometheus, read by Prometheus's own parser."""

from __future__ import annotations

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

from amqptasks.worker.metrics import BUCKETS, Family, Histogram, render


def parsed(*families: Family) -> dict[str, list[tuple[str, dict[str, str], float]]]:
    """What Prometheus reads: kind and name, then each sample's name, labels and value."""
    return {
        f"{each.type} {each.name}": [(sample.name, sample.labels, sample.value) for sample in each.samples]
        for each in text_string_to_metric_families(render(families))
    }


def test_what_is_written_is_what_is_read() -> None:
    odd = 'back\\slash "quoted"\nsecond line ä'
    found = parsed(
        Family("done_total", "counter", 'Help with \\ and\nlines', ("task",), {(odd,): 3}),
        Family("lag", "gauge", "Seconds", (), {(): 0.25}),
        Family("nothing", "gauge", "No values"),
    )  # fmt: skip
    assert found == {
        "counter done": [("done_total", {"task": odd}, 3.0)], "gauge lag": [("lag", {}, 0.25)], "gauge nothing": [],
    }  # fmt: skip


def test_a_histogram_counts_as_prometheuss_does() -> None:
    # Given Prometheus's own histogram and ours / When both see the same, on the bounds and between
    theirs = prometheus_client.Histogram("took", "Time", ["task"], registry=None)
    ours = Histogram("took", "Time", ("task",))
    for number in (0.0, 0.004, 0.005, 0.0051, 0.3, 10.0, 11.0, 0.75):
        theirs.labels("add").observe(number)
        ours.observe(("add",), number)
    # Then they say the same
    expected = {
        (sample.name, sample.labels.get("le")): sample.value
        for metric in theirs.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }
    got = {(name, labels.get("le")): value for name, labels, value in parsed(ours)["histogram took"]}
    assert got == expected
    assert len([name for name, _ in got if name == "took_bucket"]) == len(BUCKETS) + 1
