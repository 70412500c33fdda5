"""examples/fastapi_app.py on a socket: a whole answer, a stream that is left, and errors."""

import itertools
import json
import socket
import sys
import threading
import time

import httpx
import uvicorn
from telling import SUM, tell

sys.path.insert(0, sys.argv[2])
from fastapi_app import app

listener = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
thread.start()
while not server.started:
    time.sleep(0.01)
client = httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60, trust_env=False)


def answer():
    response = client.post("/ask", json={"question": SUM})
    lines = [json.loads(line) for line in response.text.splitlines()]
    parts = {key: "".join(line.get(key, "") for line in lines) for key in ("thinking", "content", "error")}
    return {**parts, "pieces": len(lines), "finish": lines[-1]["finish"]}


def left():
    """A client that goes after the first line ends its answer, whose steps wait for that; the next one is whole."""
    ended, model = threading.Event(), app.state.model
    end, forward, words = model._turns.end, model.backend.forward, itertools.count()

    def ending(halt):
        ended.set()
        end(halt)

    def stepping(chunks):
        if next(words) > 20:
            ended.wait(20)
        return forward(chunks)

    model._turns.end, model.backend.forward = ending, stepping
    with client.stream("POST", "/ask", json={"question": SUM}) as response:
        next(response.iter_lines())
    whole = answer()
    return {"ended": ended.is_set(), "content": whole["content"]}


def refused():
    return [client.post("/ask", json=body).status_code for body in ({"question": ""}, {}, {"question": "x" * 5000})]


def too_long():
    text = client.post("/ask", json={"question": "鼎" * 4000}).text
    return json.loads(text.splitlines()[-1])


try:
    tell(answer, left, refused, too_long)
finally:
    server.should_exit = True
    thread.join()
