r"""Fine-tune ModelScopeT2V into a joint model of video and mask (JDM), all of it or as a LoRA.

    accelerate launch train_scripts/train_jdm_modelscope.py \
        --pretrained_model_name_or_path ali-vilab/text-to-video-ms-1.7b --train_data_dir latents --output_dir jdm-modelscope

`--train_data_dir` is what train_scripts/precompute_latents.py wrote, or a manifest with its videos. See README.md.
"""

from dataclasses import dataclass

from diffusers_jdm.bases.modelscope.base import ModelScope
from diffusers_jdm.errors import exit_clearly
from diffusers_jdm.samples.opening import check_same_encoders
from diffusers_jdm.training.config import OUTPUT_HELP, LRScheduler, TrainConfig, flag, parse_flags
from diffusers_jdm.training.loop import Trainer
from diffusers_jdm.training.result import save_result
from diffusers_jdm.training.setup import build_accelerator, load_pipeline, open_data, prepare_pipeline, read_base


@dataclass
class ModelScopeTrainConfig(TrainConfig):
    output_dir: str = flag("jdm-modelscope", OUTPUT_HELP, needed=True)
    max_train_steps: int = flag(30_000, "Number of optimizer steps (A.7)", above=0)
    learning_rate: float = flag(1e-5, "Peak learning rate (A.7)", above=0)
    lr_scheduler: LRScheduler = flag("onecycle", "How the learning rate changes over the run (A.7)")

    paper = (  # A.7, ModelScopeT2V
        ("learning_rate", 1e-5),
        ("max_train_steps", 30_000),
        ("global_batch_size", 960),
        ("mixed_precision", "bf16"),
        ("lr_scheduler", "onecycle"),
        ("proportion_empty_prompts", 0.1),
    )


def parse_args(argv=None) -> ModelScopeTrainConfig:
    return parse_flags(ModelScopeTrainConfig, __doc__, argv)


@exit_clearly
def main(config: ModelScopeTrainConfig) -> None:
    # 1. What can be wrong is found before anything large is loaded.
    configs = read_base(config, ModelScope)
    source = open_data(config, configs)
    accelerator = build_accelerator(config)

    # 2. The pipeline, joint from here on: only its U-Net is trained.
    base = ModelScope(load_pipeline(config, ModelScope))
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
