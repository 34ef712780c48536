"""The files of `rules` and `dashboards`: whole or not there, and nothing else is written to."""

import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pool_telemetry import cli
from pool_telemetry.cli.writing import write_files
from pool_telemetry.errors import PoolTelemetryError

NAMES = ["grafana-alerts.json", "rules.yml", "runbooks.md"]


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text("old")
    (tmp_path / "rules.yml").chmod(0o604)
    assert cli.main(["rules", str(tmp_path)]) == 0
    assert names(tmp_path) == NAMES
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in NAMES]
    assert modes == [0o640, 0o604, 0o640]
    assert (tmp_path / "rules.yml").read_text().startswith("# Made by")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.symlink_to("elsewhere"), "is a symbolic link"),
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "is not a regular file"),
    ],
)
def test_what_is_no_file_is_refused_and_left_alone(
    make: Callable[[Path], None],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "rules.yml")
    mode = (tmp_path / "rules.yml").lstat().st_mode
    (tmp_path / "elsewhere").write_text("precious")
    assert cli.main(["rules", str(tmp_path)]) == 1
    assert f"rules.yml {words}: remove it" in capsys.readouterr().err
    assert names(tmp_path) == ["elsewhere", "rules.yml"]
    assert (tmp_path / "rules.yml").lstat().st_mode == mode
    assert (tmp_path / "elsewhere").read_text() == "precious"


@pytest.mark.parametrize("command", ["rules", "dashboards"])
def test_a_file_is_not_a_folder(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f").write_text("precious")
    (tmp_path / "dangling").symlink_to("nowhere")
    for folder, words in (
        ("f", "/f is not a folder: give the name of one\n"),
        ("dangling", "/dangling is not a folder: give the name of one\n"),
        ("f/below", "/f/below: Not a directory\n"),
        ("a\0b", "embedded null byte\n"),
    ):
        assert cli.main([command, str(tmp_path / folder)]) == 1
        err = capsys.readouterr().err
        assert err.endswith(words)
        assert err.count("\n") == 1
    assert (tmp_path / "f").read_text() == "precious"
    with pytest.raises(SystemExit):
        cli.main([command, ""])


def test_a_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert cli.main(["rules", str(tmp_path / "link")]) == 0
    assert names(tmp_path / "real") == NAMES


@pytest.fixture
def no_space() -> Iterator[None]:
    """No file of this process may have more than 4 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("no_space")
def test_nothing_changes_if_one_file_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(PoolTelemetryError, match=r"can't write .*/b: File too large"):
        write_files(tmp_path, {"a": "new", "b": "x" * 10_000})
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    with pytest.raises(PoolTelemetryError, match=r"can't write .*/c: 'utf-8' codec"):
        write_files(tmp_path, {"a": "new", "c": "\ud800"})
    assert names(tmp_path) == ["a"]
