"""An ordinary FastAPI application: nothing in it knows that it runs as a component.

Each replica remembers items only as long as its instance lives; keep what must last in a service of its own.
"""

import asyncio
import os
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

app = FastAPI(title="fastapi-app")


class Item(BaseModel):
    name: str = Field(min_length=1, max_length=40)
    price: float = Field(gt=0)
    tags: list[str] = []


items: dict[int, Item] = {}


@app.get("/")
def root():
    return {"message": "Hello from FastAPI"}


@app.get("/healthz")
async def healthz():
    return {"status": "ok"}


@app.get("/whoami")
def whoami(request: Request):
    return {"pod": os.environ.get("HOSTNAME", ""), "host": request.headers.get("host")}


@app.put("/items/{item_id}", status_code=201)
async def put_item(item_id: int, item: Item):
    items[item_id] = item
    return {"id": item_id, **item.model_dump()}


@app.get("/items/{item_id}")
async def get_item(item_id: int, prefix: Annotated[str | None, Query(max_length=8)] = None):
    if item_id not in items:
        raise HTTPException(404, "no such item")
    return {"item": items[item_id], "prefix": prefix}


@app.post("/echo")
async def echo(request: Request):
    return {"bytes": len(await request.body())}


@app.get("/sleep")
async def sleep(ms: int = 200):
    await asyncio.sleep(ms / 1000)
    return {"slept_ms": ms}


@app.get("/stream")
async def stream():
    async def events():
        for number in range(5):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/fail")
async def fail():
    raise RuntimeError("on purpose")
