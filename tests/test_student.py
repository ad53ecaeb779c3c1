"A student computes what the network named computes, keeps its weights, and is saved under a name that builds it"
import json, os, sys
from pathlib import Path

import pytest, torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn
from ekd_nb.core import EKDError, digest_matches, output_distance
from ekd_nb.cut import split_stages
from ekd_nb.networks import create_network
from ekd_nb.deploy import EXPORTERS, export_student, load_student, save_student
from ekd_nb.fold import fold_batchnorm
from ekd_nb.learner import ekd_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.models import count_flops, count_params, get_model
from ekd_nb.split import MAX_COST
from ekd_nb.student import BranchedStudent, branched_student

sys.path.insert(0, str(Path(__file__).parents[1]/'tools'))
import timm_students


def rebuilt(net, parts, x):
    "Logits of the parts, one after the other, with the network's own classifier"
    head = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    f = parts.stages.eval()(x)
    return head(f.mean((2, 3)) if parts.pool is None else parts.pool.eval()(f)), f


# ---- where the trunk ends

@pytest.mark.parametrize('arch', ['resnet8', 'resnet20', 'wrn_16_2', 'densenet_40_12'])
@pytest.mark.parametrize('n', [2, 3, 4])
def test_the_default_split_is_the_earliest_within_the_cost(arch, n):
    s, alone = branched_student(arch, n, size=32), count_flops(get_model(arch))
    k = len(s.trunk)
    cost = lambda split: count_flops(branched_student(arch, n, split=split, size=32))/alone
    assert s.kind == 'branches' and cost(k) <= MAX_COST+.01 and (k == 1 or cost(k-1) > MAX_COST-.01)


def test_resnet8_splits_as_in_the_protocols():
    s = branched_student('resnet8', 3)
    assert list(s.trunk._modules) == ['stem', 'layer1'] and '2.16 times those of resnet8' in s.summary((3, 32, 32))


def test_heads_are_asked_for_by_name():
    s = branched_student('resnet8', 3, split='heads')
    assert s.kind == s.keep(1).kind == 'heads' and '3 heads' in repr(s)
    assert count_params(s) == count_params(branched_student('resnet8', 3, split='layer3'))


# ---- cut

@pytest.mark.parametrize('make', [tv.shufflenet_v2_x0_5, tv.densenet121, tv.mobilenet_v2, tv.mobilenet_v3_small,
                                  tv.resnet18, tv.swin_t, tv.convnext_tiny], ids=lambda f: f.__name__)
def test_torchvision_networks_are_cut_right(make):
    torch.manual_seed(0)
    net = make(num_classes=4).eval()
    parts = split_stages(net)
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        want = net(x)
        z, f = rebuilt(net, parts, x)
    assert output_distance(want, z) < 1e-4 and f.ndim == 4
    in_stages = count_params(parts.stages) + (count_params(parts.pool) if parts.pool is not None else 0)
    head = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    assert in_stages == count_params(net)-count_params(head)   # nothing is left over


@pytest.mark.parametrize('name', timm_students.TARGETS)
def test_timm_networks_are_students(name):
    s, learn, n = timm_students.try_student(name, split='blocks.8' if name.startswith(('vit', 'deit')) else None)
    assert learn == n and s.kind == 'branches'
    if name.startswith(('vit', 'deit')): assert list(s.trunk._modules)[-1] == 'blocks_8'


class Odd(nn.Module):
    "Functions between layers, a pooling layer used twice, and a layer before the classifier"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1), nn.MaxPool2d(2)
        self.mix, self.fc = nn.Linear(8, 6), nn.Linear(6, 4)
    def forward(self, x):
        x = self.pool(F.relu(self.a(x)))
        x = self.pool(F.relu(self.b(x)))*2
        return self.fc(torch.tanh(self.mix(F.adaptive_avg_pool2d(x, 1).flatten(1))))


class Twin(nn.Module):
    "Two classifiers whose logits are averaged"
    def __init__(self):
        super().__init__(); self.a, self.l, self.r = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 4)
    def forward(self, x): f = self.a(x).mean((2, 3)); return (self.l(f)+self.r(f))/2


STUDENT_RECORDS = sorted((Path(__file__).parents[1]/'results'/'students').glob('*.json'))

@pytest.mark.parametrize('path', STUDENT_RECORDS, ids=lambda p: p.stem)
def test_record_of_timm_students(path):
    r = json.loads(path.read_text())
    assert digest_matches(r) and not r['dirty'] and len({o['name'] for o in r['rows']}) >= 48
    assert sum(o['end'] == 'trained' for o in r['rows']) >= 40
    assert all(o['end'] == 'trained' or (o['end'] == 'refused' and '\n' not in o['sentence']) for o in r['rows'])


def test_a_row_of_timm_students():
    got = timm_students.row('resnet10t')
    assert got['end'] == 'trained' and 0 < got['shared'] < got['stages'] and got['learn'] == got['tensors']
    got = timm_students.row('no_such_network')
    assert got['end'] == 'refused' and 'no_such_network' in got['sentence']


def test_functions_between_layers_are_not_lost():
    net, x = Odd().eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        want = net(x)
        z, f = rebuilt(net, split_stages(net, size=16), x)
    assert torch.allclose(want, z, atol=1e-6) and f.shape[1] == 8
    one = branched_student(net, 1, 4, split=1, size=16).eval()
    one.branches[0].head.load_state_dict(net.fc.state_dict())
    assert torch.allclose(one(x), want, atol=1e-6)


def test_what_cannot_be_cut_is_refused_in_one_sentence():
    with pytest.raises(EKDError, match='Twin cannot be cut into stages .no single linear layer gives its logits.*pass '
                                       '`cut`'): branched_student(Twin(), 2, 4)
    with pytest.raises(EKDError, match='SqueezeNet cannot be cut'): branched_student(tv.squeezenet1_1(), 2, 4)
    with pytest.raises(EKDError, match="cut: 77 does not cut|cut: 77 leaves"):
        branched_student(lambda: tv.vit_b_16(image_size=64), 2, 4, cut=77)
    with pytest.raises(EKDError, match='cut: -1 leaves VisionTransformer a body that cannot run'):
        branched_student(lambda: tv.vit_b_16(image_size=64), 2, 4, cut=-1)
    assert branched_student(tv.squeezenet1_1, 2, 4, cut=-1, split=8).eval()(torch.randn(2, 3, 64, 64)).shape == (2, 4)


def test_gate_needs_a_map():
    with pytest.raises(EKDError, match="fusion: got 'gate'"):
        branched_student('vit_tiny_patch16_224', 2, 4, split='blocks.8', fusion='gate')


# ---- weights

def test_a_module_keeps_its_weights_in_every_branch(capsys):
    net = tv.resnet18(num_classes=4)
    s = branched_student(net, 3, 4, split='layer3')
    assert 'weights: trunk kept; branches 0–2 kept' in s.summary() and not capsys.readouterr().out
    for b in s.branches:
        assert all(torch.equal(v, b.body[0].state_dict()[k]) for k, v in net.layer4.state_dict().items())
    both = [*s.parameters(), *net.parameters()]
    assert len({id(p) for p in both}) == len(both)
    assert [len(list(g)) for g in s.param_groups()][-1] == 6   # fine_tune trains the three classifiers first


def test_a_function_that_returns_one_module_makes_copies():
    net = tv.resnet18(num_classes=4)
    s = branched_student(lambda: net, 2, 4, split='layer3')
    assert 'branches 0, 1 kept' in s.summary()
    ids = {id(p) for p in net.parameters()}
    assert not any(id(p) in ids for p in s.parameters()) and s.branches[0].body[0] is not s.branches[1].body[0]


def test_a_function_that_builds_a_network_keeps_its_initialisation():
    "He, fan out, as torchvision draws it, in every branch anew"
    torch.manual_seed(0)
    s = branched_student(lambda: tv.resnet18(num_classes=4), 3, 4, split='layer3')
    ws = [b.body[0][0].conv1.weight for b in s.branches]
    assert all(abs(w.std().item()*(512*9/2)**.5-1) < .01 for w in ws) and not torch.equal(ws[0], ws[1])


@pytest.mark.parametrize('aux', [True, False])
def test_classifiers_on_the_way_are_left_out(aux):
    "GoogLeNet has two more of them while it trains"
    net = tv.googlenet(num_classes=4, aux_logits=aux, init_weights=False).eval()
    s, x = branched_student(net, 1, 4, split=3).eval(), torch.randn(2, 3, 64, 64)
    s.branches[0].head.load_state_dict(net.fc.state_dict())
    with torch.no_grad(): assert torch.allclose(s(x), net(x), atol=1e-5)


def test_names_have_new_weights_and_say_so(capsys):
    s = branched_student('resnet8', 2)
    assert not capsys.readouterr().out and 'weights: new' in s.summary() and len(s.param_groups()) == 3
    assert not torch.equal(s.branches[0].body[0][0].convs[0].weight, s.branches[1].body[0][0].convs[0].weight)


def test_a_frozen_teacher_becomes_a_student_that_learns():
    net = get_model('resnet8').requires_grad_(False)
    s = branched_student(net, 2)
    assert (all(p.requires_grad for p in s.parameters()) and 'was frozen' in s.summary() and
            not any(p.requires_grad for p in net.parameters()))


@pytest.mark.parametrize('channels', [1, 5, 6])
def test_other_channels_keep_the_first_layer(channels):
    net = tv.resnet18(num_classes=4)
    s = branched_student(net, 2, 4, in_channels=channels)
    w = s.trunk.conv1.weight
    if channels == 1: assert torch.allclose(w[:, 0], net.conv1.weight.sum(1), atol=1e-6)
    else: assert torch.allclose(w[:, :3], net.conv1.weight*3/channels)
    assert s.eval()(torch.randn(2, channels, 64, 64)).shape == (2, 4)


def test_pretrained_weights_of_a_builder_and_a_name(monkeypatch):
    saved = tv.resnet18().state_dict()
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', lambda *a, **k: saved)   # no download
    for arch in (tv.resnet18, 'shufflenet_v2_x0_5'):
        if arch == 'shufflenet_v2_x0_5': saved = tv.shufflenet_v2_x0_5().state_dict()
        s = branched_student(arch, 2, 4, split=1, pretrained=True)
        first = s.trunk.conv1.weight if arch is tv.resnet18 else s.trunk.conv1[0].weight
        assert torch.equal(first, saved['conv1.weight'] if arch is tv.resnet18 else saved['conv1.0.weight'])
        assert 'trunk kept; branches 0, 1 kept' in s.summary()
    with pytest.raises(EKDError, match='resnet8 has no pretrained weights'):
        branched_student('resnet8', 2, pretrained=True)


def test_fine_tune_trains_what_is_new():
    heads = branched_student(tv.resnet18(num_classes=4), 2, 4, split='heads')
    trunk, new = heads.param_groups()
    assert {id(p) for p in new} == {id(p) for b in heads.branches for p in b.parameters()}


@pytest.mark.skipif(not os.environ.get('EKD_DATA'), reason='needs the real CIFAR: EKD_DATA is not set')
@pytest.mark.parametrize('split, new', [('heads', ['branches.', 'projections.']),
                                        ('layer3', ['head.', 'projections.'])])
def test_fine_tune_on_images_of_cifar(split, new):
    "First what is new learns, then everything"
    from fastai.callback.core import Callback
    from ekd_nb.data import image_dls, load_images, stratified_subset
    data = load_images('cifar10', os.environ['EKD_DATA'])
    d = image_dls(data, stratified_subset(data.y_train, n_per_class=2), bs=10, n_views=1, device='cpu')
    net = tv.resnet18(num_classes=1000)   # stands for a pretrained network
    kw = dict(n_branches=2, split=split, judge=False, loss_func=EKDLoss(gamma=1.))
    l = ekd_learner(d, net, [tv.resnet18(num_classes=10)], **kw)
    moved,before = [],{k: p.detach().clone() for k, p in l.model.named_parameters() if p.ndim > 1}
    class Watch(Callback):
        def after_fit(self):
            now = dict(self.learn.model.named_parameters())
            moved.append({k for k, p in before.items() if not torch.equal(p, now[k])})
            before.update({k: now[k].detach().clone() for k in before})
    with l.no_bar(), l.no_logging(): l.fine_tune(1, 1e-2, cbs=Watch())
    assert moved[0] and all(any(part in k for part in new) for k in moved[0])
    assert moved[1] == set(before)


# ---- folding

class Twice(nn.Module):
    def __init__(self):
        super().__init__(); self.c, self.b1, self.b2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    def forward(self, x): return self.b2(self.c(self.b1(self.c(x))))


class Standardized(nn.Conv2d):
    def forward(self, x):
        w = self.weight; return F.conv2d(x, (w-w.mean((1, 2, 3), True))/w.std((1, 2, 3), keepdim=True), self.bias)


class NormAct(nn.BatchNorm2d):
    def forward(self, x): return F.relu(super().forward(x))


def hooked():
    m = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    m[0].register_forward_hook(lambda m, i, o: o*2)
    return m


@pytest.mark.parametrize('make', [Twice, lambda: nn.Sequential(Standardized(3, 8, 3), nn.BatchNorm2d(8)),
                                  lambda: nn.Sequential(nn.Conv2d(3, 8, 3), NormAct(8)), hooked,
                                  lambda: nn.Sequential(nn.Conv2d(3, 8, 3),
                                                        nn.BatchNorm2d(8, track_running_stats=False)),
                                  lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
                                                        nn.BatchNorm2d(8))])
def test_folding_changes_no_answer(make):
    torch.manual_seed(0)
    m, x = make(), torch.randn(8, 3, 8, 8)
    for _ in range(5): m(x*2+1)
    assert output_distance(m.eval()(x), fold_batchnorm(m)(x)) < 1e-5


def test_a_network_that_folding_would_change_is_refused():
    class Peek(nn.Module):
        "Reads the weights of its convolution"
        def __init__(self): super().__init__(); self.c, self.n = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        def forward(self, x): return self.n(self.c(x))*self.c.weight.sum()
    m = Peek()
    for _ in range(3): m(torch.randn(8, 3, 8, 8)*3+1)
    with pytest.raises(EKDError, match='computes something else'): fold_batchnorm(m)


# ---- names

def resnet8(n_out=10, in_channels=3):
    "An own function with the package's name and another activation"
    m = get_model('resnet8', n_out, in_channels)
    for o in m.modules():
        for k, c in o.named_children():
            if isinstance(c, nn.ReLU): setattr(o, k, nn.SiLU())
    m.arch = None
    return m


def test_a_name_that_builds_another_network_is_not_saved(tmp_path):
    s, x = branched_student(resnet8, 2, 4).eval(), torch.randn(4, 3, 32, 32)
    path = save_student(s, tmp_path)
    with pytest.raises(EKDError, match='holds a network without a name'): load_student(path)
    assert torch.equal(load_student(path, branched_student(resnet8, 2, 4))(x), s(x))
    with pytest.raises(EKDError, match='computes something else'): save_student(s, tmp_path, arch='resnet8')


def test_an_attribute_arch_that_is_no_longer_true_is_found(tmp_path):
    net = get_model('resnet8', 4)
    net.stages.layer2[0].convs[2] = nn.SiLU()   # `.arch` still says resnet8
    with pytest.raises(EKDError, match='computes something else'): save_student(branched_student(net, 2, 4), tmp_path)


def test_one_branch_of_different_networks_is_saved(tmp_path):
    both, x = branched_student(['resnet8', 'resnet14'], 2, 4, split='layer1'), torch.randn(2, 3, 32, 32)
    first, second = both.keep([0]).eval(), both.keep([1]).eval()
    assert torch.equal(load_student(save_student(first, tmp_path/'0'))(x), first(x))
    path = save_student(second, tmp_path/'1')   # the trunk of one and the branch of the other: no name builds it
    assert torch.equal(load_student(path, both.keep([1]))(x), second(x))


# ---- formats

@pytest.mark.parametrize('name', EXPORTERS)
def test_every_format_gives_the_answers_back(name, tmp_path):
    e, s, x = EXPORTERS[name], branched_student('resnet8-w4', 2, 4, size=16).eval(), torch.randn(4, 3, 16, 16)
    if not e.available: pytest.skip('packages missing')
    read = e.read(export_student(s, tmp_path/f'a{e.suffix}', x))
    assert output_distance(s(x[:3]), read(x[:3])) < 1e-4
    with pytest.raises(EKDError, match='expected a suffix among .safetensors'): export_student(s, tmp_path/'a.h5', x)


def test_pooling_with_layers_is_part_of_every_branch():
    net = tv.mobilenet_v3_small(num_classes=4).eval()
    s = branched_student(net, 2, 4, split='heads')
    one, x = branched_student(net, 1, 4, split=5).eval(), torch.randn(2, 3, 64, 64)
    one.branches[0].head.load_state_dict(net.classifier[3].state_dict())
    assert torch.allclose(one(x), net(x), atol=1e-5) and s.kind == 'heads'
    two = branched_student(net, 2, 4, split=5)
    assert all(torch.equal(next(b.pool.parameters()), net.classifier[0].weight) for b in two.branches)
    with pytest.raises(EKDError, match='layers after pooling'): branched_student(net, 2, 4, split=5, grouped=True)


@pytest.mark.parametrize('size', [(3, 0, 8), (1, 8, 8), (3, 8), 'abc', 3, (3, 8., 8)])
def test_the_size_of_an_image_is_checked(size):
    s = branched_student('resnet8-w4', 2, 10)
    for f in (s.show, s.summary, s.draw):
        with pytest.raises(EKDError, match=r'size: got .*expected that of one image: \(3 channels'): f(size)
