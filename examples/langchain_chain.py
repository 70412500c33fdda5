"""A LangChain chain over `edgeqwen serve`: a prompt, the model, a parser; whole, streamed and in a batch.

edgeqwen serve nano
python examples/langchain_chain.py http://127.0.0.1:8000/v1 France
"""

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI


def chain(base_url: str) -> Runnable[dict[str, str], str]:
    """Country in, sentence out. `model` is any name that the server answers to."""
    model = ChatOpenAI(
        base_url=base_url, api_key="EMPTY", model="Qwen3-0.6B", temperature=0, extra_body={"enable_thinking": False}
    )
    return ChatPromptTemplate.from_messages([("user", "What is the capital of {country}?")]) | model | StrOutputParser()


if __name__ == "__main__":
    address, *countries = sys.argv[1:]
    capital = chain(address)
    for piece in capital.stream({"country": countries[0]}):
        print(piece, end="", flush=True)
    print()
    for sentence in capital.batch([{"country": country} for country in countries]):
        print(sentence)
