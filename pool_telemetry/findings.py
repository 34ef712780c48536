"""The rules by which a pool's case becomes a finding: one function for each verdict.

What they go by is measured in `case.py`; here are the words and the values to change.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pool_telemetry.case import ENDED_SECONDS, Case
from pool_telemetry.sizing import Load, recommend_size
from pool_telemetry.stats import PoolStats
from pool_telemetry.trouble import quantile
from pool_telemetry.window import Window

Verdict = Literal[
    "healthy",
    "undersized",
    "slow operations",
    "leak",
    "connection storm",
    "server unreachable",
    "oversized",
    "retry storm",
]
Severity = Literal["healthy", "notice", "warning", "critical"]

LEAKED_SECONDS: Final = 5.0
"""A connection held for so long without a command is leaked, where nobody misses it."""
HANGING_SECONDS: Final = 5.0
"""Where nothing came back for so long, callers will fail soon."""
MANY_FAILURES: Final = 10
"""Fewer attempts that fail are no storm."""
TOP_OWNERS: Final = 3
IDLE_CONNECTIONS: Final = 10
"""Connections that nobody needs are worth a word from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with one pool.

    Attributes:
        verdict: What.
        severity: critical where callers fail or will soon, warning where they wait, else notice.
        pool: `NAME@host:port`.
        because: A sentence with the numbers.
        advice: What to do.
        evidence: The numbers by name; seconds, shares, counts.
        change: Options of MongoClient and the values to give them.
        ended: For how many seconds it has been over; None: it goes on.
    """

    verdict: Verdict
    severity: Severity
    pool: str
    because: str
    advice: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    change: Mapping[str, int] = field(default_factory=dict)
    ended: float | None = None


def _server_unreachable(case: Case) -> Finding | None:
    pool = case.pool
    if not (case.down or case.was_down):
        return None
    failed = case.now.checkouts["connection_error"] if case.now and case.down else 0
    if case.unopened and case.lately:
        because = (
            f"no connection to {pool.address} could be opened in {case.lately.seconds:.0f} s, and "
            f"of {case.unopened} callers nobody was served"
        )
    elif case.down and pool.up:
        because = (
            f"{pool.address} answers, but an error said that it is unfit: for "
            f"{case.paused_seconds:.0f} s PyMongo has let nobody in, until the next heartbeat"
        )
    elif case.down:
        because = pool.why_down
    else:
        lasted = f"for {pool.outage:.1f} s" if pool.outage >= 0.05 else "for a moment"
        because = f"{pool.address} was down {lasted}"
    return Finding(
        verdict="server unreachable",
        severity="critical" if case.alone else "warning",
        pool=case.name,
        because=because + (f"; {failed} checkouts failed" if failed else ""),
        advice="see whether the server runs, and the network and the address are right; "
        "PyMongo comes back by itself"
        if case.down
        else "see in the server's log and the network's why",
        evidence={
            "outage_seconds": pool.since_up_changed if pool.up is None else pool.outage,
            "failed_checkouts": failed,
        },
        ended=None if case.down else pool.since_up_changed,
    )


def find_leak(case: Case) -> Finding | None:
    """Return the connections that are held without a use, as a leak, if they are one."""
    pool, leaked = case.pool, case.leaked
    # Without commands to go by, an age that no operation had tells.
    unknown = pool.held_idle is None and pool.longest_checkout >= max(
        60.0, 100.0 * quantile(pool.use_time, 0.95)
    )
    if not unknown and not (leaked and (case.ran_dry or pool.longest_idle >= LEAKED_SECONDS)):
        return None
    most = pool.max_size or math.inf
    timeouts = case.trouble.checkouts["timeout"] if case.trouble else 0
    what = (
        f"a connection is out for {pool.longest_checkout:.0f} s"
        if unknown
        else f"{leaked} of {pool.in_use} connections in use run no command, "
        f"for up to {pool.longest_idle:.1f} s"
    )
    return Finding(
        verdict="leak",
        severity="critical" if timeouts or leaked >= 0.5 * most else "warning",
        pool=case.name,
        because=f"{what} (maxPoolSize {_limit(pool)}, {pool.waiting} waiting){_owners(pool)}",
        advice="close cursors and end transactions where they are used (`with`); "
        "/pool/holders, get_pool_stats(detail=True) and the log of long checkouts name who has "
        "them",
        evidence={
            "held_idle": leaked,
            "longest_idle_seconds": pool.longest_idle,
            "longest_checkout_seconds": pool.longest_checkout,
            "in_use": pool.in_use,
            "waiting": pool.waiting,
        },
    )


def _retry_storm(case: Case) -> Finding | None:
    pool, failing, (failed, attempts) = case.pool, case.failing, case.failed
    storm = failed >= MANY_FAILURES
    # Who has a queue before his threads looks like one who tries again: a size may be all it needs.
    small = case.too_small or case.by_cursors
    during = failing if storm else case.trouble
    if case.down or during is None or not (storm or case.retried):
        return None
    if storm:
        because = (
            f"{failed} of {attempts} attempts on {pool.address} failed with errors after which one "
            f"tries again, in {during.seconds:.0f} s; the pool was cleared {during.cleared} times "
            f"and opened {during.created} connections"
        )
        advice = (
            "see why the server or the network fails them; until then try again later and later, "
            "and not without end"
        )
    else:
        failed, attempts = during.checkouts["timeout"], sum(during.checkouts.values())
        because = (
            f"{failed} of {attempts} checkouts of {pool.address} timed out in "
            f"{during.seconds:.0f} s, and {during.retries} were by callers who had just timed out"
        )
        advice = "let callers wait before they try again, longer each time, and give up at last"
    return Finding(
        verdict="retry storm",
        severity="warning" if small and not storm else "critical",
        pool=case.name,
        because=because,
        advice=advice,
        evidence={
            "failed": failed,
            "attempts": attempts,
            "retries": during.retries,
            "cleared": during.cleared,
            "connections_created": during.created,
        },
    )


def _connection_storm(case: Case) -> Finding | None:
    pool, now = case.pool, case.now
    if now is None or case.down or not (case.storm or case.churn):
        return None
    each = (now.create_time.mean if now.create_time else None) or 0.0
    evidence = {
        "connections_created": now.created,
        "opening": pool.opening,
        "create_seconds": each,
        "closed_idle": now.closed["idle"],
        **_waits(now),
    }
    busy = math.ceil(now.used / now.seconds) if now.seconds else 1
    crowd = max(pool.peak_waiting, pool.in_use + pool.waiting)
    least = max(1, pool.min_size, busy, min(crowd, 50))
    change = {"minPoolSize": min(least, pool.max_size or least, case.most or least)}
    if case.storm:
        because = (
            f"callers of {pool.address} wait for connections to be opened: {case.opened} new ones "
            f"in {now.seconds:.0f} s, {each:.2f} s each; {pool.waiting} wait, and {pool.in_use} of "
            f"maxPoolSize {_limit(pool)} are in use"
        )
        advice = (
            f"keep connections open (minPoolSize {change['minPoolSize']}), open more at once "
            "(maxConnecting, 2 by default), and see what makes the handshake slow: TLS, DNS, "
            "authentication"
        )
    else:
        because = (
            f"{pool.address} opened {now.created} connections for {now.checkouts['ok']} checkouts "
            f"in {now.seconds:.0f} s, and closed {now.closed['idle']} because they were idle"
        )
        advice = (
            "raise maxIdleTimeMS above the pauses of your traffic, or keep connections open "
            f"(minPoolSize {change['minPoolSize']})"
        )
    return Finding(
        verdict="connection storm",
        severity="warning",
        pool=case.name,
        because=because,
        advice=advice,
        evidence=evidence,
        change=change,
    )


def _slow_operations(case: Case) -> Finding | None:
    pool, now, slowed = case.pool, case.steady, case.slowed
    if now is None or case.down or not case.slow:
        return None
    timeouts = now.checkouts["timeout"] if case.trouble else 0
    nothing = case.stuck_seconds >= HANGING_SECONDS
    evidence: dict[str, float] = {
        "use_seconds": case.use_seconds,
        "rate_per_second": now.rate,
        "waiting": pool.waiting,
        "timeouts": timeouts,
        "stuck_seconds": case.stuck_seconds,
        "command_seconds": slowed.seconds if slowed else 0.0,
        "usual_seconds": (slowed.usual if slowed else case.usual_seconds) or 0.0,
    }
    change: dict[str, int] = {}
    if slowed is None:
        because = (
            f"no connection to {pool.address} came back for {case.stuck_seconds:.1f} s, and "
            f"{pool.in_use} are in use"
        )
        advice = "the server or the network hangs, or these commands take that long: holders tell"
    else:
        usual = "" if slowed.usual is None else f", usually {slowed.usual * 1e3:.0f} ms"
        because = (
            f"{slowed.name} on {pool.address} takes {slowed.seconds * 1e3:.0f} ms{usual}: "
            f"{slowed.ran} in {now.seconds:.0f} s, {slowed.share:.0%} of the commands' time"
        )
        advice = (
            "look at this command (indexes, explain, the server's slow log) and at the server; if "
            "it is quick there, something blocks your process: its CPU, or its event loop"
        )
        size = case.needed or 0
        if case.ran_dry and case.too_small and slowed.usual is None:
            most = size if case.most is None else min(size, case.most)
            advice += f"; maxPoolSize {size} would bear it as it is"
            if most < size:
                advice += f" (the server has {most} for this process)"
            if most > (pool.max_size or 0):
                change = {"maxPoolSize": most}
    if case.ran_dry:
        because += f"; it {_dry(case.counts)}"
    return Finding(
        verdict="slow operations",
        severity="critical" if timeouts or nothing or case.give_up else "warning",
        pool=case.name,
        because=because,
        advice=advice,
        evidence=evidence,
        change=change,
    )


def _undersized(case: Case) -> Finding | None:
    pool, trouble, needed, load = case.pool, case.trouble, case.needed, case.load
    limit = pool.max_size
    if trouble is None or limit is None or case.down or not case.ran_dry or case.storm:
        return None
    # Without what slows it, keeps connections or tries again, would it be large enough?
    other = case.slow or case.leaks or (case.retried and not case.by_cursors) or case.failing
    unusual = case.slowed is not None and case.slowed.usual is None
    if unusual or (other and not case.too_small):
        return None
    size = max(needed or 0, limit + 1)
    most = size if case.most is None else min(size, case.most)
    crowd = f"up to {case.counts.peak_waiting} waited"
    if case.returning:
        crowd += ", and who is served comes again"
    elif case.burst:
        crowd += ", who came at once"
    if case.by_cursors:
        crowd += f"; cursors that somebody reads hold {pool.held_by_cursors} of {limit}"
    need = (
        ""
        if load is None
        else (
            f"; of {limit} connections {load.rate:.0f} callers per second with "
            f"{load.use_seconds * 1e3:.0f} ms each need {load.connections:.1f} on average"
        )
    )
    enough = needed is not None and needed <= limit
    lost = trouble.checkouts["timeout"] or case.give_up
    if case.by_cursors:
        advice = (
            f"read exhaust cursors to their end at once, and give cursors that wait for news a "
            f"client of their own; or raise maxPoolSize from {limit} by as many as you read at once"
        )
    elif needed is None:
        advice = f"raise maxPoolSize above {limit}, or shorten what holds a connection"
    elif enough:
        advice = (
            f"{limit} connections are enough for this load on average: see who had them then "
            "(the log of the exhaustion, /pool/holders)"
        )
    elif most <= limit:
        advice = (
            f"the server has no more connections for this process, and {size} would be needed: "
            "shorten what holds one"
        )
    else:
        instead = "let them come one by one" if case.burst else "shorten what holds a connection"
        advice = f"raise maxPoolSize from {limit} to {most}, or {instead}"
        if most < size:
            advice += f" (the server has no more for this process; {size} would be needed)"
        elif case.returning and load is not None and recommend_size(load) < size:
            least = max(limit + 1, recommend_size(load))
            advice += f" ({least} may do, where callers pause between their operations)"
    return Finding(
        verdict="undersized",
        severity="critical" if lost and not enough and not case.leaks else "warning",
        pool=case.name,
        because=f"{pool.address} {_dry(case.counts)}{need}; {crowd}",
        advice=advice,
        evidence={
            "rate_per_second": load.rate if load else trouble.rate,
            "use_seconds": case.use_seconds,
            "connections_needed": load.connections if load else 0.0,
            "exhausted_share": trouble.exhausted_share,
            "peak_waiting": case.counts.peak_waiting,
            "held_by_cursors": pool.held_by_cursors,
            "timeouts": trouble.checkouts["timeout"],
            **_waits(trouble),
        },
        change={}
        if needed is None or enough or most <= limit or case.by_cursors
        else {"maxPoolSize": most},
    )


def _oversized(case: Case) -> Finding | None:
    pool, now = case.pool, case.now
    if case.trouble is not None or case.slow or now is None or case.down or now.use_time is None:
        return None
    if now.use_time.count < 10 or pool.waiting or pool.opening:
        return None
    load = Load.of(now.rate, now.use_time)
    needed = max(recommend_size(load), pool.in_use)
    if pool.size - needed < IDLE_CONNECTIONS or pool.size < 4 * needed:
        return None
    kept = pool.min_size > needed
    return Finding(
        verdict="oversized",
        severity="notice",
        pool=case.name,
        because=f"{pool.size} connections to {pool.address} are open, and {load.connections:.1f} "
        f"were in use on average in {now.seconds:.0f} s: {needed} would do",
        advice=f"lower minPoolSize from {pool.min_size} to {needed}, if no rush is to come"
        if kept
        else "set maxIdleTimeMS, so that those left of a rush are closed",
        evidence={"size": pool.size, "connections_needed": load.connections, "enough": needed},
        change={"minPoolSize": needed} if kept else {},
    )


RULES: Final[tuple[Callable[[Case], Finding | None], ...]] = (
    _server_unreachable,
    find_leak,
    _connection_storm,
    _slow_operations,
    _retry_storm,  # behind what may make callers try again
    _undersized,
    _oversized,
)


def _owners(pool: PoolStats) -> str:
    most = sorted((one for one in pool.owners if one.in_use), key=lambda one: -one.in_use)
    named = ", ".join(f"{one.owner or 'no owner'} {one.in_use}" for one in most[:TOP_OWNERS])
    return f"; in use by owner: {named}" if any(one.owner for one in most) else ""


def _waits(part: Window) -> dict[str, float]:
    """Return how long callers waited, where nearly all were served: of the others it is unknown."""
    if part.share("timeout", "cancelled") > 0.05:
        return {}
    return {"wait_p95_seconds": quantile(part.wait_time, 0.95)}


def _dry(pool: PoolStats) -> str:
    times = "once" if pool.exhaustions == 1 else f"{pool.exhaustions} times"
    timeouts, cancelled = pool.checkouts["timeout"], pool.checkouts["cancelled"]
    gave_up = f", {cancelled} gave up" if cancelled else ""
    since = pool.since_exhausted or 0.0
    ago = f" {since:.0f} s ago" if since >= ENDED_SECONDS else ""
    return (
        f"ran dry{ago} (in all {times}, {pool.exhausted_time:.1f} s, {timeouts} timeouts{gave_up})"
    )


def _limit(pool: PoolStats) -> str:
    return "none" if pool.max_size is None else str(pool.max_size)
