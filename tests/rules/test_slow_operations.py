from pool_telemetry.diagnosis.evidence import SlowCommand
from tests.rules.evidence import SLOW, SLOWER, evidence, exhausted, found, sizing, the

EXAMINE = (
    "Examine this command: its indexes, explain(), the server's slow query log and load. If it is "
    "fast on the server, the process is blocked: its CPU, or its event loop."
)
EXHAUSTED = " Exhausted for 4.0 s (2 episodes, no timeouts)."


def commands(command: SlowCommand | None, stalled: float = 0.0) -> object:
    return the("commands", slow_command=command, stalled_seconds=stalled)


def test_a_command_that_is_slower_than_usual() -> None:
    because = (
        "find orders took 345 ms on average, usually 1.8 ms: 120 runs in 3 s, 96% of all "
        "commands' time."
    )
    cause = "slow_operations.slower_than_usual"
    assert found(evidence(commands=commands(SLOWER))) == [(cause, "warning", because, EXAMINE, {})]
    # A size would not mend it.
    given = exhausted(commands=commands(SLOWER), sizing=sizing(8))
    assert found(given) == [(cause, "warning", because + EXHAUSTED, EXAMINE, {})]


def test_a_command_that_is_slow_gets_a_size_as_a_workaround() -> None:
    cause = "slow_operations.slow_command"
    because = (
        "find orders took 345 ms on average: 120 runs in 3 s, 96% of all commands' time."
        + EXHAUSTED
    )
    assert found(exhausted(commands=commands(SLOW))) == [(cause, "warning", because, EXAMINE, {})]
    workaround = " Until then, maxPoolSize 13 is a workaround: it bears the command as it is."
    for budget, words, change in (
        (None, "", {"maxPoolSize": 13}),
        (12, " The server has 12 connections for this process.", {"maxPoolSize": 12}),
        (10, " The server has 10 connections for this process.", {}),
    ):
        given = exhausted(commands=commands(SLOW), sizing=sizing(13), connection_budget=budget)
        assert found(given) == [(cause, "warning", because, EXAMINE + workaround + words, change)]


def test_connections_that_are_not_returned() -> None:
    advice = (
        "The server or the network hangs, or these commands take that long. /pool/holders and "
        "get_pool_stats(detail=True) name the commands."
    )
    for seconds, severity in ((4.0, "warning"), (5.0, "critical")):
        because = f"No connection was returned for {seconds} s; 10 are in use." + EXHAUSTED
        given = exhausted(commands=commands(None, seconds))
        assert found(given) == [("slow_operations.stalled", severity, because, advice, {})]


def test_callers_that_give_up_make_it_critical() -> None:
    queue = the("queue", callers_give_up=True)
    ((_, severity, *_),) = found(evidence(commands=commands(SLOWER), queue=queue))
    assert severity == "critical"
