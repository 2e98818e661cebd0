"""The figures of the quality benchmark: known answers, slow twins, and intervals that cover.

What needs a package of requirements/bench.txt is skipped without it; everything else runs everywhere.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from panoserve.benchmarks import packages, pictures
from panoserve.benchmarks.frechet import Features, frechet_distance
from panoserve.benchmarks.intervals import Estimate, bootstrap, bootstrap_mean
from panoserve.benchmarks.perceptual import STLPIPS
from panoserve.benchmarks.pictures import Measured, chosen_windows, summarize, windows
from panoserve.benchmarks.seams import Steps, Tally, seam_steps
from panoserve.configs.grid import Canvas, Grid
from panoserve.errors import EnvironmentProblem
from panoserve.redirect.layout import canvas_plan

# Names and shapes of the published weights (stlpips-pytorch 0.0.2, vST0.0/alex_shift_tolerant.pth).
PUBLISHED = {
    "scaling_layer.shift": (1, 3, 1, 1),
    "scaling_layer.scale": (1, 3, 1, 1),
    "net.slice1.0.weight": (64, 3, 11, 11),
    "net.slice1.0.bias": (64,),
    "net.slice1.1.filt": (64, 1, 3, 3),
    "net.slice2.4.filt": (64, 1, 3, 3),
    "net.slice2.5.weight": (192, 64, 5, 5),
    "net.slice2.5.bias": (192,),
    "net.slice3.8.filt": (192, 1, 3, 3),
    "net.slice3.9.weight": (384, 192, 3, 3),
    "net.slice3.9.bias": (384,),
    "net.slice4.11.weight": (256, 384, 3, 3),
    "net.slice4.11.bias": (256,),
    "net.slice5.13.weight": (256, 256, 3, 3),
    "net.slice5.13.bias": (256,),
    **{f"lin{index}.model.1.weight": (1, channels, 1, 1) for index, channels in enumerate((64, 192, 384, 256, 256))},
}


def noise(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_network_takes_the_published_weights() -> None:
    assert {name: tuple(tensor.shape) for name, tensor in STLPIPS().state_dict().items()} == PUBLISHED


def test_distances_are_of_all_pairs_in_order() -> None:
    torch.manual_seed(0)
    model = STLPIPS().eval()
    for index in range(5):
        torch.nn.init.constant_(getattr(model, f"lin{index}").model[1].weight, 0.1)
    crops = torch.cat([noise(2, 48), noise(1, 48)])  # the third is the first
    first, same, other = model.pairs(crops).tolist()  # (0, 1), (0, 2), (1, 2)
    assert same == 0 < first
    assert other == pytest.approx(first)


def test_st_lpips_tells_a_shift_from_another_picture() -> None:
    """With the real weights; the values are those of the package's own class (docs/log.md)."""
    pytest.importorskip("stlpips_pytorch.weights", reason="requirements/bench.txt is not installed")
    crops = noise(3, 96)
    crops[1] = torch.nn.functional.avg_pool2d(crops[:1], 5, 1, 2)[0]
    crops[2] = crops[0].roll(1, -1)
    blurred, shifted, both = STLPIPS.load().pairs(crops).tolist()
    assert blurred == pytest.approx(0.4689733, abs=1e-4)
    assert shifted == pytest.approx(0.0104177, abs=1e-4)
    assert both == pytest.approx(0.4692185, abs=1e-4)


def covariance_root(one: torch.Tensor, other: torch.Tensor) -> float:
    """The usual way: the trace of the root of the product of the covariances, from its eigenvalues."""
    product = torch.cov(one.T) @ torch.cov(other.T)
    root = torch.linalg.eigvals(product).sqrt().real.sum()
    spread = torch.cov(one.T).trace() + torch.cov(other.T).trace()
    return float((one.mean(0) - other.mean(0)).square().sum() + spread - 2 * root)


@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 6), (5, 7, 12)])
def test_frechet_distance_is_that_of_the_covariances(n: int, m: int, d: int) -> None:
    """Both where there are more pictures than features, and the other way round."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(n, d, generator=generator, dtype=torch.float64)
    other = 2 * torch.randn(m, d, generator=generator, dtype=torch.float64) + 0.5
    assert frechet_distance(one, other) == pytest.approx(covariance_root(one, other), rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + 3) == pytest.approx(9 * d)


def test_features_know_pictures_apart() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="requirements/bench.txt is not installed")
    features = Features()
    flat = torch.full((1, 3, 64, 64), 0.5)
    out = features(torch.cat([flat, flat, noise(1, 64)]))
    assert out.shape == (3, 1280) and out.dtype == torch.float64
    assert out[0].equal(out[1])
    assert float((out[0] - out[2]).norm()) > 1


def test_ssim_of_equal_and_unequal_windows() -> None:
    pytest.importorskip("torchmetrics", reason="requirements/bench.txt is not installed")
    one, other = noise(2, 32), noise(2, 32)
    other[1] = noise(1, 32, seed=1)[0]
    same, different = pictures.ssim(one, other).tolist()
    assert same == pytest.approx(1)
    assert different < 0.1


def test_windows_stand_side_by_side() -> None:
    image = np.zeros((4, 14, 3), np.uint8)
    image[:, 4:8] = 51
    image[:, 8:12] = 102
    crops = windows(image, 4)
    assert crops.shape == (3, 3, 4, 4)
    assert crops.mean((1, 2, 3)).tolist() == pytest.approx([0, 0.2, 0.4])
    for seed in range(5):
        chosen = chosen_windows(image, 4, seed).mean((1, 2, 3)).tolist()
        assert len(chosen) == 2 and chosen[0] < chosen[1]


def test_seams_among_codes_compare_like_with_like() -> None:
    """A picture that steps at every border of codes alike has no seam among them, though it has one among pixels."""
    plan = canvas_plan(Canvas(4, 10), Grid(4, 8), 3, "recompute")
    image = np.repeat((np.arange(10) % 2 * 80).astype(np.uint8), 8)[None, :, None].repeat(32, 0).repeat(3, 2)
    steps = seam_steps(image, plan, 1)
    assert steps.ratio_to_codes == 1 and steps.ratio > 5
    assert steps.crops.count + steps.codes.count == 9 * 32


def test_figures_over_pictures_are_of_sums() -> None:
    one = Measured(0.2, 0.5, Steps(Tally(510, 1), Tally(85, 1), Tally(5, 9)))
    two = Measured(0.4, 0.1, Steps(Tally(0, 1), Tally(85, 1), Tally(225, 29)))
    figures = summarize([one, two])
    assert figures["ssim"].value == pytest.approx(0.3)
    assert figures["st_lpips"].value == pytest.approx(0.3)
    assert figures["border_variation"].value == pytest.approx(1)
    assert figures["seam_ratio"].value == pytest.approx(255 / 10)
    assert figures["code_seam_ratio"].value == pytest.approx(3)
    assert figures["ssim"].low == pytest.approx(0.2) and figures["ssim"].high == pytest.approx(0.4)


def test_intervals_cover_what_they_should() -> None:
    """Of 100 sets of 60 normal numbers the interval holds the true mean in about 95; both kinds agree."""
    rng = np.random.default_rng(1)
    sets = rng.normal(3.0, 1.0, (100, 60))
    middle = [bootstrap_mean(values, 300) for values in sets]
    assert 88 <= sum(estimate.low <= 3 <= estimate.high for estimate in middle) <= 99
    normal = bootstrap(lambda chosen: float(sets[0][chosen].mean()), 60, 300, normal=True)
    assert normal.value == middle[0].value
    assert normal.low == pytest.approx(middle[0].low, abs=0.05)
    assert normal.high == pytest.approx(middle[0].high, abs=0.05)
    assert isinstance(normal, Estimate)


def test_a_missing_package_is_named_with_what_to_do() -> None:
    message = "no_such_package.*pip install --no-deps -r requirements/bench"
    with pytest.raises(EnvironmentProblem, match=message):
        packages.imported("no_such_package.part")
    with pytest.raises(EnvironmentProblem, match=message):
        packages.file_of("no_such_package", "a")
    with pytest.raises(EnvironmentProblem, match="holds no nothing"):
        packages.file_of("panoserve", "nothing")
