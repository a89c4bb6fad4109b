"""The check before a push: a fresh process loads the folder as a user would, and generates one step.

    python -m diffusers_jdm.hub.check FOLDER [--variant fp16] [--base BASE]

It runs on the CPU, since the GPU may be that of the training which has just come to its end.
"""

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

# The paths that the fresh process finds the package by, though it is started in another folder.
PACKAGE_ROOT = str(Path(__file__).parents[2])


def check_in_fresh_process(folder: Path, variants: list[str | None], base: str | None = None) -> None:
    """Loads each variant of a checkpoint in a process of its own, from safetensors only, and generates one step with it.

    Args:
        folder: a pipeline, or with `base` a LoRA.
        variants: of the weights; None is the one without a name.
        base: folder or Hub repo of the pipeline that the LoRA is loaded into; made joint if the LoRA is of a joint one.

    Raises:
        ValueError: with the reason, if the process fails in any way.
    """
    command = [sys.executable, "-m", "diffusers_jdm.hub.check", str(folder)]
    command += [f"--variant={variant}" for variant in variants if variant is not None]
    command += ["--full"] if None in variants else []
    command += [f"--base={base}"] if base else []
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [PACKAGE_ROOT, environment.get("PYTHONPATH")]))
    environment["CUDA_VISIBLE_DEVICES"] = ""
    if not base:
        environment["HF_HUB_OFFLINE"] = "1"  # what is not in the folder must not come from elsewhere
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        reason = said[-1].strip()
        if done.returncode < 0:
            reason = f"it was killed by signal {-done.returncode}, perhaps for want of memory"
        raise ValueError(f"the checkpoint does not load and generate in a fresh process: {reason}")


def generate_one_step(pipe: Any) -> None:
    """One denoising step at the smallest size; raises ValueError if frames or masks come out wrong."""
    import torch

    from diffusers_jdm.bases.base import base_of_pipeline

    base = base_of_pipeline(type(pipe).__name__)
    if base is None:
        raise ValueError(f"a {type(pipe).__name__} is no pipeline that this package makes or trains.")
    call, joint = base.smallest_call(pipe), type(pipe).__name__ == base.joint_pipeline.__name__
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        "a red circle", num_inference_steps=1, output_type="pt", **call, **{"return_masks": True} if joint else {}
    )
    made = {"frames": output.frames} | ({"masks": output.masks} if joint else {})
    for name, values in made.items():
        values = torch.as_tensor(values)
        if not torch.isfinite(values).all():
            raise ValueError(f"the {name} that it generates hold NaN or inf: look at the weights.")
        expected = (call["num_frames"], call["height"], call["width"])
        shape = (values.shape[1], *values.shape[-2:])
        if shape != expected:
            raise ValueError(f"the {name} that it generates are {shape} (frames, height, width), not {expected}.")


def load_with_lora(folder: Path, base: str) -> Any:
    """The base with the LoRA in `folder`; joint if the LoRA has the inflated projections."""
    from diffusers import DiffusionPipeline
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

    from diffusers_jdm.bases.base import make_joint
    from diffusers_jdm.hub.staging import lora_is_joint

    pipe = DiffusionPipeline.from_pretrained(base, use_safetensors=True)
    if lora_is_joint(folder):
        pipe = make_joint(pipe)
    pipe.load_lora_weights(folder, weight_name=LORA_WEIGHT_NAME_SAFE, use_safetensors=True)
    if not any(pipe.get_list_adapters().values()):
        raise ValueError(f"none of the LoRA's weights belongs to a part of {base}: is it of this base?")
    return pipe


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--base")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    try:
        from diffusers import DiffusionPipeline

        import diffusers_jdm  # noqa: F401  diffusers then knows the joint classes

        if arguments.base:
            generate_one_step(load_with_lora(arguments.folder, arguments.base))
            return 0
        for variant in ([None] if arguments.full else []) + arguments.variant:
            pipe = DiffusionPipeline.from_pretrained(arguments.folder, variant=variant, use_safetensors=True)
            generate_one_step(pipe)
            del pipe  # before the next one needs the memory
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
