"""A script as cron runs it: `python -m tests.servers.script FINDS` prints its process id."""

import os
import sys

from pool_telemetry import MongoDBConnectionPool
from tests.servers import work

if __name__ == "__main__":
    work.initialize()
    for _ in range(int(sys.argv[1])):
        work.find()
    MongoDBConnectionPool.close()
    print(os.getpid())
