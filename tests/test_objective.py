import math

import pytest
import torch
from small_data import perturb

from diffusers_jdm.objective import apply_roles, fine_probability, joint_loss, video_loss
from diffusers_jdm.roles import CONDITION, GENERATE, IGNORE, ROLES
from diffusers_jdm.samples.dataset import Objective, RegionDataset, collate
from diffusers_jdm.training.step import compute_losses, encode, to_device


def roles(*names):
    return torch.tensor([ROLES[name] for name in names])


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read_batch(base, source, objective, epochs=(0,)):
    """All samples of the source in these epochs, as the training loop sees them."""
    dataset = RegionDataset(source, range(len(source.ids)), objective, seed=5)
    samples = [dataset[epoch, index] for epoch in epochs for index in range(len(source.ids))]
    return encode(base, to_device(collate(samples), torch.device("cpu")))


def gradient(loss, model):
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("channel_dim", [1, 2])
def test_loss_is_the_mean_over_the_channels_that_count(channel_dim):
    names = ["joint", "video", *ROLES]
    shape = [len(names), 3, 3, 5, 5]
    shape[channel_dim] = 8
    prediction, target = randn(*shape), randn(*shape, seed=1)
    losses = joint_loss(prediction, target, roles(*names), channel_dim)
    for i, name in enumerate(names):
        whole = [prediction[i], target[i]]
        video, mask = ([x.narrow(channel_dim - 1, start, 4) for x in whole] for start in (0, 4))
        parts = {"video": video, "mask": mask}
        parts["per_sample"] = {"joint": whole, "video": video, "layout": video}.get(name, mask)
        for part, pair in parts.items():
            torch.testing.assert_close(losses[part][i], torch.nn.functional.mse_loss(*pair))
    torch.testing.assert_close(losses["loss"], losses["per_sample"].mean())


def test_weights_are_those_of_eq_13():
    prediction, target = randn(4, 1, 4, 3, 3), randn(4, 1, 4, 3, 3, seed=1)
    weight = torch.tensor([0.3, 0.7, 0.9, 0.1])  # of two samples, each in L_fine and in L_diff
    losses = joint_loss(prediction, target, roles("joint", "video", "joint", "video"), 2, weight)
    fine, diff = losses["per_sample"][::2], losses["per_sample"][1::2]
    expected = (0.3 * fine[0] + 0.7 * diff[0] + 0.9 * fine[1] + 0.1 * diff[1]) / 2
    torch.testing.assert_close(losses["loss"], expected)


def test_l_diff_teaches_the_model_nothing_about_the_mask(base, latents):
    """Neither the mask's rows of the output projection nor, since the null mask is zero, its columns of the input."""
    model = perturb(base.pipe.components[base.component])
    for weight, learns in ((1.0, True), (0.0, False)):
        batch = read_batch(base, latents, Objective(weight=weight, alpha=0.0))
        compute_losses(base, model, batch, "jdm")["loss"].backward()
        for name, growth in base.projections.items():
            grad = model.get_parameter(name).grad.unflatten(growth.dim, (growth.positions, 2, -1))
            assert bool(grad.select(growth.dim + 1, 1).any()) == learns, name
        model.zero_grad()


def test_one_pass_has_the_mean_gradient_of_two_passes(base, latents):
    """The mean over the draw of the branch: the rest follows from the seed, so each sample is read with either branch."""
    model = perturb(base.pipe.components[base.component])
    two = read_batch(base, latents, Objective(alpha=1.5, exact_two_pass=True))
    share = two["fine_probability"]
    assert share.unique().numel() > 2 and share.min() < 0.7  # the CMI of the regions has a say
    expected = gradient(compute_losses(base, model, two, "jdm", exact_two_pass=True)["loss"], model)

    fine = read_batch(base, latents, Objective(weight=1.0, alpha=0.0))
    diff = read_batch(base, latents, Objective(weight=0.0))
    assert (fine["roles"][:, 1] == GENERATE).all() and (diff["roles"][:, 1] == IGNORE).all()
    drawn = [compute_losses(base, model, batch, "jdm")["per_sample"] for batch in (fine, diff)]
    mean_gradient = gradient((share * drawn[0] + (1 - share) * drawn[1]).mean(), model)
    assert torch.allclose(mean_gradient, expected, atol=1e-5 * expected.abs().max().item())


def test_half_precision_predictions_are_scored_in_fp32():
    prediction, target = (randn(2, 3, 8, 16, 16, seed=seed).bfloat16() for seed in (0, 1))
    of = roles("joint", "video")
    losses, exact = (joint_loss(p, t, of, 2) for p, t in ((prediction, target), (prediction.float(), target.float())))
    assert all(torch.equal(losses[name], exact[name]) and losses[name].dtype == torch.float32 for name in exact)
    assert losses["video"][0] != (prediction - target)[0, :, :4].square().mean()  # what half precision would give
    assert torch.equal(video_loss(prediction, target)["loss"], video_loss(prediction.float(), target.float())["loss"])


def test_video_and_mask_have_one_timestep_and_noise_of_their_own(base, latents):
    """Eq. 10, read off what reaches the model."""
    batch, seen = read_batch(base, latents, Objective(alpha=0.0), range(8)), {}

    def predict(model, noisy, timesteps, prompt_embeds, roles=None):
        seen.update(noisy=noisy, timesteps=timesteps)
        return torch.zeros_like(noisy)

    base.predict = predict
    compute_losses(base, None, batch, "jdm")
    assert seen["timesteps"].shape == (64,) and seen["timesteps"].unique().numel() > 40
    alpha = base.noise_scheduler.alphas_cumprod[seen["timesteps"]].float().view(-1, 1, 1, 1, 1)
    noisy = seen["noisy"].chunk(2, dim=base.channel_dim)
    noise = [(x - alpha.sqrt() * batch[name]) / (1 - alpha).sqrt() for x, name in zip(noisy, ("video", "mask"))]
    for part in noise:  # unit noise, so each part was noised as much as this timestep says
        assert part.mean().abs() < 0.02 and part.std() == pytest.approx(1, abs=0.02)
        assert part.flatten(1).std(1).sub(1).abs().max() < 0.3
    assert torch.corrcoef(torch.stack([part.flatten() for part in noise]))[0, 1].abs() < 0.04
    assert torch.corrcoef(noise[0].flatten(1)).fill_diagonal_(0).abs().max() < 0.7  # and no two samples share theirs


@pytest.mark.parametrize("channel_dim", [1, 2])
def test_what_is_given_stays_clean_and_what_is_left_out_is_zero(channel_dim):
    latents, noisy = (randn(len(ROLES), 6, 6, 2, 2, seed=seed) for seed in (0, 1))
    wanted = {GENERATE: noisy, CONDITION: latents, IGNORE: torch.zeros_like(latents)}
    found = apply_roles(noisy, latents, roles(*ROLES), channel_dim)
    for part in (0, 1):
        halves = {role: tensor.chunk(2, channel_dim)[part] for role, tensor in wanted.items()}
        for number, of in enumerate(ROLES.values()):
            assert torch.equal(found.chunk(2, channel_dim)[part][number], halves[of[part]][number])


def test_fine_probability():
    assert fine_probability(1.0, 0.0).item() == 1.0
    assert fine_probability(0.8, 2.0, alpha=0.5).item() == pytest.approx(0.8 * math.exp(-1))
    assert fine_probability(0.8, -3.0).item() == pytest.approx(0.8)  # a negative estimate is clamped
    assert (fine_probability(1.0, torch.tensor([0.0, 0.5, 1.0])).diff() < 0).all()
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        fine_probability(1.5)
