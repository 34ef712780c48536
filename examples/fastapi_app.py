"""A FastAPI service on the shared pool, with health and metrics.

Run it:  MONGODB_URI=mongodb://localhost:27017/ uvicorn examples.fastapi_app:app
Look at: /health, /health/ready, /metrics, /metrics/mongodb
"""

from typing import Any

from fastapi import Depends, FastAPI, HTTPException

from pool_telemetry import MongoDBConnectionPool, TelemetryOptions, presets
from pool_telemetry.fastapi import OwnerMiddleware, create_router, pool_lifespan

app = FastAPI(
    lifespan=pool_lifespan(telemetry=TelemetryOptions(name="chat"), **presets.DEVELOPMENT)
)
app.include_router(create_router())
app.add_middleware(OwnerMiddleware)


async def shed_load() -> None:
    """Refuse a request while many callers wait; it asks in 5 µs, however many wait."""
    if MongoDBConnectionPool.get_occupancy().waiting > 100:
        raise HTTPException(503, headers={"Retry-After": "1"})


@app.post("/chat/{session_id}", dependencies=[Depends(shed_load)])
def chat(session_id: str, message: str) -> dict[str, Any]:
    """Store a message, and return the session's number of messages."""
    messages = MongoDBConnectionPool.get_client()["chat"]["messages"]
    messages.insert_one({"session": session_id, "text": message})
    return {"session": session_id, "messages": messages.count_documents({"session": session_id})}
