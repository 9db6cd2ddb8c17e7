"""The component's entry: everything imported here is part of the component's snapshot."""

from app import app
from asgi import incoming_handler

app.openapi()  # Builds the schema and pydantic's validators now, so that no request pays for them.

IncomingHandler = incoming_handler(app)
