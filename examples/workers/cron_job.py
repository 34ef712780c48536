"""A job of cron: its counts stay when it has ended, and go on with the next run."""

from pool_telemetry import MongoDBConnectionPool

client = MongoDBConnectionPool.initialize(minPoolSize=0)
print(client["shop"]["orders"].find_one())
