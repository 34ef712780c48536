"""The npm packages for tests: `make test-tools` installs them in `.npm/`, and none is committed.

Node 20 or newer is needed, and `tar`. Without it the tests of the dashboards' JSON and of their
pictures are skipped.
"""

import subprocess
from pathlib import Path
from typing import Final

from tests.needs import lacks

FOLDER: Final = Path(__file__).parent.parent / ".npm"

PACKAGES: Final = (
    "@grafana/schema@11.6.0",
    "ts-json-schema-generator@2.9.0",
    "typescript@5.9.3",
    "uplot@1.6.32",
)
# The types of the Prometheus query moved here in Grafana 11. It is unpacked, not installed: its
# dependencies are all of Grafana's front end, and none of them says anything about a query.
PROMETHEUS: Final = "@grafana/prometheus@11.6.0"

_COMPLETE: Final = FOLDER / "complete"


def package(name: str) -> Path:
    """Return the folder of a package; skip the test if it is missing."""
    asked = "\n".join((*PACKAGES, PROMETHEUS))
    if not _COMPLETE.exists() or _COMPLETE.read_text() != asked:
        lacks("no packages of npm, or not these: make test-tools (needs Node 20)")
    return FOLDER / "node_modules" / name


def run(*command: str, cwd: Path = FOLDER) -> str:
    """Run a program and return what it prints."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed in {cwd}: {done.stderr[-2000:]}")
    return done.stdout


def install() -> None:
    """Install what `package` finds."""
    FOLDER.mkdir(exist_ok=True)
    _COMPLETE.unlink(missing_ok=True)
    npm = ("npm", "--silent", "--ignore-scripts")
    run(*npm, "install", "--no-package-lock", "--prefix", ".", *PACKAGES)
    archive = run(*npm, "pack", PROMETHEUS).split()[-1]
    unpacked = FOLDER / "node_modules" / "@grafana" / "prometheus"
    unpacked.mkdir(exist_ok=True)
    run("tar", "-xzf", archive, "--strip-components=1", "-C", str(unpacked))
    (FOLDER / archive).unlink()
    _COMPLETE.write_text("\n".join((*PACKAGES, PROMETHEUS)))


if __name__ == "__main__":
    install()
