import pytest

from pool_telemetry.diagnosis.evidence import HangUpEvidence
from pool_telemetry.diagnosis.gathering import gather
from pool_telemetry.diagnosis.intervals import CommandKey
from tests.rules.evidence import (
    SLOWER,
    a_period,
    an_interval,
    closed,
    durations,
    evidence,
    exhausted,
    found,
    outcomes,
    sizing,
    the,
)
from tests.test_health import a_pool

DURING = an_interval(created=171, closed=closed(error=176), checkouts=outcomes(ok=258))
HANG_UPS = HangUpEvidence(during=DURING, cancelled=176, callers=258)


def test_callers_that_hang_up_are_described_with_what_they_cost() -> None:
    because = (
        "176 of 258 callers were cancelled in the middle of an operation in 3 s. Each cancellation "
        "closes a connection: 176 were closed, and 171 handshakes begun."
    )
    advice = (
        "Let operations end although their callers hang up: wrap them in asyncio.shield(). Raise "
        "the timeouts that cancel them above the duration of an operation, such as those of the "
        "proxy, the web framework and the clients."
    )
    assert found(evidence(hang_ups=HANG_UPS)) == [
        ("callers_hang_up.cancelled", "warning", because, advice, {})
    ]


def test_hang_ups_explain_a_queue_and_handshakes_unless_the_pool_is_too_small() -> None:
    pool = a_pool(max_size=50, size=14, in_use=12, opening=2, waiting=28)
    opening = evidence(
        period=a_period(pool, contention=an_interval(pool=pool, checkouts=outcomes(ok=9))),
        churn=the("churn", opened=40, slow_opening=True),
        hang_ups=HANG_UPS,
    )
    assert [one[0] for one in found(opening)] == ["callers_hang_up.cancelled"]
    queue = the("queue", exhausted=True, callers_give_up=True)
    enough = exhausted(queue=queue, sizing=sizing(8), hang_ups=HANG_UPS)
    assert [one[0] for one in found(enough)] == ["callers_hang_up.cancelled"]
    small = exhausted(queue=queue, sizing=sizing(13), hang_ups=HANG_UPS)
    assert [one[:2] for one in found(small)] == [
        ("callers_hang_up.cancelled", "warning"),
        ("undersized.random_arrivals", "warning"),
    ]


def test_cancelled_commands_are_counted_whether_pymongo_ends_them_or_not() -> None:
    find = CommandKey("shop", "orders", "find", "")
    ended = {
        find: durations(0.04, 100),
        find._replace(error_type="cancelled"): durations(0.02, 200),
    }
    changes = {
        "use_time": durations(0.02, 300),
        "checkouts": outcomes(ok=300, cancelled=20),  # half of these while they opened one
        "created": 320,
        "create_time": durations(0.001, 310),
    }
    assert an_interval(commands=ended, **changes).hang_ups() == 210
    before_4_20_1 = {find: durations(0.04, 100)}
    assert an_interval(commands=before_4_20_1, **changes).hang_ups() == 210
    assert an_interval(**changes).hang_ups() == 10  # commands are not observed


@pytest.mark.parametrize(("cancelled", "found"), [(40, True), (12, False)])
def test_connections_that_the_network_closes_are_no_hang_ups(cancelled: int, found: bool) -> None:
    find = CommandKey("shop", "orders", "find", "")
    during = an_interval(
        created=50,
        closed=closed(error=50),
        checkouts=outcomes(ok=100),
        use_time=durations(0.02, 100),
        commands={
            find: durations(0.02, 100 - cancelled),
            find._replace(error_type="cancelled"): durations(0.02, cancelled),
        },
    )
    hang_ups = gather(a_period(calm=during)).hang_ups
    assert (hang_ups is not None) is found


def test_slow_operations_explain_hang_ups() -> None:
    given = evidence(hang_ups=HANG_UPS, commands=the("commands", slow_command=SLOWER))
    assert [one[0] for one in found(given)] == ["slow_operations.slower_than_usual"]
