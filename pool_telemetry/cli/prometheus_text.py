"""Read Prometheus' text back into stats, for a command that measures another process.

All names are the catalog's: each row of the catalog reads its own values back.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pool_telemetry.catalog import (
    CATALOG,
    POOL_ATTRIBUTES,
    PROCESS_UP,
    WORKER,
    Fields,
    Metric,
)
from pool_telemetry.prometheus import prometheus_label, prometheus_name
from pool_telemetry.state.histogram import POOL_BOUNDS
from pool_telemetry.stats import (
    CLOSE_REASONS,
    OUTCOMES,
    ClientStats,
    HistogramStats,
    OperationStats,
    PoolStats,
    ServerSelectionStats,
)

_Labels = tuple[str, ...]
_Key = tuple[str, str, str]
"""The values of POOL_ATTRIBUTES."""
_Points = dict[Metric, list[tuple[_Labels, Any]]]

_PARTS: Final = ("_bucket", "_sum", "_count")
_OWN: Final = {
    prometheus_name(metric) + part: (metric, part)
    for metric in CATALOG
    for part in (_PARTS if metric.instrument == "histogram" else ("",))
}
_PROCESS_UP: Final = prometheus_name(PROCESS_UP)
_INSTANCE: Final = prometheus_label(PROCESS_UP.attributes[0])
_STARTED: Final = "process_start_time_seconds"  # prometheus_client's own collector has it
_NAMES: Final = frozenset({*_OWN, _PROCESS_UP, _STARTED})
MAX_VALUE: Final = 2.0**53
"""The limit of a value: above it, a float does not have all whole numbers."""
MAX_SAMPLES: Final = 200_000
"""The limit of a page; reading so many takes some 10 s. A process has up to 10,000."""
_NO_TIMES: Final = HistogramStats(POOL_BOUNDS, (0,) * (len(POOL_BOUNDS) + 1), 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class ScrapedProcess:
    """The clients of one process on a page.

    Attributes:
        worker: Its number; empty if the page is of one process only.
        instance: Its identity; empty if its version of pool_telemetry reports none.
        clients: Its clients; values missing in the text are unknown.
    """

    worker: str
    instance: str
    clients: list[ClientStats]


def read(text: str, at: float) -> list[ScrapedProcess]:
    """Return the processes of a `/metrics` page that have a client.

    Args:
        text: The page, in Prometheus' text format.
        at: The Unix time of the scrape.

    Raises:
        ValueError: The text is not complete, or a metric of this package has an impossible value.
    """
    points, instances, started = _points(text)
    found = [
        ScrapedProcess(
            worker,
            instances.get(worker, ""),
            # The page has one start only, of the process that answered.
            _clients(points[worker], 0.0 if worker else started, at),
        )
        for worker in sorted(points, key=lambda one: (len(one), one))
    ]
    return [one for one in found if one.clients]


def _clients(points: _Points, started: float, at: float) -> list[ClientStats]:
    found: dict[_Key, Fields] = defaultdict(dict)
    for metric in CATALOG:
        for labels, value in points[metric]:
            name, host, port = labels[:3]
            metric.reading.put(found[name, host, port], labels[3:], value)
    clients: dict[str, list[_Key]] = {}
    for key, fields in found.items():
        if "in_use" in fields:
            clients.setdefault(key[0].rpartition("@")[0], []).append(key)
        elif "server_selection" in fields or "clients_made" in fields:
            clients.setdefault(key[0], [])  # a client may have no pool, or be closed
    return [_client(name, keys, found, started, at) for name, keys in clients.items()]


def _client(
    name: str, keys: Sequence[_Key], found: dict[_Key, Fields], started: float, at: float
) -> ClientStats:
    fields = {"telemetry_errors": 0, **found.get((name, "", ""), {})}
    # Series without a server: those that share one name, and those of a server that was left.
    operations = [one for key in {*keys, (name, "", "")} for one in _operations(key, found[key])]
    waits = fields.get("server_selection", ServerSelectionStats()).waiting > 0
    return ClientStats(
        name=name,
        pools=tuple(_pool(key, found[key]) for key in keys),
        since=started,
        at=at,
        has_no_server=waits and not keys,
        **{**fields, "operations": tuple(operations)},
    )


def _points(text: str) -> tuple[dict[str, _Points], dict[str, str], float]:
    """Return each worker's values and identity, and when the process began; 0.0: unknown."""
    started = 0.0
    points: dict[str, _Points] = defaultdict(lambda: defaultdict(list))
    instances: dict[str, str] = {}
    buckets: dict[tuple[str, Metric, _Labels], list[tuple[float, float]]] = defaultdict(list)
    sums: dict[tuple[str, Metric, _Labels], float] = {}
    for sample in _samples(text):
        worker = sample.labels.get(WORKER, "")
        if sample.name == _STARTED:
            started = sample.value
        elif sample.name == _PROCESS_UP:
            instances[worker] = sample.labels.get(_INSTANCE, "")
        elif sample.name in _OWN:
            metric, part = _OWN[sample.name]
            names = map(prometheus_label, (*POOL_ATTRIBUTES, *metric.attributes))
            labels = tuple(sample.labels.get(name, "") for name in names)
            if part == "_bucket":
                bucket = bound_of(sample.labels), sample.value
                buckets[worker, metric, labels].append(bucket)
            elif part == "_sum":
                sums[worker, metric, labels] = sample.value
            elif not part:
                points[worker][metric].append((labels, sample.value))
    for (worker, metric, labels), below in buckets.items():
        total = sums.get((worker, metric, labels), 0.0)
        points[worker][metric].append((labels, histogram_of(sorted(below), total)))
    return points, instances, started


def _samples(text: str) -> Iterator[Sample]:
    """Yield the samples of this package's metrics; no other line of the text is parsed."""
    if text and not text.endswith("\n"):
        raise ValueError("the text ends in the middle of a line")
    every = text.split("\n")
    lines = [line for line in every if re.split("[{ ]", line, maxsplit=1)[0] in _NAMES]
    if len(lines) > MAX_SAMPLES:
        raise ValueError(f"it has more than {MAX_SAMPLES} samples of pools")
    try:
        for family in text_string_to_metric_families("\n".join(lines)):
            for sample in family.samples:
                if not 0.0 <= sample.value <= MAX_VALUE:
                    raise ValueError(f"{sample.name} is {sample.value}")
                yield sample
    except LookupError as error:  # the parser does not expect a broken label
        raise ValueError("a line is broken") from error


def _pool(key: _Key, fields: Fields) -> PoolStats:
    own = {name: value for name, value in fields.items() if name not in ("idle", "operations")}
    size = sum(fields.get(name, 0) for name in ("idle", "in_use", "opening"))
    exhausted = fields.get("exhausted", False)
    unknown: Fields = {
        "phase": "closed",  # the text has a phase only while the pool is open
        **dict.fromkeys(("max_size", "since_timeout", "up", "down_reason", "rtt"), None),
        **dict.fromkeys(("min_size", "in_use", "opening", "waiting", "exhaustions"), 0),
        **dict.fromkeys(("created", "cleared"), 0),
        **dict.fromkeys(("oldest_wait", "longest_checkout", "exhausted_time", "outage"), 0.0),
        **dict.fromkeys(("stalled_time", "since_up_changed"), 0.0),
        **dict.fromkeys(("wait_time", "use_time", "create_time"), _NO_TIMES),
        "exhausted": False,
        "since_exhausted": 0.0 if exhausted else None,
        # The text has only one of the two ages.
        "longest_idle": fields.get("longest_checkout", 0.0) if fields.get("held_idle") else 0.0,
    }
    counts = {
        "checkouts": {**dict.fromkeys(OUTCOMES, 0), **fields.get("checkouts", {})},
        "closed": {**dict.fromkeys(CLOSE_REASONS, 0), **fields.get("closed", {})},
    }
    return PoolStats(host=key[1], port=_port(key), **{**unknown, **own, **counts, "size": size})


def _operations(key: _Key, fields: Fields) -> Iterator[OperationStats]:
    for series in fields.get("operations", ()):
        yield OperationStats(host=key[1], port=_port(key), **series)


def _port(key: _Key) -> int | None:
    if not key[2]:
        return None
    if not re.fullmatch("[0-9]{1,5}", key[2]):
        raise ValueError(f"{key[2]!r} is not a port")
    return int(key[2])


def bound_of(labels: Mapping[str, str]) -> float:
    """Return the upper bound of a bucket.

    Raises:
        ValueError: It is missing, or not a number.
    """
    bound = float(labels.get("le", ""))
    if math.isnan(bound):
        raise ValueError("the bound of a bucket is not a number")
    return bound


def histogram_of(below: Sequence[tuple[float, float]], total: float) -> HistogramStats:
    """Return a histogram from cumulative buckets, in the order of their bounds, and the sum.

    The bounds differ, and the last one is infinite.

    The mean is the sum divided by the count, also if the counts of a `rate` are not whole. The
    text has no maximum, so the maximum is the bound of the last bucket that is not empty. Above
    the last bound it is twice that bound, or more if the sum requires it.
    """
    *bounds, last_bound = (bound for bound, _ in below) if below else (0.0,)
    if not bounds or last_bound != math.inf or len({*bounds, last_bound}) != len(below):
        raise ValueError("the buckets of a histogram are not complete")
    exact = [upper - lower for lower, upper in pairwise((0.0, *(count for _, count in below)))]
    counts = tuple(max(0, round(count)) for count in exact)
    if not sum(counts):
        return HistogramStats(tuple(bounds), counts, 0.0, 0.0)
    if sum(exact) > 0.0:
        total *= sum(counts) / sum(exact)
    last = max(i for i, count in enumerate(counts) if count)
    if last < len(bounds):
        most = bounds[last]
    else:
        others = sum(low * count for low, count in zip((0.0, *bounds), counts[:-1], strict=False))
        most = max(2 * bounds[-1], (total - others) / counts[-1])
    return HistogramStats(tuple(bounds), counts, total, most)
