"""What to change, read from what happened: the recommendations of `/metrics/mongodb`."""

from typing import Final, TypedDict

from pool_telemetry.stats import ClientStats

RECENT_SECONDS: Final = 300.0
"""A trouble younger than this still asks for a change."""


class Recommendations(TypedDict):
    """The guide's two answers, and the numbers that led to them."""

    increase_pool: bool
    check_connection: bool
    reasons: list[str]


def recommend(stats: ClientStats) -> Recommendations:
    """Return what this snapshot asks for.

    `increase_pool`: callers stood in the queue for lack of a connection within five minutes.
    `check_connection`: no server can be reached.
    """
    reasons = [
        f"{pool.address} ran dry {pool.since_exhausted:.0f} s ago (in all {pool.exhaustions} "
        f"times, {pool.exhausted_time:.1f} s, {pool.checkouts['timeout']} timeouts): raise "
        f"maxPoolSize above {pool.max_size}, or shorten what holds a connection"
        for pool in stats.open_pools
        if pool.since_exhausted is not None and pool.since_exhausted < RECENT_SECONDS
    ]
    increase = bool(reasons)
    if not stats.connected:
        reasons.append("no server answers heartbeats: check the address, the network, the server")
    return {
        "increase_pool": increase,
        "check_connection": not stats.connected,
        "reasons": reasons,
    }
