"""Write the files of `dashboards` and `rules`: each is replaced as a whole, and none if one fails.

A name that belongs to something else, such as a symbolic link or a device, is refused.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pool_telemetry.errors import PoolTelemetryError

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


def write_files(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write texts to files in a folder, which is created if needed, and return their paths.

    Each text is written to a temporary file beside its target. They are renamed when all are
    complete. A new file has the mode that the umask allows; a file that exists keeps its mode.

    Args:
        folder: The folder; it may be a symbolic link, its files may not.
        texts: The texts by file name.

    Raises:
        PoolTelemetryError: A file can't be written, or its name belongs to something else, such as
            a symbolic link, a folder or a device.
    """
    written = dict[Path, Path]()
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        modes = {name: _mode(folder / name) for name in texts}
        for name, text in texts.items():
            path = folder / name
            temporary = folder / f".{name}.{secrets.token_hex(8)}.tmp"
            written[temporary] = path
            with open(os.open(temporary, _FLAGS, 0o666), "w", encoding="utf-8") as file:  # noqa: PTH123  # of a descriptor
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if (mode := modes[name]) is not None:
                temporary.chmod(mode)
        for temporary, path in written.items():
            temporary.replace(path)
    except FileExistsError:
        raise PoolTelemetryError(f"{path} is not a folder: give the name of one") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PoolTelemetryError(f"can't write {path}: {reason}") from None
    finally:
        for temporary in written:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return [*written.values()]


def _mode(path: Path) -> int | None:
    """Return the mode of a file to replace, or None without such a file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return stat.S_IMODE(mode)
    what = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder"}
    raise PoolTelemetryError(
        f"{path} is {what.get(stat.S_IFMT(mode), 'not a regular file')}: remove it, or give "
        "another folder"
    )
