"""A loop that reads a sensor on time and asks a model what a reading means, without ever waiting for it.

The answer is one of three words, whatever the model would like to say. A reading that comes while the model still
answers an older one replaces it: the old answer is cancelled, which frees the model within a step.

python examples/sensor_loop.py --model nano --readings 21.5,64.0,88.5
python examples/sensor_loop.py --sensor /sys/class/thermal/thermal_zone0/temp --every 5
"""

import argparse
import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from edgeqwen import Model, load

VERDICTS = ("ok", "warm", "alarm")


def readings_of(path: Path) -> Iterator[float]:
    """Degrees from the kernel's millidegrees, again and again."""
    while True:
        yield int(path.read_text(encoding="utf-8")) / 1000


async def judge(model: Model, degrees: float) -> None:
    """Print one JSON line: what was read and what the model says of it."""
    question = f"A sensor in a pump reads {degrees} degrees Celsius. Normal is below 60. Is that ok, warm or an alarm?"
    answer = await model.achat(question, thinking=False, choice=VERDICTS, temperature=0)
    print(json.dumps({"degrees": degrees, "verdict": answer.content}), flush=True)


async def watch(model: Model, readings: Iterator[float], every_s: float) -> None:
    """Ask about each reading. The next one does not wait for the answer; the last one does."""
    asking: asyncio.Task[None] | None = None
    for degrees in readings:
        if asking is not None:
            await asyncio.wait([asking], timeout=every_s)
            if not asking.done():
                print(json.dumps({"skipped": "the model is slower than the sensor"}), flush=True)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking
        asking = asyncio.create_task(judge(model, degrees))
    if asking is not None:
        await asking


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--readings", default="21.5,64.0,88.5", help="degrees, instead of a sensor")
    parser.add_argument("--sensor", type=Path, help="a file with millidegrees")
    parser.add_argument("--every", type=float, default=10, help="seconds that an answer has")
    parser.add_argument("--count", type=int, help="stop after so many readings")
    given = parser.parse_args()
    values = readings_of(given.sensor) if given.sensor else map(float, given.readings.split(","))
    with load(given.model) as lm:
        asyncio.run(watch(lm, itertools.islice(values, given.count), given.every))
