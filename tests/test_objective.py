import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler

from diffusers_jdm.objective import fine_probability, joint_loss, prediction_target


@pytest.mark.parametrize("channel_dim", [1, 2])
def test_loss_is_the_mean_over_the_channels_that_count(channel_dim):
    generator = torch.Generator().manual_seed(0)
    shape = [4, 3, 3, 5, 5]
    shape[channel_dim] = 8
    prediction = torch.randn(shape, generator=generator)
    target = torch.randn(shape, generator=generator)
    everything = joint_loss(prediction, target, torch.ones(4, dtype=torch.bool), channel_dim)
    assert torch.allclose(everything["loss"], torch.nn.functional.mse_loss(prediction, target))
    video, video_target = (x.narrow(channel_dim, 0, 4) for x in (prediction, target))
    nothing = joint_loss(prediction, target, torch.zeros(4, dtype=torch.bool), channel_dim)
    assert torch.allclose(nothing["loss"], torch.nn.functional.mse_loss(video, video_target))
    assert nothing["mask"] == 0


def test_no_gradient_reaches_the_mask_channels_of_l_diff():
    prediction = torch.randn(2, 1, 4, 3, 3, requires_grad=True)
    joint_loss(prediction, torch.zeros_like(prediction), torch.tensor([True, False]))["loss"].backward()
    assert prediction.grad[0, :, 2:].abs().min() > 0
    assert torch.equal(prediction.grad[1, :, 2:], torch.zeros(1, 2, 3, 3))


def test_drawing_the_branch_gives_the_gradient_of_the_weighted_sum():
    """Over many draws of the branch, the gradient is that of (1 - w') L_diff + w' L_fine in two passes (Eq. 13)."""
    generator = torch.Generator().manual_seed(1)
    weight, count = 0.3, 4000
    parameter = torch.randn(1, 4, 2, 2, generator=generator, requires_grad=True)  # a stand-in for the network
    inputs, target = torch.randn(1, 4, 2, 2, generator=generator), torch.randn(1, 4, 2, 2, generator=generator)
    null_inputs = torch.cat([inputs[:, :2], torch.zeros(1, 2, 2, 2)], dim=1)

    def forward(network_input):
        return parameter * network_input + parameter.mean()

    two_pass = weight * (forward(inputs) - target).square().mean()
    two_pass = two_pass + (1 - weight) * (forward(null_inputs) - target)[:, :2].square().mean()
    expected = torch.autograd.grad(two_pass, parameter)[0]

    is_fine = torch.rand(count, generator=generator) < weight
    prediction = torch.where(is_fine[:, None, None, None, None], forward(inputs), forward(null_inputs))
    one_pass = joint_loss(prediction, target.expand_as(prediction), is_fine)["loss"]
    actual = torch.autograd.grad(one_pass, parameter)[0]
    assert torch.allclose(actual, expected, atol=0.05 * expected.abs().max().item())


def test_bf16_predictions_are_scored_in_fp32():
    prediction = torch.randn(2, 1, 4, 3, 3).bfloat16()
    assert joint_loss(prediction, prediction, torch.tensor([True, True]))["loss"].dtype == torch.float32


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
