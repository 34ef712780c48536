"""Whether a diagnosis is right, at whatever times a history was sampled, and how often it is."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pool_telemetry.diagnosis import diagnose
from pool_telemetry.state.exhaustion import NOTEWORTHY_SECONDS
from pool_telemetry.stats import ClientStats
from pool_telemetry.watch.history import History
from pool_telemetry.watch.thread import CHECK_SECONDS
from tests.recordings import Recording
from tests.scenarios import SAMPLE_SECONDS

PERIODS: Final = (0.25, 0.5, 1.0, 2.0)
"""Seconds between two samples of a history."""
OWN: Final = "as the watching thread samples"

_TOLERANCE: Final = 0.02  # seconds; a sample that was due at a moment may be so late


@dataclass(frozen=True, slots=True)
class Judged:
    """One scenario's diagnosis by one sampling: `found` are the verdicts, the worst first."""

    scenario: str
    sampling: str
    offset: float  # seconds
    want: str
    got: str
    found: tuple[str, ...]
    right: bool

    def __str__(self) -> str:
        return f"{self.scenario}, {self.sampling}, offset {self.offset} s: {self.got} {self.found}"


def every(period: float) -> str:
    """Return a sampling's name."""
    return f"every {period:g} s"


def sampled(samples: Sequence[ClientStats], period: float, offset: float) -> list[ClientStats]:
    """Return samples that are a period apart, of which the latest was an offset before the end."""
    found = list[ClientStats]()
    due = samples[-1].at - offset
    for one in reversed(samples[:-1]):
        if one.at <= due + _TOLERANCE:
            found.insert(0, one)
            due = samples[-1].at - offset - len(found) * period
    return found


def remembered(samples: Sequence[ClientStats], offset: float) -> list[ClientStats]:
    """Return the samples that a client's own history would have at the end.

    The watching thread looks every half second. It takes a sample each second, and when an
    exhaustion begins.
    """
    history = History()
    quiet, exhausted = 0.0, False
    for one in sampled(samples, CHECK_SECONDS, offset):
        pools = one.open_pools
        seconds = sum(pool.exhausted_time for pool in pools)
        began = not exhausted and seconds - quiet >= NOTEWORTHY_SECONDS
        exhausted = any(pool.exhausted for pool in pools) and (exhausted or began)
        if not exhausted:
            quiet = seconds
        if began or history.is_due(one.at + _TOLERANCE):
            history.add(one)
    return history.samples()


def judge(
    recording: Recording, history: Sequence[ClientStats], sampling: str, offset: float = 0.0
) -> Judged:
    """Diagnose a recording's end by a history."""
    diagnosis = diagnose(recording.samples[-1], history)
    found = tuple(one.verdict for one in diagnosis.findings)
    expected = (recording.also | {recording.verdict}) - {"healthy"}
    right = diagnosis.verdict == recording.verdict and set(found) - recording.maybe == expected
    return Judged(
        recording.name, sampling, offset, recording.verdict, diagnosis.verdict, found, right
    )


def judge_by_period(recording: Recording, period: float) -> Iterator[Judged]:
    """Diagnose a recording's end by samples a period apart, at up to eight offsets."""
    offsets = min(8, round(period / SAMPLE_SECONDS))
    for step in range(1, offsets + 1):
        offset = step * period / offsets
        history = sampled(recording.samples, period, offset)
        yield judge(recording, history, every(period), offset)


def judge_by_own(recording: Recording) -> Iterator[Judged]:
    """Diagnose a recording's end by the client's own history, whenever its thread looks."""
    for step in range(1, round(CHECK_SECONDS / SAMPLE_SECONDS) + 1):
        offset = step * SAMPLE_SECONDS
        yield judge(recording, remembered(recording.samples, offset), OWN, offset)


def confusion(judged: Sequence[Judged]) -> list[str]:
    """Return the confusion matrix in lines, with the share that is right and each that is not."""
    names = sorted({name for one in judged for name in (one.want, one.got)})
    cells = Counter((one.want, one.got) for one in judged)
    width = max(map(len, names), default=0)
    words = ((*name.split(), "")[:2] for name in names)  # one above the other
    heads = ("".join(f"  {word:>11}" for word in row) for row in zip(*words, strict=True))
    rows = (
        f"{got:>{width}}" + "".join(f"  {cells[want, got] or '.':>11}" for want in names)
        for got in names
    )
    right = sum(one.right for one in judged)
    return [
        "diagnoses: the verdict down, the right one across",
        *(" " * width + head for head in heads),
        *rows,
        f"{right} of {len(judged)} right, further findings included",
    ]
