"""A traced FastAPI service: a request, its waits for a connection and its commands are one trace.

Run it:  MONGODB_URI=mongodb://localhost:27017/ uvicorn examples.traced_app:app
Look at: the traces of the service "chat", sent to the collector at localhost:4317 or at
         OTEL_EXPORTER_OTLP_ENDPOINT
"""

from typing import Any

from fastapi import FastAPI

from pool_telemetry import MongoDBConnectionPool, TelemetryOptions, presets
from pool_telemetry.fastapi import create_router, pool_lifespan
from pool_telemetry.otel import configure_otlp

# This provider becomes the global one, so FastAPI makes its spans with it.
configure_otlp("chat")
app = FastAPI(
    lifespan=pool_lifespan(telemetry=TelemetryOptions(name="chat"), **presets.DEVELOPMENT)
)
app.include_router(create_router())


@app.post("/chat/{session_id}")
def chat(session_id: str, message: str) -> dict[str, Any]:
    """Store a message, and return the session's number of messages."""
    messages = MongoDBConnectionPool.get_client()["chat"]["messages"]
    messages.insert_one({"session": session_id, "text": message})
    return {"session": session_id, "messages": messages.count_documents({"session": session_id})}
