"""Prometheus' text, read back into stats: for who looks at a process from outside."""

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from pool_telemetry import catalog
from pool_telemetry.catalog import CATALOG, POOL_ATTRIBUTES, Metric
from pool_telemetry.prometheus import prometheus_label, prometheus_name
from pool_telemetry.state.histogram import POOL_BOUNDS
from pool_telemetry.stats import (
    CLOSE_REASONS,
    OUTCOMES,
    ClientStats,
    HistogramStats,
    OperationStats,
    PoolStats,
)

_POOL: Final = tuple(map(prometheus_label, POOL_ATTRIBUTES))
_OWN: Final = {prometheus_name(m): tuple(map(prometheus_label, m.attributes)) for m in CATALOG}
_STARTED: Final = "process_start_time_seconds"  # prometheus_client's own collector has it
_EMPTY: Final = HistogramStats(POOL_BOUNDS, (0,) * (len(POOL_BOUNDS) + 1), 0.0, 0.0)

_Labels = tuple[str, ...]
_Values = Mapping[tuple[str, _Labels], Mapping[_Labels, float]]
"""By a sample's name and the pool's labels: by the values of all other labels, the value."""


def read(text: str, at: float) -> list[ClientStats]:
    """Return the clients of a process as its `/metrics` tells them; what that lacks is unknown.

    Args:
        text: Prometheus' text format.
        at: Unix time at which it was true.
    """
    values, started = _values(text)
    since = started or at  # where that is not told, what is usual has no rate
    clients: dict[str, list[PoolStats]] = {}
    operations: dict[str, list[OperationStats]] = defaultdict(list)
    for name, labels in values:
        client, _, address = labels[0].rpartition("@")
        if name == prometheus_name(catalog.CONNECTIONS):
            clients.setdefault(client, []).append(_pool(values, labels))
        elif name == prometheus_name(catalog.OPERATION_SECONDS) + "_count" and address:
            operations[client] += _operations(values, labels)
    return [
        ClientStats(
            name=client,
            pools=tuple(pools),
            operations=tuple(operations[client]),
            telemetry_errors=0,
            since=since,
            at=at,
        )
        for client, pools in clients.items()
    ]


def _values(text: str) -> tuple[_Values, float | None]:
    started: float | None = None
    found: dict[tuple[str, _Labels], dict[_Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            base = sample.name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            if sample.name == _STARTED:
                started = sample.value
            if (own := _OWN.get(sample.name, _OWN.get(base))) is not None:
                pool = tuple(sample.labels.get(label, "") for label in _POOL)
                rest = tuple(sample.labels.get(label, "") for label in own)
                if "le" in sample.labels:
                    rest += (sample.labels["le"],)
                found[sample.name, pool][rest] = sample.value
    return found, started


def _pool(values: _Values, labels: _Labels) -> PoolStats:
    def value(metric: Metric, *of: str) -> float | None:
        return values.get((prometheus_name(metric), labels), {}).get(of)

    def number(metric: Metric, *of: str) -> int:
        return int(value(metric, *of) or 0)

    idle, in_use = number(catalog.CONNECTIONS, "idle"), number(catalog.CONNECTIONS, "used")
    max_size, held_idle = value(catalog.MAX_SIZE), value(catalog.HELD_IDLE)
    ready, up = value(catalog.READY), value(catalog.SERVER_UP)
    exhausted = bool(number(catalog.EXHAUSTED))
    longest = value(catalog.LONGEST_CHECKOUT) or 0.0
    return PoolStats(
        host=labels[1],
        port=int(labels[2]) if labels[2] else None,
        phase="closed" if ready is None else "ready" if ready else "paused",
        max_size=None if max_size is None else int(max_size),
        min_size=number(catalog.MIN_SIZE),
        size=idle + in_use + number(catalog.OPENING),
        in_use=in_use,
        opening=number(catalog.OPENING),
        waiting=number(catalog.WAITING),
        oldest_wait=value(catalog.OLDEST_WAIT) or 0.0,
        longest_checkout=longest,
        exhausted=exhausted,
        exhaustions=number(catalog.EXHAUSTIONS),
        exhausted_time=value(catalog.EXHAUSTED_SECONDS) or 0.0,
        since_exhausted=0.0 if exhausted else None,
        since_timeout=None,
        stalled_time=0.0,
        checkouts={outcome: number(catalog.CHECKOUTS, outcome) for outcome in OUTCOMES},
        created=number(catalog.CREATED),
        closed={reason: number(catalog.CLOSED, reason) for reason in CLOSE_REASONS},
        cleared=number(catalog.CLEARED),
        up=None if up is None else bool(up),
        since_up_changed=0.0,
        outage=0.0,
        down_reason=None,
        rtt=value(catalog.SERVER_RTT),
        wait_time=_histogram(values, catalog.WAIT_SECONDS, labels),
        use_time=_histogram(values, catalog.USE_SECONDS, labels),
        create_time=_histogram(values, catalog.CREATE_SECONDS, labels),
        peak_waiting=number(catalog.PEAK_WAITING),
        long_checkouts=number(catalog.LONG_CHECKOUTS),
        retries=number(catalog.RETRIES),
        held_idle=None if held_idle is None else int(held_idle),
        longest_idle=longest if held_idle else 0.0,  # of the two the text has one
    )


def _operations(values: _Values, labels: _Labels) -> list[OperationStats]:
    metric = catalog.OPERATION_SECONDS
    return [
        OperationStats(
            host=labels[1],
            port=int(labels[2]) if labels[2] else None,
            namespace=of[1],
            collection=of[2],
            operation=of[3],
            error_type=of[4],
            status_code=of[5],
            duration=_histogram(values, metric, labels, of),
        )
        for of in values[prometheus_name(metric) + "_count", labels]
    ]


def _histogram(
    values: _Values, metric: Metric, labels: _Labels, of: _Labels = ()
) -> HistogramStats:
    name = prometheus_name(metric)
    buckets = values.get((name + "_bucket", labels), {})
    below = [count for key, count in buckets.items() if key[:-1] == of]
    if not below:
        return _EMPTY
    bounds = [float(key[-1]) for key in buckets if key[:-1] == of][:-1]
    counts = tuple(int(upper - lower) for lower, upper in pairwise((0.0, *below)))
    # The text has no maximum: it is within the last bucket that has any.
    last = max((i for i, count in enumerate(counts) if count), default=0)
    most = bounds[last] if last < len(bounds) else 2 * bounds[-1]
    total = values.get((name + "_sum", labels), {}).get(of, 0.0)
    return HistogramStats(tuple(bounds), counts, total, most if any(counts) else 0.0)
