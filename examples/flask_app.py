"""A Flask service on the shared pool: probes for everybody, details on a port of their own.

Run it:  MONGODB_URI=mongodb://localhost/ gunicorn --threads 32 examples.flask_app:application
Look at: /telemetry/health/ready, and http://127.0.0.1:9464/health and /metrics, which answer while
         all 32 threads wait for a connection.
"""

import os
from typing import Any

from flask import Flask, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from pool_telemetry import MongoDBConnectionPool, TelemetryOptions, presets
from pool_telemetry.serving import serve
from pool_telemetry.wsgi import OwnerMiddleware, create_app, werkzeug_template

# gunicorn imports this file in each worker. With --preload, call both in its post_fork hook.
MongoDBConnectionPool.initialize(telemetry=TelemetryOptions(name="chat"), **presets.DEVELOPMENT)
serve(int(os.environ.get("TELEMETRY_PORT", "9464")))

app = Flask(__name__)


@app.post("/chat/<session_id>")
def chat(session_id: str) -> dict[str, Any]:
    """Store a message, and return the session's number of messages."""
    messages = MongoDBConnectionPool.get_client()["chat"]["messages"]
    messages.insert_one({"session": session_id, "text": request.args["message"]})
    return {"session": session_id, "messages": messages.count_documents({"session": session_id})}


application = DispatcherMiddleware(
    OwnerMiddleware(app, werkzeug_template(app.url_map)),
    {"/telemetry": create_app(show="probes")},
)
