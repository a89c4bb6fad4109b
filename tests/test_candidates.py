"""`candidates=`: the videos are those of single calls, sorted by what the checkpoint itself finds in them."""

import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from small_data import joint_base
from small_models import SMALL

from diffusers_jdm.candidates import score_candidate
from diffusers_jdm.roles import add_roles

TWO = ["a red circle", "a blue square"]


def box(left: int, right: int, value: float = 1.0) -> torch.Tensor:
    mask = torch.zeros(2, 8, 12)
    mask[:, 2:7, left:right] = value
    return mask


LEFT, RIGHT, NOWHERE = box(0, 5), box(7, 12), box(0, 0)


def test_a_score_is_1_only_if_all_objects_are_found_apart_and_where_the_mask_is():
    both = LEFT + RIGHT
    assert score_candidate(torch.stack([LEFT, RIGHT]), both) == 1.0
    assert score_candidate(torch.stack([LEFT]), LEFT) == 1.0
    assert score_candidate(torch.stack([LEFT, NOWHERE]), both) == 0.0
    assert score_candidate(torch.stack([LEFT, LEFT]), LEFT) == 0.0
    assert score_candidate(torch.stack([LEFT, RIGHT]), NOWHERE) == 0.0
    assert score_candidate(torch.stack([LEFT, RIGHT]), LEFT) == pytest.approx(0.5)
    assert score_candidate(torch.stack([LEFT, box(7, 12, 0.6)]), both) == pytest.approx(0.6)
    some = torch.rand(3, 2, 8, 12, generator=torch.manual_seed(0))
    scores = [score_candidate(some[list(order)], some[0]) for order in permutations(range(3))]
    assert scores == pytest.approx([scores[0]] * 6) and 0 <= scores[0] <= 1


@pytest.fixture
def pipe(base_name):
    base = joint_base(base_name)
    denoiser = base.pipe.components[base.component]
    add_roles(denoiser)
    generator = torch.manual_seed(4)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    base.pipe.set_progress_bar_config(disable=True)
    return base.pipe


def call(pipe, base_name, seeds=(0,), **arguments):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    own = {"prompt": TWO[0], "generator": generators[0] if len(seeds) == 1 else generators}
    return pipe(**SMALL[base_name].CALL | own | {"num_inference_steps": 2, "return_masks": True} | arguments)


def test_candidates_are_the_videos_of_single_calls_best_first(pipe, base_name):
    prompts = {"prompt": TWO, "objects": [TWO, [TWO[1]]], "output_type": "pt"}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 7)]
    single = [call(pipe, base_name, **prompts | {"generator": generators}) for _ in range(3)]
    output = call(pipe, base_name, seeds=(0, 7), candidates=3, **prompts)
    assert output.frames.shape[0] == output.masks.shape[0] == len(output.object_masks) == len(output.scores) == 6
    for row in range(2):
        scores = [score_candidate(one.object_masks[row], one.masks[row]) for one in single]
        for place, k in enumerate(sorted(range(3), key=lambda k: -scores[k]), start=3 * row):
            assert output.scores[place].item() == pytest.approx(scores[k])
            assert torch.equal(output.frames[place], single[k].frames[row])
            assert torch.equal(output.masks[place], single[k].masks[row])
            assert torch.equal(output.object_masks[place], single[k].object_masks[row])


def test_without_objects_the_prompt_is_looked_for(pipe, base_name):
    named = call(pipe, base_name, candidates=2, objects=TWO[:1], output_type="np")
    for kind in ("np", "pil"):
        output = call(pipe, base_name, candidates=2, output_type=kind)
        assert torch.equal(output.scores, named.scores) and output.object_masks is None
        frames = np.array([list(map(np.asarray, video)) for video in output.frames])
        expected = named.frames if kind == "np" else (named.frames * 255).round()
        assert np.array_equal(frames, expected)
    frames, scores = call(pipe, base_name, candidates=2, return_masks=False, return_dict=False, output_type="np")
    assert np.array_equal(frames, named.frames) and torch.equal(scores, named.scores)


@pytest.mark.parametrize("base_name", ["cogvideox"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": 0}, "`candidates` must be a positive integer, got 0"),
        ({"candidates": 1.5}, "`candidates` must be a positive integer, got 1.5"),
        ({"latents": torch.zeros(1)}, "`candidates` go without `latents`"),
        ({"video": torch.zeros(9, 3, 16, 16)}, "`candidates` go without `video`"),
        ({"output_type": "latent"}, 'take another `output_type` than "latent"'),
        ({"prompt": None, "prompt_embeds": torch.zeros(1)}, "need the names of `objects`, or a `prompt`"),
    ],
)
def test_what_leaves_no_choice_is_one_line(pipe, base_name, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(pipe, base_name, **{"candidates": 2} | arguments)


@pytest.mark.parametrize("base_name", ["cogvideox"])
def test_a_checkpoint_without_the_package_says_what_is_missing(pipe, base_name, monkeypatch):
    monkeypatch.delitem(sys.modules, "diffusers_jdm")
    with pytest.raises(ImportError, match="install diffusers-jdm"):
        call(pipe, base_name, candidates=2)
