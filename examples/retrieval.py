"""Answers from a folder of text files, with their sources: BM25 finds the passages, the model reads them.

No index, no second model: a folder of notes is small, and BM25 over some thousand passages takes milliseconds.

python examples/retrieval.py notes/ "Which valve feeds the north tank?" --model nano
"""

import argparse
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from edgeqwen import Model, load

K1, B = 1.2, 0.75  # Robertson and Zaragoza, The Probabilistic Relevance Framework (2009)


@dataclass(frozen=True)
class Passage:
    """A paragraph, and where it stands."""

    source: str
    text: str
    words: Counter[str]


def words_of(text: str) -> list[str]:
    """Words in lower case; each Chinese character is one."""
    return re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", text.lower())


def passages_of(folder: Path) -> list[Passage]:
    """The paragraphs of all .txt and .md files."""
    found = []
    for path in sorted((*folder.rglob("*.txt"), *folder.rglob("*.md"))):
        paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
        texts = [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]
        found += [
            Passage(f"{path.name}:{number}", text, Counter(words_of(text))) for number, text in enumerate(texts, 1)
        ]
    return found


def best(passages: list[Passage], question: str, count: int) -> list[Passage]:
    """The passages that fit a question best by BM25; those without a word of it are left out."""
    mean = sum(passage.words.total() for passage in passages) / max(1, len(passages))
    having = Counter(word for passage in passages for word in passage.words)

    def score(passage: Passage) -> float:
        length = K1 * (1 - B + B * passage.words.total() / mean)
        return sum(
            math.log(1 + (len(passages) - having[word] + 0.5) / (having[word] + 0.5))
            * passage.words[word] * (K1 + 1) / (passage.words[word] + length)
            for word in set(words_of(question))
        )  # fmt: skip

    ranked = sorted(passages, key=score, reverse=True)[:count]
    return [passage for passage in ranked if score(passage) > 0]


def ask(model: Model, question: str, passages: list[Passage]) -> None:
    """Print the answer as it comes, and the sources."""
    notes = "\n\n".join(f"[{passage.source}] {passage.text}" for passage in passages)
    messages = [
        {"role": "system", "content": f"Answer from these notes alone, in one sentence.\n\n{notes}"},
        {"role": "user", "content": question},
    ]
    for delta in model.stream(messages, thinking=False, max_tokens=200, seed=1):
        print(delta.content, end="", flush=True)
    print("\nsources: " + ", ".join(passage.source for passage in passages))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("question")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--passages", type=int, default=3)
    given = parser.parse_args()
    if fitting := best(passages_of(given.folder), given.question, given.passages):
        with load(given.model) as lm:
            ask(lm, given.question, fitting)
    else:
        print(f"nothing in {given.folder} has a word of the question")
