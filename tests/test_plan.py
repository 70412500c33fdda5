"""The arithmetic of memory, and what is chosen when it is short."""

import os
import re
import sys
from dataclasses import dataclass, replace

import pytest

from edgeqwen import choice, load
from edgeqwen.device import Device, gpu_free_bytes, memory_available_bytes, physical_cores, this_device
from edgeqwen.engines import ENGINES
from edgeqwen.errors import ArtifactError, EngineMissingError, MemoryShortError, RequestError
from edgeqwen.memory_need import AS_STORED, ONCE, TWICE, Weights, kv_bytes_per_token, memory_need, weights_of
from edgeqwen.outline import Outline
from edgeqwen.plan import EngineChoice, choose_engines, plan
from edgeqwen.types import ModelShape

GIB, MIB = 1 << 30, 1 << 20
QWEN3_06B = ModelShape("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, 40960, 1e-6, 1e6, tie_word_embeddings=True)
QWEN3_4B = ModelShape("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, 40960, 1e-6, 1e6, tie_word_embeddings=True)
Q4_0 = Weights(400 * MIB, {"Q4_0": 250 * MIB, "Q6_K": 10 * MIB})


def device(memory, machine="x86_64", cores=4):
    return Device(machine, cores, memory)


def test_kv_cache_per_token_is_the_published_one():
    assert kv_bytes_per_token(QWEN3_06B) == 112 * 1024
    assert kv_bytes_per_token(QWEN3_4B) == 144 * 1024
    assert kv_bytes_per_token(QWEN3_06B, "f32") == 224 * 1024
    assert kv_bytes_per_token(QWEN3_06B, "q8_0") == 112 * 1024 * 17 // 32


def test_repacked_weights_depend_on_the_machine():
    assert Q4_0.repacked_bytes("x86_64") == Q4_0.repacked_bytes("AMD64") == 250 * MIB
    assert Q4_0.repacked_bytes("aarch64") == 260 * MIB
    assert Q4_0.repacked_bytes("riscv64") == 0


def test_weights_are_never_twice_in_short_memory():
    rich = plan(QWEN3_06B, Q4_0, device(8 * GIB))
    assert (rich.context_length, rich.threads, rich.mmap) == (4096, 4, True)
    need = memory_need(QWEN3_06B, Q4_0, machine="x86_64", context_length=4096, layout=ONCE).total_bytes
    poor = plan(QWEN3_06B, Q4_0, device(int(need / 0.9) + MIB))
    assert not poor.mmap
    assert poor.need.total_bytes == need
    assert "twice" in " ".join(poor.reasons)


@pytest.mark.parametrize(
    ("engine", "kv_type", "available"),
    [("llamacpp", None, 2 * GIB), ("llamacpp", "f32", 2 * GIB), ("llamacpp", "f16", 700 * MIB), ("ort", None, 2 * GIB)]
    + [("ort", None, size * MIB) for size in (850, 950, 1050, 1200)],
)
def test_what_cannot_fit_is_refused_with_the_longest_context_that_would(engine, kv_type, available):
    def asked(context_length):
        choice = EngineChoice(engine, "as asked")
        plan(QWEN3_06B, Q4_0, device(available), engine=choice, context_length=context_length, kv_type=kv_type)

    with pytest.raises(MemoryShortError, match=r"context_length=(\d+) would fit") as caught:
        asked(40960)
    fits = int(str(caught.value).split("context_length=")[1].split()[0].rstrip(",;"))
    asked(fits)
    with pytest.raises(MemoryShortError, match="needs") as caught:
        asked(fits + 256)
    needed, room = map(int, re.findall(r"(\d+) MiB", str(caught.value)))
    assert needed > room


def test_where_no_context_fits_a_smaller_model_is_named():
    with pytest.raises(MemoryShortError, match="smaller"):
        plan(QWEN3_06B, Q4_0, device(200 * MIB))


def test_unknown_memory_is_taken_as_enough():
    assert plan(QWEN3_06B, Q4_0, device(None)).mmap


def test_without_flash_attention_the_scores_count():
    def compute(context, kv_type):
        return memory_need(QWEN3_06B, Q4_0, machine="x86_64", context_length=context, kv_type=kv_type).compute_bytes

    assert compute(4096, "f16") == compute(2048, "f16")
    assert compute(4096, "f32") - compute(2048, "f32") == 64 * MIB


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context_length": 8}, "16[.][.]40960"),
        ({"context_length": 40961}, "16[.][.]40960"),
        ({"threads": 0}, "threads=0"),
        ({"threads": "2"}, "threads='2'"),
        ({"threads": True}, "threads=True"),
        ({"context_length": 100.5}, "100.5"),
        ({"gpu_layers": -2}, "gpu_layers=-2"),
        ({"kv_type": "q2"}, "q8_0"),
    ],
)
def test_wrong_wishes_are_refused(options, words):
    with pytest.raises(RequestError, match=words):
        plan(QWEN3_06B, Q4_0, device(8 * GIB), **options)


BOTH = ("gguf", "onnx")


@pytest.mark.parametrize(
    ("formats", "installed", "options", "engine", "words"),
    [
        (("gguf",), ENGINES, {}, "llamacpp", "reads gguf"),
        (("onnx",), ENGINES, {}, "ort", "reads onnx"),
        (BOTH, ENGINES, {}, "llamacpp", "bench measures"),
        (BOTH, ("ort",), {}, "ort", "edgeqwen.llama."),
        (BOTH, ENGINES, {"kv_type": "q8_0"}, "llamacpp", "asked of cache"),
        (BOTH, ENGINES, {"gpu_layers": -1}, "llamacpp", "GPU"),
        (BOTH, ENGINES, {"wanted": "ort"}, "ort", "as asked"),
        (BOTH, ENGINES, {"speeds": {"ort": 12.0}}, "llamacpp", "bench measures"),
        (BOTH, ENGINES, {"speeds": {"llamacpp": 10.0, "ort": 12.0}}, "ort", "ort 12.0, llamacpp 10.0"),
        (BOTH, ("llamacpp",), {"speeds": {"llamacpp": 10.0, "ort": 12.0}}, "llamacpp", "edgeqwen.onnx."),
    ],
)
def test_the_engine_is_chosen_with_a_reason(formats, installed, options, engine, words):
    best = choose_engines(formats, installed, **options)[0]
    assert best.engine == engine
    assert re.search(words, best.reason)


@pytest.mark.parametrize(
    ("formats", "installed", "options", "error", "words"),
    [
        (("onnx",), ("llamacpp",), {}, EngineMissingError, r"pip install 'edgeqwen\[onnx\]'"),
        (BOTH, (), {}, EngineMissingError, r"edgeqwen\[llama\].*edgeqwen\[onnx\]"),
        (("gguf",), ("ort",), {"wanted": "llamacpp"}, EngineMissingError, r"pip install 'edgeqwen\[llama\]'"),
        (("gguf",), ENGINES, {"wanted": "ort"}, RequestError, "reads onnx"),
        (BOTH, ENGINES, {"wanted": "vllm"}, RequestError, "auto, llamacpp, ort"),
        (("onnx",), ENGINES, {"gpu_layers": 4}, RequestError, "gpu_layers=4"),
        (("onnx",), ENGINES, {"kv_type": "q8_0"}, RequestError, "q8_0"),
        (("mlx",), ENGINES, {}, ArtifactError, "mlx"),
    ],
)
def test_an_engine_that_cannot_run_it_is_refused(formats, installed, options, error, words):
    with pytest.raises(error, match=words):
        choose_engines(formats, installed, **options)


@pytest.mark.parametrize("libraries", [[], ["libggml-base.so", "libggml-cpu.so", "libggml-vulkan.so"]])
def test_layers_go_to_a_gpu_unless_it_is_known_that_there_is_none(monkeypatch, libraries):
    model = Outline("x", None, QWEN3_06B, {"gguf": Q4_0}, {"gguf": "q4_0"})
    monkeypatch.setattr(choice, "installed_engines", lambda: ("llamacpp",))
    monkeypatch.setattr(choice, "library_names", lambda: libraries)
    assert choice.choose(model, gpu_layers=4).gpu_layers == 4
    monkeypatch.setattr(choice, "library_names", lambda: ["libggml-base.so", "libggml-cpu-haswell.so"])
    with pytest.raises(RequestError, match=r"gpu_layers=4.*without a GPU"):
        choice.choose(model, gpu_layers=4)


def test_the_libraries_are_those_that_are_loaded(monkeypatch, tmp_path):
    """An engine wheel's too: without a GPU in it, layers for one are refused."""
    assert any("ggml" in name for name in choice.library_names())  # the tests run with one of the ways to install it
    (tmp_path / "libggml-cpu-haswell.so").touch()
    monkeypatch.setattr(choice, "library_folder", lambda: tmp_path)
    assert choice.library_names() == ["libggml-cpu-haswell.so"]
    model = Outline("x", None, QWEN3_06B, {"gguf": Q4_0}, {"gguf": "q4_0"})
    with pytest.raises(RequestError, match=r"gpu_layers=4.*without a GPU"):
        choice.choose(model, gpu_layers=4)

    def broken():
        raise EngineMissingError("for another processor")

    monkeypatch.setattr(choice, "library_folder", broken)
    assert choice.library_names() == []


def test_each_engine_has_its_own_cache_type():
    here = device(8 * GIB)
    assert plan(QWEN3_06B, Q4_0, here).kv_type == "f16"
    assert plan(QWEN3_06B, Q4_0, here, engine=EngineChoice("ort", "")).kv_type == "f32"
    with pytest.raises(RequestError, match="f32"):
        plan(QWEN3_06B, Q4_0, here, engine=EngineChoice("ort", ""), kv_type="f16")
    with pytest.raises(RequestError, match="gpu_layers=1"):
        plan(QWEN3_06B, Q4_0, here, engine=EngineChoice("ort", ""), gpu_layers=1)


def test_an_engine_that_does_not_fit_gives_way_to_one_that_does(monkeypatch):
    monkeypatch.setattr(choice, "installed_engines", lambda: tuple(ENGINES))
    monkeypatch.setattr(choice, "decode_speeds", lambda _: {"llamacpp": 10.0, "ort": 12.0})
    both = Outline("x", "0", QWEN3_06B, {"gguf": Q4_0, "onnx": Q4_0}, {"gguf": "q4_0", "onnx": "int4"})
    assert choice.choose(both, device=device(8 * GIB), context_length=8192).engine == "ort"
    tight = choice.choose(both, device=device(2 * GIB), context_length=8192)
    assert tight.engine == "llamacpp"
    assert "not enough memory for ort" in tight.reasons[0]
    with pytest.raises(MemoryShortError):
        choice.choose(both, device=device(GIB), context_length=8192)


def test_an_embedding_that_is_only_looked_up_is_not_read_by_every_token():
    @dataclass
    class Tensor:
        name: str
        nbytes: int
        type: str = "Q8_0"
        shape: tuple = (1, 32)

    tied = [Tensor("token_embd.weight", 100), Tensor("blk.0.attn_q.weight", 10)]
    assert weights_of(tied).read_bytes == 110
    assert weights_of([*tied, Tensor("output.weight", 100)]).read_bytes == 110
    assert weights_of([*tied, Tensor("output.weight", 100)]).total_bytes == 210


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def cpus(siblings, speeds):
    files = {}
    for number, (group, speed) in enumerate(zip(siblings, speeds, strict=True)):
        files[f"cpu{number}/topology/thread_siblings_list"] = group + "\n"
        files[f"cpu{number}/cpufreq/cpuinfo_max_freq"] = f"{speed}\n"
    return files


@pytest.mark.parametrize(
    ("siblings", "speeds", "cores"),
    [
        (["0", "1", "2", "3"], [2400000] * 4, 4),  # a Raspberry Pi 5
        (["0-1", "0-1", "2-3", "2-3"], [4000000] * 4, 2),  # two threads a core
        ([str(i) for i in range(8)], [1800000] * 4 + [2400000] * 4, 4),  # big.LITTLE
        ([str(i) for i in range(4)], [3200000, 3300000, 3300000, 3200000], 4),  # nearly equal cores
    ],
)
def test_fast_physical_cores(tmp_path, monkeypatch, siblings, speeds, cores):
    write(tmp_path, cpus(siblings, speeds))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(len(siblings))), raising=False)
    assert physical_cores(tmp_path) == cores
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert physical_cores(tmp_path) == 1


def test_memory_is_the_smaller_of_the_systems_and_the_cgroups(tmp_path):
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    cgroup.mkdir()
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n")
    assert memory_available_bytes(meminfo, cgroup) == 4000000 * 1024
    write(cgroup, {"memory.max": "max\n", "memory.current": "5\n"})
    assert memory_available_bytes(meminfo, cgroup) == 4000000 * 1024
    write(
        cgroup,
        {
            "memory.max": f"{GIB}\n",
            "memory.current": f"{600 * MIB}\n",
            "memory.stat": f"anon 1\ninactive_file {200 * MIB}\n",
        },
    )
    assert memory_available_bytes(meminfo, cgroup) == GIB - 400 * MIB
    assert memory_available_bytes(tmp_path / "absent", cgroup) is None


def test_memory_of_an_old_cgroup(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable: 4000000 kB\n")
    write(tmp_path, {"memory/memory.limit_in_bytes": f"{GIB}\n", "memory/memory.usage_in_bytes": f"{600 * MIB}\n"})
    assert memory_available_bytes(meminfo, tmp_path) == GIB - 600 * MIB


def test_32_bit_systems_are_refused(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "armv7l")
    with pytest.raises(EngineMissingError, match="32-bit"):
        this_device()


def test_this_machine_is_seen():
    found = this_device()
    assert found.physical_cores >= 1
    assert found.memory_available_bytes is None or found.memory_available_bytes > 0


def test_a_server_gets_a_pool_for_its_answers_and_a_place_for_prompts():
    alone, served = plan(QWEN3_06B, Q4_0, device(16 * GIB)), plan(QWEN3_06B, Q4_0, device(16 * GIB), parallel=4)
    assert (alone.sequences, alone.pool_tokens, alone.aside_threads) == (1, 4096, 0)
    assert (served.context_length, served.pool_tokens, served.aside_threads) == (4096, 4 * 4096, 2)
    assert served.sequences > 4
    assert served.swap_tokens == served.pool_tokens
    # three more sequences, the second context, and as much as the pool for what is kept; one piece of it on its way
    assert served.need.kv_bytes == 9 * alone.need.kv_bytes + 128 * kv_bytes_per_token(QWEN3_06B)
    assert served.need.compute_bytes > alone.need.compute_bytes


def test_a_server_in_short_memory_gives_up_the_place_for_prompts_then_parts_of_the_pool():
    def fits(**options):
        return plan(QWEN3_06B, Q4_0, device(int(room)), parallel=4, **options)

    full = plan(QWEN3_06B, Q4_0, device(16 * GIB), parallel=4).need.total_bytes
    kept = (4 * 4096 + 128) * kv_bytes_per_token(QWEN3_06B)
    room = (full - kept / 2) / 0.9
    assert (fits().pool_tokens, fits().aside_threads) == (4 * 4096, 2)
    assert fits().swap_tokens == pytest.approx(4096, abs=128)  # half of what is left
    assert fits().need.total_bytes <= 0.9 * room
    room = (full - kept) / 0.9 - MIB
    assert fits().swap_tokens == pytest.approx(2048, abs=256)  # half of the second context's place
    assert (fits().pool_tokens, fits().aside_threads) == (4 * 4096, 0)
    assert "a place of their own" in " ".join(fits().reasons)
    room = plan(QWEN3_06B, Q4_0, device(16 * GIB)).need.total_bytes / 0.9 + 400 * MIB
    pool = fits().pool_tokens
    assert 4096 <= pool < 4 * 4096
    assert pool % 256 == 0
    assert f"a KV cache of {pool} tokens" in " ".join(fits().reasons)
    assert fits().swap_tokens == 0
    assert fits().need.total_bytes <= 0.9 * room
    room = GIB // 2
    with pytest.raises(MemoryShortError):
        fits()


def test_what_cannot_compute_aside_does_not_plan_for_it():
    assert plan(QWEN3_06B, Q4_0, device(16 * GIB, cores=1), parallel=2).aside_threads == 0
    assert plan(QWEN3_06B, Q4_0, device(16 * GIB), parallel=2, gpu_layers=-1).aside_threads == 0
    ort = EngineChoice("ort", "as asked")
    served = plan(QWEN3_06B, Q4_0, device(16 * GIB), engine=ort, parallel=3)
    assert (served.aside_threads, served.swap_tokens, served.sequences, served.pool_tokens) == (0, 0, 3, 3 * 4096)
    for parallel in (0, 33, 1.5):
        with pytest.raises(RequestError, match="parallel"):
            plan(QWEN3_06B, Q4_0, device(16 * GIB), parallel=parallel)


def test_scores_are_as_long_as_a_sequence_has_slots_whatever_the_pool_holds():
    ort = EngineChoice("ort", "as asked")
    cut = plan(QWEN3_06B, Q4_0, device(int(3.5 * GIB)), engine=ort, parallel=8, context_length=8192)
    whole = plan(QWEN3_06B, Q4_0, device(64 * GIB), engine=ort, parallel=8, context_length=8192)
    assert cut.pool_tokens < whole.pool_tokens == 8 * 8192
    assert cut.need.parts["compute"] >= whole.need.parts["compute"] >= 2 * 4 * 128 * 8192 * 16


def needs(weights=Q4_0, context=4096, kv_type="f16", layout=TWICE):
    return memory_need(
        QWEN3_06B, weights, machine="x86_64", context_length=context, kv_type=kv_type, layout=layout
    )  # fmt: skip


def test_parts_are_what_a_hand_computes():
    need = needs()
    assert need.parts["weights"] == 400 * MIB
    assert need.parts["repacked"] == 250 * MIB
    assert need.parts["KV cache"] == 4096 * 28 * 8 * 128 * 2 * 2  # layers, heads, width, keys and values, bytes
    assert need.parts["compute"] == 512 * (3 * 3072 + 3 * 1024) * 4
    assert need.parts["logits"] == 2 * 151936 * 4
    assert need.total_bytes == sum(need.parts.values()) == need.mapped_bytes + need.anonymous_bytes
    assert need.mapped_bytes - needs(layout=ONCE).mapped_bytes == 400 * MIB
    assert needs(layout=AS_STORED).parts["repacked"] == needs(layout=ONCE).parts["repacked"] == 0


def test_what_is_given_up_for_memory_and_in_which_order():
    """Mapped twice, then read once, then a smaller cache, then weights as they are: each as soon as it is needed."""
    seen = []
    for room in range(3000, 500, -5):
        try:
            found = plan(QWEN3_06B, Q4_0, device(room * MIB))
        except MemoryShortError:
            break
        state = (found.kv_type, found.mmap, found.repack)
        if state not in seen:
            seen.append(state)
        available = room * MIB
        assert found.need.total_bytes <= (available if not found.repack else 0.9 * available)
        assert found.need.anonymous_bytes <= 0.9 * available
    assert seen == [
        ("f16", True, True), ("f16", False, True), ("q8_0", False, True), ("q8_0", True, False),
    ]  # fmt: skip


def test_a_cache_that_was_asked_for_is_kept():
    room = int(needs(layout=AS_STORED).total_bytes)
    with pytest.raises(MemoryShortError, match="kv_type='q8_0' takes about half"):
        plan(QWEN3_06B, Q4_0, device(room - MIB), kv_type="f16")
    found = plan(QWEN3_06B, Q4_0, device(room - MIB))
    assert found.kv_type == "q8_0"
    assert any("in f16 it would not fit" in reason for reason in found.reasons)


def test_what_is_forced_is_loaded_in_the_way_that_needs_least():
    with pytest.raises(MemoryShortError, match="--force"):
        plan(QWEN3_06B, Q4_0, device(300 * MIB))
    found = plan(QWEN3_06B, Q4_0, device(300 * MIB), force=True)
    assert not found.fits
    assert (found.kv_type, found.mmap, found.repack) == ("q8_0", True, False)
    assert found.reasons[-1].startswith("forced: this needs ")
    assert plan(QWEN3_06B, Q4_0, device(8 * GIB), force=True) == plan(QWEN3_06B, Q4_0, device(8 * GIB))


def test_load_refuses_by_the_plan_and_force_loads_all_the_same(nano_artifact, monkeypatch):
    monkeypatch.setattr(choice, "this_device", lambda: device(80 * MIB))
    path = nano_artifact("q8_0")
    with pytest.raises(MemoryShortError, match=r"this needs \d+ MiB .* and \d+ MiB may be used"):
        load(path)
    with load(path, force=True) as model:
        assert not model.card.plan.repack
        assert model.chat("2+3=?", thinking=False, max_tokens=4, temperature=0.0).usage.completion_tokens > 0


def test_without_repacking_the_same_ids_are_drawn(nano_artifact, monkeypatch):
    answers = []
    for memory in (64 * GIB, 90 * MIB):
        monkeypatch.setattr(choice, "this_device", lambda memory=memory: device(memory))
        with load(nano_artifact("q4_0"), force=True) as model:
            assert model.card.plan.repack == (memory == 64 * GIB)
            answers.append(model.chat("What is 12 + 30?", thinking=False, max_tokens=12, temperature=0.0).content)
    assert answers[0] == answers[1]


def gpu(free):
    return replace(device(64 * GIB), gpu_free_bytes=free)


def test_layers_go_to_a_gpu_as_far_as_its_memory_holds_them():
    assert plan(QWEN3_06B, Q4_0, device(64 * GIB), gpu_layers=None).gpu_layers == 0
    assert plan(QWEN3_06B, Q4_0, gpu(24 * GIB), gpu_layers=None).gpu_layers == -1
    assert plan(QWEN3_06B, Q4_0, gpu(600 * MIB), gpu_layers=None).gpu_layers == 0
    each = (400 * MIB + 4096 * 112 * 1024) // 28  # a layer's weights and its part of the cache
    some = plan(QWEN3_06B, Q4_0, gpu(int((700 * MIB + 10.5 * each) / 0.9)), gpu_layers=None)
    assert some.gpu_layers == 10
    assert any("10 layers on the GPU" in reason for reason in some.reasons)
    assert plan(QWEN3_06B, Q4_0, gpu(24 * GIB), gpu_layers=0).gpu_layers == 0
    assert plan(QWEN3_06B, Q4_0, gpu(24 * GIB), gpu_layers=None, engine=EngineChoice("ort", "")).gpu_layers == 0


@pytest.mark.parametrize(
    ("script", "free"),
    [("echo 7168; echo 100", 7168 * MIB), ("echo '[N/A]'", None), ("exit 9", None), ("echo 99999999999999", None)],
)
def test_a_gpus_memory_is_what_its_tool_says(tmp_path, monkeypatch, script, free):
    if sys.platform == "win32":
        pytest.skip("the tool is faked by a shell script")
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpu_free_bytes() == free


def test_a_limit_above_the_own_cgroup_counts(tmp_path):
    """As systemd makes them: the service's own cgroup has no limit, the slice above it has one."""
    meminfo, membership = tmp_path / "meminfo", tmp_path / "self"
    meminfo.write_text("MemAvailable: 8000000 kB\n")
    membership.write_text("0::/app.slice/edge.service\n")
    tree = tmp_path / "cgroup"
    write(tree, {"app.slice/memory.max": f"{GIB}", "app.slice/memory.current": f"{300 * MIB}"})
    write(tree, {"app.slice/edge.service/memory.max": "max", "app.slice/edge.service/memory.current": "5"})
    assert memory_available_bytes(meminfo, tree, membership) == GIB - 300 * MIB
    write(tree, {"app.slice/edge.service/memory.high": f"{512 * MIB}"})
    assert memory_available_bytes(meminfo, tree, membership) == 512 * MIB - 5
    membership.write_text("4:cpu,cpuacct:/x\n5:memory:/docker/abc\n0::/\n")
    old = {"memory.limit_in_bytes": f"{256 * MIB}", "memory.usage_in_bytes": f"{MIB}"}
    write(tmp_path / "old" / "memory" / "docker" / "abc", old)
    assert memory_available_bytes(meminfo, tmp_path / "old", membership) == 255 * MIB
    membership.write_text("0::/../../outside\nnonsense\n")
    assert memory_available_bytes(meminfo, tree, membership) == 8000000 * 1024
