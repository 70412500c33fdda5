"""A tutor: the working is shown while the model thinks, the answer stands apart from it.

python examples/maths_tutor.py "What is 123 + 456?" --model nano
"""

import argparse

from edgeqwen import load

DIM, PLAIN = "\033[2m", "\033[0m"


def explain(question: str, model: str, budget: int) -> str:
    """Print the working as it comes and then the answer, which is returned."""
    answer = ""
    with load(model) as lm:
        print(f"{DIM}working:")
        for delta in lm.stream(question, thinking=True, thinking_budget=budget, seed=1):
            if delta.content and not answer:
                print(f"{PLAIN}\nanswer: ", end="")
            print(delta.thinking or delta.content, end="", flush=True)
            answer += delta.content
            if delta.finish_reason == "length":
                print(f"{PLAIN}\n(cut: there was no more room for the answer)", end="")
    print(PLAIN)
    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="What is 123 + 456?")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--budget", type=int, default=512, help="tokens of thinking, at most")
    given = parser.parse_args()
    explain(given.question, given.model, given.budget)
