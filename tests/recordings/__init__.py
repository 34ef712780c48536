"""Histories of real scenarios, kept as text: the diagnosis is tested on them without chance.

`make record-scenarios` writes them anew. A file holds one scenario: its name, the verdicts that are
right at its end, and samples of one client, one a line. The first sample is whole; each further one
has only the values that changed. Ports and times of the machine are left out.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pool_telemetry.stats import (
    AgentStats,
    ClientStats,
    HistogramStats,
    OperationStats,
    OwnerStats,
    PoolStats,
    RefusalStats,
    ServerSelectionStats,
)
from tests.scenarios import Scenario

FOLDER: Final = Path(__file__).parent
EPOCH: Final = 1_767_225_600.0
"""Unix time at which every recorded client was made."""

_FIRST_PORT: Final = 27017
_DIGITS: Final = 6  # microseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One scenario's samples, the oldest first, and the verdicts expected at the last one."""

    name: str
    verdict: str
    also: frozenset[str]  # further findings that must be there
    maybe: frozenset[str]  # further findings that may be there
    samples: tuple[ClientStats, ...]

    @classmethod
    def of(cls, scenario: Scenario, samples: Sequence[ClientStats]) -> "Recording":
        """Return a play of a scenario."""
        return cls(
            name=scenario.name,
            verdict=scenario.verdict,
            also=scenario.also,
            maybe=scenario.maybe,
            samples=tuple(samples),
        )

    @property
    def path(self) -> Path:
        """Return the file that keeps it."""
        return FOLDER / f"{self.name.replace(',', '').replace(' ', '-')}.json"


def recordings() -> list[Recording]:
    """Return every recording, in order of its file's name."""
    return [load(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


def dump(recording: Recording) -> str:
    """Return a recording as text; `load()` reads it back."""
    ports = dict[int, int]()
    every = [_plain(sample, ports) for sample in recording.samples]
    changes = [_difference(a, b) for a, b in itertools.pairwise(every)]
    head = {
        "name": recording.name,
        "verdict": recording.verdict,
        "also": sorted(recording.also),
        "maybe": sorted(recording.maybe),
    }
    lines = [json.dumps(one, separators=(",", ":")) for one in (every[0], *changes)]
    return json.dumps(head)[:-1] + ', "samples": [\n' + ",\n".join(lines) + "\n]}\n"


def load(text: str) -> Recording:
    """Return the recording that `dump()` wrote.

    Raises:
        TypeError: The fields of the stats have other names now: record the scenarios anew.
    """
    kept = json.loads(text)
    return Recording(
        name=kept["name"],
        verdict=kept["verdict"],
        also=frozenset(kept["also"]),
        maybe=frozenset(kept["maybe"]),
        samples=tuple(map(_client, _patched(kept["samples"]))),
    )


def _patched(changes: Sequence[Any]) -> Iterator[Any]:
    whole: Any = None
    for change in changes:
        whole = change if whole is None else _patch(whole, change)
        yield whole


# To plain values and back


def _plain(sample: ClientStats, ports: dict[int, int]) -> Any:
    """Return a sample as JSON's values, without a trace of the machine and the moment."""
    values = dataclasses.asdict(sample)
    values |= {"name": "", "at": sample.at - sample.since, "since": 0.0}
    for place in (*values["pools"], *values["ended"], *values["operations"]):
        if place["port"] is not None:
            place["port"] = ports.setdefault(place["port"], _FIRST_PORT + len(ports))
    return _rounded(values)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items() if key != "exemplars"}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return round(value, _DIGITS) if isinstance(value, float) else value


def _difference(before: Any, after: Any) -> Any:
    """Return the values that changed, of a list by their position."""
    if isinstance(after, dict):
        return {k: _difference(before[k], one) for k, one in after.items() if one != before[k]}
    if isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return {str(i): _difference(a, b) for i, (a, b) in pairs if a != b}
    return after


def _patch(before: Any, change: Any) -> Any:
    if not isinstance(change, dict):
        return change
    if isinstance(before, dict):
        return before | {key: _patch(before[key], one) for key, one in change.items()}
    return [
        _patch(one, change[str(i)]) if str(i) in change else one for i, one in enumerate(before)
    ]


def _client(values: dict[str, Any]) -> ClientStats:
    made = {
        "since": EPOCH,
        "at": EPOCH + values["at"],
        "pools": tuple(map(_pool, values["pools"])),
        "ended": tuple(map(_pool, values.get("ended", ()))),
        "operations": tuple(map(_operation, values["operations"])),
        "agents": AgentStats(*values["agents"]),
        "refusals": RefusalStats(*values.get("refusals", ())),
        "server_selection": ServerSelectionStats(*values.get("server_selection", ())),
    }
    return ClientStats(**(values | made))


def _pool(values: dict[str, Any]) -> PoolStats:
    made = {key: _histogram(values[key]) for key in ("wait_time", "use_time", "create_time")}
    owners = tuple(OwnerStats(*one) for one in values["owners"])
    return PoolStats(**(values | made | {"owners": owners}))


def _operation(values: dict[str, Any]) -> OperationStats:
    return OperationStats(**(values | {"duration": _histogram(values["duration"])}))


def _histogram(values: dict[str, Any]) -> HistogramStats:
    lists = {key: tuple(values[key]) for key in ("bounds", "counts")}
    return HistogramStats(**(values | lists))
