"""Engines as they are found, chosen, refused and unpacked; the libraries here are small, and some of them lie."""

import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeqwen import device, native_engine
from edgeqwen.backends import llamacpp_library
from edgeqwen.cli import edgeqwen
from edgeqwen.doctor import pinned_version
from edgeqwen.elf import elf_machine, glibc_needed
from edgeqwen.engine_choice import list_engines, use_engine
from edgeqwen.engine_platform import PLATFORMS, platform_named
from edgeqwen.engine_source import ARCHIVE, fetch_source
from edgeqwen.engine_wheel import INSIDE, unpack_engine, write_engine_wheel, write_pure_wheel
from edgeqwen.errors import DownloadError, EngineError, EngineMissingError, RequestError
from edgeqwen.file_hash import sha256_of
from edgeqwen.native_engine import DESCRIPTION, LLAMA_VERSION, best_variant, check_engine, engine_fault, read_engine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="engines are built for Linux")
HERE = f"linux-{platform.machine()}"
EVERYTHING = frozenset(need for one in PLATFORMS.values() for needs in one.variants.values() for need in needs)


@pytest.fixture
def wheel(tmp_path):
    """(variants, platform, libraries) -> an engine wheel whose libraries are those of this Python."""

    def make(variants=("x64", "haswell"), name="linux-x86_64", library=None):
        files = {}
        for stem in ("llama", "ggml", "ggml-base", *(f"ggml-cpu-{variant}" for variant in variants)):
            files[f"lib{stem}.so"] = tmp_path / f"lib{stem}.so"
            content = elf(PLATFORMS[name].machine) if library is None else library
            files[f"lib{stem}.so"].write_bytes(content + stem.encode())
        licence = tmp_path / "LICENSE"
        licence.write_text("MIT", "utf-8")
        return write_engine_wheel(tmp_path / "dist", PLATFORMS[name], files, list(variants), "g++ 12", licence).path

    return make


def elf(machine, glibc=31):
    """The head of an ELF file, and a name of a symbol's version."""
    number = {"x86_64": 62, "aarch64": 183}[machine]
    return b"\x7fELF\x02\x01\x01" + bytes(11) + number.to_bytes(2, "little") + f"\0GLIBC_2.{glibc}\0".encode()


@pytest.fixture
def here(monkeypatch):
    """Makes this machine another one."""

    def pretend(machine="x86_64", flags=EVERYTHING, libc="glibc 2.36"):
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(device, "cpu_flags", lambda: None if flags is None else frozenset(flags))
        monkeypatch.setattr(device, "libc_name", lambda: libc)

    return pretend


def test_the_version_is_the_one_that_is_pinned():
    assert pinned_version("llama-cpp-python") == LLAMA_VERSION


def test_variants_stand_in_the_order_of_ggmls_score():
    """ggml-cpu/arch/{x86,arm}/cpu-feats.cpp: each need is a bit, and the highest sum wins."""
    bits = {
        "fma": 0, "f16c": 1, "sse4_2": 2, "bmi2": 3, "avx": 4, "avx2": 5, "avx_vnni": 6, "avx512f": 7,
        "avx512vbmi": 8, "avx512_bf16": 9, "avx512_vnni": 10, "amx_int8": 11,
        "asimddp": 1, "asimdhp": 2, "sve": 3, "i8mm": 4, "sve2": 5, "sme": 6,
    }  # fmt: skip
    for one in PLATFORMS.values():
        scores = [sum(1 << bits[need] for need in needs if need in bits) for needs in one.variants.values()]
        assert scores == sorted(scores), one.name
        assert scores[0] == 0, "the first runs on every processor"


@pytest.mark.parametrize(
    ("name", "flags", "variant"),
    [
        ("linux-x86_64", "", "x64"),
        ("linux-x86_64", "sse4_2 avx", "sandybridge"),
        ("linux-x86_64", "sse4_2 avx f16c fma avx2 bmi2", "haswell"),
        ("linux-x86_64", "sse4_2 avx f16c fma avx2 bmi2 avx_vnni", "alderlake"),
        # AVX-512 by its foundation alone, as Knights Landing had it, is not what the variants need
        ("linux-x86_64", "sse4_2 avx f16c fma avx2 bmi2 avx512f avx512cd", "haswell"),
        ("linux-x86_64", " ".join(EVERYTHING), "sapphirerapids"),
        ("linux-aarch64", "fp asimd evtstrm crc32 cpuid", "armv8.0_1"),  # Raspberry Pi 4
        ("linux-aarch64", "fp asimd aes crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp", "armv8.2_2"),  # Pi 5
    ],
)
def test_the_best_variant_that_runs_is_taken(wheel, tmp_path, name, flags, variant):
    engine = unpack_engine(wheel(tuple(PLATFORMS[name].variants), name), tmp_path / "engines")
    assert best_variant(engine.variants, flags.split()) == variant


def test_a_wheel_is_the_same_twice_and_pip_takes_it(wheel, tmp_path):
    path = wheel(name=HERE, variants=list(PLATFORMS[HERE].variants)[:2])
    assert re.fullmatch(rf"edgeqwen_engine-{re.escape(LLAMA_VERSION)}-py3-none-manylinux_2_31_\w+\.whl", path.name)
    before = path.read_bytes()
    assert wheel(name=HERE, variants=list(PLATFORMS[HERE].variants)[:2]).read_bytes() == before
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*command, tmp_path / "site", path], check=True)
    assert read_engine(tmp_path / "site/edgeqwen_engine/lib").version == LLAMA_VERSION
    assert (tmp_path / f"site/edgeqwen_engine-{LLAMA_VERSION}.dist-info/licenses/LICENSE").read_text("utf-8") == "MIT"


def test_the_python_half_is_the_source_releases(tmp_path):
    """Over the llama_cpp that is installed here, which came out of the same release."""
    installed = native_engine.compiled_folder().parent
    source = tmp_path / "source"
    shutil.copytree(installed, source / "llama_cpp", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    (source / "PKG-INFO").write_text(
        f"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: {LLAMA_VERSION}\n", "utf-8"
    )
    (source / "LICENSE.md").write_text("MIT", "utf-8")
    made = write_pure_wheel(tmp_path / "dist", source).path
    assert made.name == f"llama_cpp_python-{LLAMA_VERSION}-py3-none-any.whl"
    names = zipfile.ZipFile(made).namelist()
    assert {"llama_cpp/llama_cpp.py", "llama_cpp/_ctypes_extensions.py"} <= set(names)
    assert not [name for name in names if name.endswith(".so")]
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, made]
    subprocess.run(command, check=True)
    no_wheel = f"import sys; sys.modules[{native_engine.PACKAGE!r}] = None; "  # whether or not one is installed here
    code = no_wheel + "import edgeqwen.backends.llamacpp_library as library; library.load_llama()"
    environment = surrounding(site, tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "llama_cpp is installed without libraries: install an engine wheel" in done.stderr


def surrounding(site, tmp_path):
    """An environment in which packages of `site` come before those that are installed."""
    path = os.pathsep.join([str(site), str(Path(native_engine.__file__).parents[1])])
    return {**os.environ, "PYTHONPATH": path, "EDGEQWEN_HOME": str(tmp_path / "home")}


@pytest.mark.parametrize(
    ("pretended", "words"),
    [
        ({"machine": "aarch64"}, "is built for x86_64, and this is aarch64: edgeqwen engine build --for linux-aarch64"),
        ({"libc": "glibc 2.28"}, "needs glibc 2.31, and this system has 2.28: build it on this system"),
        ({"flags": {"sse4_2", "avx"}}, "can run, only haswell, of which the least needs avx2 bmi2 f16c fma: "),
    ],
)
def test_an_engine_that_cannot_run_here_is_refused_before_it_runs(wheel, here, tmp_path, pretended, words):
    here()
    path = wheel(("haswell",))
    assert use_engine(path).machine == "x86_64"
    here(**pretended)
    with pytest.raises(EngineMissingError, match=re.escape(words)):
        use_engine(path)
    with pytest.raises(EngineMissingError, match=re.escape(words)):  # and at every start afterwards
        native_engine.library_folder()
    assert words in list_engines()[0].fault
    assert "cannot be used: it" in CliRunner().invoke(edgeqwen, ["engine", "list"]).output


def test_an_engine_of_another_version_is_refused(wheel, here, tmp_path):
    here()
    engine = unpack_engine(wheel(), tmp_path / "engines")
    describe(engine.folder, llama_cpp_python="0.3.35")
    with pytest.raises(EngineMissingError, match=r"0\.3\.35; this edgeqwen works with"):
        check_engine(read_engine(engine.folder))


def test_a_system_that_says_nothing_of_its_processor_is_not_refused(wheel, here, tmp_path):
    here(flags=None, libc=None)
    engine = unpack_engine(wheel(("haswell",)), tmp_path / "engines")
    assert engine_fault(engine, None) is None


def describe(folder, **changes):
    data = json.loads((folder / DESCRIPTION).read_bytes())
    (folder / DESCRIPTION).write_text(json.dumps({**data, **changes}), "utf-8")


def test_use_unpacks_a_wheel_once_and_auto_forgets_it(wheel, here, tmp_path):
    here()
    path = wheel()
    done = CliRunner().invoke(edgeqwen, ["engine", "use", str(path), "--json"])
    first = json.loads(done.output)["engines"][0]
    assert (first["origin"], first["used"], first["variant"]) == ("chosen", True, "haswell")
    assert native_engine.library_folder() == Path(first["folder"])
    shutil.rmtree(tmp_path / "dist")  # the wheel is not needed any more
    assert native_engine.library_folder() == Path(first["folder"])
    assert CliRunner().invoke(edgeqwen, ["engine", "use", first["folder"]]).exit_code == 0
    assert CliRunner().invoke(edgeqwen, ["engine", "use", "auto"]).exit_code == 0
    assert native_engine.library_folder() != Path(first["folder"])
    CliRunner().invoke(edgeqwen, ["engine", "use", first["folder"]])
    shutil.rmtree(first["folder"])
    with pytest.raises(EngineMissingError, match="is not there any more: edgeqwen engine use auto"):
        native_engine.library_folder()


def test_the_order_of_engines(wheel, here, monkeypatch, tmp_path):
    here()
    packages = {"llama_cpp": tmp_path / "llama_cpp"}
    monkeypatch.setattr(native_engine, "_package_folder", packages.get)
    assert list_engines() == []
    assert native_engine.library_folder() is None
    (tmp_path / "llama_cpp/lib").mkdir(parents=True)
    shutil.copy(native_engine.__file__, tmp_path / "llama_cpp/lib/libllama.so")
    assert [one.origin for one in list_engines()] == ["compiled"]
    with zipfile.ZipFile(wheel()) as archive:
        archive.extractall(tmp_path)
    packages["edgeqwen_engine"] = tmp_path / "edgeqwen_engine"
    assert [one.origin for one in list_engines()] == ["wheel", "compiled"]
    assert native_engine.library_folder() == tmp_path / "edgeqwen_engine/lib"
    use_engine(wheel(("x64",)))
    assert [one.origin for one in list_engines()] == ["chosen", "wheel", "compiled"]
    monkeypatch.setenv(native_engine.OVERRIDE, str(tmp_path / "mine"))
    assert [(one.origin, one.used) for one in list_engines()] == [
        ("environment", True), ("chosen", False), ("wheel", False), ("compiled", False),
    ]  # fmt: skip
    assert native_engine.library_folder() == tmp_path / "mine"


@pytest.mark.parametrize(
    "changes",
    [
        {"variants": {"../x": []}}, {"variants": []}, {"variants": {"x64": "avx"}}, {"variants": {"x64": [{}]}},
        {"files": {"libllama.so": "no digest"}}, {"files": {"a/b": "0" * 64}}, {"files": None}, {"machine": 5},
        {"glibc": "3"}, {"llama_cpp_python": ["x"]}, {"format": 2}, {"format": True, "files": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_description_is_an_error(wheel, tmp_path, changes):
    folder = unpack_engine(wheel(), tmp_path / "engines").folder
    describe(folder, **changes)
    with pytest.raises(EngineError, match=r"damaged|format"):
        read_engine(folder)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b'{"format": 1, "format": 1}', b"\xff", b" " * 70_000], ids=lambda raw: raw[:9]
)
def test_what_is_no_description_is_an_error(tmp_path, raw):
    (tmp_path / DESCRIPTION).write_bytes(raw)
    with pytest.raises(EngineError):
        read_engine(tmp_path)


def test_a_folder_or_a_file_that_is_no_engine_is_an_error(tmp_path):
    with pytest.raises(EngineError, match=r"engine\.json is missing"):
        use_engine(tmp_path)
    with pytest.raises(RequestError, match="neither an engine wheel nor a folder"):
        use_engine(tmp_path / "absent")
    (tmp_path / "file.whl").write_bytes(b"PK nothing")
    with pytest.raises(EngineError, match="no wheel, or damaged"):
        use_engine(tmp_path / "file.whl")


@pytest.mark.parametrize("name", ["../libevil.so", "a/b.so", "..", "/etc/x", "a\\b.so"])
def test_a_wheel_cannot_write_elsewhere(wheel, tmp_path, name):
    path = wheel()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(INSIDE + name, b"x")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EngineError, match="is not the name of a library"):
        unpack_engine(path, tmp_path / "engines")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "engines"])
    assert not list((tmp_path / "engines").iterdir())


def test_a_library_that_is_not_the_one_that_was_built_is_refused(wheel, here, tmp_path):
    here()
    folder = unpack_engine(wheel(), tmp_path / "engines").folder
    (folder / "libggml.so").write_bytes(elf("x86_64"))
    with pytest.raises(EngineError, match=r"libggml\.so is damaged: its sha256 is"):
        use_engine(folder)
    (folder / "libggml.so").unlink()
    with pytest.raises(EngineError, match=r"libggml\.so is missing"):
        use_engine(folder)
    with pytest.raises(EngineError, match=r"is for aarch64, engine\.json says x86_64"):
        unpack_engine(wheel(library=elf("aarch64")), tmp_path / "engines")


def test_a_library_that_pip_compiled_for_another_processor_is_refused(here, tmp_path, monkeypatch):
    """A card that was taken out of one board and put into another: the constants of the build tell."""
    source = tmp_path / "cpu.c"
    source.write_text(
        "int ggml_cpu_has_avx512(void) { return 1; }\nint ggml_cpu_has_avx2(void) { return 0; }\n", "utf-8"
    )
    for name in ("libllama.so", "libggml-cpu.so"):
        subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", source, "-o", tmp_path / name], check=True)
    monkeypatch.setenv(native_engine.OVERRIDE, str(tmp_path))
    here(platform.machine(), flags={"sse4_2", "avx2"})
    with pytest.raises(EngineMissingError, match="is built for another processor: it needs avx512bw avx512cd avx512dq"):
        llamacpp_library.load_llama()
    here("riscv64")
    with pytest.raises(EngineMissingError, match=r"is built for (x86_64|aarch64), and this is riscv64"):
        llamacpp_library.load_llama()


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_a_library_that_was_cut_short_is_refused_before_it_ends_the_process(tmp_path, monkeypatch):
    folder = tmp_path / "lib"
    shutil.copytree(native_engine.library_folder(), folder)
    assert native_engine.cut_short(folder) is None
    damaged = next(iter(sorted(folder.glob("libggml-cpu*"))))
    whole = damaged.stat().st_size
    for size in (0, 63, 5000, whole // 2, whole - 1):
        os.truncate(damaged, size)
        assert native_engine.cut_short(folder) == damaged, size
    monkeypatch.setenv(native_engine.OVERRIDE, str(folder))
    with pytest.raises(EngineMissingError, match=f"{damaged.name} is cut short; .*unset LLAMA_CPP_LIB_PATH"):
        llamacpp_library.load_llama()
    assert list_engines()[0].fault == f"holds {damaged.name} cut short"


def test_what_was_installed_here_is_not_refused():
    llamacpp_library._refuse_foreign(native_engine.library_folder())


def test_libraries_say_what_they_are_for():
    library = native_engine.library_folder() / "libllama.so"
    assert elf_machine(library) == platform.machine()
    assert 17 <= glibc_needed(library) <= 60
    assert elf_machine(Path(__file__)) is None
    assert glibc_needed(Path(__file__)) is None


def test_another_source_release_is_refused(tmp_path):
    (tmp_path / ARCHIVE).write_bytes(b"something else")
    with pytest.raises(DownloadError, match=f"has the sha256 .*, and {re.escape(ARCHIVE)} has"):
        fetch_source(tmp_path / "work", tmp_path / ARCHIVE)
    assert not (tmp_path / "work" / "llama_cpp_python").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "--for", "windows"], "for linux-x86_64, linux-aarch64 it can"),
        (["build", "--variants", "z80"], "has no variant 'z80'; there are"),
        (["use", "absent"], "neither an engine wheel nor a folder"),
    ],
)
def test_errors_say_what_would_work(arguments, words):
    done = CliRunner().invoke(edgeqwen, ["engine", *arguments])
    assert done.exit_code == 1
    assert words in str(done.exception)


def test_a_missing_compiler_has_its_line(monkeypatch, tmp_path):
    from edgeqwen.engine_build import find_toolchain

    other = next(one for one in PLATFORMS.values() if not one.native)
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if "linux-gnu" in name else f"/usr/bin/{name}")
    with pytest.raises(EngineMissingError, match=re.escape(f"sudo apt install {other.package}")):
        find_toolchain(other)
    monkeypatch.setattr(shutil, "which", lambda name, **_: None)
    with pytest.raises(EngineMissingError, match="pip install cmake"):
        find_toolchain(platform_named("this"))


def test_native_is_the_best_variant_for_the_processor_here(monkeypatch):
    from edgeqwen import engine_build
    from edgeqwen.engine_build import NATIVE, Toolchain, choose_variants

    here, other = sorted(PLATFORMS.values(), key=lambda one: not one.native)
    tools = Toolchain("cmake", "cc", "c++", "c++ 12")
    monkeypatch.setattr(engine_build, "_knows", lambda _compiler, _march: False)
    for name, needs in here.variants.items():
        if name not in here.newer:
            monkeypatch.setattr(device, "cpu_flags", lambda needs=needs: frozenset(needs))
            assert choose_variants(here, [NATIVE], tools) == ([name], [])
    for platform_, flags in ((other, frozenset()), (here, None)):
        monkeypatch.setattr(device, "cpu_flags", lambda flags=flags: flags)
        with pytest.raises(RequestError, match=r"what native is for .* is not known here: name variants"):
            choose_variants(platform_, [NATIVE], tools)


def test_sources_that_were_changed_otherwise_are_unpacked_anew(tmp_path, monkeypatch):
    """An older folder of --work has older changes, and a place that is not found is said, not passed over."""
    from edgeqwen import engine_source

    ggml = f"{engine_source.FOLDER}/{engine_source.GGML}"
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as archive:
        for name, changes in engine_source.CHANGES.items():
            data = "".join(old for old, _ in changes).encode()
            member = tarfile.TarInfo(f"{ggml}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(engine_source, "SHA256", sha256_of(tmp_path / ARCHIVE))
    work = tmp_path / "work"
    for _ in range(2):
        fetch_source(work, tmp_path / ARCHIVE)
    quants = work / ggml / "ggml-quants.c"
    assert quants.read_text().count(f'#include "{engine_source.LANES}"') == 1
    assert (work / ggml / engine_source.LANES).is_file()
    monkeypatch.setattr(engine_source, "CHANGES", {"ggml-quants.c": (("what is not there", ""),)})
    with pytest.raises(DownloadError, match="has not the one place"):
        fetch_source(work, tmp_path / ARCHIVE)
    assert engine_source.LANES not in quants.read_text()
