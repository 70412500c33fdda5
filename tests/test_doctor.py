"""What doctor finds of faults that are planted, and that no probe can stop it."""

import json
import platform
import shutil
import socket
import sys
import time

import pytest
from click.testing import CliRunner

from edgeqwen import device, doctor
from edgeqwen.catalog import NANO, convert
from edgeqwen.cli import edgeqwen
from edgeqwen.doctor import diagnose
from edgeqwen.engine_probe import Fault
from edgeqwen.engines import ENGINES, Engine
from edgeqwen.power import Power
from edgeqwen.speed_record import Speed, keep_speeds

GIB = 1 << 30


def found(path=None):
    """name -> check."""
    return {check.name: check for check in diagnose(path).checks}


@pytest.fixture(autouse=True)
def engines_run(monkeypatch):
    """No engine is tried, but where a test does it; its machine is cool and the port is free."""
    tried = doctor.engine_fault
    monkeypatch.setattr(doctor, "engine_fault", lambda _: None)
    monkeypatch.setattr(doctor, "read_power", Power)
    monkeypatch.setattr(doctor.socket, "create_server", lambda _: Free())
    return tried


class Free:
    """A socket that could be bound."""

    def close(self):
        pass


@pytest.fixture
def installed(monkeypatch):
    """Makes exactly these engines look installed."""

    def set_installed(*names):
        monkeypatch.setattr(Engine, "installed", property(lambda self: self.name in names))
        monkeypatch.setattr(Engine, "version", property(lambda self: "0.3.36" if self.name == "llamacpp" else "1.31.1"))
        monkeypatch.setattr(doctor, "_has_library", lambda: True)

    return set_installed


def test_a_machine_that_is_well(installed):
    installed("llamacpp", "ort")
    diagnosis = diagnose()
    checks = {check.name: check for check in diagnosis.checks}
    assert diagnosis.can_run
    assert list(checks) == [
        "system", "python", "processor", "memory", "power", "cache", "port", "llamacpp", "ort", "choice",
    ]  # fmt: skip
    assert platform.machine() in checks["system"].found
    assert sys.executable in checks["python"].found
    assert checks["llamacpp"].found == "llama-cpp-python 0.3.36, reads gguf"
    assert checks["choice"].found.startswith(
        "gguf runs on llamacpp; onnx runs on ort; a model that has both on llamacpp"
    )
    assert all(check.mend for check in checks.values() if check.status == "fail")


@pytest.mark.parametrize(("there", "missing", "extra"), [("llamacpp", "ort", "onnx"), ("ort", "llamacpp", "llama")])
def test_a_missing_engine_has_its_pip_line(installed, there, missing, extra):
    installed(there)
    assert found()[missing].mend == f"pip install 'edgeqwen[{extra}]'"
    assert found()[there].status == "ok"
    assert diagnose().can_run


def test_an_engine_that_has_to_be_compiled_needs_a_compiler(installed, monkeypatch):
    installed("ort")
    for compiler, told in ((None, True), ("/usr/bin/c++", False)):
        monkeypatch.setattr("shutil.which", lambda _, compiler=compiler: compiler)
        assert ("no C++ compiler" in found()["llamacpp"].found) is told
    installed("llamacpp")
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "compiler" not in found()["ort"].found


def test_without_an_engine_nothing_runs(installed):
    installed()
    choice = found()["choice"]
    assert choice.status == "fail"
    assert choice.mend == "pip install 'edgeqwen[llama]', or pip install 'edgeqwen[onnx]'"
    assert not diagnose().can_run


def test_another_version_than_the_pinned_one_is_told(installed, monkeypatch):
    installed("llamacpp")
    monkeypatch.setattr(Engine, "version", "0.4.0")
    check = found()["llamacpp"]
    assert (check.status, check.mend) == ("warn", ENGINES["llamacpp"].pip_line)
    assert "0.4.0" in check.found
    assert f"made for {doctor.pinned_version('llama-cpp-python')}" in check.found
    assert doctor.pinned_version("numpy") is None


def test_a_version_that_the_engine_refuses_is_told_without_trying_it(installed, monkeypatch):
    installed("ort")
    monkeypatch.setattr(Engine, "version", "1.24.4")
    check = found()["ort"]
    assert (check.status, check.mend) == ("fail", "pip install --upgrade 'edgeqwen[onnx]'")
    assert "1.24.4, reads onnx; 1.26 or later is needed" in check.found
    assert found()["choice"].status == "fail"


def test_a_library_that_is_missing_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    assert "library is missing" in found()["llamacpp"].found
    (tmp_path / "libllama.so").write_bytes(b"")
    assert found()["llamacpp"].status == "ok"


def test_what_is_broken_is_no_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    checks = {check.name: check for check in diagnose(quick=True).checks}
    assert checks["llamacpp"].mend.startswith("unset LLAMA_CPP_LIB_PATH")
    assert "gguf" not in checks["choice"].found
    monkeypatch.setattr(doctor, "installed_engines", lambda: ("llamacpp",))
    found = diagnose(quick=True)
    assert not found.can_run
    assert found.checks[-1].found == "no engine that is installed works"


@pytest.mark.parametrize("machine", ["armv7l", "i686"])
def test_a_32_bit_system_is_refused(monkeypatch, machine):
    monkeypatch.setattr("platform.machine", lambda: machine)
    check = found()["system"]
    assert (check.status, check.mend.split(":")[0]) == ("fail", "install the 64-bit system")
    assert not diagnose().can_run


def test_little_memory_and_a_full_disk_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "memory_available_bytes", lambda: GIB // 2)
    monkeypatch.setattr(device, "cgroup_left_bytes", lambda: GIB // 2)
    monkeypatch.setattr(device, "disk_free_bytes", lambda _: GIB)
    monkeypatch.setenv("EDGEQWEN_HOME", str(tmp_path))
    checks = found()
    assert checks["memory"].status == checks["cache"].status == "warn"
    assert "0.5 GiB available" in checks["memory"].found
    assert "cgroup" in checks["memory"].found
    assert "EDGEQWEN_HOME" in checks["cache"].mend
    monkeypatch.setattr(device, "memory_available_bytes", lambda: None)
    assert found()["memory"].found.startswith("unknown")


def test_a_cache_folder_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEQWEN_HOME", str(tmp_path / "file" / "below"))
    assert "cannot be written" in found()["cache"].found


@pytest.mark.parametrize(("machine", "lacks"), [("x86_64", "avx2"), ("aarch64", "dotprod")])
def test_a_slow_processor_is_told(monkeypatch, machine, lacks):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(device, "cpu_features", lambda: ("sse4.2", "neon"))
    check = found()["processor"]
    assert (check.status, check.found[-len(lacks) :]) == ("warn", lacks)
    monkeypatch.setattr(device, "cpu_features", lambda: None)
    assert found()["processor"].status == "ok"


@pytest.mark.parametrize(
    "probe",
    ["system_name", "cpu_name", "memory_available_bytes", "disk_free_bytes"],
)
def test_a_probe_that_fails_hides_nothing(monkeypatch, probe):
    def fail(*_):
        raise OSError("the sensor is gone")

    monkeypatch.setattr(device, probe, fail)
    checks = diagnose().checks
    (unknown,) = [check for check in checks if check.found.startswith("unknown")]
    assert unknown.found == "unknown (OSError: the sensor is gone)"
    assert len(checks) == 10
    assert diagnose().can_run


def test_a_libc_that_is_too_old_for_wheels_is_told(monkeypatch):
    for name, status in (("glibc 2.24", "fail"), ("glibc 2.28", "ok"), ("glibc 2.36", "ok"), ("musl", "warn")):
        monkeypatch.setattr(device, "libc_name", lambda name=name: name)
        check = found()["system"]
        assert check.status == status
        assert ("install a system with glibc 2.28 or later" in check.mend) is (status != "ok")
    monkeypatch.setattr(device, "libc_name", lambda: None)
    assert found()["system"].status == "ok"


@pytest.mark.parametrize(
    ("reading", "status", "told", "mend"),
    [
        (Power(48.0, 2_400_000_000, 2_400_000_000), "ok", "48 °C, 2400 of 2400 MHz", ""),
        (Power(slowed=("under-voltage", "throttled")), "fail", "now: under-voltage, throttled", "power supply"),
        (Power(84.6, slowed=("throttled",)), "fail", "85 °C; held back now: throttled", "cool it"),
        (Power(was_slowed=("under-voltage",)), "warn", "since the start: under-voltage", "power supply"),
    ],
)
def test_heat_and_supply(installed, monkeypatch, reading, status, told, mend):
    """The readings are made up: they stand in for a Raspberry Pi."""
    installed("ort")
    monkeypatch.setattr(doctor, "read_power", lambda: reading)
    check = found()["power"]
    assert check.status == status
    assert told in check.found
    assert mend in check.mend
    assert bool(check.mend) is (status != "ok")
    assert diagnose().wrong() is (status == "fail")
    assert diagnose().wrong(strict=True)  # llama.cpp is missing


def test_a_port_that_is_taken_is_told(monkeypatch):
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        check = doctor.check_port(port)
        assert check.status == "warn"
        assert f"127.0.0.1:{port} cannot be listened on" in check.found
        line, _, free = check.mend.rpartition(" ")
        assert line == "edgeqwen serve MODEL --port"
        assert int(free) != port
    assert doctor.check_port(int(free)).status == "ok"


# An engine that is there and does not run.


def test_an_engine_that_runs(engines_run):
    assert [engines_run(name) for name in ENGINES] == [None, None]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("os.kill(os.getpid(), 4)", "built for another processor"),
        ("os.kill(os.getpid(), 11)", "it died of SIGSEGV"),
        ("raise OSError('libllama.so: cannot open')", "Error: "),
    ],
)
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_that_dies_takes_nothing_with_it(engines_run, monkeypatch, tmp_path, name, body, told):
    """A module that dies when it is imported stands in for a library that was built for another processor."""
    (tmp_path / f"{ENGINES[name].module}.py").write_text(f"import os\n{body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert told in engines_run(name).text


def test_the_line_that_mends_a_wrong_build_builds_for_this_machine(installed, monkeypatch):
    installed("llamacpp", "ort")
    pinned = doctor.pinned_version("llama-cpp-python")
    reinstall = "pip install --force-reinstall --no-cache-dir --no-deps"
    for fault, line in (
        (Fault("wrong", wrong_processor=True), f"CMAKE_ARGS=-DGGML_NATIVE=OFF {reinstall} llama-cpp-python=={pinned}"),
        (Fault("it died"), f"{reinstall} llama-cpp-python=={pinned}"),
    ):
        monkeypatch.setattr(doctor, "engine_fault", lambda name, fault=fault: fault if name == "llamacpp" else None)
        check = found()["llamacpp"]
        assert (check.status, check.mend) == ("fail", line)
        assert fault.text in check.found
        assert diagnose().wrong()
        assert not diagnose(quick=True).wrong()


# A model.


def test_a_model_that_runs(nano_artifact):
    diagnosis = diagnose(nano_artifact("q8_0"))
    checks = {check.name: check for check in diagnosis.checks}
    assert diagnosis.can_run
    assert diagnosis.plan.engine == "llamacpp"
    assert checks["model"].found == "nano: gguf q8_0, 5 MB"
    assert "reads gguf" in checks["choice"].found
    assert f"{diagnosis.plan.need.total_bytes >> 20} MiB for 4096 tokens" in checks["fits"].found


def test_a_model_whose_engine_is_missing(nano_artifact, installed):
    installed("ort")
    diagnosis = diagnose(nano_artifact("q8_0"))
    assert not diagnosis.can_run
    assert "pip install 'edgeqwen[llama]'" in diagnosis.checks[-1].mend


def test_a_model_that_is_too_large(nano_artifact, monkeypatch):
    monkeypatch.setattr(device, "memory_available_bytes", lambda: 60 << 20)
    diagnosis = diagnose(nano_artifact("q8_0"))
    assert not diagnosis.can_run
    assert diagnosis.checks[-1].status == "fail"
    assert "smaller" in diagnosis.checks[-1].mend


def test_a_damaged_model(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    diagnosis = diagnose(tmp_path / "x.gguf")
    assert not diagnosis.can_run
    assert diagnosis.checks[-1].status == "fail"
    assert str(tmp_path / "x.gguf") in diagnosis.checks[-1].mend


def test_a_model_without_its_manifest(nano_artifact, tmp_path, installed):
    installed("llamacpp")
    folder = shutil.copytree(nano_artifact("q8_0"), tmp_path / "nano")
    (folder / "manifest.json").unlink()
    result = CliRunner().invoke(edgeqwen, ["doctor", str(folder)])
    assert result.exit_code == 1
    assert "manifest.json" in result.stdout
    assert "memory" in result.stdout  # the machine is told of all the same
    assert "copy it again" in result.stdout


def test_a_model_that_load_refuses_cannot_run(tmp_path, installed):
    """A base model, a template that nobody trusts, sampling that makes no sense: their headers are all right."""
    installed("llamacpp", "ort")
    source = shutil.copytree(NANO, tmp_path / "base")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    template = settings.pop("chat_template")
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    base = convert(str(source), tmp_path / "made", formats=("gguf", "onnx"), compare=False).path
    diagnosis = diagnose(base, quick=True)
    assert not diagnosis.can_run
    assert "no chat template" in diagnosis.checks[-1].found
    (source / "chat_template.jinja").write_text(template + "{# mine #}")
    foreign = convert(str(source), tmp_path / "foreign", trust_template=True).path
    (file,) = foreign.glob("*.gguf")
    assert "--trust-template" in diagnose(file, quick=True).checks[-1].found
    assert diagnose(foreign, quick=True).can_run
    manifest = json.loads((foreign / "manifest.json").read_text()) | {"sampling": {"temperature": -3}}
    (foreign / "manifest.json").write_text(json.dumps(manifest))
    assert not diagnose(foreign, quick=True).can_run


def test_a_model_with_one_wrong_bit(nano_artifact, tmp_path):
    folder = shutil.copytree(nano_artifact("q8_0"), tmp_path / "nano")
    (weights,) = folder.glob("*.gguf")
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    diagnosis = diagnose(folder)
    assert not diagnosis.can_run
    assert f"{weights} has the sha256" in diagnosis.checks[-1].found
    assert "copy it again" in diagnosis.checks[-1].mend
    assert diagnose(folder, quick=True).can_run


# The command.


def test_the_command_says_it_in_lines(installed):
    installed("llamacpp")
    result = CliRunner().invoke(edgeqwen, ["doctor"])
    assert result.exit_code == 0
    assert "\nwarn  ort        not installed; it reads onnx\n" in result.stdout
    assert "\n                 -> pip install 'edgeqwen[onnx]'\n" in result.stdout
    assert result.stdout.endswith("Models can run here.\n")


def test_the_exit_code_says_whether_something_is_wrong(installed, monkeypatch):
    installed("llamacpp", "ort")
    assert CliRunner().invoke(edgeqwen, ["doctor", "--strict"]).exit_code == 0
    monkeypatch.setattr(doctor, "read_power", lambda: Power(was_slowed=("throttled",)))
    assert CliRunner().invoke(edgeqwen, ["doctor"]).exit_code == 0
    assert CliRunner().invoke(edgeqwen, ["doctor", "--strict"]).exit_code == 1
    monkeypatch.setattr(doctor, "read_power", lambda: Power(slowed=("throttled",)))
    result = CliRunner().invoke(edgeqwen, ["doctor"])
    assert result.exit_code == 1
    assert result.stdout.endswith("Models can run here, but something fails: mend it.\n")
    data = json.loads(CliRunner().invoke(edgeqwen, ["doctor", "--json"]).stdout)
    assert (data["can_run"], data["wrong"]) == (True, True)


def test_the_command_fails_where_nothing_can_run(installed, nano_artifact):
    installed()
    assert CliRunner().invoke(edgeqwen, ["doctor"]).exit_code == 1
    result = CliRunner().invoke(edgeqwen, ["doctor", str(nano_artifact("q8_0")), "--json"])
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert data["can_run"] is False
    assert data["plan"] is None
    assert {check["name"] for check in data["checks"]} >= {"system", "model", "choice"}
    assert data["machine"]["cores"] >= 1


def test_it_says_what_was_measured(installed, nano_artifact, monkeypatch):
    installed("llamacpp", "ort")
    model = doctor.outline(nano_artifact("q8_0"))
    both = {"gguf": model.weights["gguf"], "onnx": model.weights["gguf"]}
    monkeypatch.setattr(
        doctor, "outline", lambda _: type(model)("n", "d" * 64, model.shape, both, dict.fromkeys(both, "q"))
    )
    for name, speed in (("llamacpp", 10.0), ("ort", 11.0)):
        keep_speeds("d" * 64, {name: Speed(device.cpu_name(), ENGINES[name].version, device.physical_cores(), speed)})
    assert "ort: measured here, tokens/s: ort 11.0, llamacpp 10.0" in found(nano_artifact("q8_0"))["choice"].found


def test_it_is_quick_and_loads_no_engine(installed):
    installed("llamacpp")
    before = set(sys.modules)
    started = time.process_time()
    diagnose()
    assert time.process_time() - started < 0.3
    assert not {"llama_cpp", "onnxruntime", "torch"} & (set(sys.modules) - before)


# The device's own words.


PI5 = """processor : 0
BogoMIPS : 108.00
Features : fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer : 0x41
CPU part : 0xd0b

Model : Raspberry Pi 5 Model B Rev 1.0
"""


def test_a_raspberry_pi_is_known(tmp_path):
    cpuinfo, board = tmp_path / "cpuinfo", tmp_path / "model"
    cpuinfo.write_text(PI5)
    board.write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    assert device.cpu_name(cpuinfo) == "Cortex-A76"
    assert device.cpu_features(cpuinfo) == ("neon", "fp16", "dotprod")
    assert device.board_name(board) == "Raspberry Pi 5 Model B Rev 1.0"
    assert device.board_name(tmp_path / "absent") is None


def test_an_x86_processor_is_known(tmp_path):
    (tmp_path / "cpuinfo").write_text("model name\t: Intel(R)  N100\nflags\t\t: fpu sse4_2 avx2 avx_vnni\n")
    assert device.cpu_name(tmp_path / "cpuinfo") == "Intel(R) N100"
    assert device.cpu_features(tmp_path / "cpuinfo") == ("sse4.2", "avx2", "avx-vnni")
    assert device.cpu_features(tmp_path / "absent") is None


def test_the_largest_cache(tmp_path):
    for index, size in enumerate(("32K", "512K", "2M")):
        (tmp_path / f"cpu0/cache/index{index}").mkdir(parents=True)
        (tmp_path / f"cpu0/cache/index{index}/size").write_text(size + "\n")
    assert device.largest_cache_bytes(tmp_path) == 2 << 20
    assert device.largest_cache_bytes(tmp_path / "absent") is None
