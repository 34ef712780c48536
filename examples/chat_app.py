"""A chat service: Strands agents with sessions in MongoDB, on one shared pool.

Run it:  MONGODB_URI=mongodb://localhost:27017/ uvicorn examples.chat_app:app
Talk:    curl -X POST -H 'X-User: ann' 'localhost:8000/chat?message=what+is+2+%2B+3'
         The answer names the session; continue it with `session_id=`.
Look at: /chat/SESSION, /health, /metrics, /metrics/mongodb

A session's id is random and belongs to a user, so that no user opens another's session. The header
X-User stands for your authentication: replace `current_user`, because anybody can send a header.

The model is a script that can add two numbers and needs no network. With CHAT_MODEL, the id of a
model on Amazon Bedrock, and AWS credentials the service uses that model.
"""

import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from pymongo.errors import PyMongoError
from strands import Agent, tool
from strands.models import Model
from strands.types.content import Messages
from strands.types.exceptions import EventLoopException

from pool_telemetry import AsyncMongoDBConnectionPool, TelemetryOptions
from pool_telemetry.errors import SessionOwnerError
from pool_telemetry.fastapi import create_router, pool_lifespan
from pool_telemetry.sessions import (
    AsyncMongoDBSessionRepository,
    InvalidIdError,
    SessionConflictError,
    close_global_factory,
    get_global_factory,
    initialize_global_factory,
)

DATABASE = "chat_db"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class ScriptedModel(Model):
    """Calls the tool if the prompt has a sum, and otherwise repeats the prompt."""

    def update_config(self, **model_config: Any) -> None:
        """Do nothing, because this model has no settings."""

    def get_config(self) -> dict[str, Any]:
        """Return the model's name."""
        return {"model_id": "scripted"}

    def structured_output(self, *args: Any, **kwargs: Any) -> Any:
        """Raise an error, because this model has no structured output."""
        raise NotImplementedError

    async def stream(
        self, messages: Messages, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """Yield the chunks that a provider streams."""
        prompt = messages[-1]["content"][0]
        yield {"messageStart": {"role": "assistant"}}
        if found := re.search(r"(\d+) \+ (\d+)", prompt.get("text", "")):
            use = {"toolUseId": f"add-{len(messages)}", "name": "add"}
            numbers = json.dumps({"a": int(found[1]), "b": int(found[2])})
            yield {"contentBlockStart": {"start": {"toolUse": use}}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": numbers}}}}
        else:
            text = f"You said: {prompt.get('text')}"
            if "toolResult" in prompt:
                text = f"That is {prompt['toolResult']['content'][0]['text']}."
            yield {"contentBlockDelta": {"delta": {"text": text}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "tool_use" if found else "end_turn"}}
        usage = {"inputTokens": len(messages), "outputTokens": 1, "totalTokens": len(messages) + 1}
        yield {"metadata": {"usage": usage, "metrics": {"latencyMs": 0}}}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open one pool, and one factory over it, for the life of the service."""
    pool = pool_lifespan(
        pool=AsyncMongoDBConnectionPool, telemetry=TelemetryOptions(name="chat"), maxPoolSize=20
    )
    async with pool(app):
        initialize_global_factory(database_name=DATABASE, application="chat")
        yield
        close_global_factory()


def current_user(x_user: Annotated[str, Header()]) -> str:
    """Return the user of a request; put your authentication here."""
    return x_user


User = Annotated[str, Depends(current_user)]

app = FastAPI(lifespan=lifespan)
app.include_router(create_router())


@app.post("/chat")
async def chat(message: str, user: User, session_id: str | None = None) -> dict[str, Any]:
    """Send a message to the agent, in a new session or an existing one, and return its answer."""
    if session_id is None:
        session_id = uuid4().hex
    elif await sessions(user).read_session(session_id) is None:
        raise HTTPException(404)
    manager = await get_global_factory().open_session_manager(session_id, user=user)
    model = os.environ.get("CHAT_MODEL") or ScriptedModel()
    agent = Agent(model=model, tools=[add], session_manager=manager, callback_handler=None)
    result = await agent.invoke_async(message)
    return {"session": session_id, "response": str(result).strip()}


@app.get("/chat/{session_id}")
async def conversation(session_id: str, user: User) -> dict[str, Any]:
    """Return a session's messages, and the tokens that the model used."""
    if await sessions(user).read_session(session_id) is None:
        raise HTTPException(404)
    messages = await sessions(user).list_messages(session_id, "default")
    usage = await sessions(user).usage(session_id)
    return {
        "messages": [
            {"role": one.to_message()["role"], "text": block["text"]}
            for one in messages
            for block in one.to_message()["content"]
            if "text" in block
        ],
        "total_tokens": usage.total_tokens,
    }


def sessions(user: str) -> AsyncMongoDBSessionRepository:
    """Return the sessions of a user."""
    client = AsyncMongoDBConnectionPool.get_client()
    return AsyncMongoDBSessionRepository(client, DATABASE, application="chat", user=user)


@app.exception_handler(SessionOwnerError)
@app.exception_handler(InvalidIdError)
@app.exception_handler(SessionConflictError)
@app.exception_handler(PyMongoError)
@app.exception_handler(EventLoopException)
async def refused(request: Request, error: Exception) -> JSONResponse:
    """Return the HTTP status of an error; Strands may wrap an error within a turn."""
    cause = error.__cause__ if isinstance(error, EventLoopException) else error
    if isinstance(cause, SessionOwnerError):  # the same answer as for a missing session
        return JSONResponse({"detail": "Not Found"}, status_code=404)
    if isinstance(cause, InvalidIdError):
        return JSONResponse({"error": str(cause)}, status_code=422)
    if isinstance(cause, SessionConflictError):
        return JSONResponse({"error": "another request was first: try again"}, status_code=409)
    if isinstance(cause, PyMongoError):
        return JSONResponse({"error": "the database is busy or down"}, status_code=503)
    return JSONResponse({"error": "the turn failed"}, status_code=502)
