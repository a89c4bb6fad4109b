import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler
from small_data import joint_base, perturb

from diffusers_jdm.objective import add_joint_noise, fine_probability, joint_loss, prediction_target, video_loss
from diffusers_jdm.roles import CONDITION, GENERATE, IGNORE, ROLES
from diffusers_jdm.samples.dataset import Objective, RegionDataset, collate
from diffusers_jdm.samples.latents import LatentSource
from diffusers_jdm.training.step import compute_losses, encode, to_device


def roles(*names):
    return torch.tensor([ROLES[name] for name in names])


def denoiser(base):
    return perturb(getattr(base.pipe, base.component))


def read_batch(base, source, objective, epochs):
    """All samples of the source in these epochs, as the training loop sees them."""
    dataset = RegionDataset(source, range(len(source.ids)), objective, seed=5)
    samples = [dataset[epoch, index] for epoch in epochs for index in range(len(source.ids))]
    return encode(base, to_device(collate(samples), torch.device("cpu")))


def losses_of(base, model, batch, exact_two_pass=False):
    return compute_losses(base, base.noise_scheduler(), model, batch, "jdm", exact_two_pass)


def gradient(loss, model):
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("channel_dim", [1, 2])
def test_loss_is_the_mean_over_the_channels_that_count(channel_dim):
    generator = torch.Generator().manual_seed(0)
    shape = [9, 3, 3, 5, 5]
    shape[channel_dim] = 8
    prediction, target = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    names = ["joint", "video", "joint", "video", *ROLES]
    losses = joint_loss(prediction, target, roles(*names), channel_dim)
    for i, name in enumerate(names):
        whole = [prediction[i], target[i]]
        video, mask = ([x.narrow(channel_dim - 1, start, 4) for x in whole] for start in (0, 4))
        error = torch.nn.functional.mse_loss
        assert torch.allclose(losses["video"][i], error(*video)) and torch.allclose(losses["mask"][i], error(*mask))
        assert torch.allclose(
            losses["per_sample"][i], error(*{"joint": whole, "video": video, "layout": video}.get(name, mask))
        )
    assert torch.allclose(losses["loss"], losses["per_sample"].mean())


def test_weights_are_those_of_eq_13():
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(4, 1, 4, 3, 3, generator=generator) for _ in range(2))
    weight = torch.tensor([0.3, 0.7, 0.9, 0.1])  # of two samples, each in L_fine and in L_diff
    losses = joint_loss(prediction, target, roles("joint", "video", "joint", "video"), weight=weight)
    fine, diff = losses["per_sample"][::2], losses["per_sample"][1::2]
    assert torch.allclose(losses["loss"], (0.3 * fine[0] + 0.7 * diff[0] + 0.9 * fine[1] + 0.1 * diff[1]) / 2)


def test_no_gradient_reaches_what_is_not_generated():
    prediction = torch.randn(5, 1, 4, 3, 3, requires_grad=True)
    joint_loss(prediction, torch.zeros_like(prediction), roles(*ROLES))["loss"].backward()
    for grad, (video, mask) in zip(prediction.grad, ROLES.values()):
        for part, role in ((grad[:, :2], video), (grad[:, 2:], mask)):
            assert part.all() if role == GENERATE else not part.any()


def test_l_diff_teaches_the_model_nothing_about_the_mask(base, latents):
    """Neither the mask's rows of the output projection nor, since the null mask is zero, its columns of the input."""
    model = denoiser(base)
    names = {"cogvideox": ("patch_embed.proj", "proj_out"), "modelscope": ("conv_in", "conv_out")}[base.name]
    mask_in, mask_out = (model.get_submodule(name).weight for name in names)
    for weight, learns in ((1.0, True), (0.0, False)):
        batch = read_batch(base, latents, Objective(weight=weight, alpha=0.0), [0])
        grads = torch.autograd.grad(losses_of(base, model, batch)["loss"], [mask_in, mask_out])
        for grad in (grads[0].chunk(2, dim=1)[1], grads[1].chunk(2, dim=0)[1]):
            assert bool(grad.any()) == learns


# Eq. 13 in one pass and in two


def test_one_pass_has_the_mean_gradient_of_two_passes(base, videos):
    """The mean over the draw of the branch, written out: w' of what is drawn as L_fine, 1 - w' of what is as L_diff.

    All that the draw of the branch does not decide (clip, objects, caption, noise, timestep) follows from the seed, so the
    same samples are read with a branch that is certain. test_dataset.py shows that w' is the probability of L_fine.
    """
    model = denoiser(base)
    two = read_batch(base, videos, Objective(alpha=1.5, exact_two_pass=True), [0])
    share = two["fine_probability"]
    assert share.unique().numel() > 2 and share.min() < 0.7  # the CMI of the regions has a say
    expected = gradient(losses_of(base, model, two, exact_two_pass=True)["loss"], model)

    fine = read_batch(base, videos, Objective(weight=1.0, alpha=0.0), [0])
    diff = read_batch(base, videos, Objective(weight=0.0), [0])
    assert (fine["roles"][:, 1] == GENERATE).all() and (diff["roles"][:, 1] == IGNORE).all()
    drawn = [losses_of(base, model, batch)["per_sample"] for batch in (fine, diff)]
    mean_gradient = gradient((share * drawn[0] + (1 - share) * drawn[1]).mean(), model)
    scale = expected.abs().max().item()
    assert torch.allclose(mean_gradient, expected, atol=1e-5 * scale)
    always_fine = gradient(losses_of(base, model, fine)["loss"], model)
    assert not torch.allclose(always_fine, expected, atol=0.05 * scale)


def bias(differences):
    """|mean|² over what is to be expected of it if the true mean is zero: 1, give or take."""
    mean = differences.mean(0)
    variance = (differences - mean).square().sum() / (len(differences) - 1)
    return (len(differences) * mean.square().sum() / variance).item()


def test_drawn_branches_have_the_mean_gradient_of_two_passes(cogvideox_latents):
    """The same with real draws: 12 batches of 32. Always drawing L_fine, for one, would be told from it at once."""
    base, source = joint_base("cogvideox"), LatentSource(cogvideox_latents)
    model, differences = denoiser(base), {"drawn": [], "always fine": []}
    for number in range(12):
        epochs = range(4 * number, 4 * number + 4)
        two = read_batch(base, source, Objective(alpha=1.5, exact_two_pass=True), epochs)
        expected = gradient(losses_of(base, model, two, exact_two_pass=True)["loss"], model)
        for name, alpha in (("drawn", 1.5), ("always fine", 0.0)):
            batch = read_batch(base, source, Objective(alpha=alpha), epochs)
            differences[name].append(gradient(losses_of(base, model, batch)["loss"], model) - expected)
    assert bias(torch.stack(differences["drawn"])) < 3
    assert bias(torch.stack(differences["always fine"])) > 20


# Precision, noise, targets


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_scored_in_fp32(dtype):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(2, 3, 8, 16, 16, generator=generator).to(dtype)
    target = torch.randn(2, 3, 8, 16, 16, generator=generator).to(dtype)
    of = roles("joint", "video")
    losses, exact = (joint_loss(p, t, of) for p, t in ((prediction, target), (prediction.float(), target.float())))
    assert all(torch.equal(losses[name], exact[name]) and losses[name].dtype == torch.float32 for name in exact)
    assert losses["video"][0] != (prediction - target)[0, :, :4].square().mean()  # what half precision would give
    assert torch.equal(video_loss(prediction, target)["loss"], video_loss(prediction.float(), target.float())["loss"])


def test_video_and_mask_have_one_timestep_and_noise_of_their_own(base, latents):
    """Eq. 10, read off what reaches the model."""
    batch = read_batch(base, latents, Objective(alpha=0.0), range(8))
    seen = {}

    def model(*args, **kwargs):
        noisy = args[0] if args else kwargs["hidden_states"]
        seen.update(noisy=noisy, timesteps=args[1] if args else kwargs["timestep"])
        return (torch.zeros_like(noisy),)

    losses_of(base, model, batch)
    assert seen["timesteps"].shape == (64,) and seen["timesteps"].unique().numel() > 40
    alpha = base.noise_scheduler().alphas_cumprod[seen["timesteps"]].float().view(-1, 1, 1, 1, 1)
    noisy = seen["noisy"].chunk(2, dim=base.channel_dim)
    noise = [(x - alpha.sqrt() * batch[name]) / (1 - alpha).sqrt() for x, name in zip(noisy, ("video", "mask"))]
    for part in noise:  # unit noise, so each part was noised as much as this timestep says
        assert part.mean().abs() < 0.02 and part.std() == pytest.approx(1, abs=0.02)
        assert part.flatten(1).std(1).sub(1).abs().max() < 0.3
    correlation = torch.corrcoef(torch.stack([part.flatten() for part in noise]))[0, 1]
    assert correlation.abs() < 0.04
    assert torch.corrcoef(noise[0].flatten(1)).fill_diagonal_(0).abs().max() < 0.7  # and no two samples share theirs


@pytest.mark.parametrize("channel_dim", [1, 2])
def test_the_null_mask_is_no_noise(channel_dim):
    latents, noise = torch.randn(2, 6, 6, 2, 2), torch.randn(2, 6, 6, 2, 2)
    scheduler, timesteps = CogVideoXDDIMScheduler(), torch.tensor([500, 500])
    noisy = add_joint_noise(scheduler, latents, noise, timesteps, roles("joint", "video"), channel_dim)
    video, mask = noisy.chunk(2, dim=channel_dim)
    everything = scheduler.add_noise(latents, noise, timesteps)
    assert torch.equal(noisy[0], everything[0]) and torch.equal(video, everything.chunk(2, dim=channel_dim)[0])
    assert torch.equal(mask[1], torch.zeros_like(mask[1]))


@pytest.mark.parametrize("channel_dim", [1, 2])
@pytest.mark.parametrize("name", ROLES)
def test_what_is_given_stays_clean_and_what_is_left_out_is_zero(name, channel_dim):
    latents, noise = torch.randn(2, 6, 6, 2, 2), torch.randn(2, 6, 6, 2, 2)
    scheduler, timesteps = CogVideoXDDIMScheduler(), torch.tensor([500, 900])
    noised = scheduler.add_noise(latents, noise, timesteps)
    wanted = {GENERATE: noised, CONDITION: latents, IGNORE: torch.zeros_like(latents)}
    parts = add_joint_noise(scheduler, latents, noise, timesteps, roles(name, name), channel_dim)
    for number, (part, role) in enumerate(zip(parts.chunk(2, dim=channel_dim), ROLES[name])):
        assert torch.equal(part, wanted[role].chunk(2, dim=channel_dim)[number])


def test_targets_follow_the_prediction_type():
    sample, noise, timesteps = torch.randn(2, 1, 4, 3, 3), torch.randn(2, 1, 4, 3, 3), torch.tensor([10, 900])
    epsilon = DDIMScheduler(prediction_type="epsilon")
    assert torch.equal(prediction_target(epsilon, sample, noise, timesteps), noise)
    assert torch.equal(prediction_target(DDIMScheduler(prediction_type="sample"), sample, noise, timesteps), sample)
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0, timestep_spacing="trailing"
    )
    target = prediction_target(scheduler, sample, noise, timesteps)
    alpha = scheduler.alphas_cumprod[timesteps].float().view(-1, 1, 1, 1, 1)
    noisy = scheduler.add_noise(sample, noise, timesteps)
    # Oracle: v gives the sample back, x_0 = sqrt(a) x_t - sqrt(1 - a) v.
    assert torch.allclose(alpha.sqrt() * noisy - (1 - alpha).sqrt() * target, sample, atol=1e-5)
    assert prediction_target(scheduler, sample.half(), noise.half(), timesteps).dtype == torch.float32


def test_unknown_prediction_type():
    scheduler = DDIMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="'flow'"):
        prediction_target(scheduler, torch.zeros(1), torch.zeros(1), torch.tensor([0]))


def test_fine_probability():
    assert fine_probability(1.0, 0.0).item() == 1.0
    assert fine_probability(0.8, 2.0, alpha=0.5).item() == pytest.approx(0.8 * math.exp(-1))
    assert fine_probability(0.8, -3.0).item() == pytest.approx(0.8)  # a negative estimate is clamped
    values = fine_probability(1.0, torch.tensor([0.0, 0.5, 1.0]))
    assert (values.diff() < 0).all()
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        fine_probability(1.5)
