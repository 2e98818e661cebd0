"""Draws that meet a given code in their row are led to it; where, by what and how far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_models import random_model, write_folder
from hypothesis import given, settings
from safetensors.torch import save_file
from test_layout import plans
from tiny_folder import TINY_CONFIG, write_tiny_folder

from panoserve import Engine, PanoramaRequest
from panoserve.configs.grid import Canvas, Grid
from panoserve.configs.wire import Bridge, guidance_args
from panoserve.models.bridge import FADING, STRENGTH, Codebook
from panoserve.redirect.layout import canvas_plan
from panoserve.redirect.plan import CONTEXTS, UNKNOWN, Codes, Context, Plan
from panoserve.redirect.progress import Progress
from panoserve.serve.settings import set_environment
from panoserve.vq.io import WEIGHTS_NAME


def bridges(plan: Plan, codes: Codes | None = None) -> list[tuple[int, int, Bridge | None]]:
    """(lane, turn, bridge) of every turn, in the order of an ideal engine that draws 100 * row + column."""
    progress, found = Progress(plan, codes), []
    while not progress.done:
        able = [lane for lane in progress.lanes if progress.can_start(lane)]
        found += [(lane.lane.index, lane.turn, progress.bridge(lane)) for lane in able]
        for lane in able:
            progress.start(lane)
        for lane in [lane for lane in progress.lanes if lane.running]:
            draw = lane.current.draw
            if draw is None or lane.samples >= draw.length:
                progress.sampled(lane, 0)
            else:
                row, column = plan.cell(lane.lane, draw.start + lane.samples)
                progress.sampled(lane, 100 * row + column)
    return found


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_crop_that_closes_a_loop(context: Context) -> None:
    """12 columns, side 4, stride 2: the last crop stands at 9, is given 9 and 10, draws 11, and meets column 0."""
    plan = canvas_plan(Canvas(4, 12), Grid(4, 16), 2, context, loop=True)
    of_last = [bridge for lane, _, bridge in bridges(plan) if lane == 5 and bridge]
    assert [bridge.target for bridge in of_last] == [0, 100, 200, 300]
    assert all((bridge.length, bridge.draws) == (1, 1) for bridge in of_last)
    assert of_last[0].neighbours == [9, 10]
    assert of_last[1].neighbours == [9, 10, 10, 11, 11, 0, 109, 110]
    first, second = [209, 210, 210, 211, 211, 200], [109, 110, 110, 111, 111, 100]
    assert of_last[3].neighbours == [*second, *first, 309, 310], "two rows above, and what is given in its own"


def test_others_meet_nothing() -> None:
    plan = canvas_plan(Canvas(8, 12), Grid(4, 16), 2, "reuse")
    assert not any(bridge for _, _, bridge in bridges(plan))


def test_a_hole_is_led_to_its_right_edge_and_what_lies_between_two_is_not() -> None:
    codes = [[100 * row + column for column in range(6)] for row in range(6)]
    for row in (2, 3):
        codes[row][1] = codes[row][2] = UNKNOWN
    codes[4][1] = codes[4][3] = UNKNOWN
    known = [[code != UNKNOWN for code in row] for row in codes]
    plan = canvas_plan(Canvas(6, 6), Grid(6, 16), 6, "recompute", known=known)
    found = [bridge for _, _, bridge in bridges(plan, codes)]
    assert [bridge and bridge.target for bridge in found] == [203, 303, None, 404]
    assert found[0] is not None
    assert (found[0].length, found[0].draws) == (2, 2)
    row = [pair for column in range(5) for pair in (100 + column, 101 + column)]
    assert found[0].neighbours == [code - 100 for code in row] + row + [203, 204, 204, 205]


@settings(deadline=None, max_examples=80)
@given(plans())
def test_bridges_are_known_when_their_turn_starts(case: tuple[Plan, Codes | None]) -> None:
    for _, _, bridge in bridges(*case):
        if bridge is not None:
            assert UNKNOWN not in [bridge.target, *bridge.neighbours]
            assert 1 <= bridge.length <= bridge.draws


def test_a_pull_is_the_distance_over_the_step_nearby() -> None:
    """Four codes on a circle, at 0, 10, 20 and 90 degrees."""
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 20.0, 90.0]))
    codebook = Codebook(3 * torch.stack([angles.cos(), angles.sin()], 1))  # entries need not be of length 1

    def squared(degrees: float) -> float:
        return float(2 - 2 * torch.deg2rad(torch.tensor(degrees)).cos())

    pull = codebook.pull(Bridge(target=0, length=2, draws=3, neighbours=[0, 2, 2, 3]))
    step = (squared(20) + squared(70)) / 2
    expected = -STRENGTH / (2 * step) * torch.tensor([squared(angle) for angle in (0, 10, 20, 90)])
    for drawn, distance in ((1, 2), (2, 1)):
        logits = torch.zeros(4)
        pull.apply(logits, drawn)
        torch.testing.assert_close(logits, expected / distance**FADING)
    for drawn in (0, 3):  # in the row above, and a sample that is thrown away
        logits = torch.zeros(4)
        pull.apply(logits, drawn)
        assert not logits.any()
    alike = codebook.pull(Bridge(target=0, length=1, draws=1, neighbours=[1, 1]))
    torch.testing.assert_close(alike.penalties[1], torch.tensor(STRENGTH / 2))  # no step counts as finer than codes


def test_logits_of_sampled_lanes_are_lowered(tmp_path: Path) -> None:
    """The sampler's logits of a lane with a bridge are lowered, those of its neighbours and greedy ones are not."""
    set_environment()
    vllm = pytest.importorskip("vllm")
    from test_vllm_contract import config_of
    from vllm.v1.sample.logits_processor import BatchUpdate

    from panoserve.models.guidance import GuidanceProcessor

    bridge = Bridge(target=3, length=2, draws=2, neighbours=[1, 2])

    def params(temperature: float, extra: dict[str, Any]) -> Any:
        return vllm.SamplingParams(temperature=temperature, extra_args=guidance_args(1.0, -1, 0, 0, 1.0) | extra)

    def lowered(folder: Path) -> torch.Tensor:
        processor = GuidanceProcessor(config_of(folder), torch.device("cpu"), False)
        drawn: list[int] = [7]
        added = [(0, params(1.0, {}), None, []), (1, params(1.0, bridge.to_extra_args()), None, drawn)]
        added.append((2, params(0.0, bridge.to_extra_args()), None, []))
        processor.update_state(BatchUpdate(batch_size=3, removed=[], added=added, moved=[]))
        return processor.apply(torch.zeros(3, TINY_CONFIG.vocab_size))

    folder = write_tiny_folder(tmp_path / "tiny")
    codebook = Codebook.of(folder, torch.device("cpu"))
    assert codebook is not None
    expected = torch.zeros(3, len(codebook.entries))
    codebook.pull(bridge).apply(expected[1], 1)
    assert expected[1].argmax() == 3
    torch.testing.assert_close(lowered(folder), expected)
    (folder / "vq" / "model.safetensors").unlink()
    assert not lowered(folder).any(), "nobody can look at codes without a tokenizer"


@pytest.mark.engine
def test_the_engine_leads_its_draws(tmp_path: Path) -> None:
    """All codes but code 0 lie close together, opposite to it: where 0 is given on the right, nothing else is drawn."""
    folder = write_folder(random_model(TINY_CONFIG), tmp_path)
    angles = torch.arange(TINY_CONFIG.vocab_size) * 1e-3
    angles[0] += torch.pi
    (folder / "vq").mkdir()
    save_file({"quantize.embedding.weight": torch.stack([angles.cos(), angles.sin()], 1)}, folder / "vq" / WEIGHTS_NAME)
    side, columns, drawn = TINY_CONFIG.grid_side, 2 * TINY_CONFIG.grid_side, 4
    codes = torch.zeros(side, columns, dtype=torch.int64)
    codes[:, columns - drawn :] = UNKNOWN
    base: dict[str, Any] = {"features": torch.ones(2, TINY_CONFIG.caption_dim), "given": codes, "stride": 6, "seed": 1}
    subjects = [(context, loop) for context in CONTEXTS for loop in (True, False)]
    requests = [PanoramaRequest(**base, context=context, loop=loop) for context, loop in subjects]
    with Engine(folder, dtype="float32", max_lanes=8) as engine:
        results = engine.generate(requests, decode=False, progress=False)
    for (_, loop), result in zip(subjects, results, strict=True):
        assert bool(result.codes.any()) != loop
