"""The cost on paper: the document holds what the script prints, and the sizes in the script are those of the models."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
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

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cost():
    spec = importlib.util.spec_from_file_location("scaling_cost", ROOT / "benchmarks" / "scaling_cost.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters(model_class, config):
    with torch.device("meta"):
        model = model_class(config)
    return model, sum(parameter.numel() for parameter in model.parameters())


def test_the_document_holds_what_the_script_prints(cost):
    assert cost.report() in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_columns_add_up(cost):
    lines = [
        line.split("|") for line in cost.gpu_table([cost.caption(), cost.boxes(), cost.tracks()]).splitlines()[2:]
    ]
    for column in (4, 5, 6):
        *parts, total = (float(line[column].replace(",", "")) for line in lines)
        assert sum(parts) == pytest.approx(total, rel=0.01)
    clips, seconds, hours, dollars, days = (float(lines[0][i].replace(",", "")) for i in range(2, 7))
    assert hours == pytest.approx(clips * seconds / 3600, rel=0.01)
    assert dollars == pytest.approx(hours * cost.GPU_PRICE, rel=0.01)
    assert days == pytest.approx(hours / cost.GPUS / 24, rel=0.01)


def test_sizes_of_qwen3_vl(cost):
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16, "out_hidden_size": 4096}
    text = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
    text |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    model, total = parameters(Qwen3VLForConditionalGeneration, config)
    visual = sum(parameter.numel() for parameter in model.model.visual.parameters())
    assert visual == pytest.approx(cost.QWEN_VISION, rel=0.01)
    assert total - visual == pytest.approx(cost.QWEN_TEXT, rel=0.01)


def test_sizes_of_opt_and_t5(cost):
    opt = OPTConfig(
        hidden_size=2560, num_hidden_layers=32, ffn_dim=10240, num_attention_heads=32, word_embed_proj_dim=2560
    )
    assert parameters(OPTForCausalLM, opt)[1] == pytest.approx(cost.BLIP_TEXT, rel=0.01)
    t5 = T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    assert parameters(T5EncoderModel, t5)[1] == pytest.approx(cost.T5, rel=0.01)
    assert Blip2Config().num_query_tokens == cost.BLIP_QUERIES


def test_settings_are_the_defaults(cost):
    settings = PrepareSettings()
    assert (settings.clips.num_frames, settings.clips.fps) == (cost.FRAMES, cost.CLIP_FPS)
    assert settings.caption.num_frames == cost.QWEN_FRAMES and settings.caption.batch_size == 1
    assert settings.boxes.detection_frames == cost.DETECTION_FRAMES and settings.boxes.dtype == "float32"
    assert settings.embeddings.dtype == "float32"
    assert settings.caption.dtype == settings.tracks.dtype == "bfloat16"
    assert settings.regional_captions.dtype == "float16"
    assert settings.regional_captions.batch_size >= cost.OBJECTS  # the objects of a clip together


def test_a_clips_latents(cost):
    """49×480×720 pixels are 16×13×60×90 numbers in CogVideoX; a caption is 226×4096."""
    latents = np.zeros((16, (49 - 1) // 4 + 1, 480 // 8, 720 // 8), np.float16)
    clip = 5 * latents.nbytes / 1e6
    (found,) = re.findall(r"16×13×60×90 × 2 = ([\d.]+) MB", cost.storage_table())
    assert float(found) == pytest.approx(clip, abs=0.05)
    (found,) = re.findall(r"226×4096 × 2 = ([\d.]+) MB", cost.storage_table())
    assert float(found) == pytest.approx(5 * np.zeros((226, 4096), np.float16).nbytes / 1e6, abs=0.05)
