"""Processes killed at a write leave a conversation that a model accepts and that goes on."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from strands.types.content import Messages

from tests.killed import agent_of
from tests.scripted import texts
from tests.support import UNMEASURED
from tests.test_session_windows import chatting

# Of the second turn's writes 9 is the prompt, 10 and 11 are a tool call and its result.
SOME = ["called:succeeded:11", "awaited:started:11"]
ALL = [
    [f"{mode}:{when}:{number}" for number in range(1, 17)]
    for mode in ("called", "awaited")
    for when in ("started", "succeeded")
]


def check_usable(messages: Messages) -> None:
    """Check what APIs of models demand: roles that alternate, and each tool call's result."""
    assert messages[0]["role"] == messages[-1]["role"] == "user"
    assert not ids(messages[0], "toolResult")
    for before, after in itertools.pairwise(messages):
        assert after["content"]
        assert before["role"] != after["role"]
        assert ids(before, "toolUse") == ids(after, "toolResult")


def ids(message: Any, kind: str) -> list[str]:
    return [block[kind]["toolUseId"] for block in message["content"] if kind in block]


@pytest.mark.parametrize(
    "kills", [SOME, *(pytest.param(one, marks=pytest.mark.bulk) for one in ALL)]
)
def test_a_conversation_goes_on_after_a_kill_at_any_write(
    kills: list[str], server_uri: str
) -> None:
    with chatting("called", server_uri) as called, chatting("awaited", server_uri) as awaited:
        command = [sys.executable, "-m", "tests.killed", server_uri, called.database, *kills]
        done = subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, **UNMEASURED},
        )
        killed = json.loads(done.stdout)
        assert killed == (kills if kills is SOME else kills[:15])  # the conversation has 15 writes
        for kill in killed:
            # The other kind of manager continues the conversation.
            chat = called if kill.startswith("awaited") else awaited
            chat.database = called.database
            agent = agent_of(chat.open(kill), "back", "again")
            stored = len(called.stored(kill))
            chat.say(agent, "are you there?")
            check_usable(agent.model.asked[-1])
            chat.say(agent, "really?")
            check_usable(agent.model.asked[-1])
            assert texts(agent)[-2:] == ["user: really?", "assistant: again"]
            assert len(called.stored(kill)) >= stored + 4
            assert agent_of(chat.open(kill)).messages == agent.messages
