"""Hooks for the end of this process, such as sending the last metrics.

`atexit` is not enough: uvicorn ends itself by a signal, and the workers of multiprocessing and
Celery end by `os._exit()`. So the singletons' `close()`, the router's lifespan and the ends of
these workers call `end()`. This module imports no other library.
"""

import sys
from collections.abc import Callable
from typing import Any, Final

from pool_telemetry.log_lines import ProcessLog
from pool_telemetry.process import after_fork, notice_fork

_log: Final = ProcessLog("pool_telemetry.telemetry")

_hooks: Final[list[Callable[[], None]]] = []


def on_end(hook: Callable[[], None]) -> Callable[[], None]:
    """Register a hook that runs at the end, the latest first.

    It may run several times, and the process may go on after it, as after a pool's `close()`.
    """
    _hooks.append(hook)
    return hook


def end() -> None:
    """Run all hooks. It may block for seconds. A failure is logged, because the end goes on."""
    notice_fork()
    for hook in reversed(_hooks):
        try:
            hook()
        except Exception:  # noqa: BLE001  # whatever fails, the process ends
            _log.exception("a hook for the end of the process failed")


_is_after_fork_registered = False


@after_fork
def _watch_workers_end() -> None:
    """Call `end()` when this process ends as a worker of multiprocessing or of Celery.

    Neither is imported here, because it is there in its own workers.
    """
    global _is_after_fork_registered
    if (util := sys.modules.get("multiprocessing.util")) is not None:
        _watch_multiprocessing()
        if not _is_after_fork_registered:
            # multiprocessing clears its finalizers when a worker begins, and then calls this.
            util.register_after_fork(_end_worker, _watch_multiprocessing)
            _is_after_fork_registered = True
    if (signals := sys.modules.get("celery.signals")) is not None:
        signals.worker_process_shutdown.connect(_end_celery_worker, weak=False)


def _watch_multiprocessing(*_: object) -> None:
    # The lowest priority: after the worker's own finalizers, and after it has joined its children.
    sys.modules["multiprocessing.util"].Finalize(None, _end_worker, exitpriority=-1_000)


def _end_worker() -> None:
    # In a process that multiprocessing did not make, atexit runs its finalizers.
    if sys.modules["multiprocessing.process"].parent_process() is not None:
        end()


def _end_celery_worker(**_: Any) -> None:
    end()


_watch_workers_end()  # of a process that was spawned
