"""Edit a picture with the official openai client: draw around it, or redraw where a mask is transparent.

python examples/openai_edit.py photo.png "green hills" --left 200 --right 400 -o wide.png
python examples/openai_edit.py photo.png "a red sunset" --mask mask.png -o evening.png
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path

from openai import OpenAI, omit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("picture", type=Path)
parser.add_argument("prompt")
parser.add_argument("--mask", type=Path, help="a PNG of the same size, transparent where the picture is redrawn")
for side in ("left", "right", "up", "down"):
    parser.add_argument(f"--{side}", type=int, default=0, metavar="PX", help="pixels to draw on this side")
parser.add_argument("-o", "--output", type=Path, default=Path("edited.png"))
parser.add_argument("--server", default="http://127.0.0.1:8000")
arguments = parser.parse_args()

client = OpenAI(base_url=f"{arguments.server}/v1", api_key="any")
sides = {side: getattr(arguments, side) for side in ("left", "right", "up", "down")}
response = client.images.edit(
    image=arguments.picture,
    mask=arguments.mask or omit,
    prompt=arguments.prompt,
    extra_body=sides,
)
[picture] = response.data
arguments.output.write_bytes(base64.b64decode(picture.b64_json))
print(f"{arguments.output}: {response.size}, seed {picture.seed}, {response.usage.output_tokens} codes drawn")
