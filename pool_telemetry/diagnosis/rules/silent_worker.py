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
        silent_seconds: The age of its last counts. Nobody may have asked it in between.
    """
    return Finding(
        id="silent_worker.no_answer",
        verdict="silent worker",
        severity="warning",
        pool=label,
        because=f"The process exists, but does not answer the others. Its numbers are "
        f"{silent_seconds:.0f} s old. Its requests probably hang, too.",
        advice=f"Ask again. If it stays silent, see where it is: `py-spy dump --pid {pid}`. A "
        f"process that is stopped (state T in `ps`) goes on by `kill -CONT {pid}`. One that "
        f"computes keeps Python's lock. End it by `kill {pid}`, with -9 if it ignores that; its "
        "server then starts a new one.",
        evidence={"silent_seconds": silent_seconds},
        worker=worker,
        pid=pid,
    )
