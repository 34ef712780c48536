"""The command line's answers when there is nothing to show: one line each, and an exit code."""

import argparse
import errno
import io
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import pool_telemetry
from pool_telemetry import cli
from pool_telemetry.cli import output
from pool_telemetry.cli.main import parser as program
from pool_telemetry.demo import embedded
from pool_telemetry.monitoring.thresholds import Thresholds
from tests.hostile import answering


def one_line(text: str) -> str:
    assert text.count("\n") == 1
    return text


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pool-telemetry {pool_telemetry.__version__}\n"


def parsers(
    parser: argparse.ArgumentParser, *words: str
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Yield the program's parser and those of its commands, each with the words that lead there."""
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from parsers(command, *words, name)


PARSERS = list(parsers(program()))


@pytest.mark.parametrize("words", [words for words, _ in PARSERS], ids=" ".join)
def test_the_help_of_every_command_is_shown(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {' '.join(('pool-telemetry', *words))} ")
    assert "%%" not in shown


@pytest.mark.parametrize("parser", [parser for _, parser in PARSERS], ids=lambda one: one.prog)
def test_every_help_text_can_be_formatted(parser: argparse.ArgumentParser) -> None:
    """Python 3.14 formats a help text when its argument is added: one bad text ends every command.

    Earlier versions format it only when it is shown.
    """
    for action in parser._actions:
        for one in getattr(action, "_choices_actions", [action]):  # that of the commands has theirs
            assert one.help, one.dest
            assert parser._get_formatter()._expand_help(one)


@pytest.mark.parametrize("command", ["dashboards", "rules"])
def test_a_threshold_is_explained_with_its_percent_signs(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert any("%" in one.metadata["meaning"] for one in fields(Thresholds))
    for one in fields(Thresholds):
        assert f"{one.metadata['meaning']} (default: {one.default})" in shown


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["nothing"], 2),
        (["demo", "--port", "65536"], 2),
        (["demo", "--port", "x"], 2),
        (["doctor", "a", "b"], cli.CANT_TELL),  # 2 is critical there
        (["doctor", "http://localhost", "--seconds", "0"], cli.CANT_TELL),
    ],
)
def test_what_it_does_not_understand_is_refused(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == code
    assert "usage: pool-telemetry" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["rich", "uvicorn", "fastapi"])
def test_without_a_package_of_the_demo_it_names_the_extra(package: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from pool_telemetry.cli import main; sys.exit(main(['demo']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert one_line(done.stderr).endswith("pip install 'pool-telemetry[demo]'\n")
    assert f"needs {package}," in done.stderr


def test_without_a_server_it_asks_for_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "executable", lambda: None)
    assert cli.main(["demo"]) == 1
    assert "set MONGODB_URI" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("mongodb://user:s3cr3t-word@127.0.0.1:1/", "Connection refused"),
        ("mongodb://user:s3cr3t-word@127.0.0.1:99999/", "Port must be"),
        ("mongodb://user:s3cr3t-word@a/b@127.0.0.1:1/?x", "quote_plus"),
    ],
)
def test_a_server_that_is_not_there_is_said_without_the_password(
    uri: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MONGODB_URI", uri)
    assert cli.main(["demo", "--once"]) == 1
    said = one_line(capsys.readouterr().err)
    assert "MONGODB_URI" in said
    assert reason in said
    assert "s3cr3t" not in said


# The address, and the end of a command


def test_the_address_comes_from_the_environment_or_from_standard_input(
    dead_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://ann:s3cr3t@127.0.0.1:{dead_port}/"
    monkeypatch.setenv("POOL_TELEMETRY_URL", address)
    for command in ("doctor", "size"):
        assert cli.main([command]) == cli.CANT_TELL
        said = one_line(capsys.readouterr().err)
        assert f"http://127.0.0.1:{dead_port} does not answer (Connection refused)" in said
        assert "s3cr3t" not in said
    assert cli.main(["doctor", "http://"]) == cli.CANT_TELL  # an argument overrides it
    assert "not a valid address" in capsys.readouterr().err
    assert cli.main(["size", "--rate", "80", "--use-time", "0.01"]) == 0  # they need no address
    capsys.readouterr()
    monkeypatch.setenv("POOL_TELEMETRY_URL", "")
    assert cli.main(["doctor", "--json"]) == cli.CANT_TELL
    told = capsys.readouterr()
    assert "give an address, or set POOL_TELEMETRY_URL" in one_line(told.err)
    assert json.loads(told.out)["error"] in told.err
    monkeypatch.setenv("POOL_TELEMETRY_URL", "-")
    for load in ([], ["--rate", "80", "--use-time", "0.01"]):
        assert cli.main(["doctor"] if not load else ["size", "http://", *load]) == cli.CANT_TELL
        name = "the argument" if load else "POOL_TELEMETRY_URL"
        assert f": {name} is not a valid address (" in one_line(capsys.readouterr().err)
    empty = "the first line of standard input is not a valid address (it is empty)"
    for text, words in ((f" {address}\nmore\n", "does not answer"), ("", empty)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert cli.main(["doctor", "-"]) == cli.CANT_TELL
        said = one_line(capsys.readouterr().err)
        assert words in said
        assert "s3cr3t" not in said
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["size", "-"]) == cli.CANT_TELL
    assert "standard input has no address" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "size"])
@pytest.mark.parametrize("wrong", ["0", "nan", "1e9", "x"])
def test_arguments_that_are_not_valid_are_json_too(
    command: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=str(cli.CANT_TELL)):
        cli.main([command, "http://localhost", "--json", "--seconds", wrong])
    assert "error" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("command", "code"), [("doctor", cli.CANT_TELL), ("size", cli.CANT_TELL), ("rules", 130)]
)
def test_an_interruption_is_one_line(
    command: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(connection: object, path: str) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        over.wait()

    over = threading.Event()
    with answering(interrupt) as address, pytest.MonkeyPatch.context() as patch:
        if command == "rules":
            patch.setattr(Path, "replace", lambda *_: signal.raise_signal(signal.SIGINT))
        target = str(tmp_path) if command == "rules" else f"http://{address}"
        try:
            assert cli.main([command, target]) == code
        finally:
            over.set()
    assert one_line(capsys.readouterr().err) == f"pool-telemetry {command}: interrupted\n"
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("command", ["doctor", "size"])
def test_a_termination_is_one_line_and_json(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminate(connection: object, path: str) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        over.wait()

    def ignore(*_: object) -> None:
        ignored.append(0)

    over, ignored, before = threading.Event(), list[int](), signal.signal(signal.SIGTERM, ignore)
    try:
        with answering(terminate) as address:
            try:
                assert cli.main([command, f"http://{address}", "--json"]) == cli.CANT_TELL
            finally:
                over.set()
        assert signal.getsignal(signal.SIGTERM) is ignore
    finally:
        signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr()
    assert one_line(told.err) == f"pool-telemetry {command}: terminated\n"
    assert json.loads(told.out)["error"] == "terminated"
    assert not ignored


class Full(io.StringIO):
    """A stream that can't be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def flush(self) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (BrokenPipeError(), ""),
        (OSError(errno.ENOSPC, "No space left on device"), "can't print the answer: No space left"),
    ],
)
def test_an_answer_that_can_not_be_printed_is_no_answer(
    error: OSError,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", Full(error))
    assert cli.main(["size", "--rate", "80", "--use-time", "0.01"]) == cli.CANT_TELL
    assert words in capsys.readouterr().err


def test_a_fault_of_our_own_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pool_telemetry.cli.size.run", lambda *_, **__: 1 // 0)
    assert cli.main(["size", "--json"]) == cli.CANT_TELL
    told = capsys.readouterr()
    assert "unexpected ZeroDivisionError in test_cli.py:" in one_line(told.err)
    assert "please report it" in json.loads(told.out)["error"]


def test_a_text_is_printed_in_the_encoding_of_the_stream() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    output.say(output.as_text(["busy █"]), stream)
    assert raw.getvalue() == b"busy ?\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--connection-limit", "20"], 0),
        (["--connection-limit", "5"], cli.FAILED),
        (["--connection-limit", "5", "--json"], cli.FAILED),
        (["--connection-limit", "3"], cli.FAILED),
        (["--connection-limit", "3", "--json"], cli.FAILED),
    ],
)
def test_a_size_that_the_server_does_not_allow_is_a_failure(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["size", "--rate", "400", "--use-time", "0.01", *arguments]) == code
    out = capsys.readouterr().out
    if "--json" in arguments:
        json.loads(out)
