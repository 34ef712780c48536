"""The command line's answers when there is nothing to show: one line each, and an exit code."""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields

import pytest

import pool_telemetry
from pool_telemetry import cli
from pool_telemetry.cli.main import parser as program
from pool_telemetry.demo import embedded
from pool_telemetry.monitoring.thresholds import Thresholds


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
