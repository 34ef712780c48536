"""A Django service on the shared pool: probes for everybody, details on a port of their own.

Run it:  MONGODB_URI=mongodb://localhost/ gunicorn --threads 32 examples.django_app:application
Look at: /telemetry/health/ready, and http://127.0.0.1:9464/health and /metrics, which answer while
         all 32 threads wait for a connection.
"""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

from pool_telemetry import MongoDBConnectionPool, TelemetryOptions, presets
from pool_telemetry.django import create_urls
from pool_telemetry.serving import serve

# gunicorn imports this file in each worker. With --preload, call both in its post_fork hook.
MongoDBConnectionPool.initialize(telemetry=TelemetryOptions(name="chat"), **presets.DEVELOPMENT)
serve(int(os.environ.get("TELEMETRY_PORT", "9464")))

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    MIDDLEWARE=["pool_telemetry.django.OwnerMiddleware"],
    ROOT_URLCONF=__name__,
)


def chat(request: HttpRequest, session_id: str) -> JsonResponse:
    """Store a message, and return the session's number of messages."""
    messages = MongoDBConnectionPool.get_client()["chat"]["messages"]
    messages.insert_one({"session": session_id, "text": request.GET["message"]})
    number = messages.count_documents({"session": session_id})
    return JsonResponse({"session": session_id, "messages": number})


urlpatterns = [
    path("chat/<str:session_id>", csrf_exempt(chat)),
    path("telemetry/", include(create_urls(show="probes"))),
]
application = get_wsgi_application()
