"""In which precision this CPU trains the small world: bf16, or fp32 where it would only imitate bf16, which is far slower.

python examples/shapes/precision.py     # what --mixed_precision takes
"""

import torch
from torch.optim import _muon


def fast_precision() -> str:
    return "bf16" if torch.backends.cpu.get_cpu_capability() == "AVX512" else "no"


def fast_autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=fast_precision() == "bf16")


def orthogonalise_in_fp32(grad, coefficients, steps, eps):
    """The Newton-Schulz iteration of `torch.optim.Muon`, which has it in bf16 only."""
    a, b, c = coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


if fast_precision() == "no":
    _muon._zeropower_via_newtonschulz = orthogonalise_in_fp32

if __name__ == "__main__":
    print(fast_precision())
