"""The demo as a web page: prompt → video, mask and overlay; layout → video; video → mask. Offline, and fit for a Space.

make app
python examples/app.py --checkpoint ORG/NAME

Port and share link are Gradio's own: GRADIO_SERVER_PORT=8000, GRADIO_SHARE=True. The Space: examples/space/README.md.
"""

import argparse
import inspect
import os
import random
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video
from gradio.themes.utils.fonts import LocalFont
from PIL import Image

import diffusers_jdm
from diffusers_jdm.bases.base import base_of_pipeline, joint_pipeline_names
from diffusers_jdm.data.video import probe, read_frames
from diffusers_jdm.errors import BadSampleError, one_line
from diffusers_jdm.roles import has_roles
from diffusers_jdm.shapes.world import phrase, sample_clip

SHIPPED = Path(__file__).parent / "shapes" / "joint"
MAX_SEED = 2**32 - 1
PROMPTS = (
    "a red circle and a blue square",
    "a yellow triangle moving right and a purple cross moving left",
    "there is a blue circle moving up next to a yellow cross",
    "a purple circle",
)
WORDS = (
    "It knows coloured circles, squares, triangles and crosses, moving left, right, up or down, and no other words."
)


class Settings(NamedTuple):
    """What a checkpoint asks for, and what its controls start with."""

    height: int
    width: int
    num_frames: int
    steps: int
    guidance: float
    scale: int  # by which a small video is magnified
    is_small: bool  # of the small world


def settings_of(pipe) -> Settings:
    call = inspect.signature(pipe.__call__).parameters
    steps, guidance = call["num_inference_steps"].default, float(call["guidance_scale"].default)
    base = base_of_pipeline(type(pipe).__name__)
    num_frames, height, width = base.default_size(denoiser_of(pipe).config, pipe.vae.config)
    is_small = max(height, width) <= 64
    if is_small:  # examples/shapes/README.md
        num_frames, steps, guidance = base.shapes_frames, 25, 3.0
    scale = max(1, 384 // max(height, width))
    return Settings(height, width, num_frames, steps, guidance, scale, is_small)


def denoiser_of(pipe):
    return pipe.components[base_of_pipeline(type(pipe).__name__).component]


def load(checkpoint: str):
    try:
        pipe = DiffusionPipeline.from_pretrained(checkpoint, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"{checkpoint} cannot be loaded: {one_line(error)}") from error
    kind = type(pipe).__name__
    if kind not in joint_pipeline_names():
        raise SystemExit(f"{checkpoint} is no joint checkpoint, but a {kind}: see `diffusers-jdm convert`.")
    return pipe.to("cuda", torch.bfloat16) if torch.cuda.is_available() else pipe


def pick_seed(seed: int | None, is_random: bool) -> int:
    if is_random:
        return random.randint(0, MAX_SEED)
    if seed is None or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"The seed must be a whole number from 0 to {MAX_SEED}.")
    return int(seed)


def check_prompt(prompt: str | None) -> None:
    if not (prompt or "").strip():
        raise ValueError("Type a prompt first.")


def generate(pipe, prompt, steps, guidance, seed, masks=None, progress=gr.Progress()):  # noqa: B008
    """Frames (F, H, W, 3) and masks (F, H, W), float in [0, 1]."""

    def on_step(_, step, timestep, tensors):
        progress((step + 1, steps))
        return tensors

    check_prompt(prompt)
    output = pipe(
        prompt,
        num_frames=settings_of(pipe).num_frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        masks=masks,
        return_masks=True,
        output_type="np",
        callback_on_step_end=on_step,
    )
    return output.frames[0], output.masks[0]


def segment(pipe, path, prompt, steps):
    """The frames that are looked at, uint8 (F, H, W, 3), and their masks (F, H, W), float in [0, 1]."""
    check_prompt(prompt)
    frames = read_clip(path, settings_of(pipe))
    return frames, pipe.segment(frames, prompt, num_inference_steps=steps, output_type="np")[0]


def read_clip(path: str | None, settings: Settings) -> np.ndarray:
    """As many frames as the checkpoint's clips have, evenly out of the whole video, scaled and cropped to its size."""
    if path is None:
        raise ValueError("Upload a video first.")
    wanted = settings.num_frames
    try:
        there = probe(path)["num_frames"]
        if there >= wanted:
            return read_frames(path, np.linspace(0, there - 1, wanted).astype(int), settings.height, settings.width)
    except BadSampleError as error:  # its message names a path of the server
        raise ValueError("This file cannot be read as a video: it is damaged, or is none.") from error
    raise ValueError(f"This video is too short: it has {there} of the {wanted} frames that the checkpoint needs.")


def drawn_mask(drawing: dict | None, settings: Settings) -> np.ndarray:
    """What was drawn, in whatever colour, in the size of the video: bool (H, W)."""
    layers = [layer[..., 3] for layer in (drawing or {}).get("layers", [])]
    if not any(layer.any() for layer in layers):
        raise ValueError("Draw first where the objects are to be.")
    picture = Image.fromarray(np.max(layers, axis=0)).resize((settings.width, settings.height), Image.Resampling.BOX)
    mask = np.asarray(picture) >= 128
    if not mask.any():
        raise ValueError(f"This is too thin for {settings.width}×{settings.height} pixels: use a thicker brush.")
    return mask


def write(frames, masks, folder: Path, settings: Settings) -> list[str]:
    """Video, mask and overlay. They may replace the last run's: Gradio has copied those."""
    files = diffusers_jdm.export_overlay(frames, masks, folder / "video.mp4", scale=settings.scale)
    return [str(files[name]) for name in ("video", "mask", "overlay")]


def small_clips(folder: Path, settings: Settings) -> list[list[str]]:
    """Rendered videos that training has not seen, each with the name of one of its objects."""
    examples = []
    for index in (3, 5, 8):
        clip = sample_clip(77, index, "pairs", num_frames=settings.num_frames)
        large = clip.video.repeat(settings.scale, axis=1).repeat(settings.scale, axis=2)
        path = export_to_video(list(large / 255), str(folder / f"clip-{index}.mp4"), fps=8)
        examples.append([path, phrase(clip.objects[0], with_motion=False)])
    return examples


@contextmanager
def told():
    """What is wrong with the input is said on the page, and not in the log."""
    try:
        yield
    except (ValueError, TypeError, FloatingPointError) as error:
        raise gr.Error(str(error), print_exception=False) from error


def fill_tab(pipe, about: str, run, given=None, prompt="", button="Generate", is_seeded=True, examples=()):
    """What is given on the left, what comes of it on the right; `given` makes what there is beside the prompt."""
    settings = settings_of(pipe)
    if given and not has_roles(denoiser_of(pipe)):
        gr.Markdown(
            "This tab needs a checkpoint that was trained with roles, and this one was not: train it with "
            "`--segment_probability` and `--layout_probability`."
        )
        return
    gr.Markdown(about)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            inputs = [given()] if given else []
            inputs.append(gr.Textbox(prompt, label="Prompt", lines=2))
            starts = [gr.Button(button, variant="primary").click, inputs[-1].submit]
            inputs.append(gr.Slider(1, 100, settings.steps, step=1, precision=0, label="Steps"))
            if is_seeded:
                inputs.append(gr.Slider(1, 15, settings.guidance, step=0.1, label="Guidance"))
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, min_width=120)
                    inputs += [seed, gr.Checkbox(True, label="Random seed", min_width=120)]
        with gr.Column(scale=5):
            look = {"autoplay": True, "loop": True, "interactive": False, "height": 290, "min_width": 200}
            with gr.Row(elem_classes="shown"):
                shown = [gr.Video(label=label, **look) for label in ("Video", "Mask", "Overlay")]
            if examples:
                gr.Examples(examples, inputs[: len(examples[0])])
    # One run at a time, of all tabs together: they share the pipeline.
    outputs = [*shown, seed] if is_seeded else shown
    gr.on(starts, run, inputs, outputs, show_progress_on=shown, concurrency_limit=1, concurrency_id="pipeline")


def build(pipe, name: str, folder: Path) -> gr.Blocks:
    settings = settings_of(pipe)

    def text_to_video(prompt, steps, guidance, seed, is_random, progress=gr.Progress()):  # noqa: B008
        with told():
            seed = pick_seed(seed, is_random)
            frames, masks = generate(pipe, prompt, steps, guidance, seed, progress=progress)
            return [*write(frames, masks, folder, settings), seed]

    def layout_to_video(drawing, prompt, steps, guidance, seed, is_random, progress=gr.Progress()):  # noqa: B008
        with told():
            seed, layout = pick_seed(seed, is_random), drawn_mask(drawing, settings)
            frames, masks = generate(pipe, prompt, steps, guidance, seed, layout, progress)
            return [*write(frames, masks, folder, settings), seed]

    # `segment` takes no callback; its steps are those of its tqdm.
    def video_to_mask(path, prompt, steps, progress=gr.Progress(track_tqdm=True)):  # noqa: B008
        with told():
            return write(*segment(pipe, path, prompt, steps), folder, settings)

    def canvas():
        size = (settings.width * settings.scale, settings.height * settings.scale)
        blank = {"background": Image.new("RGB", size, "white"), "layers": [], "composite": None}  # has the brush ready
        brush = gr.Brush(default_size=min(size) // 10, colors=["#000000"], color_mode="fixed")
        look = {"label": "Layout", "height": 330, "canvas_size": size, "fixed_canvas": True, "layers": False}
        return gr.ImageEditor(blank, brush=brush, sources=(), transforms=(), **look)

    def upload():
        return gr.Video(label="Video to look at", sources=["upload"], height=260)

    first = PROMPTS[0] if settings.is_small else ""
    size = f"{settings.num_frames} frames of {settings.width}×{settings.height} pixels"
    with gr.Blocks(title="JDM: video and mask", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        gr.Markdown(
            "# A video, and the mask of what the prompt names\n"
            f"Joint Distribution Modeling (diffusers-jdm). Checkpoint: `{name}`, {size}. {WORDS * settings.is_small}"
        )
        with gr.Tab("Text → video and mask", elem_id="text"):
            about = "The prompt alone is needed; the mask comes along."
            fill_tab(
                pipe, about, text_to_video, prompt=first, examples=[[text] for text in PROMPTS * settings.is_small]
            )
        with gr.Tab("Layout → video", elem_id="layout"):
            about = "Draw where the objects that the prompt names are to be, in all frames."
            fill_tab(pipe, about, layout_to_video, canvas, first)
        with gr.Tab("Segment", elem_id="segment"):
            about = f"The mask of what the prompt names in a video of yours, of which {size} are looked at."
            clips = small_clips(folder, settings) if settings.is_small else ()
            fill_tab(pipe, about, video_to_mask, upload, button="Segment", is_seeded=False, examples=clips)
    return app


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("JDM_CHECKPOINT") or str(SHIPPED)  # a Space runs this without arguments
    parser.add_argument(
        "--checkpoint", default=default, help="a folder or a Hub repo; by default JDM_CHECKPOINT, if set"
    )
    checkpoint = parser.parse_args().checkpoint
    # Of weight 600, which Gradio's own theme asks for, it ships a few letters only.
    theme = gr.themes.Default(font=[LocalFont("Source Sans Pro", (400, 700)), "system-ui", "sans-serif"])
    os.environ.setdefault("GRADIO_RUN_HISTORY", "False")  # what visitors typed is theirs
    with tempfile.TemporaryDirectory() as folder:
        name = Path(checkpoint).name if Path(checkpoint).is_dir() else checkpoint
        app = build(load(checkpoint), name, Path(folder))
        app.launch(theme=theme, max_file_size="100mb", footer_links=[])


if __name__ == "__main__":
    main()
