"""Runs on an emulated board: asks questions of the record and says what it saw, as JSON.

driver.py answers ARTIFACT ENGINE KV_TYPE NUMBER...   ids and what a user sees, question by question
driver.py plan ARTIFACT                               how a model would be loaded
driver.py maps ARTIFACT                               which of ggml's libraries are in the process that has loaded it
"""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path


def answers(artifact, engine, kv_type, *numbers):
    from reference_answers import CONTEXT, QUESTIONS, STEP_ROWS, ask, digest, language_of, recorded, seen

    from edgeqwen.artifact import open_artifact
    from edgeqwen.backends.llamacpp import LlamaCppBackend, LlamaCppSettings
    from edgeqwen.backends.ort import OrtBackend, OrtSettings

    found = open_artifact(Path(artifact))
    if engine == "llamacpp":
        settings = LlamaCppSettings(CONTEXT, threads=1, kv_type=kv_type, step_rows=STEP_ROWS)
        container, backend = "gguf", LlamaCppBackend(found.file("gguf"), settings)
    else:
        settings = OrtSettings(CONTEXT, threads=1, step_rows=STEP_ROWS)
        container, backend = "onnx", OrtBackend(found.file("onnx"), found.manifest.shape, settings)
    language = language_of(Path(artifact), container)
    told = []
    for number in map(int, numbers):
        question = QUESTIONS[number]  # what was recorded is a draft: where the board draws another id, it goes on alone
        answer, whole = ask(backend, language, question, recorded()[question].ids, watch=False)
        told.append({"ids": answer.ids, "digest": digest(whole), "seen": seen(whole)})
    backend.close()
    return told


def plan(artifact):
    from edgeqwen.choice import choose
    from edgeqwen.outline import outline

    return asdict(choose(outline(Path(artifact))))


def maps(artifact):
    from edgeqwen import load

    with load(artifact) as model:
        model.chat("Hi", thinking=False, max_tokens=1)
    lines = Path("/proc/self/maps").read_text("utf-8")
    return sorted(set(re.findall(r"libggml-cpu[\w.-]*\.so", lines)))


if __name__ == "__main__":
    command = {"answers": answers, "plan": plan, "maps": maps}[sys.argv[1]]
    print(json.dumps(command(*sys.argv[2:])))  # noqa: T201
