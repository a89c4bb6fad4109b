import copy

import torch
from small_scripts import script


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Linear(8, 8))


def optimizer(net):
    rest = [net[0].weight, net[0].bias, net[1].bias]
    return script("muon").MuonAndAdamW(rest, [net[1].weight], lr=1e-2, muon_lr=3e-2, weight_decay=0.1)


def steps(net, own, count, first=0):
    for number in range(first, first + count):
        net(torch.randn(5, 12, generator=torch.manual_seed(number))).square().sum().backward()
        own.step()
        own.zero_grad()


def values(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def test_each_part_is_trained_by_its_own_optimizer():
    ours, theirs = model(), model()
    steps(ours, optimizer(ours), 1)
    adamw = torch.optim.AdamW([theirs[0].weight, theirs[0].bias, theirs[1].bias], lr=1e-2, weight_decay=0.1)
    muon = torch.optim.Muon([theirs[1].weight], lr=3e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    theirs(torch.randn(5, 12, generator=torch.manual_seed(0))).square().sum().backward()
    adamw.step(), muon.step()
    assert torch.equal(values(ours), values(theirs))


def test_a_run_goes_on_where_its_state_was_saved():
    whole = model()
    own = optimizer(whole)
    steps(whole, own, 2)
    resumed, state = copy.deepcopy(whole), copy.deepcopy(own.state_dict())
    steps(whole, own, 2, first=2)
    other = optimizer(resumed)
    other.load_state_dict(state)
    steps(resumed, other, 2, first=2)
    assert torch.equal(values(resumed), values(whole))
