"A student as operations and 16-bit weights: the same answers, and one sentence where it cannot be written"
import json
import numpy as np
import pytest
import torch
from torch import nn

from ekd_nb.browser import load_graph, network_graph, run_graph, save_graph
from ekd_nb.core import EKDError
from ekd_nb.student import branched_student


def student(arch='resnet8-w8', n=2, **kw):
    "A student with running statistics that are not 0 and 1"
    torch.manual_seed(0)
    s = branched_student(arch, n, **kw)
    for _ in range(2): s(1+2*torch.randn(8, *s.image_size))
    return s.eval()


@pytest.mark.parametrize('kw', [
    dict(), dict(split='heads'), dict(split='layer2', n=3), dict(arch='resnet8-w8-B', n_out=5),
    dict(arch='resnet14-w4', in_channels=1), dict(n=1, split='layer3')])
def test_every_branch_says_the_same(kw, tmp_path):
    s = student(**kw)
    x = torch.randn(3, *s.image_size)
    path = save_graph(network_graph(s), tmp_path/'s.json', size=list(s.image_size))
    g = load_graph(path)
    with torch.no_grad():
        h = s.trunk(x)
        z = torch.stack([b(h)[0] for b in s.branches])
    assert (run_graph(g, x)-z).abs().max()<.01*max(1, z.abs().max().item())
    assert g.weights.dtype==np.float16 and path.with_suffix('.bin').stat().st_size==2*len(g.weights)
    assert json.loads(path.read_text())['size']==list(s.image_size)


def test_no_batchnorm_is_left_and_weights_are_fewer():
    s = student()
    g = network_graph(s)
    assert {o['op'] for o in g.ops}<={'conv', 'relu', 'add', 'widen', 'pool', 'linear', 'keep'}
    assert len(g.weights)<sum(p.numel() for p in s.parameters())


def too_large():
    s = student()
    nn.init.constant_(s.branches[0].head.weight, 1e6)
    return s


@pytest.mark.parametrize('make, says', [
    (lambda: nn.Linear(2, 2), "student: got 'Linear', expected a BranchedStudent"),
    (lambda: student(fusion='gate'), "got 'gate', expected a student whose fusion is mean"),
    (lambda: student('wrn_16_1'), 'got the operation BatchNorm2d'),
    (lambda: student('densenet_10_4'), 'expected one of Conv2d'),
    (too_large, 'weights that 16 bits cannot hold')])
def test_what_cannot_be_written_is_refused_in_a_sentence(make, says):
    with pytest.raises(EKDError, match=says): network_graph(make())


def test_damaged_files_are_refused(tmp_path):
    path = save_graph(network_graph(student()), tmp_path/'s.json')
    whole, text = path.with_suffix('.bin').read_bytes(), path.read_text()
    path.with_suffix('.bin').write_bytes(whole[:-2])
    with pytest.raises(EKDError, match='weights'): load_graph(path)
    path.with_suffix('.bin').write_bytes(whole)
    path.write_text(text.replace('"k": 3', '"k": 1', 1))
    with pytest.raises(EKDError, match='digest does not match'): load_graph(path)
    with pytest.raises(EKDError, match='cannot be read'): load_graph(tmp_path/'none.json')


def test_weights_that_changed_are_refused(tmp_path):
    path = save_graph(network_graph(student()), tmp_path/'s.json')
    changed = bytearray(path.with_suffix('.bin').read_bytes())
    changed[0] ^= 1
    path.with_suffix('.bin').write_bytes(changed)
    with pytest.raises(EKDError, match='the weights that belong to'): load_graph(path)
