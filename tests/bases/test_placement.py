"""Casting, splitting over devices, quantisation and offloading: what the models leave out of it, and that the rest works."""

import contextlib

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from diffusers import QuantoConfig, TorchAoConfig
from small_pipelines import FIXTURES, predict

small, fresh, video, layout = FIXTURES


@torch.no_grad()
def test_layerwise_casting_leaves_the_new_layers_in_fp32(small):
    decoder = small.add_mask_decoder()
    latents = torch.randn(1, 4, 3, 2, 2)
    new = {"time_embedding.cond_proj.weight", *small.base.projections}
    for model, call, kept in (
        (small.denoiser, lambda: predict(small.base, small.denoiser), new),
        (decoder, lambda: decoder(latents), {"latents_in.weight", "pixels_out.weight"}),
    ):
        plain = call()
        model.enable_layerwise_casting(torch.bfloat16, torch.float32)
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        assert {dtypes[name] for name in kept} == {torch.float32} and torch.bfloat16 in dtypes.values()
        assert 0 < (call() - plain).abs().max() < 0.05 * plain.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("part", ["denoiser", "mask decoder"])
def test_a_model_split_over_memories_gives_the_same(small, part, tmp_path):
    model = small.denoiser if part == "denoiser" else small.add_mask_decoder()
    latents = torch.randn(1, 4, 3, 2, 2)
    call = (lambda: predict(small.base, model)) if part == "denoiser" else lambda: model(latents)
    plain, classes = call(), model._get_no_split_modules("auto")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    places = infer_auto_device_map(model, {"cpu": size * 2 // 3, "disk": 10**9}, no_split_module_classes=classes)
    assert set(places.values()) == {"cpu", "disk"}
    whole = {n for n, m in model.named_modules() if type(m).__name__ in classes}
    assert not any(place.startswith(f"{name}.") for place in places for name in whole)
    dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
    assert torch.equal(call(), plain)


def test_every_quantisation_is_told_to_leave_the_new_layers_out(small, tmp_path):
    small.denoiser.save_pretrained(tmp_path)
    config = QuantoConfig(weights_dtype="int8", modules_to_not_convert=["to_q"])
    with contextlib.suppress(ImportError):  # without optimum-quanto the config is at least made ready for it
        type(small.denoiser).from_pretrained(tmp_path, quantization_config=config)
    left = config.modules_to_not_convert
    assert left[0] == "to_q"
    for name in ("time_embedding.cond_proj.weight", *small.base.projections):
        assert any(f"{part}." in name for part in left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_the_new_layers_stay_and_segmentation_works(small, video, tmp_path, dtype):
    torchao = pytest.importorskip("torchao.quantization")
    small.denoiser.save_pretrained(tmp_path)
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    model = type(small.denoiser).from_pretrained(tmp_path, quantization_config=config, torch_dtype=dtype)
    plain = {n for n, p in model.named_parameters() if type(p) is torch.nn.Parameter}
    assert {"time_embedding.cond_proj.weight", *small.base.projections} <= plain < set(dict(model.named_parameters()))
    expected = small.segment(video)
    small.pipe.register_modules(**{small.base.component: model})
    assert (small.segment(video) - expected).abs().mean() < 0.1


@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_denoiser_and_mask_decoder_are_offloaded_to_one_folder(small, tmp_path, level):
    """diffusers names the files by the layers, for all components alike."""
    small.add_mask_decoder()
    expected = small(return_masks=True, mask_decoder="fast")
    small.pipe.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_type=level,
        num_blocks_per_group=1,
        offload_to_disk_path=tmp_path,
        exclude_modules=["vae", "text_encoder"],  # of CogVideoX: the plain pipeline's frames are wrong, too
    )
    output = small(return_masks=True, mask_decoder="fast")
    assert torch.equal(output.masks, expected.masks) and torch.equal(output.frames, expected.frames)
