"""Fine-tune a CogVideoX pipeline into a joint one (JDM): full fine-tune on precomputed latents.

    accelerate launch train_scripts/train_jdm_cogvideox.py \
        --pretrained_model_name_or_path zai-org/CogVideoX-2b --data_dir latents --output_dir jdm-cogvideox-2b

The base may be a plain CogVideoX pipeline (it is inflated first) or a joint one (training goes on from it). `--data_dir`
holds the shards that `diffusers_jdm.training.latents.write_shard` writes; examples/shapes/precompute_latents.py shows how.
"""

import argparse
import json
import logging
import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import CogVideoXDDIMScheduler, DiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_jdm import CogVideoXJDMPipeline, JDMTransformer3DModel, inflate
from diffusers_jdm.objective import joint_loss, prediction_target
from diffusers_jdm.training.latents import LatentDataset

logger = get_logger(__name__)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="a CogVideoX pipeline, base or joint")
    parser.add_argument("--revision", default=None)
    parser.add_argument("--variant", default=None)
    parser.add_argument("--data_dir", required=True, help="folder of precomputed latents")
    parser.add_argument("--output_dir", default="jdm-cogvideox")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_batch_size", type=int, default=4, help="per process; the paper's total is 768")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=10_000, help="A.7, CogVideoX-2B")
    parser.add_argument("--learning_rate", type=float, default=5e-5, help="A.7, CogVideoX-2B")
    parser.add_argument("--lr_scheduler", default="constant_with_warmup", help="not in the paper")
    parser.add_argument("--lr_warmup_steps", type=int, default=100, help="not in the paper")
    parser.add_argument("--adam_beta1", type=float, default=0.9, help="not in the paper")
    parser.add_argument("--adam_beta2", type=float, default=0.95, help="not in the paper")
    parser.add_argument("--adam_weight_decay", type=float, default=1e-3, help="not in the paper")
    parser.add_argument("--max_grad_norm", type=float, default=1.0, help="not in the paper")
    parser.add_argument("--loss_weight", type=float, default=1.0, help="w of Eq. 13: the share of L_fine")
    parser.add_argument("--text_dropout", type=float, default=0.1)
    parser.add_argument("--use_ema", action="store_true", help="save the running average of the weights")
    parser.add_argument("--ema_decay", type=float, default=0.999)
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default=None)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--dataloader_num_workers", type=int, default=0)
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--resume_from_checkpoint", default=None, help="a checkpoint folder, or 'latest'")
    parser.add_argument("--logging_steps", type=int, default=50)
    return parser.parse_args(argv)


def load_pipeline(args):
    """The pipeline to train, with a joint transformer in fp32, everything else frozen."""
    pipe = DiffusionPipeline.from_pretrained(
        args.pretrained_model_name_or_path, revision=args.revision, variant=args.variant
    )
    if not isinstance(pipe.transformer, JDMTransformer3DModel):
        components = pipe.components | {"transformer": inflate(pipe.transformer)}
        pipe = CogVideoXJDMPipeline(**components)
    pipe.transformer.to(torch.float32).requires_grad_(True)
    pipe.vae.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    return pipe


def add_joint_noise(scheduler, latents, noise, timesteps, is_fine):
    """Eq. 10 for video and mask with one shared timestep; the mask's input is the null mask (zeros) in L_diff."""
    noisy_video, noisy_mask = scheduler.add_noise(latents, noise, timesteps).chunk(2, dim=2)
    return torch.cat([noisy_video, noisy_mask * is_fine[:, None, None, None, None]], dim=2)  # [B, F, 2C, H, W]


def rotary_embeddings(pipe, transformer, latents):
    """The rotary embeddings of CogVideoX-5B; None for -2B, which has sincos positions."""
    if not transformer.config.use_rotary_positional_embeddings:
        return None
    frames, height, width = latents.shape[1], latents.shape[3], latents.shape[4]
    scale = pipe.vae_scale_factor_spatial
    return pipe._prepare_rotary_positional_embeddings(height * scale, width * scale, frames, latents.device)


def attention_kernel(device):
    """On a CPU the math kernel, whose backward pass is faster there than the fused one's; else diffusers' choice."""
    if device.type != "cpu":
        return nullcontext()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    return sdpa_kernel(SDPBackend.MATH)


def find_checkpoint(args):
    if args.resume_from_checkpoint != "latest":
        return args.resume_from_checkpoint
    steps = [int(path.name.split("-")[1]) for path in Path(args.output_dir).glob("checkpoint-*") if not path.suffix]
    return str(Path(args.output_dir) / f"checkpoint-{max(steps)}") if steps else None


def save_checkpoint(accelerator, folder):
    """Under another name first: a run that is killed meanwhile leaves no half checkpoint under the right one."""
    partial = folder.with_name(f"{folder.name}.partial")
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier run with the same output_dir
        partial.replace(folder)


def main(args):
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        project_config=ProjectConfiguration(project_dir=args.output_dir),
    )
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(message)s", level=logging.INFO)
    set_seed(args.seed, device_specific=True)
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    # 1. Models: only the transformer is trained.
    pipe = load_pipeline(args)
    transformer = pipe.transformer
    scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(accelerator.device)
    pipe.text_encoder.to(accelerator.device)
    if args.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()

    # 2. Data and optimizer. accelerate steps a prepared schedule once a process, so its length counts processes.
    dataset = LatentDataset(args.data_dir, args.loss_weight, args.text_dropout, args.seed)
    needed = args.train_batch_size * accelerator.num_processes
    if len(dataset) < needed:
        raise ValueError(
            f"{args.data_dir} holds {len(dataset)} samples, fewer than the {needed} of one step over all processes: "
            "lower --train_batch_size."
        )
    loader = DataLoader(
        dataset,
        args.train_batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.dataloader_num_workers,
        # Its own, so that accelerate keeps the processes' order in step by it, and not by the noise's generator.
        generator=torch.Generator().manual_seed(args.seed),
    )
    optimizer = torch.optim.AdamW(
        transformer.parameters(),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
    )
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    transformer, optimizer, loader, lr_scheduler = accelerator.prepare(transformer, optimizer, loader, lr_scheduler)
    ema = None
    if args.use_ema:
        ema = EMAModel(accelerator.unwrap_model(transformer).parameters(), decay=args.ema_decay, use_ema_warmup=True)
        ema.to(accelerator.device)
        accelerator.register_for_checkpointing(ema)

    # 3. Resume.
    global_step = 0
    checkpoint = find_checkpoint(args) if args.resume_from_checkpoint else None
    if checkpoint:
        accelerator.load_state(checkpoint)
        global_step = int(Path(checkpoint).name.split("-")[1])
        logger.info(f"resumed from {checkpoint}")
    steps_per_epoch = max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))

    # 4. Train.
    progress = tqdm(
        total=args.max_train_steps, initial=global_step, desc="JDM", disable=not accelerator.is_local_main_process
    )
    sums = torch.zeros(5)
    while global_step < args.max_train_steps:
        dataset.set_epoch(global_step // steps_per_epoch)
        transformer.train()
        for batch in loader:
            with accelerator.accumulate(transformer):
                latents, is_fine = batch["latents"], batch["is_fine"]
                with torch.no_grad():
                    prompt_embeds, _ = pipe.encode_prompt(
                        batch["prompt"],
                        do_classifier_free_guidance=False,
                        max_sequence_length=accelerator.unwrap_model(transformer).config.max_text_seq_length,
                        device=accelerator.device,
                    )
                    prompt_embeds = prompt_embeds.to(latents.dtype)
                noise = torch.randn_like(latents)
                timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
                with accelerator.autocast(), attention_kernel(accelerator.device):
                    prediction = transformer(
                        hidden_states=add_joint_noise(scheduler, latents, noise, timesteps, is_fine),
                        encoder_hidden_states=prompt_embeds,
                        timestep=timesteps,
                        image_rotary_emb=rotary_embeddings(pipe, accelerator.unwrap_model(transformer), latents),
                        return_dict=False,
                    )[0]
                losses = joint_loss(prediction, prediction_target(scheduler, latents, noise, timesteps), is_fine)
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(transformer.parameters(), args.max_grad_norm)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            fine = is_fine.float().mean().item()  # a batch without L_fine has no mask loss
            parts = [losses["loss"].item(), losses["video"].item(), fine * losses["mask"].item()]
            sums += torch.tensor([*parts, fine, 1.0])
            if not accelerator.sync_gradients:
                continue
            if ema and not accelerator.optimizer_step_was_skipped:
                ema.step(accelerator.unwrap_model(transformer).parameters())
            global_step += 1
            progress.update()
            if global_step % args.logging_steps == 0 and accelerator.is_main_process:
                loss, video = (sums[:2] / sums[4]).tolist()
                mask = (sums[2] / sums[3].clamp(min=1e-8)).item()
                record = {"step": global_step, "loss": loss, "loss/video": video, "loss/mask": mask}
                record["lr"] = lr_scheduler.get_last_lr()[0]
                progress.set_postfix(loss=f"{loss:.4f}", mask=f"{mask:.4f}")
                with open(output_dir / "log.jsonl", "a") as log:
                    log.write(json.dumps(record) + "\n")
                sums.zero_()
            if global_step % args.checkpointing_steps == 0:
                save_checkpoint(accelerator, output_dir / f"checkpoint-{global_step}")
            if global_step >= args.max_train_steps:
                break

    # 5. Save the joint pipeline.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(transformer)
        if ema:
            ema.copy_to(model.parameters())
        pipe.transformer = model
        pipe.save_pretrained(output_dir)
        logger.info(f"saved the joint pipeline to {output_dir}")
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_args())
