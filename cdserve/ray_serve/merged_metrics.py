"""Merges the metrics of several replicas in Prometheus' text format."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


class _Merged(Collector):
    def __init__(self, expositions: Mapping[str, str]) -> None:
        self._expositions = expositions

    def collect(self) -> Iterator[Metric]:
        """The metric families, each with the samples of all replicas."""
        families: dict[str, Metric] = {}
        for replica, text in self._expositions.items():
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, LABEL: replica}
                    merged.samples.append(sample._replace(labels=labels))
        yield from families.values()


def merged(expositions: Mapping[str, str]) -> bytes:
    """One exposition with the samples of all replicas, labelled ``replica``.

    Args:
        expositions: the text of ``/metrics`` by replica.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(expositions))
    return generate_latest(registry)
