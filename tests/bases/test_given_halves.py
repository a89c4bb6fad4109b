"""One half given: masks (layout), a video (segmentation), and a mask for each object of a generated video."""

import inspect

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline
from small_pipelines import BLUE, FIXTURES, RED, Small, sample, seeded

from diffusers_jdm.data.video import write_video
from diffusers_jdm.roles import ROLES, role_vector

small, fresh, video, layout = FIXTURES


def test_given_masks_are_seen_clean_at_each_step_and_come_back(small, layout):
    small()
    joint = small.seen[0]
    output = small(masks=layout, return_masks=True)
    assert torch.equal(output.masks, layout) and torch.isfinite(output.frames).all()
    clean = small.encoded(layout[:, :, None].expand(-1, -1, 3, -1, -1))
    assert len(small.seen) == 2
    for step in small.seen:
        assert torch.equal(step["mask"], torch.cat([clean, clean])) and step["roles"].tolist() == [[0, 0, 1, 0]] * 2
    assert joint["roles"] is None and torch.equal(joint["video"], small.seen[0]["video"])  # the same first noise
    assert not torch.equal(output.frames, small(masks=1 - layout).frames)
    assert torch.equal(small(masks=layout, output_type="latent", return_masks=True).masks, clean)
    assert small(masks=layout).masks is None


def test_all_forms_of_a_mask_are_one(small, layout):
    expected = small(masks=layout).frames
    array = layout[0].numpy()
    bits, images = array.astype(np.uint8), [PIL.Image.fromarray(frame) for frame in (255 * array).astype(np.uint8)]
    palette = [PIL.Image.fromarray(38 * frame) for frame in bits]  # of DAVIS: object 38
    for image in palette:
        image.putpalette([0, 0, 0] * 256)
    forms = [
        layout[0],
        array,
        array > 0,
        255 * bits,
        bits,
        list(bits),
        [list(layout[0].byte())],
        list(array),
        array[0],
    ]
    forms += [[PIL.Image.fromarray(f) for f in bits], [PIL.Image.fromarray(f) for f in array > 0], palette]
    forms += [images, [images], [image.convert("RGB") for image in images], images[0], tuple(images)]
    for form in [*forms, array[::-1], layout.double(), layout.bfloat16()]:
        assert torch.equal(small(masks=form).frames, expected)
    large = layout.repeat_interleave(4, -1).repeat_interleave(4, -2)
    for form in (large, large.bool(), large[0].byte().numpy(), 0.9 * large):
        assert torch.equal(small(masks=form, return_masks=True).masks, layout)


def test_frames_of_the_masks_decide_how_many_are_generated(small):
    masks = torch.ones(2 * small.frames - 1, 16, 16)
    assert small(masks=masks, num_frames=None).frames.shape[1] == len(masks)
    with pytest.raises(ValueError, match=f"`masks` of {len(masks)} frames, but `num_frames` is {small.frames}"):
        small(masks=masks)


def test_a_given_video_is_seen_clean_at_each_step(small, video):
    masks = small.segment(video)
    assert masks.shape == (1, small.frames, 16, 16) and 0 <= masks.min() <= masks.max() <= 1
    assert len(small.seen) == 2
    for step in small.seen:
        assert torch.equal(step["video"], small.encoded(video)) and step["roles"].tolist() == [[1, 0, 0, 0]]
    assert torch.equal(masks, small.segment(video))  # the noise follows from the video
    others = [small.segment(video, BLUE), small.segment(1 - video), small.segment(video, generator=seeded(5))]
    assert not any(torch.equal(masks, other) for other in others)
    assert not torch.equal(masks, small.segment(video, guidance_scale=4.0)) and len(small.seen[0]["roles"]) == 2


@pytest.mark.parametrize("kind", ["np", "pil", "latent"])
def test_segment_is_a_call_with_a_video(small, video, kind):
    call = {"prompt": RED, "guidance_scale": 4.0, "mask_guidance_scale": None, "generator": None, "output_type": kind}
    output, masks = small(**call, video=video), small.segment(video, guidance_scale=4.0, output_type=kind)
    assert np.array_equal(np.array(output.masks), np.array(masks))
    if kind == "latent":
        assert torch.equal(output.frames, small.encoded(video))
        assert torch.equal(small(**call, video=output.frames).masks, masks)
    else:  # as it was given
        assert np.array_equal(np.array(output.frames), video.movedim(2, -1).numpy())


def test_all_forms_of_a_video_are_one(small, video, tmp_path):
    bytes_ = (video[0] * 255).round().byte()
    expected = small.segment(bytes_)
    array = bytes_.movedim(1, -1).numpy()
    images = [PIL.Image.fromarray(frame) for frame in array]
    forms = [bytes_[None], bytes_ / 255, array, array[None], array / np.float32(255), images, [images], list(array)]
    for form in [*forms, array[..., ::-1][..., ::-1]]:
        assert torch.allclose(small.segment(form), expected, atol=1e-6)
    write_video(tmp_path / "v.mp4", np.repeat(np.repeat(array, 2, 1), 2, 2), 8)
    from_file = small.segment(tmp_path / "v.mp4", generator=seeded())  # rounded pixels would have another noise
    assert from_file.shape == (1, small.frames, 32, 32)
    expected = small.segment(bytes_, generator=seeded())
    assert (torch.nn.functional.avg_pool2d(from_file, 2) - expected).abs().mean() < 0.02


def test_masks_have_the_video_s_own_size_and_length(small):
    video, shape = torch.rand(small.frames + 2, 3, 20, 30), (1, small.frames + 2, 20, 30)
    assert small.segment(video).shape == small.segment(video, output_type="np").shape == shape
    assert small.seen[0]["video"].shape[-2:] == tuple(small.shape[-2:])
    assert np.array(small.segment((255 * video).byte(), output_type="pil")).shape == shape


def test_a_video_goes_with_several_prompts(small, video):
    both = small.segment(video, [RED, BLUE], generator=[seeded(), seeded()])
    for number, prompt in enumerate((RED, BLUE)):
        assert torch.allclose(both[number], small.segment(video, prompt, generator=seeded())[0], atol=1e-4)


def test_each_object_gets_the_mask_that_segment_finds_of_it(small):
    plain = small(return_masks=True)
    output = small(objects=[RED, BLUE], return_masks=True)
    assert [masks.shape for masks in output.object_masks] == [(2, small.frames, 16, 16)]
    assert small.seen[-1]["roles"].tolist() == [[1, 0, 0, 0]] * 2
    assert torch.equal(plain.frames, output.frames) and torch.equal(plain.masks, output.masks)
    latents = small(output_type="latent").frames
    for number, name in enumerate((RED, BLUE)):
        assert torch.allclose(small.segment(latents, name)[0], output.object_masks[0][number], atol=1e-4)
    given = small(masks=np.ones((20, 30)), objects=[RED], return_masks=True)  # of another size
    assert given.object_masks[0].shape == given.masks.shape == (1, small.frames, 16, 16)


def test_several_prompts_have_objects_of_their_own_and_may_share_a_mask(small, layout):
    call = {"prompt": [RED, BLUE], "objects": [[RED], [BLUE, RED]]}
    frames, masks = small(**call, output_type="np", return_dict=False)
    assert len(frames) == 2 and [len(part) for part in masks] == [1, 2]
    output = small(**call, masks=layout, output_type="latent", return_masks=True)
    assert [len(part) for part in output.object_masks] == [1, 2] and torch.equal(*output.masks)


def test_names_are_encoded_before_the_denoiser_runs(small):
    """So that with offloading the text encoder need not come back while the denoiser is on the device."""
    order = []
    small.pipe.text_encoder.register_forward_pre_hook(lambda *_: order.append("text"))
    small.denoiser.register_forward_pre_hook(lambda *_: order.append("denoiser"))
    small(objects=[RED, BLUE])
    assert order == sorted(order, reverse=True) and order.count("denoiser") == 4
    small.pipe.text_encoder = None
    embeds = {name: torch.zeros(1, 16, 32) for name in ("prompt_embeds", "negative_prompt_embeds")}
    with pytest.raises(ValueError, match="`objects` need the text encoder"):
        small(prompt=None, **embeds, objects=[RED])


def test_the_fast_decoder_gives_masks_of_the_same_form_and_is_saved(small, video, tmp_path):
    small.add_mask_decoder()
    slow, fast = (small(objects=[RED], return_masks=True, mask_decoder=name) for name in ("vae", "fast"))
    assert torch.equal(slow.frames, fast.frames)
    assert slow.masks.shape == fast.masks.shape and not torch.equal(slow.masks, fast.masks)
    assert slow.object_masks[0].shape == fast.object_masks[0].shape
    assert small.segment(video, mask_decoder="fast").shape == small.segment(video).shape
    small.pipe.save_pretrained(tmp_path)
    again = sample(DiffusionPipeline.from_pretrained(tmp_path), return_masks=True, mask_decoder="fast")
    assert torch.equal(again.masks, fast.masks)


@pytest.mark.parametrize("channels", [None, 256])  # an LCM-like U-Net has 256, for its guidance scale
def test_a_checkpoint_without_roles_says_so(base_name, channels):
    small = Small(base_name, roles=False)
    small.denoiser.register_to_config(time_cond_proj_dim=channels)
    assert small(return_masks=True).masks is not None
    for name, value in {"masks": np.ones((16, 16)), "video": np.zeros((9, 16, 16, 3)), "objects": [RED]}.items():
        with pytest.raises(ValueError, match=f"`{name}` needs a checkpoint that was trained with roles"):
            small(**{name: value})


def test_the_islands_tell_the_roles_as_training_does(base):
    roles = inspect.getmodule(base.joint_pipeline).ROLES
    for given, role in {"video": "segment", "masks": "layout"}.items():
        assert list(roles[given]) == role_vector(torch.tensor([ROLES[role]]))[0].tolist()


CLIP = np.zeros((9, 16, 16, 3))
WRONG = {
    "no video": ({"video": []}, "`video` cannot be read: its frames must be of one size, got none"),
    "no such file": ({"video": "nothing.mp4"}, "`video` cannot be read: .*nothing.mp4 is not a valid path"),
    "a number": ({"video": 3}, "`video` cannot be read"),
    "grey": ({"video": CLIP[..., :1]}, "`video` cannot be read: it must be RGB, got 1 channels"),
    "too bright": ({"video": CLIP + 200}, r"`video` .* must lie in \[0, 1\].*from 200 to 200"),
    "NaN": ({"video": torch.full((9, 3, 16, 16), torch.nan)}, r"`video` .* must lie in \[0, 1\]"),
    "two sizes": ({"video": [CLIP[0], CLIP[0, :8]]}, "`video` .* must be of one size"),
    "images": ({"video": [PIL.Image.new("RGB", (8, n)) for n in (8, 9)]}, "`video` .* must be of one size"),
    "three videos": ({"video": CLIP[None].repeat(3, 0)}, "`video` must be one, or as many as the 1 prompts, got 3"),
    "latents": ({"video": torch.zeros(1, 7, 7, 8, 8)}, "`video`"),
    "frames": ({"masks": np.ones((5, 16, 16))}, "`masks` of 5 frames, but `num_frames` is"),
    "negative masks": ({"masks": -np.ones((9, 16, 16))}, r"`masks` .* must lie in \[0, 1\]"),
    "dark masks": ({"masks": np.full((9, 16, 16), 38, np.uint8)}, r"nowhere above 0\.149.*must be white"),
    "both halves": ({"masks": np.ones((16, 16)), "video": CLIP}, "`video` goes with none of"),
    "noise": ({"latents": torch.zeros(1), "video": CLIP}, "`video` goes with none of"),
    "objects as a string": ({"objects": RED}, "`objects` must be 1 lists of names"),
    "empty names": ({"objects": [" "]}, "`objects` must be 1 lists of names"),
    "objects of two": ({"objects": [[RED], [BLUE]]}, "must be 1 lists of names, one a prompt, got"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_half_is_one_clear_line(small, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        small(**arguments)
    assert "\n" not in str(error.value) and not small.seen


def test_segment_needs_a_video(small):
    with pytest.raises(ValueError, match="`video` cannot be read: its frames must be of one size, got none"):
        small.segment(None)
