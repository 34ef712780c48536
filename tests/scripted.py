"""A model that plays a test's script, and so needs no network."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

from strands import Agent
from strands.models import Model
from strands.types.content import Messages

Step = str | dict[str, Any] | Exception
"""A text, a tool call `{"tool": name, "input": {...}}`, calls of tools without an input
`{"tools": [name, name]}`, or `{"redact": replacement text}`."""


class ScriptedModel(Model):
    """Answers each call with the next step; after the last step it repeats the prompt.

    Args:
        steps: The answers, in order.
        seconds: The duration of each call.

    Attributes:
        asked: The messages of each call.
    """

    def __init__(self, steps: Iterable[Step] = (), *, seconds: float = 0.0) -> None:
        self.asked: list[Messages] = []
        self._steps = iter(steps)
        self._seconds = seconds

    def update_config(self, **model_config: Any) -> None: ...

    def get_config(self) -> dict[str, Any]:
        return {"model_id": "scripted"}

    def structured_output(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def stream(
        self, messages: Messages, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        self.asked.append([*messages])
        await asyncio.sleep(self._seconds)
        words = [block["text"] for block in messages[-1]["content"] if "text" in block]
        step = next(self._steps, f"You said: {' '.join(words)}")
        if isinstance(step, Exception):
            raise step
        for chunk in chunks(step, len(self.asked)):
            yield chunk


def chunks(step: str | dict[str, Any], turn: int) -> Iterable[dict[str, Any]]:
    """Yield the chunks that a provider streams for one step."""
    reason = "end_turn"
    yield {"messageStart": {"role": "assistant"}}
    if isinstance(step, dict) and "tools" in step:
        for name in step["tools"]:
            start = {"toolUse": {"toolUseId": f"call-{turn}-{name}", "name": name}}
            yield {"contentBlockStart": {"start": start}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": "{}"}}}}
            yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "tool_use"}}
        return
    if isinstance(step, dict) and "tool" in step:
        reason = "tool_use"
        start = {"toolUse": {"toolUseId": f"call-{turn}", "name": step["tool"]}}
        yield {"contentBlockStart": {"start": start}}
        text = str(step["input"]).replace("'", '"')
        yield {"contentBlockDelta": {"delta": {"toolUse": {"input": text}}}}
    else:
        yield {"contentBlockStart": {"start": {}}}
        if isinstance(step, dict):
            reason = "guardrail_intervened"
            yield {"redactContent": {"redactUserContentMessage": step["redact"]}}
            step = "I can't help with that."
        yield {"contentBlockDelta": {"delta": {"text": step}}}
    yield {"contentBlockStop": {}}
    yield {"messageStop": {"stopReason": reason}}
    usage = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}
    yield {"metadata": {"usage": usage, "metrics": {"latencyMs": 7}}}


def texts(agent: Agent) -> list[str]:
    """Return the texts of an agent's conversation, each with its role."""
    return [
        f"{message['role']}: {block['text']}"
        for message in agent.messages
        for block in message["content"]
        if "text" in block
    ]


def agent_with(
    session_manager: Any, *steps: Step, tools: Iterable[Callable[..., Any]] = (), **kwargs: Any
) -> Agent:
    """Return an agent that answers with these steps and prints nothing."""
    model = kwargs.pop("model", None) or ScriptedModel(steps)
    return Agent(
        model=model,
        session_manager=session_manager,
        tools=[*tools],
        callback_handler=None,
        **kwargs,
    )
