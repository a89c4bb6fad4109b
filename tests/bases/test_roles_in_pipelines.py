"""Roles at inference: a mask that is given (layout), a video that is given (segment), a mask for each object, inner guidance."""

import numpy as np
import PIL.Image
import pytest
import small_models
import torch
from diffusers import DiffusionPipeline
from diffusers_jdm.pipelines import pipeline_cogvideox_jdm, pipeline_modelscope_jdm
from small_data import joint_base, perturb

from diffusers_jdm.bases.mask_decoder_jdm import JDMMaskDecoder
from diffusers_jdm.data.video import write_video
from diffusers_jdm.roles import add_roles

MODULES = {"cogvideox": pipeline_cogvideox_jdm, "modelscope": pipeline_modelscope_jdm}
CALLS = {"cogvideox": small_models.COGVIDEOX_CALL, "modelscope": small_models.MODELSCOPE_CALL}
OWN = {"cogvideox": ("max_sequence_length",), "modelscope": ()}  # what `segment` needs of CALLS
RED, BLUE = "a red circle", "a blue square"


class Small:
    """A pipeline of either family, with roles, whose calls are short."""

    def __init__(self, family):
        base = joint_base(family)
        self.family, self.pipe, self.dim = family, base.pipe, base.channel_dim
        self.denoiser = perturb(getattr(base.pipe, base.component), std=0.1)
        add_roles(self.denoiser)
        torch.nn.init.normal_(self.denoiser.time_embedding.cond_proj.weight, std=2.0, generator=seeded(3))
        self.frames = CALLS[family]["num_frames"]
        self.seen = []
        self.denoiser.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        video, mask = hidden.chunk(2, dim=self.dim)
        self.seen.append({"video": video, "mask": mask, "roles": kwargs["timestep_cond"]})

    def __call__(self, **changes):
        self.seen.clear()
        return self.pipe(**CALLS[self.family] | {"output_type": "pt", "generator": seeded()} | changes)

    def segment(self, video, prompt=RED, **changes):
        self.seen.clear()
        own = {name: CALLS[self.family][name] for name in OWN[self.family]}
        size = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
        return self.pipe.segment(video, prompt, **own | size | changes)

    def encoded(self, video):
        return self.pipe.encode_pixels(video, torch.float32, torch.device("cpu"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=CALLS)
def small(request):
    return Small(request.param)


@pytest.fixture
def video(small):
    return torch.rand(1, small.frames, 3, 16, 16, generator=seeded(1))


@pytest.fixture
def layout(small):
    masks = torch.zeros(1, small.frames, 16, 16)
    masks[..., 4:12, 2:10] = 1
    return masks


# Mask → video


def test_a_given_mask_is_seen_clean_at_each_step_and_comes_back(small, layout):
    output = small(masks=layout, return_masks=True)
    assert torch.equal(output.masks, layout) and torch.isfinite(output.frames).all()
    clean = small.encoded(layout[:, :, None].expand(-1, -1, 3, -1, -1))
    assert len(small.seen) == 2
    for step in small.seen:
        assert torch.equal(step["mask"], torch.cat([clean, clean])) and step["roles"].tolist() == [[0, 0, 1, 0]] * 2
    other = small(masks=1 - layout).frames
    assert not torch.equal(output.frames, other)


def test_the_video_s_first_noise_is_that_of_a_joint_call(small, layout):
    small()
    joint = small.seen[0]
    small(masks=layout)
    assert torch.equal(joint["video"], small.seen[0]["video"]) and joint["roles"] is None


def test_all_forms_of_a_mask_are_one(small, layout):
    expected = small(masks=layout).frames
    array = layout[0].numpy()  # float32, so that PIL makes images of mode "F" of it
    images = [PIL.Image.fromarray(frame) for frame in (array * 255).astype(np.uint8)]
    still = PIL.Image.fromarray((array[0] * 255).astype(np.uint8))
    palette = [PIL.Image.fromarray((38 * frame).astype(np.uint8), mode="P") for frame in array]  # of DAVIS: object 38
    forms = [layout[0], array, array.astype(bool), (array * 255).astype(np.uint8), array.astype(np.uint8)]
    forms += [list(array.astype(np.uint8)), [list(layout[0].to(torch.uint8))], palette, array.astype(">f4")]
    forms += [
        [PIL.Image.fromarray(frame.astype(np.uint8)) for frame in array],
        [PIL.Image.fromarray(f) for f in array],
    ]
    for form in [*forms, images, [images], [image.convert("RGB") for image in images], still, list(array), array[0]]:
        assert torch.equal(small(masks=form).frames, expected)
    large = layout.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(small(masks=large, return_masks=True).masks, layout)


def test_the_frames_of_the_mask_decide(small):
    frames = {"cogvideox": 17, "modelscope": 5}[small.family]
    masks = torch.ones(frames, 16, 16)
    assert small(masks=masks, num_frames=None).frames.shape[1] == frames
    with pytest.raises(ValueError, match=f"`masks` have {frames} frames, and `num_frames` is {small.frames}"):
        small(masks=masks)


def test_one_mask_for_several_prompts(small, layout):
    both = small(prompt=[RED, BLUE], masks=layout, return_masks=True, generator=[seeded(0), seeded(1)])
    assert both.masks.shape == (2, small.frames, 16, 16)
    one = small(prompt=RED, masks=layout)
    assert torch.allclose(both.frames[:1], one.frames, atol=1e-4)


# Video → mask


def test_a_given_video_is_seen_clean_at_each_step(small, video):
    masks = small.segment(video)
    assert masks.shape == (1, small.frames, 16, 16) and 0 <= masks.min() <= masks.max() <= 1
    clean = small.encoded(video)
    assert len(small.seen) == 2
    for step in small.seen:
        assert torch.equal(step["video"], clean) and step["roles"].tolist() == [[1, 0, 0, 0]]
    assert torch.equal(masks, small.segment(video))  # the noise follows from the video
    assert not torch.equal(masks, small.segment(video, BLUE))
    assert not torch.equal(masks, small.segment(1 - video))
    assert not torch.equal(masks, small.segment(video, generator=seeded(5)))
    assert not torch.equal(masks, small.segment(video, guidance_scale=4.0)) and len(small.seen[0]["roles"]) == 2


def test_all_forms_of_a_video_are_one(small, video, tmp_path):
    bytes_ = (video[0] * 255).round().to(torch.uint8)
    expected = small.segment(bytes_)
    array = bytes_.movedim(1, -1).numpy()
    images = [PIL.Image.fromarray(frame) for frame in array]
    for form in (
        bytes_[None],
        bytes_ / 255,
        array,
        array[None],
        array / np.float32(255),
        images,
        [images],
        list(array),
    ):
        assert torch.allclose(small.segment(form), expected, atol=1e-6)
    write_video(tmp_path / "v.mp4", np.repeat(np.repeat(array, 2, 1), 2, 2), 8)
    from_file = small.segment(
        tmp_path / "v.mp4", generator=seeded()
    )  # its pixels are rounded, so its noise would differ
    assert from_file.shape == (1, small.frames, 32, 32)
    expected = small.segment(bytes_, generator=seeded())
    assert (torch.nn.functional.avg_pool2d(from_file, 2) - expected).abs().mean() < 0.02


def test_masks_have_the_video_s_own_size_and_length(small, caplog):
    video = torch.rand(small.frames + 2, 3, 20, 30)
    masks = small.segment(video)
    assert masks.shape == (1, small.frames + 2, 20, 30)
    assert small.seen[0]["video"].shape[-2:] == small.encoded(torch.zeros(1, 1, 3, 16, 16)).shape[-2:]
    assert len(small.segment(video, output_type="pil")[0]) == small.frames + 2
    assert small.segment(video, output_type="np").shape == (1, small.frames + 2, 20, 30)


def test_a_video_with_several_prompts(small, video):
    both = small.segment(video, [RED, BLUE])
    for number, prompt in enumerate((RED, BLUE)):
        assert torch.allclose(both[number], small.segment(video, prompt)[0], atol=1e-4)


# A mask for each object


def test_each_object_gets_the_mask_that_segment_finds_of_it(small):
    output = small(objects=[RED, BLUE], return_masks=True)
    assert [masks.shape for masks in output.object_masks] == [(2, small.frames, 16, 16)]
    assert small.seen[-1]["roles"].tolist() == [[1, 0, 0, 0]] * 2
    plain = small(return_masks=True)
    assert torch.equal(plain.frames, output.frames) and torch.equal(plain.masks, output.masks)
    assert plain.object_masks is None
    latents = small(output_type="latent").frames
    own = {name: CALLS[small.family][name] for name in OWN[small.family]}
    for number, name in enumerate((RED, BLUE)):
        embeds = small.pipe.encode_names([name], False, *(own.values() or [None]), torch.device("cpu"))
        alone = small.pipe.segment_latents(latents, embeds, 2, guidance_scale=1.0)
        assert torch.allclose(small.pipe.decode_masks(alone)[0], output.object_masks[0][number], atol=1e-4)


def test_objects_of_several_prompts(small):
    output = small(prompt=[RED, BLUE], objects=[[RED], [BLUE, RED]], output_type="np", return_dict=False)
    assert [masks.shape[0] for masks in output[1]] == [1, 2]
    latents = small(prompt=[RED, BLUE], objects=[[RED], [BLUE, RED]], output_type="latent").object_masks
    assert [len(masks) for masks in latents] == [1, 2]


# Inner guidance


def test_inner_guidance_is_what_its_formula_says(small):
    """One step, so that the difference of the latents is linear in the scale; and the mask does not feel it."""
    outputs = {
        scale: small(inner_guidance_scale=scale, num_inference_steps=1, output_type="latent", return_masks=True)
        for scale in (0.0, 1.0, 2.0)
    }
    one, two = (outputs[scale].frames - outputs[0.0].frames for scale in (1.0, 2.0))
    assert one.abs().max() > 1e-4 and torch.allclose(two, 2 * one, atol=1e-4)
    assert torch.allclose(outputs[0.0].masks, outputs[2.0].masks, atol=1e-5)


def test_inner_guidance_sees_the_null_mask_under_the_prompt(small, layout):
    small(inner_guidance_scale=1.0)
    step = small.seen[0]
    assert step["roles"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]] and not step["mask"][2].any()
    assert torch.equal(step["video"][1], step["video"][2])
    small(inner_guidance_scale=1.0, guidance_scale=1.0, masks=layout)
    assert small.seen[0]["roles"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]
    assert len(small().frames) == 1 and len(small.seen[0]["video"]) == 2


# Without roles, and wrong input


def test_a_checkpoint_without_roles_says_so():
    for family in CALLS:
        pipe = joint_base(family).pipe
        call = CALLS[family] | {"output_type": "pt"}
        assert pipe(**call, return_masks=True, inner_guidance_scale=1.0).masks is not None
        for arguments in ({"masks": np.ones((16, 16))}, {"objects": [RED]}):
            with pytest.raises(ValueError, match="needs a checkpoint that was trained with roles"):
                pipe(**call, **arguments)
        with pytest.raises(ValueError, match="`segment` needs a checkpoint that was trained with roles"):
            pipe.segment(np.zeros((9, 16, 16, 3)), RED)


WRONG_VIDEOS = {
    "nothing": (None, "`video` must be a path, PIL images, a numpy array or a tensor of numbers, got NoneType"),
    "no such file": ("nothing.mp4", "`video`: nothing.mp4 cannot be read as a video"),
    "no frames": ([], "`video` holds no frames"),
    "no pixels": (np.zeros((0, 16, 16, 3)), "hold something"),
    "one image": (np.zeros((16, 16, 3)), "4 or 5 dimensions"),
    "grey": (np.zeros((9, 16, 16, 1)), "`video` must be RGB"),
    "too bright": (np.full((9, 16, 16, 3), 200.0), r"must lie in \[0, 1\].*from 200 to 200"),
    "negative": (torch.full((9, 3, 16, 16), -1.0), r"must lie in \[0, 1\]"),
    "NaN": (np.full((9, 16, 16, 3), np.nan), r"must lie in \[0, 1\]"),
    "two sizes": ([np.zeros((16, 16, 3)), np.zeros((8, 8, 3))], "must be of one size"),
    "words": (["a", "b"], "`video`: a cannot be read as a video"),
    "objects": (np.array(["a"]), "a tensor of numbers, got <U1"),
    "three videos": (np.zeros((3, 9, 16, 16, 3)), "3 videos and 1 prompts"),
}


@pytest.mark.parametrize("video, reason", WRONG_VIDEOS.values(), ids=WRONG_VIDEOS)
def test_a_wrong_video(video, reason):
    with pytest.raises(ValueError, match=reason):
        Small("cogvideox").segment(video)


WRONG_CALLS = {
    "masks of another length": ({"masks": np.ones((5, 16, 16))}, "have 5 frames, and `num_frames` is 9"),
    "a length that does not fit": ({"masks": np.ones((12, 16, 16)), "num_frames": None}, "use 9|use 17"),
    "masks for three": ({"masks": np.ones((3, 9, 16, 16))}, "are for 3 videos, and there are 1 prompts"),
    "masks that are large": ({"masks": np.full((9, 16, 16), 7.0)}, r"must lie in \[0, 1\]"),
    "masks of words": ({"masks": ["a"]}, "`masks`: a cannot be read as a video"),
    "masks that are dark": ({"masks": np.full((9, 16, 16), 38, np.uint8)}, r"nowhere above 0\.149.*must be white"),
    "masks without pixels": ({"masks": np.zeros((0, 16, 16), np.uint8)}, "hold something"),
    "objects as a string": ({"objects": RED}, "must be a list such as"),
    "no objects": ({"objects": []}, "at least one object|must be 1 lists"),
    "an empty name": ({"objects": [" "]}, "at least one object"),
    "objects of two": ({"objects": [[RED], [BLUE]]}, "must be 1 lists, one for each prompt, got 2"),
    "another decoder": ({"mask_decoder": "quick"}, '"vae" or "fast", got \'quick\''),
    "no decoder": ({"mask_decoder": "fast"}, "needs a checkpoint that has one"),
    "inner guidance": ({"inner_guidance_scale": float("nan")}, "`inner_guidance_scale` must be a finite number"),
}


@pytest.mark.parametrize("arguments, reason", WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_a_wrong_call(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Small("cogvideox")(**arguments)


def test_the_islands_tell_the_roles_as_training_does():
    from diffusers_jdm.roles import ROLES, role_vector

    names = {None: "joint", "video": "segment", "mask": "layout"}
    for module in MODULES.values():
        for given, name in names.items():
            assert list(module.ROLES[given]) == role_vector(torch.tensor([ROLES[name]]))[0].tolist()
        assert list(module.NULL_MASK) == role_vector(torch.tensor([ROLES["video"]]))[0].tolist()


def test_generators_that_are_not_one_a_mask(small, video):
    for generators in ([], [seeded()], [seeded()] * 3):
        with pytest.raises(ValueError, match=rf"got {len(generators)} generators for 2 masks"):
            small.segment(video, [RED, BLUE], generator=generators)
    assert len(small.segment(video, [RED, BLUE], generator=[seeded(), seeded()])) == 2


def test_an_interrupted_call_has_no_object_masks(small):
    def stop(pipe, i, t, tensors):
        pipe._interrupt = True
        return {}

    output = small(objects=[RED], callback_on_step_end=stop, num_inference_steps=3)
    assert output.object_masks is None and output.frames is not None and len(small.seen) == 1
    assert small(objects=[RED]).object_masks is not None


def test_names_are_encoded_before_the_denoiser_runs(small):
    """So that with offloading the text encoder need not come back while the denoiser is on the device."""
    order = []
    small.pipe.text_encoder.register_forward_pre_hook(lambda *_: order.append("text"))
    small.denoiser.register_forward_pre_hook(lambda *_: order.append("denoiser"))
    small(objects=[RED, BLUE])
    assert order == sorted(order, reverse=True) and order.count("denoiser") == 4
    embeds = torch.zeros(1, small_models.TEXT_LENGTH, small_models.TEXT_DIM)
    small.pipe.text_encoder = None
    with pytest.raises(ValueError, match="`objects` need the text encoder"):
        small(prompt=None, prompt_embeds=embeds, negative_prompt_embeds=embeds, objects=[RED])


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_the_vae_may_be_of_another_dtype(small, video, layout, dtypes):
    small.denoiser.to(dtypes[0])
    small.pipe.vae.to(dtypes[1])
    assert small(masks=layout, objects=[RED], return_masks=True).object_masks[0].isfinite().all()
    assert small.segment(video).isfinite().all()


def test_a_pipeline_of_the_same_parts_keeps_the_mask_decoder(small):
    temporal = {"cogvideox": 4, "modelscope": 1}[small.family]
    spatial = {"cogvideox": 8, "modelscope": 2}[small.family]
    decoder = JDMMaskDecoder(small_models.LATENT_CHANNELS, 8, 1, 8, spatial, temporal)
    small.pipe.register_modules(mask_decoder=decoder)
    other = type(small.pipe).from_pipe(small.pipe)
    assert other.mask_decoder is decoder and other.components["mask_decoder"] is decoder


def test_the_fast_decoder_gives_masks_of_the_same_form(small, video, tmp_path):
    temporal, spatial = {"cogvideox": (4, 8), "modelscope": (1, 2)}[small.family]
    decoder = JDMMaskDecoder(small_models.LATENT_CHANNELS, 8, 1, 8, spatial, temporal)
    small.pipe.register_modules(mask_decoder=decoder)
    slow, fast = (small(objects=[RED], return_masks=True, mask_decoder=name) for name in ("vae", "fast"))
    assert torch.equal(slow.frames, fast.frames)
    assert slow.masks.shape == fast.masks.shape and not torch.equal(slow.masks, fast.masks)
    assert slow.object_masks[0].shape == fast.object_masks[0].shape
    assert small.segment(video, mask_decoder="fast").shape == small.segment(video).shape
    small.pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    call = CALLS[small.family] | {"output_type": "pt", "generator": seeded()}
    assert torch.equal(again(**call, return_masks=True, mask_decoder="fast").masks, fast.masks)


def test_another_model_s_condition_is_no_role():
    """An LCM-like U-Net has 256 channels for its guidance scale there."""
    base = joint_base("modelscope")
    base.pipe.unet.register_to_config(time_cond_proj_dim=256)
    with pytest.raises(ValueError, match="needs a checkpoint that was trained with roles"):
        base.pipe(**CALLS["modelscope"], masks=np.ones((16, 16)))
    assert base.pipe(**CALLS["modelscope"], inner_guidance_scale=1.0).frames is not None
