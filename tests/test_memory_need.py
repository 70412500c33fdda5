"""What the plan says of memory, held to what processes take: nano on both engines, each in a process of its own.

benchmarks/memory.py does the same with models of real size.
"""

import json
import platform

import pytest

from benchmarks.memory import FIGURES, RESULTS, errors, expected, measured
from benchmarks.memory_child import Request
from edgeqwen.memory_need import keeps_scores

MIB = 1 << 20
# nano in q4_0: four layers of 983,040 weights in blocks of 18 bytes, the table in Q6_K's of 210, norms in 32 bits.
Q4_0_BYTES = 4 * 983_040 * 18 // 32 + 4096 * 256 * 210 // 256 + 4 * 3328
SCORES = 2 * 4 * 128 * 4 if keeps_scores(platform.machine()) else 0  # twice; heads, tokens of a step, bytes; a slot
CONFIGURATIONS = {
    "q4_0": ("gguf", {}),
    "f32": ("gguf", {}),
    "f32 long": ("gguf", {"context": 4096}),
    "f32 q8_0": ("gguf", {"context": 4096, "kv_type": "q8_0"}),
    "f32 exact": ("gguf", {"context": 2048, "kv_type": "f32"}),
    "f32 once": ("gguf", {"layout": "once"}),
    "f32 as stored": ("gguf", {"layout": "as stored"}),
    "int4": ("onnx", {}),
    "int4 long": ("onnx", {"context": 4096}),
    "fp32": ("onnx", {}),
}


@pytest.fixture(scope="module")
def rows(nano_artifact):
    found = {}
    for name, (kind, options) in CONFIGURATIONS.items():
        engine = {"gguf": "llamacpp", "onnx": "ort"}[kind]
        artifact = nano_artifact(name.split()[0], kind)
        found[name] = measured(Request(str(artifact), engine, **{"context": 512, **options}))
    if found["int4"]["measured"]["anonymous_bytes"] is None:
        pytest.skip("this system does not tell mapped from anonymous memory")
    return found


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_plan_is_within_a_tenth_or_40_mb(rows, name):
    assert max(map(abs, errors(rows[name]).values())) <= 1, rows[name]


@pytest.mark.parametrize(
    ("less", "more", "figure", "expected"),
    [  # differences, computed by hand, for which libraries and allocators do not count
        ("f32", "f32 long", "anonymous_bytes", 3584 * 4096),  # tokens, bytes of f16 cache each
        ("f32 q8_0", "f32 long", "anonymous_bytes", 4096 * 4096 * 15 // 32),  # q8_0 takes 17/32 of f16
        ("int4", "int4 long", "anonymous_bytes", 3584 * (8192 + SCORES)),  # f32 cache
        ("q4_0", "f32", "mapped_bytes", 4 * 4_984_064 - Q4_0_BYTES),
        ("f32 once", "f32", "mapped_bytes", 4 * 4_984_064),  # read instead of mapped
    ],
)
def test_what_is_added_is_what_was_computed(rows, less, more, figure, expected):
    for side in ("planned", "measured"):
        grown = rows[more][side][figure] - rows[less][side][figure]
        assert grown == pytest.approx(expected, abs=4 * MIB), side


def test_the_arithmetic_is_within_a_tenth_or_40_mb_of_what_was_measured_on_real_sizes():
    """Of today's arithmetic and the shapes alone: nothing that was measured goes into it."""
    data = json.loads(RESULTS.read_text())
    assert {row["engine"] for row in data["rows"]} == {"llamacpp", "ort"}
    assert {row["model"] for row in data["rows"]} >= {"nano", "Qwen3-0.6B", "Qwen3-1.7B"}
    for row in data["rows"]:
        need = expected(row, data["machine"])
        figures = {"peak_bytes": need.total_bytes, "mapped_bytes": need.mapped_bytes}
        figures["anonymous_bytes"] = need.anonymous_bytes
        assert max(map(abs, errors({**row, "planned": figures}).values())) <= 1, row
        assert figures == row["planned"]
        assert all(row["measured"][name] > 0 for name in FIGURES)
