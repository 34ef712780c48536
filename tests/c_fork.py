"""Fork as C code does it, such as uWSGI: no hook of Python's runs in the child."""

import _thread
import ctypes
import os
import select
import signal
import sys
import time

PATIENCE_SECONDS = 20.0


def fork_in_c() -> int:
    """Fork, and return the child's process id, or 0 in the child.

    A lock of Python's interpreter that another thread has at the fork is held for ever in the
    child, which then can't start a thread. Such a child is killed, and the fork is repeated,
    because that is no fault of what is tested.
    """
    interval = sys.getswitchinterval()
    while True:
        # A thread that is amid a step with a lock goes on until it waits for something.
        sys.setswitchinterval(60.0)
        time.sleep(0.1)
        readable, writable = os.pipe()
        # Not CDLL: it lets another thread have the interpreter's lock, which the child needs.
        pid: int = ctypes.PyDLL(None).fork()
        sys.setswitchinterval(interval)
        if pid == 0:
            _start_a_thread()
            os.write(writable, b"started")
        elif not select.select([readable], [], [], PATIENCE_SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pid = -1
        os.close(readable)
        os.close(writable)
        if pid >= 0:
            return pid


def _start_a_thread() -> None:
    ended = _thread.allocate_lock()
    ended.acquire()
    _thread.start_new_thread(ended.release, ())
    ended.acquire()
