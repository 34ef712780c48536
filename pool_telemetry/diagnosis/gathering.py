"""A period becomes evidence: it is measured once, and eagerly.

Each group is one function, and depends only on the groups before it: server, leak, commands, queue,
sizing; churn and spare depend on none.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby, takewhile

from pool_telemetry.diagnosis.evidence import (
    ChurnEvidence,
    CommandEvidence,
    Evidence,
    HangUpEvidence,
    IdleChurnEvidence,
    LeakEvidence,
    QueueEvidence,
    ServerEvidence,
    ServiceEvidence,
    SizingEvidence,
    SlowCommand,
    SpareEvidence,
)
from pool_telemetry.diagnosis.intervals import ALL_COMMANDS, CommandKey, Interval, merge
from pool_telemetry.diagnosis.periods import Period
from pool_telemetry.diagnosis.queueing import Load, is_crowded, predict, recommend_size
from pool_telemetry.diagnosis.thresholds import (
    BLINK_SECONDS,
    BURST_SECONDS,
    BURST_SHARE,
    BUSY_SHARE,
    CHURN_CHECKOUT_SHARE,
    CHURN_IDLE_SHARE,
    CURSOR_SHARE,
    FAILED_SHARE,
    GROWING_SHARE,
    HANG_UP_SHARE,
    HANGING_SECONDS,
    LOST_SHARE,
    MAX_BURST_INTERVALS,
    MAX_POOL_SIZE,
    MIN_CHURN,
    MIN_SAMPLES,
    MIN_SLOW_RUNS,
    MIN_STALLED,
    MIN_UNSERVED,
    MIN_USES,
    OPENING_SHARE,
    PAUSED_SECONDS,
    RECENT_SECONDS,
    RETRY_SHARE,
    SAMPLE_SECONDS,
    SLOW_COMMAND_SHARE,
    SLOW_OPENING_SECONDS,
    SLOW_SECONDS,
    SLOWDOWN,
    SLOWER_EXHAUSTED_SECONDS,
    SLOWER_SECONDS,
    STALLED_HANDSHAKE_SECONDS,
    STALLED_SECONDS,
    TIMED_SHARE,
    TIMEOUT_SHARE,
    UNREACHABLE_SECONDS,
    WAIT_SECONDS,
)
from pool_telemetry.stats import IDLE_SECONDS, LOST_SECONDS, HistogramStats, PoolStats


def gather(period: Period, budget: int | None = None) -> Evidence:
    """Return the evidence of a period.

    Args:
        period: A stretch of a pool's life.
        budget: Connections that the server has for this process; None if it is unknown.
    """
    server, leak = _server(period), _leak(period)
    exhausted = _is_exhausted(period)
    commands = _commands(period, leak, exhausted=exhausted)
    load = _load(period, leak, commands)
    queue = _queue(period, leak, commands, load, exhausted=exhausted)
    return Evidence(
        period=period,
        pool_name=period.client.pool_name(period.pool),
        connection_budget=budget,
        server=server,
        leak=leak,
        commands=commands,
        queue=queue,
        sizing=_sizing(period, leak, commands, queue, load) if load else None,
        churn=_churn(period),
        spare=_spare(period),
        service=_service(period),
        hang_ups=_hang_ups(period),
        idle_churn=_idle_churn(period),
        deadlock=_deadlock(period),
    )


def _is_exhausted(period: Period) -> bool:
    contention = period.contention
    if contention is None:
        return False
    # Callers time out while connections are being opened, too, but a larger pool is no help then.
    return contention.exhausted_seconds > 0.0 or period.pool.exhausted


# Server


def _server(period: Period) -> ServerEvidence:
    pool, others = period.pool, period.client.open_pools
    failed_connects, paused = _failed_connects(period), _paused_seconds(period)
    silent = pool.up is None and pool.phase == "paused"
    down = bool(failed_connects) or paused >= PAUSED_SECONDS or pool.up is False
    recovered = pool.up and pool.outage > 0.0 and period.failing is None
    return ServerEvidence(
        only_server_up=not any(one.up for one in others if one is not pool),
        failed_connects=failed_connects,
        paused_seconds=paused,
        down=down or (silent and pool.since_up_changed >= UNREACHABLE_SECONDS),
        recovered=bool(recovered and pool.since_up_changed < RECENT_SECONDS),
    )


def _failed_connects(period: Period) -> int:
    last = period.last_seconds
    if not any(one.created for one in last):
        return 0
    if any(one.checkouts["ok"] or one.create_time.count for one in last):
        return 0
    left = sum(one.ended_checkouts for one in last)
    return left if left >= MIN_UNSERVED else 0


def _paused_seconds(period: Period) -> float:
    paused = all(one.pool.up and one.pool.phase == "paused" for one in period.last_seconds)
    later = period.last_seconds[1:]
    served = any(one.checkouts["ok"] for one in later)
    return sum(one.seconds for one in later) if paused and not served else 0.0


# Service


def _service(period: Period) -> ServiceEvidence:
    pool, last = period.pool, period.last_seconds
    opened = any(one.create_time.count for one in last)
    unserved = pool.unserved_time >= STALLED_HANDSHAKE_SECONDS
    # Handshakes that always take some seconds are slow, and do not stall.
    age, usual = pool.oldest_opening, pool.create_time.mean or 0.0
    stalled = unserved and age >= max(STALLED_HANDSHAKE_SECONDS, 2 * usual) and not opened
    return ServiceEvidence(
        unserved_seconds=pool.unserved_time,
        stalled_handshakes=pool.opening if stalled else 0,
        oldest_opening_seconds=pool.oldest_opening if stalled else 0.0,
        lost=_is_lost(pool, last),
        silent_seconds=pool.silent_time,
    )


def _is_lost(pool: PoolStats, last: Sequence[Interval]) -> bool:
    # Metrics do not say it, but the intervals show it.
    full = pool.max_size is not None and pool.in_use >= pool.max_size
    may_open = pool.phase == "ready" and not full and not pool.opening
    opens = any(one.created for one in last) or not last
    return pool.lost or (may_open and pool.unserved_time >= LOST_SECONDS and not opens)


# Deadlocks


def _deadlock(period: Period) -> PoolStats | None:
    """Return the pool as it was when each of its holders waited for another connection."""
    limit = period.pool.max_size or math.inf
    looks = [one.pool for one in period.last_seconds]
    # If waits are bounded, a sample may be between the end of a wait and the next one.
    locked = (one for one in reversed(looks) if one.self_blocked >= limit)
    return next(locked, None) if period.pool.in_use >= limit else None


# Leaks


def _leak(period: Period) -> LeakEvidence:
    held = period.pool.held_idle or 0
    since = period.contended[0].start - BLINK_SECONDS if period.contended else 0.0
    # The interval before the contention ends at its beginning, and counts.
    recent = (one for one in period.recent if one.end >= since)
    return LeakEvidence(
        held_idle=held, recent=held > 0 or any(one.pool.held_idle for one in recent)
    )


# Commands


def _commands(period: Period, leak: LeakEvidence, *, exhausted: bool) -> CommandEvidence:
    steady, usual = period.steady, period.baseline.use_time if period.baseline else None
    usual_seconds = usual.mean if usual is not None and usual.count >= MIN_SAMPLES else None
    return CommandEvidence(
        use_seconds=(steady.use_time.mean if steady else None) or 0.0,
        usual_use_seconds=usual_seconds,
        slow_command=_slowest_command(period, exhausted=exhausted),
        stalled_seconds=_stalled_seconds(period, leak, usual_seconds or 0.0),
    )


def _stalled_seconds(period: Period, leak: LeakEvidence, usual_seconds: float) -> float:
    pool = period.pool
    working = pool.in_use - leak.held_idle - pool.held_by_cursors
    several = working >= MIN_STALLED or (working > 0 and pool.waiting > 0)
    age, least = pool.longest_checkout, STALLED_SECONDS
    # The longest checkout may be a leak or a cursor, and a leak younger than IDLE_SECONDS is not
    # in held_idle yet, so use the stall time.
    if leak.held_idle or pool.held_by_cursors:
        age, least = pool.stalled_time, STALLED_SECONDS + IDLE_SECONDS
    age = min(age, max(pool.stalled_time, _seconds_without_return(period)))
    if not usual_seconds and not pool.waiting:  # these commands may take as long as ever
        least, usual_seconds = max(least, HANGING_SECONDS), pool.use_time.max
    return age if several and age >= least and age > SLOWDOWN * usual_seconds else 0.0


def _seconds_without_return(period: Period) -> float:
    """Return the time since the interval in which a connection was last returned."""
    waits = takewhile(lambda one: not one.use_time.count, reversed(period.recent))
    return sum(one.seconds for one in waits)


def _slowest_command(period: Period, *, exhausted: bool) -> SlowCommand | None:
    if period.settled is not None:
        return _slow_command(period.settled, period.baseline, exhausted=exhausted)
    # A command that became slow a moment ago shows in the last intervals alone.
    last = (merge(period.last_seconds[i:]) for i in range(len(period.last_seconds)))
    slow = (_slow_command(one, period.baseline, exhausted=exhausted) for one in last if one)
    return next((one for one in slow if one), None)


def _slow_command(
    now: Interval, baseline: Interval | None, *, exhausted: bool
) -> SlowCommand | None:
    times = now.command_times()
    every = sum(duration.sum for duration in times.values())
    usual = baseline.command_times() if baseline else {}
    if ALL_COMMANDS in times and baseline and baseline.use_time.count:
        usual = {ALL_COMMANDS: baseline.use_time}
    slow = [
        (duration.sum, one)
        for key, duration in times.items()
        if (share := duration.sum / (every or 1.0)) >= SLOW_COMMAND_SHARE
        and (one := _if_slow(key, duration, usual.get(key), share, now, exhausted, every))
    ]
    return max(slow, key=lambda one: one[0])[1] if slow else None


def _if_slow(
    key: CommandKey,
    duration: HistogramStats,
    usual: HistogramStats | None,
    share: float,
    now: Interval,
    exhausted: bool,
    every: float,
) -> SlowCommand | None:
    """Return a command if it takes longer than in the baseline, or than any command should."""
    mean = duration.mean or 0.0
    known = usual.mean if usual is not None and usual.count >= MIN_SAMPLES else None
    if known is not None:
        least = SLOWER_EXHAUSTED_SECONDS if exhausted else SLOWER_SECONDS
        slow = mean >= max(SLOWDOWN * known, least)
        slow = slow and (exhausted or _count_above(duration, SLOWDOWN * known) >= MIN_SLOW_RUNS)
    else:
        # A few long runs among many short ones keep connections, too.
        typical = Load.from_histogram(1.0, duration).typical_use_seconds
        held = every >= TIMED_SHARE * now.use_time.sum
        slow = exhausted and held and max(mean, typical / 2) >= SLOW_SECONDS
        mean = max(mean, typical)
    name = " ".join(filter(None, (key.command, key.collection)))
    return SlowCommand(name, mean, known, duration.count, share, now.seconds) if slow else None


def _count_above(histogram: HistogramStats, seconds: float) -> int:
    """Return how many durations may have been longer."""
    bounds = (*histogram.bounds, math.inf)
    pairs = zip(bounds, histogram.counts, strict=True)
    return sum(count for bound, count in pairs if bound > seconds)


# Queue


def _load(period: Period, leak: LeakEvidence, commands: CommandEvidence) -> Load | None:
    """Return the load of a contended pool if commands took their usual time."""
    settled = period.settled
    if settled is None:
        return None
    use = settled.use_time
    unusual = commands.is_slower_than_usual or commands.stalled_seconds or leak.recent
    if period.baseline and (unusual or period.failing or not use.count):
        use = period.baseline.use_time if period.baseline.use_time.count else use
    enough = settled.seconds >= SAMPLE_SECONDS and settled.ended_checkouts >= MIN_SAMPLES
    rate = settled.rate
    return Load.from_histogram(rate, use) if use.count and rate and enough else None


def _queue(
    period: Period,
    leak: LeakEvidence,
    commands: CommandEvidence,
    load: Load | None,
    *,
    exhausted: bool,
) -> QueueEvidence:
    pool, contention = period.pool, period.contention
    waiting = exhausted and (pool.exhausted or pool.waiting > 0)
    found = QueueEvidence(
        exhausted=exhausted,
        held_by_cursors=waiting
        and pool.held_by_cursors >= CURSOR_SHARE * (pool.max_size or math.inf),
        callers_give_up=contention is not None
        and max(contention.share("cancelled"), contention.cancelled_share()) >= FAILED_SHARE,
        retry_storm=contention is not None and _is_retry_storm(contention),
        closed_workload=False,
        bursty_arrivals=False,
        peak_demand=_peak_demand(period),
    )
    if contention is None:
        return found
    if _is_closed_workload(period, leak, commands, found):
        return replace(found, closed_workload=True)
    other = commands.is_slow or leak.recent or found.retry_storm or period.failing
    return found if other else replace(found, bursty_arrivals=_is_bursty(period, load))


def _is_retry_storm(contention: Interval) -> bool:
    timeouts = contention.checkouts["timeout"]
    if timeouts < MIN_SAMPLES or contention.share("timeout") < TIMEOUT_SHARE:
        return False
    return contention.retries >= RETRY_SHARE * timeouts


def _peak_demand(period: Period) -> int:
    later = (one.pool for one in period.contended[len(period.contended) // 2 :])
    return max((one.in_use - (one.held_idle or 0) + one.waiting for one in later), default=0)


def _is_closed_workload(
    period: Period, leak: LeakEvidence, commands: CommandEvidence, queue: QueueEvidence
) -> bool:
    settled = period.settled
    if settled is None or not settled.seconds:
        return False
    if commands.is_slower_than_usual or commands.stalled_seconds:
        return False
    left = max(0, (period.pool.max_size or 0) - leak.held_idle) or math.inf
    busy = settled.use_time.sum / (settled.seconds * left)
    growing = settled.queue_growth > GROWING_SHARE * settled.checkouts["ok"]
    lost = settled.share("timeout", "cancelled") >= LOST_SHARE or queue.callers_give_up
    full = settled.exhausted_share >= BUSY_SHARE and busy >= BUSY_SHARE
    return full and not lost and not growing


def _is_bursty(period: Period, load: Load | None) -> bool:
    """Return whether callers arrive together: seldom, or again and again with pauses."""
    contention, settled, pool = period.contention, period.settled, period.pool
    if contention is None or settled is None or not pool.peak_waiting:
        return False
    each = contention.exhausted_seconds / max(1, contention.exhaustions)
    seldom = contention.exhausted_seconds < BURST_SHARE * period.known_seconds
    if each <= BURST_SECONDS and seldom:
        return True
    if load is None or pool.max_size is None or load.connections >= pool.max_size:
        return False
    random = predict(load, min(pool.max_size, MAX_POOL_SIZE)).p95
    return is_crowded(settled.wait_time.quantile(0.95) or 0.0, random)


# Sizing


def _sizing(
    period: Period,
    leak: LeakEvidence,
    commands: CommandEvidence,
    queue: QueueEvidence,
    load: Load,
) -> SizingEvidence:
    limit, random = period.pool.max_size, recommend_size(load)
    size = random
    if leak.recent:  # without the leak a connection for each caller would be enough
        size = min(size, queue.peak_demand)
    if queue.closed_workload:
        size = max(size, queue.peak_demand)
    elif queue.bursty_arrivals:  # served within the wait that hardly anybody notices
        demand = (limit or 0) + period.pool.peak_waiting
        size = max(size, math.ceil(demand * min(1.0, commands.use_seconds / WAIT_SECONDS)))
    return SizingEvidence(
        load=load,
        size_for_random=random,
        required_size=size,
        too_small=limit is not None and size > limit,
    )


# Churn


def _churn(period: Period) -> ChurnEvidence:
    window = period.window
    opened = (window.create_time.count if window else 0) + period.pool.opening
    unopened = max(0, window.created - opened) if window else 0
    failed, attempts = period.failing.failures() if period.failing else (0, 0)
    return ChurnEvidence(
        opened=opened,
        unopened=unopened,
        slow_opening=_is_slow_opening(period, opened, unopened),
        peak_demand=_peak_of_opening(period),
        failed=failed,
        attempts=attempts,
    )


def _peak_of_opening(period: Period) -> int:
    """Return the most callers that were there together, those that waited for a moment included."""
    contended, contention = period.contended, period.contention
    most = max((one.pool.in_use + one.pool.waiting for one in contended), default=0)
    if contention is None or len(contended) > MAX_BURST_INTERVALS:
        return most
    # A burst may come and go between two samples.
    return max(most, _count_above(contention.wait_time, WAIT_SECONDS))


def _is_slow_opening(period: Period, opened: int, unopened: int) -> bool:
    contention, pool = period.contention, period.pool
    if contention is None:
        return False
    if contention.checkouts["timeout"] and not _is_exhausted(period):
        return True  # callers time out in a full pool, or while connections are being opened
    over = contention.seconds
    used = contention.use_time.sum + pool.in_use * min(pool.longest_checkout, over)
    few = used < OPENING_SHARE * over * (pool.max_size or math.inf)
    if few and unopened >= max(MIN_UNSERVED, OPENING_SHARE * contention.created):
        return True
    if opened < 2:
        return False
    p95 = contention.wait_time.quantile(0.95) or 0.0
    waited = max(contention.exhausted_seconds, p95, pool.oldest_wait)
    opening = contention.create_time.sum + pool.opening * pool.oldest_wait
    full = contention.exhausted_seconds >= OPENING_SHARE * waited
    over = contention.exhausted_seconds if full else contention.seconds
    held = contention.use_time.sum + pool.in_use * min(pool.longest_checkout, over)
    in_use = held / (over * (pool.max_size or math.inf)) if over else 1.0
    long = opening >= OPENING_SHARE * waited and opening / opened >= SLOW_OPENING_SECONDS
    return long and in_use < OPENING_SHARE


# Connections that are opened and closed again


def _idle_churn(period: Period) -> IdleChurnEvidence | None:
    during = _churning(period, _is_hardly_used)
    if during is None:
        return None
    return IdleChurnEvidence(during=during, pause_seconds=_longest_pause(period, during))


def _is_hardly_used(one: Interval) -> bool:
    idle = one.closed["idle"] >= CHURN_IDLE_SHARE * one.created
    return one.created > 0 and idle and one.created >= CHURN_CHECKOUT_SHARE * one.checkouts["ok"]


def _longest_pause(period: Period, during: Interval) -> float:
    """Return the longest time without a checkout, or else the mean time between two."""
    runs = groupby(period.recent, lambda one: one.checkouts["ok"] > 0)
    quiet = (sum(one.seconds for one in run) for served, run in runs if not served)
    return max(*quiet, 0.0, during.seconds / max(1, during.checkouts["ok"]))


def _hang_ups(period: Period) -> HangUpEvidence | None:
    """Return the callers that hung up, if each of many costs a connection."""
    during = _churning(period, _is_hung_up_on)
    if during is None:
        return None
    return HangUpEvidence(
        during=during,
        cancelled=during.hang_ups(),
        callers=during.checkouts["ok"] + during.checkouts["cancelled"],
    )


def _is_hung_up_on(one: Interval) -> bool:
    closed, callers = one.closed["error"], one.checkouts["ok"] + one.checkouts["cancelled"]
    cancelled = one.hang_ups() >= HANG_UP_SHARE * closed
    return closed > 0 and cancelled and closed >= FAILED_SHARE * callers


def _churning(period: Period, is_churning: Callable[[Interval], bool]) -> Interval | None:
    """Return the time in which connections are opened and closed again; None if they are not now.

    If they are few, because there are few requests, it is all the time that is judged.
    """
    latest = merge(_latest_checkouts(period.recent))
    if latest is None or not is_churning(latest):
        return None
    for one in (period.window, merge(period.recent)):
        enough = one is not None and one.seconds >= SAMPLE_SECONDS and one.created >= MIN_CHURN
        if one is not None and enough and is_churning(one):
            return one
    return None


def _latest_checkouts(recent: Sequence[Interval]) -> list[Interval]:
    """Return the last intervals, as many as have MIN_CHURN checkouts; all if there are fewer."""
    found, checkouts = list[Interval](), 0
    for one in reversed(recent):
        found.insert(0, one)
        checkouts += one.ended_checkouts
        if checkouts >= MIN_CHURN:
            break
    return found


# Spare connections


def _spare(period: Period) -> SpareEvidence | None:
    window, pool = period.window, period.pool
    if period.contention is not None or window is None or window.use_time.count < MIN_USES:
        return None
    load = Load.from_histogram(window.rate, window.use_time)
    return SpareEvidence(used=load.connections, needed=max(recommend_size(load), pool.in_use))
