"""What a service tells Prometheus."""

import httpx
from prometheus_client.parser import text_string_to_metric_families


def figures(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """Every figure by its name and its labels' values."""
    text = client.get("/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
