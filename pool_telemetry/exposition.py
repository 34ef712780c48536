"""The text of the pools' metrics in Prometheus' formats, as prometheus_client would write it.

A client with 500 series of commands has 6,000 lines with the labels of 500 series, and
prometheus_client formats the labels of each line anew. Here each series is formatted once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.utils import floatToGoString

from pool_telemetry.stats import Exemplar, HistogramStats

Point = tuple[tuple[str, ...], float | HistogramStats]
"""The labels' values in the order of their names, and the value."""

_BUCKET: Final = "le"
_go_string: Final[Callable[[float], str]] = floatToGoString


def family_lines(
    family: Family, names: Sequence[str], points: Iterable[Point], *, openmetrics: bool
) -> Iterator[str]:
    """Yield the text of one family, in parts.

    Args:
        family: Its name, kind, unit and meaning; its samples are not used.
        names: The names of its labels.
        points: Its series.
        openmetrics: Whether the format is OpenMetrics, otherwise Prometheus' own.
    """
    yield _heading(family, openmetrics=openmetrics)
    order = sorted(range(len(names)), key=names.__getitem__)
    before = [(i, f'{names[i]}="') for i in order if names[i] < _BUCKET]
    after = [(i, f'{names[i]}="') for i in order if names[i] > _BUCKET]
    sample = family.name + ("_total" if family.type == "counter" else "")
    for values, value in points:
        left, right = _labels(before, values), _labels(after, values)
        if isinstance(value, HistogramStats):
            yield _histogram_lines(sample, left, right, value, openmetrics=openmetrics)
        else:
            yield f"{sample}{_braces(left, right)} {_number(value)}\n"


def _heading(family: Family, *, openmetrics: bool) -> str:
    name = family.name
    unit = ""
    if openmetrics:
        unit = f"# UNIT {name} {family.unit}\n" if family.unit else ""
    elif family.type == "counter":
        name += "_total"
    return f"# HELP {name} {family.documentation}\n# TYPE {name} {family.type}\n{unit}"


def _labels(named: Sequence[tuple[int, str]], values: Sequence[str]) -> str:
    return ",".join([f'{start}{_escaped(values[i])}"' for i, start in named])


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _braces(left: str, right: str) -> str:
    return f"{{{left}{',' if left and right else ''}{right}}}" if left or right else ""


def _histogram_lines(
    name: str, left: str, right: str, histogram: HistogramStats, *, openmetrics: bool
) -> str:
    head = f'{name}_bucket{{{left}{"," if left else ""}{_BUCKET}="'
    tail = f'"{"," if right else ""}{right}}} '
    counts = list(map(_number, accumulate(histogram.counts)))
    bounds = (*map(str, histogram.bounds), "+Inf")
    exemplars = histogram.exemplars if openmetrics else {}
    lines = [
        f"{head}{bound}{tail}{counts[i]}{_exemplar(exemplars.get(i)) if exemplars else ''}\n"
        for i, bound in enumerate(bounds)
    ]
    labels = _braces(left, right)
    lines.append(f"{name}_count{labels} {counts[-1]}\n")
    lines.append(f"{name}_sum{labels} {_number(histogram.sum)}\n")
    return "".join(lines)


def _exemplar(found: Exemplar | None) -> str:
    if found is None:
        return ""
    trace_id, span_id = found.link
    labels = f'{{span_id="{span_id:016x}",trace_id="{trace_id:032x}"}}'
    return f" # {labels} {_go_string(found.seconds)} {found.time}"


def _number(value: float) -> str:
    is_short = type(value) is int and 0 <= value < 1_000_000  # from there on Go has an exponent
    return f"{value}.0" if is_short else _go_string(value)
