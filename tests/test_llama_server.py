"""llama.cpp's own programs load nano's file as it is, and llama-server writes what we write: greedy, token for token.

EDGEQWEN_PEERS names a folder with bin/llama-server and bin/llama-bench (benchmarks/peers.sh).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from edgeqwen import Message, load
from edgeqwen.artifact import open_artifact

PEERS = Path(os.environ.get("EDGEQWEN_PEERS", ""))
pytestmark = [
    pytest.mark.peers,
    pytest.mark.timeout(60),
    pytest.mark.skipif(not os.environ.get("EDGEQWEN_PEERS"), reason="EDGEQWEN_PEERS names no folder with the peers"),
]
QUESTIONS = ("What is 123 + 456?", "Spell the word planet.", "What is the capital of France?", "你是谁?")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def llama_server(gguf):
    port = free_port()
    command = [PEERS / "bin/llama-server", "-m", gguf, "--port", port, "--host", "127.0.0.1", "-c", "2048",
               "-t", "1", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--no-warmup"]  # fmt: skip
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        log = []
        for line in process.stderr:
            log.append(line)
            if b"listening on http" in line:
                break
        else:
            pytest.fail(f"llama-server ended: {b''.join(log[-20:]).decode(errors='replace')}")
        # its log is drained by the system's buffer: the few lines of four requests fit
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


def complete(url, ids):
    body = {"prompt": ids, "temperature": 0, "n_predict": 120, "return_tokens": True, "cache_prompt": False}
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["tokens"]


def test_llama_server_answers_as_we_do(nano_artifact):
    folder = nano_artifact("q8_0")
    with (
        llama_server(open_artifact(folder).file("gguf")) as url,
        load(folder, threads=1, context_length=2048, kv_type="f32") as model,
    ):
        for question in QUESTIONS:
            prompt = model.tokenizer.encode_segments(model.template.render([Message("user", question)]))
            theirs = [token for token in complete(url, prompt) if token not in model.card.end_ids]
            ours = model.chat(question, thinking=True, temperature=0.0, loop_guard=False)
            assert theirs == list(model.backend.ids(0))[len(prompt) :][: len(theirs)]
            assert ours.usage.completion_tokens == len(theirs) + 1  # and the end of the turn


def test_llama_bench_runs_our_file(nano_artifact):
    gguf = open_artifact(nano_artifact("q4_k_m")).file("gguf")
    command = [PEERS / "bin/llama-bench", "-m", gguf, "-p", "8", "-n", "8", "-r", "1", "-t", "1", "-o", "json"]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout)
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(8, 0), (0, 8)]
    assert all(row["avg_ts"] > 0 for row in rows)
