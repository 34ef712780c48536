"""One sleeping thread that checks every pool, because no event reports that time passes.

It writes log lines, calls the application back, keeps the history, and answers other processes.
Nothing here is on the hot path.
"""

from pool_telemetry.watch.thread import CHECK_SECONDS, check, check_all, take_part, watch
from pool_telemetry.watch.watched import TOP_HOLDERS, Watched

__all__ = ["CHECK_SECONDS", "TOP_HOLDERS", "Watched", "check", "check_all", "take_part", "watch"]
