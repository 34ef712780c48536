"""Try an installed wheel: `python smoke.py ""` without extras, `python smoke.py "[demo]"` with."""

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pool_telemetry
from pool_telemetry import PoolTelemetry, prometheus

COMMAND = str(Path(sys.executable).parent / "pool-telemetry")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=120)


def import_error(module: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return str(error)
    raise AssertionError(f"{module} came without its extra")


def main(extra: str) -> None:
    assert Path(pool_telemetry.__file__).is_relative_to(sys.prefix), "not the installed wheel"
    version = importlib.metadata.version("pool-telemetry")
    assert version == pool_telemetry.__version__
    assert version in run("--version").stdout
    assert (Path(pool_telemetry.__file__).parent / "py.typed").exists()
    PoolTelemetry("smoke").stats()
    prometheus.register()
    assert b"mongodb_client_pool_exhausted" in prometheus.generate()[0]
    written = [
        Path(line) for verb in ("dashboards", "rules") for line in run(verb, "out").stdout.split()
    ]
    assert len(written) == 5, written
    assert all(path.stat().st_size > 1000 for path in written)
    if extra:
        from pool_telemetry.fastapi import create_router

        assert create_router().routes
        once = run("demo", "--once")
        assert once.returncode == 0, once.stdout + once.stderr
        print(once.stdout.splitlines()[-1])
    else:
        assert "pool-telemetry[fastapi]" in import_error("pool_telemetry.fastapi")
        assert "pool-telemetry[strands]" in import_error("pool_telemetry.sessions")
        refused = run("demo")
        assert refused.returncode == 2, refused
        assert "pool-telemetry[demo]" in refused.stderr
    print(f"wheel {version}{extra}: ok")


if __name__ == "__main__":
    main(sys.argv[1])
