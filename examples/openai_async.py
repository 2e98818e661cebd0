"""Several panoramas at once: the server draws all of them in one batch.

python examples/openai_async.py "a red sunset over the sea" "green hills" "a snowy forest at night" -o pictures/
"""

from __future__ import annotations

import argparse
import asyncio
import base64
from pathlib import Path

from openai import AsyncOpenAI

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompts", nargs="+")
parser.add_argument("-o", "--output", type=Path, default=Path("pictures"), help="folder")
parser.add_argument("--size", default="auto", help="WIDTHxHEIGHT in pixels, or auto")
parser.add_argument("--server", default="http://127.0.0.1:8000")
arguments = parser.parse_args()


async def draw(client: AsyncOpenAI, index: int, prompt: str) -> None:
    response = await client.images.generate(prompt=prompt, size=arguments.size)
    path = arguments.output / f"{index}.png"
    path.write_bytes(base64.b64decode(response.data[0].b64_json))
    print(f"{path}: {prompt}, seed {response.data[0].seed}")


async def main() -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    async with AsyncOpenAI(base_url=f"{arguments.server}/v1", api_key="any") as client:
        await asyncio.gather(*(draw(client, index, prompt) for index, prompt in enumerate(arguments.prompts)))


asyncio.run(main())
