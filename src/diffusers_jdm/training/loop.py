"""The training loop: a run that is stopped anywhere goes on as if it had not been."""

import dataclasses
import logging
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_jdm.bases.base import Base
from diffusers_jdm.files import write_json
from diffusers_jdm.samples.dataset import PositionSampler, Source, collate, split
from diffusers_jdm.samples.quarantine import Quarantine
from diffusers_jdm.training.checkpoint import (
    check_same_run,
    find_checkpoint,
    identity_of,
    load_checkpoint,
    read_trainer_state,
    remove_old_checkpoints,
    save_checkpoint,
)
from diffusers_jdm.training.config import TrainConfig
from diffusers_jdm.training.engines import adapt_to_engine, autocast, innermost, is_scale_search, loss_scale
from diffusers_jdm.training.lora import save_only_trainable
from diffusers_jdm.training.metrics import BadSteps, Log, Window, drop_lines_after
from diffusers_jdm.training.optimizer import (
    MAX_GRAD_NORM,
    NoState,
    averaged,
    build_lr_scheduler,
    build_optimizer,
    go_on,
    group_settings,
)
from diffusers_jdm.training.setup import objective_of
from diffusers_jdm.training.step import attention_kernel, compute_losses, encode, to_device
from diffusers_jdm.training.validation import call_of, heldout_loss, sample_videos, send_to_trackers

logger = logging.getLogger(__name__)


class Trainer:
    """Trains the denoiser of `base`, whose trainable weights need gradients already.

    Args:
        config: the flags.
        accelerator: with the config's accumulation and precision.
        base: its pipeline holds the denoiser to train, in fp32.
        source: latents or videos.
        validation_embeds, frozen: as `prepare_pipeline` gives them.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        base: Base,
        source: Source,
        validation_embeds: list[torch.Tensor],
        frozen: str | None = None,
    ):
        self.config, self.accelerator, self.base = config, accelerator, base
        self.validation_embeds = validation_embeds
        self.output_dir = Path(config.output_dir)
        self.joint = config.objective == "jdm"
        self.dataset, self.heldout = split(source, objective_of(config), config.heldout_samples, config.seed)
        self.identity = identity_of(source.ids, len(self.dataset), frozen)

        model = getattr(base.pipe, base.component)
        adapt_to_engine(config, accelerator, model)
        optimizer = build_optimizer(config, [p for p in model.parameters() if p.requires_grad])
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.lr_scheduler = build_lr_scheduler(config, innermost(self.optimizer))
        accelerator.register_for_checkpointing(NoState())
        if config.use_lora:
            save_only_trainable(accelerator)
        self.ema = self.build_ema() if config.use_ema else None

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        model = self.accelerator.unwrap_model(self.model)
        return [p for p in model.parameters() if p.requires_grad]

    def build_ema(self) -> EMAModel:
        ema = EMAModel(self.trainable_parameters(), decay=self.config.ema_decay, use_ema_warmup=True)
        ema.to(self.accelerator.device)
        self.accelerator.register_for_checkpointing(ema)
        return ema

    # 1. Where to begin

    def resume(self) -> None:
        """Sets the step, the position in the data, and all state, of a new run or of the checkpoint asked for."""
        config, accelerator = self.config, self.accelerator
        self.step, self.samples_seen = 0, 0
        state = {}
        folder = find_checkpoint(accelerator, self.output_dir, config.resume_from_checkpoint)
        if folder:
            state = read_trainer_state(folder)
            check_same_run(folder, state, config, self.identity)
            self.step, self.samples_seen = state["step"], state["samples_seen"]
            settings = group_settings(innermost(self.optimizer))
            load_checkpoint(accelerator, folder)
            go_on(innermost(self.optimizer), self.lr_scheduler, settings, self.step)
            if self.ema:
                self.ema.to(accelerator.device)
                self.ema.decay = config.ema_decay
            logger.info("going on from %s, step %d", folder, self.step)
        sums = state.get("window", [])
        same_processes = len(sums) == accelerator.num_processes
        self.window = Window(accelerator.device, sums[accelerator.process_index] if same_processes else None)
        self.bad_steps = BadSteps(self.output_dir, state.get("bad_steps_in_a_row", 0))
        self.quarantine = Quarantine(self.output_dir, config.max_bad_samples)
        if accelerator.is_main_process:
            # A run that was killed may have written its checkpoint, but not have been through its validation.
            again = "heldout/loss" if self.is_validation_due() else None
            self.log = Log(self.output_dir / "log.jsonl", self.step, again)
            drop_lines_after(self.bad_steps.path, self.step)
            write_json(self.output_dir / "train_config.json", dataclasses.asdict(config))

    def save(self) -> None:
        state = {
            "step": self.step,
            "samples_seen": self.samples_seen,
            **self.identity,
            "bad_steps_in_a_row": self.bad_steps.in_a_row,
            "window": gather_object([self.window.state()]),
            "config": dataclasses.asdict(self.config),
        }
        save_checkpoint(self.accelerator, self.output_dir / f"checkpoint-{self.step}", state)
        if self.accelerator.is_main_process:
            remove_old_checkpoints(self.output_dir, self.config.checkpoints_total_limit, self.step)

    def batches(self):
        """This process's batches from where the run is, each with the seconds that were waited for it."""
        config, accelerator = self.config, self.accelerator
        processes = accelerator.num_processes, accelerator.process_index
        sampler = PositionSampler(
            len(self.dataset), config.train_batch_size, *processes, seed=config.seed, start=self.samples_seen
        )
        loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=config.dataloader_num_workers,
            collate_fn=collate,
            pin_memory=accelerator.device.type == "cuda",
            generator=torch.Generator(),  # the global one is the model's, for its dropout
        )
        start = time.perf_counter()
        for batch in loader:
            yield batch, time.perf_counter() - start
            start = time.perf_counter()

    # 2. Training

    def train(self) -> None:
        config, accelerator = self.config, self.accelerator
        self.resume()
        progress = tqdm(
            total=config.max_train_steps,
            initial=self.step,
            desc="JDM" if self.joint else "direct fine-tuning",
            disable=not accelerator.is_local_main_process,
        )
        batches = self.batches() if self.step < config.max_train_steps else iter(())
        self.model.train()
        if self.step and self.is_validation_due():  # of the checkpoint that the run goes on from
            self.validate()
        while self.step < config.max_train_steps:
            self.optimizer_step(batches)
            progress.update()
            if self.step % config.logging_steps == 0:
                self.write_log(progress)
            with self.window.paused():
                if self.step % config.checkpointing_steps == 0 or self.step == config.max_train_steps:
                    self.save()
                if self.is_validation_due():
                    self.validate()
        progress.close()

    def optimizer_step(self, batches) -> None:
        """Gradients of all accumulated batches, then one step, which all processes skip at once if it is not finite."""
        config, accelerator = self.config, self.accelerator
        seen, per_sample, norm = [], [], None
        for _ in range(config.gradient_accumulation_steps):
            batch, data_wait = next(batches)
            self.quarantine.add(batch["quarantined"])
            batch = to_device(batch, accelerator.device)
            with accelerator.accumulate(self.model):
                with autocast(accelerator):
                    batch = encode(self.base, batch)
                with attention_kernel(batch["video"], self.base.channel_dim, accelerator.mixed_precision):
                    losses = compute_losses(self.base, self.model, batch, config.objective, config.exact_two_pass)
                    accelerator.backward(losses["loss"])
                seen += batch["ids"]
                per_sample.append(losses["per_sample"].detach())
                self.window.add(losses, batch, data_wait)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
                    self.update_weights(norm, seen, torch.cat(per_sample))
        self.samples_seen += config.train_batch_size * accelerator.num_processes * config.gradient_accumulation_steps
        self.step += 1

    def update_weights(self, norm, ids: list[str], per_sample: torch.Tensor) -> None:
        # The norm is of the gradients of all processes, so that all decide alike without asking each other. DeepSpeed
        # has stepped inside backward already, or has skipped the step by itself, and then gives an infinite norm.
        finite = norm is None or bool(torch.isfinite(torch.as_tensor(norm)).all())
        scaler = self.accelerator.scaler
        if finite or scaler is not None:  # fp16's scaler skips by itself, and has to, to find its scale
            self.optimizer.step()
        if finite and not self.accelerator.optimizer_step_was_skipped:
            self.bad_steps.end()
            if self.ema:
                self.ema.step(self.trainable_parameters())
        elif finite or is_scale_search(self.accelerator, self.optimizer, per_sample):
            self.window.add_overflow_step()
        else:
            self.skip_bad_step(ids, per_sample)
        self.lr_scheduler.step()  # also where the weights' step was skipped: the rate is a function of the step
        self.optimizer.zero_grad()

    def skip_bad_step(self, ids: list[str], per_sample: torch.Tensor) -> None:
        """Names the samples with a bad loss; where no process has any, those of all, for the gradient was bad."""
        bad = sorted({name for name, value in zip(ids, per_sample.tolist()) if not np.isfinite(value)})
        anywhere = any(gather_object([bool(bad)]))
        reason = "loss" if anywhere else "gradient"
        named = bad if anywhere else sorted(set(ids))
        if named:
            logger.warning("step %d skipped, %s not finite: %s", self.step + 1, reason, ", ".join(named))
        self.window.add_bad_step()
        self.bad_steps.add(self.step + 1, self.accelerator.process_index, reason, named)

    # 3. Looks at it

    def is_validation_due(self) -> bool:
        return self.step % self.config.validation_steps == 0 or self.step == self.config.max_train_steps

    def write_log(self, progress: tqdm) -> None:
        line = self.window.line(self.accelerator, self.joint)
        line["lr"] = self.lr_scheduler.get_last_lr()[0]
        if self.accelerator.mixed_precision == "fp16":
            line["loss_scale"] = loss_scale(self.accelerator, self.optimizer)
        progress.set_postfix(
            {name: f"{line[name]:.4f}" for name in ("loss", "loss/mask") if line.get(name) is not None}
        )
        self.record(line)

    def record(self, line: dict) -> None:
        if self.accelerator.is_main_process:
            self.log.write(self.step, line)
        self.accelerator.log({name: value for name, value in line.items() if value is not None}, step=self.step)

    def validate(self) -> None:
        """With the averaged weights if there are any."""
        if len(self.heldout) == 0 and not self.config.validation_prompts:
            return
        with self.averaged_weights():
            if len(self.heldout):
                self.look_at_heldout()
            if self.config.validation_prompts:
                self.sample(self.output_dir / "validation" / f"step-{self.step}")
        self.model.train()

    def look_at_heldout(self) -> None:
        line, unreadable = heldout_loss(self.accelerator, self.base, self.model, self.heldout, self.dataset)
        self.quarantine.add(unreadable)
        if line:
            self.record(line)
        elif self.accelerator.is_main_process:
            logger.warning("no held-out sample can be read: no held-out loss.")

    def sample(self, folder: Path) -> None:
        parts = self.base.pipe.components | {"text_encoder": None, "tokenizer": None}
        pipe = type(self.base.pipe)(**parts | {self.base.component: self.accelerator.unwrap_model(self.model)})
        vae_device = pipe.vae.device
        pipe.vae.to(self.accelerator.device)
        self.model.eval()
        prompts, call = self.config.validation_prompts, call_of(self.config, self.dataset.source)
        paths = sample_videos(self.accelerator, pipe, prompts, self.validation_embeds, folder, self.joint, **call)
        pipe.vae.to(vae_device)
        send_to_trackers(self.accelerator, paths, self.step)

    def averaged_weights(self):
        """A block in which the model has its averaged weights, if there are any."""
        return averaged(self.ema, self.trainable_parameters())
