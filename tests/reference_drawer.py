"""The oracle of the engine tests: redirect/simulate.py drawing greedily with the plain PyTorch model."""

from __future__ import annotations

import torch

from panoserve.models.reference import ReferenceLane, ReferenceModel
from panoserve.redirect.layout import plan_of
from panoserve.redirect.plan import Copy, Lane
from panoserve.redirect.simulate import draw_plan
from panoserve.serve.prepare import subjects
from panoserve.serve.prompts import mix
from panoserve.serve.request import PanoramaRequest


class GreedyLane:
    """LaneDrawer over models/reference.py: argmax of the guided logits (facts.md 1.8)."""

    def __init__(self, model: ReferenceModel, prefix: torch.Tensor, guidance: float, interval: int) -> None:
        self.lane = ReferenceLane(model, prefix)
        self.rows = prefix.shape[1]
        self.guidance, self.interval = guidance, interval

    def feed(self, codes: list[int]) -> int:
        logits = self.lane.feed(codes)
        drawn = self.lane.filled - self.rows
        mixed = logits[0]
        if self.guidance > 1 and (self.interval < 0 or drawn <= self.interval + 1):
            mixed = logits[1] + self.guidance * (logits[0] - logits[1])
        return int(mixed.argmax())

    def copy_prefix(self, parent: GreedyLane) -> None:
        self.lane.copy(parent.lane, list(range(self.rows)), 0, 0)

    def copy(self, parent: GreedyLane, copy: Copy, shift: tuple[int, int]) -> None:
        first = self.rows + copy.source
        self.lane.copy(parent.lane, list(range(first, first + copy.length)), *shift)


@torch.inference_mode()
def draw_greedily(model: ReferenceModel, request: PanoramaRequest) -> torch.Tensor:
    """The canvas [H, W] that the engine must draw for a greedy `request`, crop after crop in plain PyTorch."""
    config = model.config
    request = request.resolve(config)
    args = request.engine_args(config)
    prefixes = []
    for mixture in request.conditions(config):
        if config.condition == "class":
            label = subjects(request)[mixture[0][0]].label
            streams = [model.cls_embedding(torch.tensor([label]))]
            if args.guidance > 1:
                streams.append(model.cls_embedding(torch.tensor([config.num_classes])))
        else:
            features = mix([subject.features for subject in subjects(request)], mixture)  # type: ignore[misc]
            streams = [model.cls_embedding(features[None])]
            if request.negative_features is not None:
                streams.append(model.cls_embedding.negative(request.negative_features, len(features)))
            elif args.guidance > 1:
                streams.append(model.cls_embedding.unconditional(len(features)))
        prefixes.append(torch.cat(streams))

    def new_lane(lane: Lane) -> GreedyLane:
        return GreedyLane(model, prefixes[lane.prompt], args.guidance, args.guidance_interval)

    return torch.tensor(draw_plan(plan_of(args, config.grid), new_lane, args.given))
