"""One panorama with the official openai client.

python examples/openai_picture.py "a red sunset over the sea" -o sunset.png
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path

from openai import OpenAI

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt")
parser.add_argument("-o", "--output", type=Path, default=Path("picture.png"))
parser.add_argument("--size", default="auto", help="WIDTHxHEIGHT in pixels, or auto")
parser.add_argument("--seed", type=int)
parser.add_argument("--server", default="http://127.0.0.1:8000")
arguments = parser.parse_args()

client = OpenAI(base_url=f"{arguments.server}/v1", api_key="any")  # the key counts if the server has one
response = client.images.generate(
    prompt=arguments.prompt,
    size=arguments.size,
    extra_body={"seed": arguments.seed, "guidance_scale": 4.0},  # None is the same as left out
)
[picture] = response.data
arguments.output.write_bytes(base64.b64decode(picture.b64_json))
print(f"{arguments.output}: {response.size}, seed {picture.seed}, {response.usage.output_tokens} codes")
