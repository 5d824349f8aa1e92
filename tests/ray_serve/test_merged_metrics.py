"""Merged metrics of several replicas."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cdserve.ray_serve.merged_metrics import merged


def exposition(count: int) -> str:
    """A replica's exposition with a counter, a histogram and a gauge that no other replica has."""
    registry = CollectorRegistry()
    Counter("answers", "Answers.", ["method"], registry=registry).labels('a"\n b').inc(count)
    Histogram("seconds", "Time.", registry=registry, buckets=(1, 2)).observe(count)
    Gauge(f"own_{count}", "Of one replica.", registry=registry).set(count)
    return generate_latest(registry).decode()


def test_merged_exposition_labels_every_sample_with_its_replica() -> None:
    text = merged({"one": exposition(1), "two": exposition(2)}).decode()
    samples = {
        (sample.name, sample.labels.pop("replica"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["answers_total", "one", 'a"\n b'] == 1
    assert samples["answers_total", "two", 'a"\n b'] == 2
    assert samples["seconds_bucket", "one", "1.0"] == 1
    assert samples["seconds_bucket", "two", "1.0"] == 0
    assert samples["seconds_sum", "two"] == 2
    assert ("own_1", "one") in samples
    assert ("own_1", "two") not in samples


@pytest.mark.parametrize("line", ["# TYPE answers_total counter", "# HELP seconds Time."])
def test_merged_exposition_describes_a_metric_once(line: str) -> None:
    text = merged({"one": exposition(1), "two": exposition(2)}).decode()
    assert text.splitlines().count(line) == 1


def test_merging_one_replica_only_adds_the_label() -> None:
    text = exposition(1)
    labelled = merged({"one": text}).decode()
    assert labelled.count("\n") == text.count("\n")
    assert labelled.replace('{replica="one"}', "").replace(',replica="one"', "") == text
