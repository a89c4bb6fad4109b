r"""Fine-tune CogVideoX into a joint model of video and mask (JDM), all of it or as a LoRA.

    accelerate launch train_scripts/train_jdm_cogvideox.py \
        --pretrained_model_name_or_path zai-org/CogVideoX-2b --train_data_dir latents --output_dir jdm-cogvideox-2b

`--train_data_dir` is what train_scripts/precompute_latents.py wrote, or a manifest with its videos. See README.md.
"""

import logging
from dataclasses import dataclass

from diffusers_jdm.bases.cogvideox.base import CogVideoX
from diffusers_jdm.errors import exit_clearly
from diffusers_jdm.samples.opening import check_same_encoders
from diffusers_jdm.training.config import OUTPUT_HELP, TrainConfig, flag, parse_flags
from diffusers_jdm.training.loop import Trainer
from diffusers_jdm.training.result import save_result
from diffusers_jdm.training.setup import build_accelerator, load_pipeline, open_data, prepare_pipeline, read_base

logger = logging.getLogger(__name__)


@dataclass
class CogVideoXTrainConfig(TrainConfig):
    output_dir: str = flag("jdm-cogvideox", OUTPUT_HELP, needed=True)
    max_train_steps: int = flag(10_000, "Number of optimizer steps (A.7)", above=0)
    learning_rate: float = flag(5e-5, "Peak learning rate (A.7)", above=0)

    paper = (  # A.7, CogVideoX-2B
        ("learning_rate", 5e-5),
        ("max_train_steps", 10_000),
        ("global_batch_size", 768),
        ("mixed_precision", "fp16"),
        ("proportion_empty_prompts", 0.1),
    )


def parse_args(argv=None) -> CogVideoXTrainConfig:
    return parse_flags(CogVideoXTrainConfig, __doc__, argv)


@exit_clearly
def main(config: CogVideoXTrainConfig) -> None:
    # 1. What can be wrong is found before anything large is loaded.
    configs = read_base(config, CogVideoX)
    source = open_data(config, configs)
    accelerator = build_accelerator(config)
    if accelerator.mixed_precision == "bf16" and not configs.denoiser.get("use_rotary_positional_embeddings"):
        logger.warning("CogVideoX-2B was trained in fp16, and bf16 is reported to give NaN with it: use fp16.")

    # 2. The pipeline, joint from here on: only its transformer is trained.
    base = CogVideoX(load_pipeline(config, CogVideoX))
    if accelerator.is_main_process:  # it reads all weights of both
        check_same_encoders(source, base.pipe)
    prepared = prepare_pipeline(config, accelerator, base, source.precomputed)

    # 3. Training, and what it leaves.
    trainer = Trainer(config, accelerator, base, source, *prepared)
    trainer.train()
    save_result(trainer)
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_args())
