"""The cost on paper: the document holds what the script prints, and the sizes in the script are those of the models."""

from pathlib import Path

import pytest
import torch
from small_scripts import script
from transformers import (
    Blip2Config,
    OPTConfig,
    OPTForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from diffusers_jdm.data.prepare.settings import PrepareSettings

cost = script("scaling_cost")
PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def on_meta(model_class, config):
    with torch.device("meta"):
        return model_class(config)


def test_the_document_holds_what_the_script_prints():
    assert cost.report() in PAGE.read_text(encoding="utf-8")
    latents = 16 * ((49 - 1) // 4 + 1) * (480 // 8) * (720 // 8)  # numbers of 49×480×720 pixels in CogVideoX
    for shape, numbers in (("16×13×60×90", latents), ("226×4096", 226 * 4096)):
        assert f"{shape} × 2 = {5 * 2 * numbers / 1e6:.1f} MB" in cost.storage_table()


def test_sizes_of_the_models():
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16, "out_hidden_size": 4096}
    text = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
    text |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    qwen = on_meta(Qwen3VLForConditionalGeneration, config)
    visual = qwen.model.visual.num_parameters()
    assert visual == pytest.approx(cost.QWEN_VISION, rel=0.01)
    assert qwen.num_parameters() - visual == pytest.approx(cost.QWEN_TEXT, rel=0.01)
    sizes = {"hidden_size": 2560, "num_hidden_layers": 32, "ffn_dim": 10240, "num_attention_heads": 32}
    opt = on_meta(OPTForCausalLM, OPTConfig(**sizes, word_embed_proj_dim=2560))
    assert opt.num_parameters() == pytest.approx(cost.BLIP_TEXT, rel=0.01)
    sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    t5 = on_meta(T5EncoderModel, T5Config(**sizes, feed_forward_proj="gated-gelu"))
    assert t5.num_parameters() == pytest.approx(cost.T5, rel=0.01)
    assert Blip2Config().num_query_tokens == cost.BLIP_QUERIES


def test_settings_are_the_defaults():
    settings = PrepareSettings()
    assert (settings.clips.num_frames, settings.clips.fps) == (cost.FRAMES, cost.CLIP_FPS)
    assert settings.caption.num_frames == cost.QWEN_FRAMES and settings.caption.batch_size == 1
    assert settings.boxes.detection_frames == cost.DETECTION_FRAMES
    assert settings.boxes.dtype == settings.embeddings.dtype == "float32"
    assert settings.caption.dtype == settings.tracks.dtype == "bfloat16"
    assert settings.regional_captions.dtype == "float16"
    assert settings.regional_captions.batch_size >= cost.OBJECTS  # the objects of a clip together
