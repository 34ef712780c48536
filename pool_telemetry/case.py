"""One pool's case: what is usual for it, its trouble, and what of that can be measured.

Read by the rules of `findings.py`. Time in which nobody waited tells what is usual; the trouble is
compared with that.
"""

import math
from functools import cached_property
from typing import Final, NamedTuple

from pool_telemetry.sizing import LARGEST, Load, predict, recommend_size
from pool_telemetry.stats import IDLE_SECONDS, ClientStats, PoolStats
from pool_telemetry.trouble import (
    FAILED_SHARE,
    FEW,
    RECENT_SECONDS,
    SLOW_SECONDS,
    SLOWER,
    USES,
    WAIT_SECONDS,
    before_it_got_worse,
    cancelled_share,
    command_times,
    count_above,
    fails,
    failures,
    is_crowded,
    is_dry,
    last_run,
    mean_of,
    quantile,
)
from pool_telemetry.window import Window, total

SLOW_SHARE: Final = 0.2
"""Of the time of all commands; what is less is not what keeps connections."""
STUCK_SECONDS: Final = 1.0
ENDED_SECONDS: Final = 3.0
"""After so long without it a trouble is over."""
LATELY_SECONDS: Final = 3.0
"""In so many seconds is seen what became slow where nobody waits."""
BURST_SECONDS: Final = 1.0
"""Exhaustions that are longer on average are no bursts."""
PAUSED_SECONDS: Final = 1.5
"""PyMongo that looks at a server again and again lets callers in sooner, if it is well."""
UNREACHABLE_SECONDS: Final = 3.0
MANY_LEFT: Final = 3
"""So many who are not served, and nobody who is, are no accident."""


class Slowed(NamedTuple):
    """The command that takes too long, of those the one with most time.

    Attributes:
        name: `find orders`.
        seconds: It takes on average.
        usual: What it usually takes; None where that is not known.
        ran: How often.
        share: Of the time of all commands.
    """

    name: str
    seconds: float
    usual: float | None
    ran: int
    share: float


class Case:
    """One pool: what is usual for it, and the trouble that it has now.

    Attributes:
        pool: How it is; of a trouble that is over, how it was then.
        counts: How it is now.
        trouble: The time in which callers waited, if they still do.
        settled: That without its beginning.
        now: That, or else the last half a minute.
        looks: The last seconds, look by look.
        lately: They together: what was usual half a minute ago hides what is slow.
        failing: The time in which commands failed, if they still do.
        usual: All other time.
        ended_at: Unix time at which a trouble was over, if one was; `trouble` is None then.
        worse_at: Unix time at which operations became slow in the middle of a trouble. That is the
            trouble then, and what was before is usual.
    """

    def __init__(
        self,
        pool: PoolStats,
        parts: list[Window],
        stats: ClientStats,
        most: int | None,
        counts: PoolStats | None = None,
    ) -> None:
        self.pool, self.counts = pool, counts or pool
        self.name = stats.pool_name(pool)
        self.alone = not any(one.up for one in stats.open_pools if one is not pool)
        self.most = most
        first, *later = parts
        # What was before the first look is of use if it was short, and a trouble.
        if first.seconds < RECENT_SECONDS and is_dry(first):
            later = parts
        recent = [one for one in later or [first] if stats.at - one.until < RECENT_SECONDS]
        self.recent, self.latest = recent, recent[-1]
        self.seconds = sum(one.seconds for one in recent)

        dry = [one for one in recent if is_dry(one)]
        ago = stats.at - dry[-1].until if dry else 0.0
        if dry and dry[-1].exhausted_time and not pool.exhausted and not pool.waiting:
            # It need not have lasted until the end of that look.
            ago = max(ago, min(pool.since_exhausted or 0.0, pool.since_timeout or math.inf))
        self.ended_at = stats.at - ago if ago >= ENDED_SECONDS else None
        self.dry = [] if self.ended_at is not None and dry != [first] else last_run(dry)
        before = before_it_got_worse(self.dry) if self.dry == recent else []
        self.worse_at = before[-1].until if before else None
        self.dry = self.dry[len(before) :]
        self.trouble = total(self.dry)
        self.settled = total(self.dry[1:] or self.dry)  # after the look in which it began
        failing = [one for one in recent if fails(one)]
        self.failing = total(failing) if failing and failing[-1].until == stats.at else None
        last = min(30.0, 0.4 * self.seconds)
        calm = [one for one in recent if stats.at - one.until < last]
        now = self.dry or calm
        self.now = total(now)
        self.looks = [one for one in recent if stats.at - one.until < LATELY_SECONDS]
        self.lately = total(self.looks)
        strange = [*dry, *failing, *now]
        usual = (one for one in parts if one not in strange and not is_dry(one))
        self.usual = total(before or usual)

    # What is measured

    @property
    def leaked(self) -> int:
        """Return the connections that somebody has and does not use."""
        return self.pool.held_idle or 0

    @property
    def leaks(self) -> bool:
        """Return whether connections were so in the trouble, or else lately."""
        since = self.dry[0].until - self.dry[0].seconds if self.dry else 0.0
        looks = (one for one in self.recent if one.until >= since - 0.001)  # its beginning, too
        return self.leaked > 0 or any(one.last.held_idle for one in looks)

    @property
    def by_cursors(self) -> bool:
        """Return whether cursors that somebody reads have most of a pool that ran dry."""
        pool = self.pool
        dry = self.ran_dry and (pool.exhausted or pool.waiting > 0)
        return dry and pool.held_by_cursors >= 0.5 * (pool.max_size or math.inf)

    @property
    def steady(self) -> Window | None:
        """Return the trouble without its beginning, or else the last seconds."""
        return self.settled or self.lately

    @cached_property
    def use_seconds(self) -> float:
        """Return how long connections are held now, on average."""
        return mean_of(self.steady.use_time) if self.steady else 0.0

    @property
    def usual_seconds(self) -> float | None:
        """Return how long connections are usually held, on average; None if it is not known."""
        usual = self.usual.use_time if self.usual else None
        return usual.mean if usual is not None and usual.count >= FEW else None

    @cached_property
    def stuck_seconds(self) -> float:
        """Return for how long nothing has come back, from several callers; 0.0 if it does."""
        pool, ended = self.pool, self.latest.use_time
        comes_back = ended is not None and ended.count >= pool.in_use and pool.stalled_time < 1.0
        at_work = pool.in_use - self.leaked - pool.held_by_cursors
        several = at_work >= 3 or (at_work > 0 and pool.waiting > 0)
        age, least = pool.longest_checkout, STUCK_SECONDS
        # The oldest may be theirs, and who forgot his just now is not known yet.
        if self.leaked or pool.held_by_cursors:
            age, least = pool.stalled_time, STUCK_SECONDS + IDLE_SECONDS
        if comes_back or not several or age < least:
            return 0.0
        return age if age > SLOWER * (self.usual_seconds or 0.0) else 0.0

    @cached_property
    def load(self) -> Load | None:
        """Return what the pool would have to bear if commands took their usual time."""
        trouble = self.settled
        if trouble is None:
            return None
        use, usual = trouble.use_time, self.usual.use_time if self.usual else None
        if use is None or self.slower or self.stuck_seconds or self.failing or self.leaks:
            use = usual or use
        enough = trouble.seconds >= 1.0 and sum(trouble.checkouts.values()) >= FEW
        return Load.of(trouble.rate, use) if use is not None and trouble.rate and enough else None

    # What it comes to

    @property
    def unopened(self) -> int:
        """Return how many left lately of whom nobody was served, as no connection could be opened.

        Where the network is silent, heartbeats learn of it later than callers who give up.
        """
        lately = self.lately
        if lately is None or lately.checkouts["ok"] or lately.create_time or not lately.created:
            return 0
        left = sum(lately.checkouts.values())
        return left if left >= MANY_LEFT else 0

    @property
    def paused_seconds(self) -> float:
        """Return for how long PyMongo has let nobody in lately, though heartbeats are answered.

        An error told it that the server is unfit, and it waits for the next heartbeat.
        """
        paused = all(one.last.up and one.last.phase == "paused" for one in self.looks)
        later = self.looks[1:]
        served = any(one.checkouts["ok"] for one in later)
        return sum(one.seconds for one in later) if paused and not served else 0.0

    @property
    def down(self) -> bool:
        """Return whether the server does not answer."""
        pool = self.pool
        if self.unopened or self.paused_seconds >= PAUSED_SECONDS:
            return True
        silent = pool.up is None and pool.phase == "paused"
        return pool.up is False or (silent and pool.since_up_changed >= UNREACHABLE_SECONDS)

    @property
    def was_down(self) -> bool:
        """Return whether the server did not answer lately, and does again."""
        pool = self.pool
        back = pool.up and pool.outage > 0.0 and self.failing is None
        return bool(back and pool.since_up_changed < RECENT_SECONDS)

    @cached_property
    def ran_dry(self) -> bool:
        """Return whether callers found all connections taken, for long enough to matter."""
        trouble = self.trouble
        if trouble is None:
            return False
        dry = trouble.exhausted_time > 0.0 or trouble.checkouts["timeout"] > 0
        return dry or self.pool.exhausted

    @cached_property
    def slowed(self) -> Slowed | None:
        """Return the command that takes longer than it usually does, or than any should."""
        now, usual = self.steady, self.usual
        if now is None:
            return None
        times = command_times(now)
        every = sum(duration.sum for duration in times.values())
        before = command_times(usual) if usual else {}
        if USES in times and usual and usual.use_time:
            before = {USES: usual.use_time}
        least = SLOW_SECONDS / (5 if self.ran_dry else 2)
        found = list[tuple[float, Slowed]]()
        for series, duration in times.items():
            mean, was, share = mean_of(duration), before.get(series), duration.sum / (every or 1.0)
            known = mean_of(was) if was is not None and was.count >= FEW else None
            if known is not None:
                slow = mean >= max(SLOWER * known, least)
                slow = slow and (self.ran_dry or count_above(duration, SLOWER * known) > 2)
            else:
                # Few long ones among many short ones are what keeps connections, too.
                typical = Load.of(1.0, duration).typical_use_seconds
                held = every >= 0.5 * now.used
                slow = self.ran_dry and held and max(mean, typical / 2) >= SLOW_SECONDS
                mean = max(mean, typical) if slow else mean
            if slow and share >= SLOW_SHARE:
                name = " ".join(filter(None, (series[2], series[1])))
                found.append((duration.sum, Slowed(name, mean, known, duration.count, share)))
        return max(found, key=lambda one: one[0])[1] if found else None

    @property
    def give_up(self) -> bool:
        """Return whether many do not wait to the end, of the queue or of their commands."""
        trouble = self.trouble
        if trouble is None:
            return False
        commands = cancelled_share(trouble)
        return max(trouble.share("cancelled"), commands) >= FAILED_SHARE

    @property
    def slower(self) -> bool:
        """Return whether commands take longer than they are known to."""
        return self.slowed is not None and self.slowed.usual is not None

    @property
    def slow(self) -> bool:
        """Return whether commands take too long, rather than being too many."""
        return self.slowed is not None or self.stuck_seconds > 0.0

    @property
    def failed(self) -> tuple[int, int]:
        """Return how many attempts failed so that one tries again, and how many there were."""
        return failures(self.failing) if self.failing else (0, 0)

    @cached_property
    def retried(self) -> bool:
        """Return whether most time out, and those who do come again at once."""
        trouble = self.trouble
        if trouble is None or trouble.checkouts["timeout"] < FEW:
            return False
        # PyMongo itself tries a read once more: that alone is half of them.
        again = trouble.retries >= 0.75 * trouble.checkouts["timeout"]
        return again and trouble.share("timeout") >= 0.5

    @property
    def opened(self) -> int:
        """Return how many connections were opened, those that still are included."""
        opened = self.now.create_time if self.now else None
        return (opened.count if opened else 0) + self.pool.opening

    @cached_property
    def storm(self) -> bool:
        """Return whether callers wait for connections to be opened, rather than for one back."""
        trouble = self.trouble
        if trouble is None or self.opened < 2:
            return False
        waited = max(
            trouble.exhausted_time,
            quantile(trouble.wait_time, 0.95),
            self.pool.oldest_wait,
        )
        created = trouble.create_time
        opening = (created.sum if created else 0.0) + self.pool.opening * self.pool.oldest_wait
        each = opening / self.opened
        dry = trouble.exhausted_time >= 0.5 * waited
        over = trouble.exhausted_time if dry else trouble.seconds
        held = trouble.used + self.pool.in_use * min(self.pool.longest_checkout, over)
        in_use = held / (over * (self.pool.max_size or math.inf)) if over else 1.0
        return opening >= 0.5 * waited and each >= 0.02 and in_use < 0.5

    @cached_property
    def churn(self) -> bool:
        """Return whether connections are hardly used before they are closed."""
        now = self.now
        return (
            now is not None
            and now.created >= max(10.0, 2.0 * now.seconds)
            and now.closed["idle"] >= 0.5 * now.created
            and now.created >= 0.3 * now.checkouts["ok"]
        )

    @cached_property
    def needed(self) -> int | None:
        """Return the maxPoolSize with which nearly nobody would wait; None if it is not known."""
        if self.load is None:
            return None
        best, limit = recommend_size(self.load), self.pool.max_size or 0
        if self.leaks:  # without them all who are there would do with one each
            best = min(best, self.crowd)
        if self.returning:
            return max(best, self.crowd)
        if self.burst:  # over within the wait that nobody minds
            demand = limit + self.pool.peak_waiting
            return max(best, math.ceil(demand * min(1.0, self.use_seconds / WAIT_SECONDS)))
        return best

    @property
    def crowd(self) -> int:
        """Return how many callers there were at most, once the trouble had settled."""
        late = (one.last for one in self.dry[len(self.dry) // 2 :])
        return max((one.in_use - (one.held_idle or 0) + one.waiting for one in late), default=0)

    @property
    def too_small(self) -> bool:
        """Return whether it is known that more connections are needed than the pool may have."""
        return (self.needed or 0) > (self.pool.max_size or math.inf)

    @cached_property
    def returning(self) -> bool:
        """Return whether a fixed number of callers come again when they are served.

        The pool was full all the time then, and yet its queue did not grow.
        """
        trouble = self.settled
        if trouble is None or self.slower or self.stuck_seconds or not trouble.seconds:
            return False
        left = max(0, (self.pool.max_size or 0) - self.leaked) or math.inf
        busy = trouble.used / (trouble.seconds * left)
        growing = trouble.queue_growth > 0.05 * trouble.checkouts["ok"]
        # Some time out even so: PyMongo's queue is not fair to who waits longest (4.20).
        few_fail = trouble.share("timeout", "cancelled") < 0.05 and not self.give_up
        return trouble.exhausted_share >= 0.9 and busy >= 0.9 and few_fail and not growing

    @cached_property
    def burst(self) -> bool:
        """Return whether many came at once, and seldom; or again and again, with pauses."""
        trouble = self.trouble
        if trouble is None or self.slow or self.leaks or self.retried or self.returning:
            return False
        each = trouble.exhausted_time / max(1, trouble.exhaustions)
        seldom = trouble.exhausted_time < 0.25 * self.seconds
        return self.pool.peak_waiting > 0 and ((each <= BURST_SECONDS and seldom) or self.crowded)

    @cached_property
    def crowded(self) -> bool:
        """Return whether callers wait for far longer than if they came at random, as one would."""
        trouble, load, limit = self.settled, self.load, self.pool.max_size
        if trouble is None or load is None or limit is None or load.connections >= limit:
            return False
        random = predict(load, min(limit, LARGEST)).p95
        return is_crowded(quantile(trouble.wait_time, 0.95), random)
