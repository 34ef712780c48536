"""A traced FastAPI service: a request, its waits for a connection and its commands are one trace.

Run it:  MONGODB_URI=mongodb://localhost:27017/ uvicorn examples.traced_app:app
Look at: the traces of the service "chat" behind the collector at localhost:4317, or wherever
         OTEL_EXPORTER_OTLP_ENDPOINT says
"""

from typing import Any

from fastapi import FastAPI

from pool_telemetry import MongoDBConnectionPool, TelemetryOptions, presets
from pool_telemetry.fastapi import create_router, pool_lifespan
from pool_telemetry.otel import configure_otlp

# FastAPI makes its spans with the same provider: it becomes the global one.
configure_otlp("chat")
app = FastAPI(
    lifespan=pool_lifespan(telemetry=TelemetryOptions(name="chat"), **presets.DEVELOPMENT)
)
app.include_router(create_router())


@app.post("/chat/{session_id}")
def chat(session_id: str, message: str) -> dict[str, Any]:
    """Keep a message, and tell how many the session has."""
    messages = MongoDBConnectionPool.get_client()["chat"]["messages"]
    messages.insert_one({"session": session_id, "text": message})
    return {"session": session_id, "messages": messages.count_documents({"session": session_id})}
