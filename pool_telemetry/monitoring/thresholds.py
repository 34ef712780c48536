"""The limits of the alerts: what a user may set, each with its default, range and meaning.

The command line turns these fields into options, the alerts compare with their values, and the
dashboards draw them as lines. No metric and no query belongs here.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from pool_telemetry.errors import PoolConfigurationError


def _share(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning, "below": 1.0})


def _number(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning, "below": float("inf")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The limits above which the alerts fire, also drawn as lines in the dashboards.

    Shares are above 0 and below 1; all other limits are above 0. The metadata of each field has its
    `meaning`, which the command line shows as help.

    Raises:
        PoolConfigurationError: A limit is out of range, or `in_use_warning` is not below
            `in_use_critical`.
    """

    exhausted_share: float = _share(
        0.25, "share of 2 minutes (0.25 is 25%) in which the pool was exhausted"
    )
    in_use_warning: float = _share(
        0.8, "share of maxPoolSize in use, on average over 5 minutes, that is a warning"
    )
    in_use_critical: float = _share(
        0.95, "share of maxPoolSize in use, on average over 5 minutes, that is critical"
    )
    timeout_share: float = _share(
        0.01, "share of the checkouts of 5 minutes that timed out, or that failed"
    )
    wait_p99_seconds: float = _number(
        0.5, "seconds to obtain a connection, as the 99th percentile over 5 minutes"
    )
    oldest_wait_seconds: float = _number(
        3.0, "seconds that the oldest waiting caller has waited, throughout one minute"
    )
    unserved_seconds: float = _number(
        10.0, "seconds for which callers waited for a connection or a server, and none got one"
    )
    longest_checkout_seconds: float = _number(
        60.0, "seconds that a caller has held the same connection"
    )
    created_per_second: float = _number(
        2.0, "connections that one pool opens per second, on average over 5 minutes"
    )

    def __post_init__(self) -> None:
        for limit in fields(self):
            value, below = getattr(self, limit.name), limit.metadata["below"]
            if not 0.0 < value < below:
                words = "a share, above 0 and below 1" if below == 1.0 else "a number above 0"
                example = f"such as {limit.default:g}"
                raise PoolConfigurationError(f"{limit.name} is {value!r}: use {words}, {example}")
        if self.in_use_warning >= self.in_use_critical:
            raise PoolConfigurationError(
                f"in_use_warning is {self.in_use_warning:g}: use less than in_use_critical, "
                f"{self.in_use_critical:g}"
            )
