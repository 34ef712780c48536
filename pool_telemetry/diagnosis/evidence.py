"""The evidence: every number and every fact that the rules decide by.

Frozen values; `gathering.py` measures them. A test can make them by hand.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from pool_telemetry.diagnosis.intervals import Interval
from pool_telemetry.diagnosis.periods import Period
from pool_telemetry.diagnosis.queueing import Load
from pool_telemetry.stats import PoolStats


class SlowCommand(NamedTuple):
    """The command that takes too long; of several, the command that took most time."""

    name: str  # `find orders`
    seconds: float  # mean duration now
    usual_seconds: float | None  # mean duration in the baseline; None if it is unknown
    runs: int
    share: float  # of the time of all commands, 0.0 to 1.0
    over: float  # seconds in which it was observed


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvidence:
    """Whether the server can be used.

    Attributes:
        only_server_up: No other server of the client answers.
        failed_connects: Recent checkouts that ended without a connection because none could be
            opened; 0 if any caller got one. Heartbeats notice a silent network later.
        paused_seconds: Recent time for which PyMongo kept the pool paused although heartbeats were
            answered: after an error it waits for the next heartbeat.
        down: The server can't be used now.
        recovered: The server could not be reached lately, and can be again.
    """

    only_server_up: bool
    failed_connects: int
    paused_seconds: float
    down: bool
    recovered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEvidence:
    """Whether anybody is served, if callers ask.

    Attributes:
        unserved_seconds: For how long callers have waited or failed while none was served.
        stalled_handshakes: Connections that are being opened while none becomes ready.
        oldest_opening_seconds: The age of the oldest of these; 0.0 without one.
        lost: Callers wait although PyMongo may open connections for them, and it opens none.
        silent_seconds: For how long PyMongo's monitor of the server has been silent; 0.0 if that
            is not too long.
    """

    unserved_seconds: float = 0.0
    stalled_handshakes: int = 0
    oldest_opening_seconds: float = 0.0
    lost: bool = False
    silent_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakEvidence:
    """Connections that are held without a command.

    Attributes:
        held_idle: How many there are at the end of the period.
        recent: There were some in the contention, or else in the last five minutes.
    """

    held_idle: int
    recent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEvidence:
    """How long commands take, and how long connections are held.

    Attributes:
        use_seconds: Mean time for which a connection is held; 0.0 if none was returned.
        usual_use_seconds: The same in the baseline; None if it is unknown.
        slow_command: The command that takes too long; None if there is none.
        stalled_seconds: Time without a returned connection, of several callers; 0.0 if some are.
    """

    use_seconds: float
    usual_use_seconds: float | None
    slow_command: SlowCommand | None
    stalled_seconds: float

    @property
    def is_slower_than_usual(self) -> bool:
        """Return whether a command takes longer than in the baseline."""
        return self.slow_command is not None and self.slow_command.usual_seconds is not None

    @property
    def is_slow(self) -> bool:
        """Return whether operations take too long, rather than being too many."""
        return self.slow_command is not None or self.stalled_seconds > 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEvidence:
    """Why callers wait, and what they do about it.

    Attributes:
        exhausted: Callers found all connections in use, for long enough to matter.
        held_by_cursors: Cursors that are read hold much of an exhausted pool.
        callers_give_up: Many callers wait neither for a connection nor for a reply.
        retry_storm: Most checkouts time out, and their callers retry at once.
        closed_workload: A fixed number of callers return as soon as they are served: the pool is
            always full, and yet its queue does not grow.
        bursty_arrivals: Many callers arrive at once.
        peak_demand: Most callers that were there together, once the contention had settled.
    """

    exhausted: bool
    held_by_cursors: bool
    callers_give_up: bool
    retry_storm: bool
    closed_workload: bool
    bursty_arrivals: bool
    peak_demand: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingEvidence:
    """The load of a contended pool if commands took their usual time, and the size for it.

    Attributes:
        load: Requests per second, and how long each holds a connection.
        size_for_random: The maxPoolSize with which hardly any caller would wait, if callers
            arrived at random.
        required_size: The maxPoolSize with which hardly any caller would wait, as they arrive.
        too_small: The pool may have fewer connections than that.
    """

    load: Load
    size_for_random: int
    required_size: int
    too_small: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnEvidence:
    """New connections, and attempts that failed.

    Attributes:
        opened: Connections that were opened or are being opened.
        unopened: Connections that callers began to open, and gave up.
        slow_opening: Callers wait for connections to be opened, not for one to be returned.
        peak_demand: Most callers that were there together while they waited for that.
        failed, attempts: Attempts that failed with an error that is retried, and all attempts.
    """

    opened: int
    unopened: int
    slow_opening: bool
    peak_demand: int
    failed: int
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleChurnEvidence:
    """Connections that are hardly used before they are closed because they are idle.

    Attributes:
        during: The time in which they are.
        pause_seconds: The longest time without a checkout, or else the mean time between two.
    """

    during: Interval
    pause_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HangUpEvidence:
    """Callers that were cancelled in the middle of an operation, each with its connection.

    Attributes:
        during: The time in which they were.
        cancelled: How many did not wait for their reply, or for their connection to be opened.
        callers: All callers of that time.
    """

    during: Interval
    cancelled: int
    callers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareEvidence:
    """The size that a pool needs so that its callers do not wait.

    Attributes:
        used: Mean number of connections in use.
        needed: Connections that are enough.
    """

    used: float
    needed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that the rules know of one pool in one period."""

    period: Period
    pool_name: str
    connection_budget: int | None
    server: ServerEvidence
    leak: LeakEvidence
    commands: CommandEvidence
    queue: QueueEvidence
    sizing: SizingEvidence | None
    churn: ChurnEvidence
    spare: SpareEvidence | None
    service: ServiceEvidence = field(default_factory=ServiceEvidence)
    hang_ups: HangUpEvidence | None = None
    idle_churn: IdleChurnEvidence | None = None
    deadlock: PoolStats | None = None  # the pool in a deadlock of the last seconds

    @property
    def too_small(self) -> bool:
        """Return whether the pool is known to need more connections than it may have."""
        return self.sizing is not None and self.sizing.too_small
