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
    process = str(pid) if pid else "PID"
    return Finding(
        id="silent_worker.no_answer",
        verdict="silent worker",
        severity="warning",
        pool=label,
        because="The process exists, but has not answered the others for "
        f"{silent_seconds:.0f} s. Its requests probably hang, too.",
        advice=f"See where it is: `py-spy dump --pid {process}`. A process that is stopped (state "
        f"T in `ps`) goes on by `kill -CONT {process}`. One that computes keeps Python's lock. End "
        f"it by `kill {process}`, with -9 if it ignores that; the server of a worker then starts a "
        "new one.",
        evidence={"silent_seconds": silent_seconds},
        worker=worker,
        pid=pid,
    )
