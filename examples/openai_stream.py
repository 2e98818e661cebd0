"""Watch a panorama being painted: up to three partial pictures, then the whole one.

python examples/openai_stream.py "a snowy mountain range" -o mountains.png
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
parser.add_argument("--server", default="http://127.0.0.1:8000")
arguments = parser.parse_args()

client = OpenAI(base_url=f"{arguments.server}/v1", api_key="any")
for event in client.images.generate(prompt=arguments.prompt, size=arguments.size, stream=True, partial_images=3):
    output = arguments.output
    if event.type == "image_generation.partial_image":
        output = output.with_stem(f"{output.stem}-{event.partial_image_index}")
    output.write_bytes(base64.b64decode(event.b64_json))
    print(f"{output}: {event.type}")
