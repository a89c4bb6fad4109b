import pytest
import torch
from small_scripts import script
from torch.optim import _muon


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_muon_in_fp32_leaves_the_singular_vectors_and_makes_their_values_alike(shape):
    grad = torch.randn(shape, generator=torch.manual_seed(0))
    step = script("precision").orthogonalise_in_fp32(
        grad, (_muon.DEFAULT_A, _muon.DEFAULT_B, _muon.DEFAULT_C), _muon.DEFAULT_NS_STEPS, _muon.EPS
    )
    left, values, right = torch.linalg.svd(grad, full_matrices=False)
    found = left.T @ step @ right.T
    assert torch.allclose(found, found.diag().diag(), atol=1e-4)
    kept = found.diag()[values > values[0] / 100]  # the smallest need more steps
    assert step.shape == shape and 0.5 < kept.min() < kept.max() < 1.5
