"""What the tests of packs share: an index that is not there, and one call that packs for real (tests/arm takes it)."""

import hashlib
import json
import re
from pathlib import Path

from packaging.requirements import Requirement

from edgeqwen.errors import DownloadError
from edgeqwen.pack import pack
from edgeqwen.pack_engine import find_engine
from edgeqwen.pack_target import target_of

# For Python's -c: runs its arguments, and tells in how many pieces their output came, and what it was.
COUNT_PIECES = (
    "import os, subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)\n"
    "pieces = list(iter(lambda: os.read(p.stdout.fileno(), 4096), b'')); print(len(pieces), b''.join(pieces))"
)


def make_pack(artifact, out, platform="linux-aarch64", pythons="3.11", engine_wheels=()):
    """Pack with the real pip, which downloads; `engine_wheels` are files or folders. The report."""
    target = target_of(platform, pythons)
    return pack(Path(artifact), target, Path(out), engine=find_engine([Path(place) for place in engine_wheels], target))


def command_of(readme):
    """The one command of a pack's README."""
    (command,) = re.findall(r"^```\n(.*?)^```$", readme.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return command.strip()


class Index:
    """A stand-in for pip and its index: wheels by name, each with what it requires.

    Like pip it evaluates markers for the Python that runs it, here 3.13 on x86-64, whatever the target is.
    """

    def __init__(self, **wheels):
        self.wheels = {"pip": [], **wheels}
        self.fetched = []  # names, in order
        self.breaks_at = None  # the number of the download that fails
        self.forged = set()  # names whose bytes are others than the index says

    def __call__(self, words):
        words = list(words)
        return self._report(words) if words[0] == "install" else self._download(words)

    @staticmethod
    def data(name):
        return f"the wheel of {name}".encode()

    def file(self, name):
        return f"{name.replace('-', '_')}-1.0-py3-none-any.whl"

    def _report(self, words):
        host = {"python_version": "3.13", "python_full_version": "3.13.0", "platform_machine": "x86_64"}
        items, wanted = {}, [Requirement(word) for word in self._requirements(words)]
        while wanted:
            one = wanted.pop()
            requires = self.wheels.get(one.name)
            if requires is None:
                raise DownloadError(f"pip failed: no matching distribution found for {one.name}")
            chosen = items.setdefault(one.name, self._item(one, requires))
            for text in chosen["metadata"]["requires_dist"]:
                inner = Requirement(text)
                extras = ("", *one.extras)
                if inner.name not in items and (
                    inner.marker is None or any(inner.marker.evaluate({**host, "extra": extra}) for extra in extras)
                ):
                    wanted.append(inner)
        return json.dumps({"install": list(items.values())})

    def _item(self, one, requires):
        direct = one.url is not None
        url = one.url or f"https://index.invalid/{self.file(one.name)}"
        digest = hashlib.sha256(Path(url.removeprefix("file://")).read_bytes() if direct else self.data(one.name))
        return {
            "metadata": {"name": one.name, "version": "1.0", "requires_dist": requires},
            "download_info": {"url": url, "archive_info": {"hashes": {"sha256": digest.hexdigest()}}},
            "is_direct": direct,
        }

    @staticmethod
    def _requirements(words):
        """The words that are neither options nor their values."""
        taking = {"--report", "--target", "--implementation", "--python-version", "--platform", "--dest"}
        return [
            word
            for before, word in zip(["", *words], words, strict=False)
            if not word.startswith("-") and before not in taking and word not in {"install", "download"}
        ]

    def _download(self, words):
        (requirement,) = self._requirements(words)
        name = re.split("==", requirement)[0]
        if self.breaks_at == len(self.fetched):
            raise DownloadError("pip failed: the connection was lost")
        self.fetched.append(name)
        data = b"other bytes" if name in self.forged else self.data(name)
        (Path(words[words.index("--dest") + 1]) / self.file(name)).write_bytes(data)
        return ""
