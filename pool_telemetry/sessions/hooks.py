"""Functions of the application that a session manager calls after a write.

They are called with the session's id and the values that were stored. A hook that fails is logged
and changes nothing, because the values are stored already and a turn may have stored them.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Hook = Callable[[str, Mapping[str, Any]], object]
"""A function that gets the session's id and the stored values."""

AsyncHook = Callable[[str, Mapping[str, Any]], object | Awaitable[object]]
"""A Hook, or a coroutine function that is awaited."""

_log = logging.getLogger("pool_telemetry.sessions")


class Hooks:
    """The hooks of one session.

    Args:
        session_id: The session's id.
        metadata: The hook for metadata; a deleted path has the value None.
        feedback: The hook for feedback.
    """

    def __init__(
        self, session_id: str, metadata: AsyncHook | None, feedback: AsyncHook | None
    ) -> None:
        self._session_id = session_id
        self._hooks = {"metadata_hook": metadata, "feedback_hook": feedback}

    def metadata(self, values: Mapping[str, Any]) -> None:
        """Call the hook for metadata."""
        self._call("metadata_hook", values)

    def feedback(self, values: Mapping[str, Any]) -> None:
        """Call the hook for feedback."""
        self._call("feedback_hook", values)

    async def metadata_async(self, values: Mapping[str, Any]) -> None:
        """Call the hook for metadata, and await it if it is a coroutine function."""
        await self._call_async("metadata_hook", values)

    async def feedback_async(self, values: Mapping[str, Any]) -> None:
        """Call the hook for feedback, and await it if it is a coroutine function."""
        await self._call_async("feedback_hook", values)

    def _call(self, name: str, values: Mapping[str, Any]) -> object:
        hook = self._hooks[name]
        try:
            return None if hook is None else hook(self._session_id, values)
        except Exception:  # noqa: BLE001  # the application's function
            _log.exception("%s failed; the values are stored", name)
            return None

    async def _call_async(self, name: str, values: Mapping[str, Any]) -> None:
        result = self._call(name, values)
        try:
            if inspect.isawaitable(result):
                await result
        except Exception:  # noqa: BLE001  # the application's function
            _log.exception("%s failed; the values are stored", name)


def check_hooks(**hooks: AsyncHook | None) -> None:
    """Raise TypeError for hooks that a blocking manager can't call."""
    for name, hook in hooks.items():
        if hook is not None and (not callable(hook) or inspect.iscoroutinefunction(hook)):
            kind = "a coroutine function" if callable(hook) else type(hook).__name__
            raise TypeError(f"{name} is {kind}: use a function, or AsyncMongoDBSessionManager")
