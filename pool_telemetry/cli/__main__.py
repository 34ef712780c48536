"""`python -m pool_telemetry.cli` is `pool-telemetry`."""

import sys

from pool_telemetry.cli import main

sys.exit(main())
