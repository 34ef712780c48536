"""Every threshold of the diagnosis: what it bounds, its unit, and why it has this value.

Names in _SECONDS are seconds, in _SHARE 0.0 to 1.0; the others are counts or factors.
"""

from typing import Final

# Time

SAMPLE_SECONDS: Final = 1.0
"""Least distance of two samples: rates of shorter intervals are mostly chance."""
RECENT_SECONDS: Final = 300.0
"""Age up to which contention still asks for a change; `History` keeps as much."""
ENDED_SECONDS: Final = 3.0
"""Time without contention after which it is over: shorter pauses belong to a load that comes and
goes.
"""
LAST_SECONDS: Final = 3.0
"""Length of the stretch that shows what is slow now, if no caller waits: half a minute of normal
samples would hide it.
"""
CALM_SECONDS: Final = 30.0
"""Longest stretch that is judged if no caller waits."""
CALM_SHARE: Final = 0.4
"""Largest share of the known time that is judged if no caller waits: the rest is the baseline."""
GAP_SECONDS: Final = 10.0
"""Longest pause within one contention: contentions closer than that have one cause."""
BLINK_SECONDS: Final = 0.001
"""Intervals shorter than this have no rates."""

# Contention

WAIT_SECONDS: Final = 0.05
"""p95 of the waits from which callers count as waiting: users hardly notice less."""
EXHAUSTED_SHARE: Final = 0.2
"""Share of an interval that a pool is exhausted, together with MIN_EXHAUSTED_SECONDS: any load
exhausts a pool for moments.
"""
MIN_EXHAUSTED_SECONDS: Final = 0.1
"""Exhausted time that an interval needs, whatever its share."""
MIN_SAMPLES: Final = 20
"""Uses, commands or checkouts that a mean or a rate needs: fewer are chance."""

# The server

UNREACHABLE_SECONDS: Final = 3.0
"""Time without a first heartbeat after which a server counts as down: connecting takes some."""
PAUSED_SECONDS: Final = 1.5
"""Time for which a pool may stay paused although heartbeats are answered: PyMongo resumes a healthy
server's pool sooner.
"""
MIN_UNSERVED: Final = 3
"""Callers that left without a connection while no caller got one: fewer may be chance."""

STALLED_HANDSHAKE_SECONDS: Final = 3.0
"""Age from which the opening of a connection is stalled, if no caller is served meanwhile."""
STANDSTILL_SETTLE_SECONDS: Final = 5.0
"""Time after a standstill of the process in which commands end that were running before it. Their
durations include the standstill.
"""

# Commands

SLOWDOWN: Final = 3.0
"""Factor over the baseline from which a command, or a use, counts as slower than usual."""
SLOW_SECONDS: Final = 0.1
"""Duration from which a command is slow if its baseline is unknown."""
SLOWER_EXHAUSTED_SECONDS: Final = SLOW_SECONDS / 5
"""Least duration of a command that is slower than usual, in a pool that is exhausted."""
SLOWER_SECONDS: Final = SLOW_SECONDS / 2
"""Least duration of a command that is slower than usual, if no caller waits for it."""
SLOW_COMMAND_SHARE: Final = 0.2
"""Share of all commands' time from which a command is the reason that connections are busy."""
MIN_SLOW_RUNS: Final = 3
"""Slow runs that a command needs if the pool is not exhausted: one or two are chance."""
TIMED_SHARE: Final = 0.5
"""Share of the connections' use that timed commands explain, at least, if one of them is the cause.
"""
MIN_STALLED: Final = 3
"""Callers at work from which a pool can stall although no caller waits: fewer may just be slow."""
STALLED_SECONDS: Final = 1.0
"""Time without a returned connection from which a pool counts as stalled."""
HANGING_SECONDS: Final = 5.0
"""Time without a returned connection from which it is critical: callers will fail soon."""

# Queues

MOSTLY_SHARE: Final = 0.75
"""Share of the time before a slowdown that a pool has to be exhausted to be undersized: the
slowdown may have begun in the last of these intervals, and exhausted it there.
"""
BURST_SECONDS: Final = 1.0
"""Mean length of an exhaustion up to which it is a burst."""
MAX_BURST_INTERVALS: Final = 2
"""Contended intervals up to which each wait counts as a caller of its own: in more of them the same
callers wait again, and samples show how many there are.
"""
BURST_SHARE: Final = 0.25
"""Share of the time up to which bursts are seldom."""
BUSY_SHARE: Final = 0.9
"""Share of the time, and of the connections, from which a pool is always full."""
GROWING_SHARE: Final = 0.05
"""Growth of the queue, as a share of the callers served, from which more arrive than are served."""
LOST_SHARE: Final = 0.05
"""Share of callers that time out or give up below which measured waits are those of nearly all.
PyMongo's queue is not fair to the longest waiter (4.20), so that a few fail under any full load.
"""
FAILED_SHARE: Final = 0.2
"""Share of attempts that fail, or of callers that give up, from which it is a storm."""
BEGAN_FAILING_SHARE: Final = FAILED_SHARE / 2
"""Share of attempts that fail if the interval in which failures began counts, too."""
MIN_FAILURES: Final = 10
"""Failed attempts that a retry storm needs."""
OVERLOAD_SHARE: Final = 0.5
"""Share of failed attempts that an overloaded server refuses, from which overload is the reason."""
TIMEOUT_SHARE: Final = 0.5
"""Share of checkouts that time out from which callers that retry are a storm."""
RETRY_SHARE: Final = 0.75
"""Share of timeouts that are retried at once: PyMongo retries reads once, which is half of them."""
CURSOR_SHARE: Final = 0.5
"""Share of a pool from which cursors that are being read are the reason for its exhaustion."""
CROWDED_FACTOR: Final = 3.0
"""Factor over the predicted wait from which arrivals are not random."""
TARGET_WAIT_PROBABILITY: Final = 0.05
"""Share of callers that may find no idle connection at a recommended size: p95 of the wait is 0."""
MAX_POOL_SIZE: Final = 100_000
"""Largest pool that is computed with."""

# Leaks

LEAKED_SECONDS: Final = 5.0
"""Time without a command from which a held connection is a leak although no caller waits for it."""
OLD_CHECKOUT_SECONDS: Final = 60.0
"""Least age of a checkout that is a leak if commands are not observed."""
OLD_CHECKOUT_FACTOR: Final = 100.0
"""Factor over the p95 of use from which such a checkout is a leak."""
LEAKED_SHARE: Final = 0.5
"""Share of a pool that leaks from which it is critical."""

# New connections

SLOW_OPENING_SECONDS: Final = 0.02
"""Time to open a connection from which callers that wait for it are a storm."""
OPENING_SHARE: Final = 0.5
"""Share of the waits that opening connections has to explain; of a pool in use, the most that may
be busy meanwhile.
"""
MIN_CHURN: Final = 10
"""New connections that a churn needs: fewer may be chance."""
CHURN_PER_SECOND: Final = 2.0
"""New connections a second from which idle churn is a warning: fewer cost next to nothing."""
MADE_SECONDS: Final = 60.0
"""Time in which made clients are counted."""
MIN_MADE: Final = 3
"""Clients made between two samples that are closer together: fewer may be chance."""
MANY_CLIENTS: Final = 30
"""Clients of one name that were made in a minute, from which they are made again and again: a
process that has a client for each of several databases makes them once.
"""
MIN_IDLE_SECONDS: Final = 60.0
"""Least maxIdleTimeMS that is recommended: a connection that is open for a minute costs nothing."""
PAUSES_KEPT_OPEN: Final = 2.0
"""Factor over the longest pause that maxIdleTimeMS should have: the next pause may be longer."""
CHURN_IDLE_SHARE: Final = 0.5
"""Share of new connections, at least, that were closed because they were idle."""
HANG_UP_SHARE: Final = 0.5
"""Share of the connections closed by an error, at least, that cancelled callers have to explain."""
CHURN_CHECKOUT_SHARE: Final = 0.3
"""Share of checkouts, at least, that opened a connection."""
MAX_MIN_POOL_SIZE: Final = 50
"""Largest minPoolSize that is recommended for a peak of callers."""

# Unused connections

MIN_IDLE_CONNECTIONS: Final = 10
"""Unneeded connections from which a pool is oversized: fewer cost next to nothing."""
OVERSIZED_FACTOR: Final = 4
"""Factor over the needed connections from which a pool is oversized."""
MIN_USES: Final = 10
"""Uses that are needed to tell how many connections are needed."""

TOP_OWNERS: Final = 3
"""Owners that a sentence names."""
