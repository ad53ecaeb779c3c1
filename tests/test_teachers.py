"Teachers: sources, adapter, files"
import json, sys, warnings
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from torch import nn
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, dls
from ekd_nb.core import EKDError, digest_matches, add_digest, write_atomic
from ekd_nb.models import get_model
from ekd_nb.teachers import TeacherAdapter, TeacherEnsemble, check_teachers, load_teacher, read_manifest, save_teacher


def test_copies_not_the_caller_s_network():
    net = Net()
    e = TeacherEnsemble([net])
    net.fc.bias.data.add_(1)
    assert not torch.equal(e.models[0].fc.bias, net.fc.bias)
    assert all(p.requires_grad for p in net.parameters())


def test_half_weights_come_back_as_float(tmp_path):
    net = get_model(SMALL, 10, 1).eval()
    m = load_teacher(save_teacher(net, tmp_path/'t.safetensors', half=True))
    assert all(p.dtype is torch.float32 for p in m.parameters())
    x = torch.randn(2, 1, 8, 8)
    assert (m(x)-net(x)).abs().max() < 1e-2


def test_learner_is_saved(tmp_path):
    from ekd_nb.learner import teacher_learner
    l = teacher_learner(dls(), SMALL)
    m = load_teacher(save_teacher(l, tmp_path/'t.safetensors', accuracy=.5, seed=3))
    assert m.manifest['seed'] == 3 and m.manifest['accuracy'] == .5 and digest_matches(m.manifest)
    assert {'torch', 'fastai', 'python'} <= set(m.manifest['versions'])


@pytest.mark.parametrize('key, value', [('accuracy', .99), ('arch', 'resnet14'), ('n_out', 11), ('seed', 4)])
def test_any_change_of_the_manifest_is_seen(tmp_path, key, value):
    p = save_teacher(get_model(SMALL, 10, 1), tmp_path/'t.safetensors', accuracy=.5, seed=3)
    m = p.with_suffix('.json')
    m.write_text(json.dumps(json.loads(m.read_text()) | {key: value}))
    with pytest.raises(EKDError, match='changed by hand'): read_manifest(p)


def test_seal_survives_json():
    r = add_digest(dict(a=.1, b=[1, None, 'ä'], c=dict(d=1e-30)))
    assert digest_matches(json.loads(json.dumps(r))) and not digest_matches(dict(r, a=.2)) and not digest_matches([]) and add_digest(r) == r


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    p = tmp_path/'x'
    p.write_text('old')
    def write(part): part.write_text('half'); raise OSError('no space')
    with pytest.raises(OSError): write_atomic(p, write)
    assert [q.name for q in tmp_path.iterdir()] == ['x'] and p.read_text() == 'old'


def test_adapter_undoes_our_normalisation():
    class See(nn.Module):
        def forward(self, x): self.x = x; return x.mean((2, 3))
    mean, std = ([.5, .4, .3], [.2, .3, .4])
    a = TeacherAdapter(nn.Identity(), (mean, std), ((0., 0., 0.), (1., 1., 1.)))
    a.model = see = See()
    img = torch.rand(2, 3, 6, 6)
    m, s = (torch.tensor(o).view(1, 3, 1, 1) for o in (mean, std))
    a((img-m)/s)
    assert torch.allclose(see.x, img, atol=1e-6)


def test_adapter_of_a_better_teacher_makes_it_better():
    "A teacher trained on [0,1] pixels is worse on normalised batches and as good as before through the adapter"
    torch.manual_seed(0)
    x = torch.rand(200, 1, 8, 8)
    y = (x.mean((1, 2, 3)) > .5).long()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    net[1].weight.data = torch.stack([-torch.ones(64), torch.ones(64)])/64
    net[1].bias.data = torch.tensor([.5, -.5])
    batch = (x-.9)/.1
    plain, adapted = net(batch).argmax(1), TeacherAdapter(net, ((.9,), (.1,)), ((0.,), (1.,)))(batch).argmax(1)
    assert (adapted == y).all() and (plain == y).float().mean() < .8


def test_grey_and_rgb():
    x1, x3 = torch.rand(2, 1, 8, 8), torch.rand(2, 3, 8, 8)
    stats = ((0.,), (1.,))
    assert TeacherAdapter(Net(10, 3), stats, size=16, channels=3)(x1).shape == (2, 10)
    assert TeacherAdapter(Net(10, 1), stats, stats, channels=1)(x3).shape == (2, 10)


def test_class_map_picks_columns():
    net = Net(100).eval()
    e = TeacherEnsemble([net], class_maps=[[7, 3]])
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(check_teachers(e, x, 2).logits[0], net(x)[:, [7, 3]])
