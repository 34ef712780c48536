"""Silent worker: a process of the service exists, and does not answer the other processes.

It is stopped, or one of its threads keeps Python's lock. It concerns the process, not a pool.
"""

from pool_telemetry.diagnosis.model import Finding


def finding(label: str, worker: int | None, pid: int, silent_seconds: float) -> Finding:
    """Return the finding about a process.

    Args:
        label: Its name in a text.
        worker: Its number.
        pid: Its process id.
        silent_seconds: How long ago it answered last.
    """
    return Finding(
        id="silent_worker.no_answer",
        verdict="silent worker",
        severity="warning",
        pool=label,
        because="This process exists, but it has not answered the other processes of its service "
        f"for {silent_seconds:.0f} s.",
        advice=f"Look at what it does, for example by `py-spy dump --pid {pid}`. It is stopped, or "
        "one of its threads keeps Python's lock. Restart it if it does not come back.",
        evidence={"silent_seconds": silent_seconds},
        worker=worker,
        pid=pid,
    )
