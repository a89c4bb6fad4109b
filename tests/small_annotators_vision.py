"""Small real detectors, trackers and depth estimators: the classes of transformers with a few thousand random weights.

Each function writes a folder as `save_pretrained` does, for `from_pretrained` to load. All weights come from a seed. The
text of a prompt is read letter by letter, so that any noun may be asked for. Scores of a random model are arbitrary: set
thresholds accordingly.
"""

import string
from pathlib import Path

import torch
import transformers
from small_annotators_text import clip_tokenizer, special_tokens

SAM_SIZE = 64  # the side of the square that SAM 2 and SAM 3 scale frames to
SAM_DIM = 128  # the memory has 64 channels by a constant of transformers, and this must be a multiple above it


def _letters_tokenizer(folder: Path) -> transformers.BertTokenizer:
    """A real BERT tokenizer whose words are single letters; 101, 102, 1012 and 1029 are special to Grounding DINO."""
    words = [f"[unused{i}]" for i in range(1030)]
    places = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    for place, word in places.items():
        words[place] = word
    for place, letter in enumerate(string.ascii_lowercase):
        words[200 + 2 * place], words[201 + 2 * place] = letter, f"##{letter}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.txt"
    path.write_text("\n".join(words))
    return transformers.BertTokenizer(str(path))


def save_tiny_grounding_dino(folder: Path) -> None:
    """Ten boxes a picture and noun."""
    torch.manual_seed(0)
    swin = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 4]}
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = {"encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 32}
    decoder = {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 32}
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(window_size=4, out_features=["stage2", "stage3"], **swin),
        text_config=transformers.BertConfig(vocab_size=1030, **bert),
        d_model=32,
        num_queries=10,
        num_feature_levels=3,
        max_text_len=32,
        init_std=0.2,  # with small weights, all scores are alike
        **encoder,
        **decoder,
    )
    model = transformers.GroundingDinoForObjectDetection(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():  # those that make boxes of different sizes
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    image_processor = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 48, "longest_edge": 96})
    transformers.GroundingDinoProcessor(image_processor, _letters_tokenizer(Path(folder))).save_pretrained(folder)


def save_tiny_owlv2(folder: Path) -> None:
    """Nine boxes a picture and noun."""
    torch.manual_seed(10)  # whose boxes lie in the picture
    tokenizer = clip_tokenizer("")
    tokenizer.model_max_length = 16
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, **special_tokens(tokenizer)}
    vision = {"image_size": 48, "patch_size": 16}
    config = transformers.Owlv2Config(text_config=tower | text, vision_config=tower | vision, projection_dim=16)
    transformers.Owlv2ForObjectDetection(config).eval().save_pretrained(folder)
    image_processor = transformers.Owlv2ImageProcessor(size={"height": 48, "width": 48})
    transformers.Owlv2Processor(image_processor, tokenizer).save_pretrained(folder)


def save_tiny_depth_anything(folder: Path, depth_estimation_type: str = "relative") -> None:
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    images = {"image_size": 28, "patch_size": 14, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
    config = transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(apply_layernorm=True, **layers, **images),
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=depth_estimation_type,
        max_depth=20,
        initializer_range=0.2,  # with larger weights, metric depth is 0 or 20 everywhere
    )
    transformers.DepthAnythingForDepthEstimation(config).eval().save_pretrained(folder)
    size = {"height": 42, "width": 42}
    transformers.DPTImageProcessor(size=size, ensure_multiple_of=14, keep_aspect_ratio=True).save_pretrained(folder)


# What SAM 2 and the tracker of SAM 3 share
_DECODER = {"hidden_size": SAM_DIM, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_PROMPTS = {"hidden_size": SAM_DIM, "image_size": SAM_SIZE, "patch_size": 16, "mask_input_channels": 4}
_TRACKER = {
    "image_size": SAM_SIZE,
    "prompt_encoder_config": _PROMPTS,
    "mask_decoder_config": _DECODER | {"iou_head_hidden_dim": 16, "iou_head_depth": 2},
    "memory_attention_hidden_size": SAM_DIM,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_attention_rope_feat_sizes": [4, 4],
    "memory_encoder_hidden_size": SAM_DIM,
    "memory_encoder_output_channels": 64,
    "mask_downsampler_embed_dim": SAM_DIM,
    "memory_fuser_num_layers": 1,
    "memory_fuser_embed_dim": SAM_DIM,
    "memory_fuser_intermediate_dim": 32,
    "initializer_range": 0.2,  # with small weights, all masks are alike
}
_PYRAMID = {"fpn_hidden_size": SAM_DIM, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
_SQUARE = {"height": SAM_SIZE, "width": SAM_SIZE}
_MASK_SIZE = {"height": 16, "width": 16}


def _see_objects_always(mask_decoder: torch.nn.Module) -> None:
    """Else the random model says of nearly all objects that they are hidden, and leaves their masks empty."""
    torch.nn.init.constant_(mask_decoder.pred_obj_score_head.proj_out.bias, 20.0)


def save_tiny_sam2(folder: Path) -> None:
    torch.manual_seed(0)
    stages = {"blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64]}
    stages |= {"num_attention_heads_per_stage": [1, 1, 1, 1], "window_size_per_stage": [4, 4, 4, 2]}
    stages |= {"hidden_size": 8, "image_size": [SAM_SIZE] * 2, "global_attention_blocks": [3]}
    hiera = transformers.Sam2HieraDetConfig(**stages)
    vision = transformers.Sam2VisionConfig(backbone_config=hiera, backbone_channel_list=[64, 32, 16, 8], **_PYRAMID)
    model = transformers.Sam2VideoModel(transformers.Sam2VideoConfig(vision_config=vision, **_TRACKER)).eval()
    _see_objects_always(model.mask_decoder)
    model.save_pretrained(folder)
    images = transformers.Sam2ImageProcessor(size=_SQUARE, mask_size=_MASK_SIZE)
    videos = transformers.Sam2VideoVideoProcessor(size=_SQUARE)
    transformers.Sam2VideoProcessor(images, videos).save_pretrained(folder)


def _sam3_detector(vision: dict, tokenizer) -> transformers.Sam3Config:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": len(tokenizer), "projection_dim": 16, "max_position_embeddings": 32}
    layers = {"hidden_size": SAM_DIM, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    layers["dropout"] = 0.0
    return transformers.Sam3Config(
        vision_config=vision,
        text_config=transformers.CLIPTextConfig(**text, **special_tokens(tokenizer)).to_dict(),
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config={**layers, "num_queries": 6},
        mask_decoder_config={"hidden_size": SAM_DIM, "num_attention_heads": 2},
        initializer_range=0.2,
    )


def save_tiny_sam3(folder: Path) -> None:
    """Four objects a clip at most; the thresholds, which belong to the model's config, are very low."""
    torch.manual_seed(7)  # whose objects are several of a noun, and some appear late
    tokenizer = clip_tokenizer("")
    tokenizer.model_max_length = 32
    layers = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    windows = {"patch_size": 16, "window_size": 2, "global_attn_indexes": [0], "pretrain_image_size": 32}
    vision = {"backbone_config": transformers.Sam3ViTConfig(image_size=SAM_SIZE, **layers, **windows), **_PYRAMID}
    tracker = {"model_type": "sam3_tracker_video", **_TRACKER}
    config = transformers.Sam3VideoConfig(
        detector_config=_sam3_detector(vision, tokenizer),
        tracker_config=tracker | {"vision_config": {"model_type": "sam3_vision_model", **vision}},
        low_res_mask_size=16,
        score_threshold_detection=0.01,
        new_det_thresh=0.01,
        max_num_objects=4,
        hotstart_delay=3,
        hotstart_unmatch_thresh=3,
        hotstart_dup_thresh=3,
    )
    model = transformers.Sam3VideoModel(config).eval()
    _see_objects_always(model.tracker_model.mask_decoder)
    model.save_pretrained(folder)
    images = transformers.Sam3ImageProcessor(size=_SQUARE, mask_size=_MASK_SIZE)
    videos = transformers.Sam2VideoVideoProcessor(size=_SQUARE)
    transformers.Sam3VideoProcessor(images, videos, tokenizer).save_pretrained(folder)
