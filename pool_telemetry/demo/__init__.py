"""`pool-telemetry demo`: a pool under load in the terminal, and the embedded server.

It needs the extra `demo`. Only the command line, the examples and tests import this room; nothing
that a service needs may come in.
"""

from typing import Any

_MAIN = frozenset({"LIMITS", "PORT", "DemoError", "run"})
_LOAD = frozenset({"Callers", "Phase", "Server"})
_VIEW = frozenset({"Intro", "Reading", "Recent", "Screen", "screen", "summary"})


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the embedded server alone needs neither FastAPI nor rich.
    if name in _MAIN:
        from pool_telemetry.demo import main as module
    elif name in _LOAD:
        from pool_telemetry.demo import load as module  # type: ignore[no-redef]
    elif name in _VIEW:
        from pool_telemetry.demo import view as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
