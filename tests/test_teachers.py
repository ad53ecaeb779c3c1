"Teachers: sources, adapter, files"
import copy, hashlib, json, random, sys, warnings
from pathlib import Path
import numpy as np
import pytest, torch
import torch.nn.functional as F
from torch import nn
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, dls, folder_dls, learner as learner_of, torch_loaders
from ekd_nb.core import EKDError, digest_matches, add_digest, write_atomic
from ekd_nb.models import get_model
from ekd_nb.features import find_features, forward_with_features
from ekd_nb.judge import class_map
from ekd_nb.recipes import allowed_builders
from ekd_nb.student import branched_student
from ekd_nb.teachers import TeacherAdapter, TeacherEnsemble, as_teacher, load_teacher, read_manifest, save_teacher


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
    assert digest_matches(json.loads(json.dumps(r))) and add_digest(r) == r
    assert not digest_matches(dict(r, a=.2)) and not digest_matches([])


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
    assert torch.equal(e.probe(x, 2).logits[0], net(x)[:, [7, 3]])


# ---- which map is the last one

def hint_width(model, x):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return list(TeacherEnsemble([model], feature_grid=1)(x).features[0].shape)


def test_map_of_torchvision_networks():
    from torchvision.models import densenet121, shufflenet_v2_x0_5, squeezenet1_1
    x = torch.randn(2, 3, 64, 64)
    net = densenet121(num_classes=4).eval()
    assert hint_width(net, x) == [2, net.classifier.in_features, 1, 1]
    net = squeezenet1_1(num_classes=4).eval()
    assert hint_width(net, x) == [2, net.classifier[1].in_channels, 1, 1]
    net = shufflenet_v2_x0_5(num_classes=4).eval()
    assert hint_width(net, x) == [2, net.fc.in_features, 1, 1]


SIDE = dict(img_size=64)
TIMM = dict.fromkeys(['nf_regnet_b0', 'mambaout_femto', 'sequencer2d_s', 'convnext_atto', 'repvgg_a0', 'resnetv2_18',
                      'regnetx_002', 'efficientnet_b0', 'mobilenetv3_small_050', 'densenet121', 'mobilenetv2_035'], {})
TIMM |= dict(swin_tiny_patch4_window7_224=dict(window_size=4, **SIDE),
             swinv2_cr_tiny_ns_224=dict(window_size=2, **SIDE), vit_tiny_patch16_224=SIDE,
             deit_tiny_patch16_224=SIDE)

@pytest.mark.parametrize('name', TIMM)
def test_map_of_timm_networks(name):
    timm = pytest.importorskip('timm')
    net = timm.create_model(name, num_classes=4, **TIMM[name]).eval()
    x = torch.randn(2, 3, 64, 64)
    assert hint_width(net, x) == [2, net.num_features, 1, 1]
    with torch.no_grad(): want = net.forward_features(x)
    if want.ndim == 3: want = want[:, 0, :, None, None]   # tokens: the class token
    elif want.shape[1] != net.num_features: want = want.permute(0, 3, 1, 2)
    got = TeacherEnsemble([net], feature_grid=1)(x).features[0]
    assert torch.allclose(got, want.mean((2, 3), keepdim=True), atol=1e-4)


def test_tokens_that_a_network_averages_are_averaged():
    timm = pytest.importorskip('timm')
    net = timm.create_model('vit_tiny_patch16_224', num_classes=4, global_pool='avg', **SIDE).eval()
    x = torch.randn(2, 3, 64, 64)
    got = TeacherEnsemble([net], feature_grid=1)(x).features[0]
    with torch.no_grad(): pooled = net.forward_head(net.forward_features(x), pre_logits=True)
    assert torch.allclose(got.flatten(1), pooled, atol=1e-4)


class LastChannels(nn.Module):
    "Channels last, as many of them as rows and columns, a ReLU and a mean that are no layers"
    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 5)
    def forward(self, x): return self.fc(F.relu(self.mix(self.conv(x).permute(0, 2, 3, 1))).mean((1, 2)))


def test_map_of_a_network_of_ones_own():
    net, x = LastChannels().eval(), torch.randn(3, 3, 8, 8)
    spot = find_features(net, x)
    assert (spot.layer, spot.layout, spot.relu) == ('mix', 'BHWC', True)
    z, f = forward_with_features(net, x, spot)
    assert torch.allclose(net.fc(f.mean((2, 3))), z, atol=1e-5)


def test_map_that_cannot_be_told_is_refused():
    class Peak(LastChannels):
        def forward(self, x): return self.fc(self.mix(self.conv(x).permute(0, 2, 3, 1)).amax((1, 2)))
    with pytest.raises(EKDError, match='which cannot be told'): find_features(Peak(), torch.randn(3, 3, 8, 8))
    assert find_features(Peak(), torch.randn(3, 3, 16, 16)).layout == 'BHWC'


# ---- odd teachers

class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.other = get_model(SMALL, 4), nn.Linear(64, 32)
    def forward(self, x): return self.net(x)


def weight_normed():
    net = nn.Sequential(nn.Flatten(), torch.nn.utils.weight_norm(nn.Linear(192, 4)))
    net(torch.zeros(1, 3, 8, 8))
    return net


def quantised():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), {nn.Linear})


ODD = dict(
    unused=Unused,
    compiled=lambda: torch.compile(get_model(SMALL, 4), backend='eager'),
    half=lambda: get_model(SMALL, 4).half(),
    double=lambda: get_model(SMALL, 4).double(),
    weight_norm=weight_normed,
    parallel=lambda: nn.DataParallel(get_model(SMALL, 4)),
    traced=lambda: torch.jit.trace(get_model(SMALL, 4).eval(), torch.randn(2, 3, 8, 8)),
    quantised=quantised)

@pytest.mark.parametrize('kind', ODD)
@pytest.mark.filterwarnings('ignore')
def test_odd_teachers(kind):
    torch.manual_seed(0)
    net, x = ODD[kind]().eval(), torch.randn(4, 3, 8, 8)
    dtype = next((p.dtype for p in net.parameters()), x.dtype)
    for grid in (0, 1):
        e = TeacherEnsemble([net], feature_grid=grid)
        out = e.probe(x)
        with torch.no_grad(): assert torch.allclose(out.logits[0], net(x.to(dtype)).float(), atol=1e-3)
        assert out.logits.dtype is torch.float32 and len(e.fingerprint()) == 64
    if kind == 'traced':
        with pytest.raises(EKDError, match='no feature layer.*set gamma=0'): e.probe(x, features=True)


def test_fingerprint_is_that_of_older_files():
    e = TeacherEnsemble([get_model(SMALL, 10, 1)], feature_grid=1)
    h = hashlib.sha256(json.dumps([[None], 1]).encode())
    for k, v in e.state_dict().items():
        h.update(k.encode())
        h.update(v.contiguous().numpy().tobytes())
    assert e.fingerprint() == h.hexdigest()


def test_fingerprint_sees_quantised_weights_and_adapters():
    torch.manual_seed(0)
    one, other = (TeacherEnsemble([quantised()]) for _ in range(2))
    assert one.fingerprint() == copy.deepcopy(one).fingerprint() != other.fingerprint()
    net = get_model(SMALL, 10, 1)
    a, b = (TeacherEnsemble([TeacherAdapter(net, ((m,), (1.,)), ((0.,), (1.,)))]) for m in (.1, .2))
    assert a.fingerprint() != b.fingerprint()


# ---- teachers and data

def four_classes(order, stats=None):
    "The same pictures, classes numbered as `order`, with names"
    from ekd_nb.data import ImageArrays, ViewSet, image_dls
    r = np.random.default_rng(0)
    y = np.arange(128)%4
    x = r.integers(0, 80, (128, 8, 8, 3), dtype=np.uint8)
    x[np.arange(128), :, :, y%3] += (60+100*(y//3)).astype(np.uint8)[:, None, None]
    names = [f'class{order.index(i)}' for i in range(4)]
    labels = np.array(order)[y]
    data = ImageArrays.from_arrays('toy', x, labels, x[:64].copy(), labels[:64], names, ViewSet(1, True))
    if stats: data.__dict__['stats'] = stats
    return image_dls(data, bs=32, device='cpu')


@pytest.fixture(scope='module')
def learner():
    from ekd_nb.learner import teacher_learner
    torch.manual_seed(0)
    l = teacher_learner(four_classes([3, 2, 1, 0]), 'resnet8-w8')
    with l.no_bar(), l.no_logging(): l.fit(6, 1e-2)
    return l


def test_classes_in_another_order_are_mapped(learner, capsys):
    dls = four_classes([0, 1, 2, 3])
    e = TeacherEnsemble([learner])
    before = e.judge(dls)[0]
    e = e.check(dls)
    assert 'in another way' in capsys.readouterr().out
    after = e.judge(dls)[0]
    assert before.accuracy < .2 and any('near chance' in r for r in before.remarks)
    assert after.accuracy > .9 and not after.remarks and e.class_maps == [[3, 2, 1, 0]]
    assert e.match(dls) is e


def test_the_manifest_remembers_classes_and_normalisation(learner, tmp_path):
    path = save_teacher(learner, tmp_path/'t.safetensors', accuracy=.99)
    dls = four_classes([0, 1, 2, 3], stats=(np.array([.1]*3), np.array([.9]*3)))
    as_file, as_module = TeacherEnsemble([path]), TeacherEnsemble([learner.model], class_maps=[[3, 2, 1, 0]])
    assert as_module.judge(dls)[0].accuracy < .9
    said = []
    e = as_file.check(dls, log=said.append)
    assert isinstance(e.models[0], TeacherAdapter) and e.judge(dls)[0].accuracy > .9
    assert [('another way' in str(o)) for o in said] == [True, True, False]


def test_far_below_the_manifest(learner, tmp_path):
    path = save_teacher(learner.model, tmp_path/'t.safetensors', accuracy=.99)
    v = TeacherEnsemble([path], class_maps=[[3, 2, 0, 1]]).judge(four_classes([0, 1, 2, 3]))[0]
    assert any('far below the 99.0% of its manifest' in r for r in v.remarks)


def test_trial_changes_nothing(learner):
    from torch.utils.data import DataLoader, TensorDataset
    from fastai.data.core import DataLoaders
    def make(): return DataLoader(TensorDataset(torch.rand(20, 3, 8, 8), torch.arange(20)%4), 8, shuffle=True)
    loaders = DataLoaders(make(), make())
    for dls in (four_classes([0, 1, 2, 3]), loaders):
        torch.manual_seed(0); random.seed(0); np.random.seed(0)
        want = torch.rand(1), random.random(), np.random.rand()
        torch.manual_seed(0); random.seed(0); np.random.seed(0)
        epoch = getattr(dls.train, 'epoch', None)
        assert len(TeacherEnsemble([learner]).judge(dls)) == 1
        assert (torch.rand(1), random.random(), np.random.rand()) == want and getattr(dls.train, 'epoch', None) == epoch


def test_softmax_dropout_and_unknown_classes(learner):
    class Wobbly(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = learner.model
        def forward(self, x): return F.dropout(self.net(x), .5)
    dls = four_classes([3, 2, 1, 0])
    e = TeacherEnsemble([nn.Sequential(learner.model, nn.Softmax(1)), Wobbly()], feature_grid=0)
    soft, wobbly = e.judge(dls)
    assert any('rows sum to 1' in r for r in soft.remarks) and any('from call to call' in r for r in wobbly.remarks)
    dls.train.dataset.vocab = ['class0', 'cow', 'class2', 'hen']
    said = []
    e = TeacherEnsemble([learner]).check(dls, log=lambda o: said.append(str(o)))
    assert e.class_maps == [[3, None, 1, None]]
    assert 'does not know 2 of 4 (cow, hen)' in said[0]
    dls.train.dataset.vocab = ['class0', 'cow', 'dog', 'hen']
    with pytest.raises(EKDError, match='knows one of the 4 classes of the data, expected at least two'):
        TeacherEnsemble([learner]).check(dls)
    assert class_map(['a', 'b'], ['0', '1']) is None


# ---- any teacher can be saved

def round_trip(model, tmp_path, x, **kw): # `x`: images to compare on
    net = model.model if hasattr(model, 'dls') else model
    path = save_teacher(model, tmp_path/'t.safetensors', x=x, **kw)
    with torch.no_grad(): assert torch.allclose(load_teacher(path)(x), net.cpu().eval()(x), atol=1e-5)
    return read_manifest(path)


def test_vision_learner_is_saved(tmp_path):
    from fastai.vision.all import CrossEntropyLossFlat, vision_learner
    from torchvision.models import resnet18
    dls = four_classes([3, 2, 1, 0])
    l = vision_learner(dls, resnet18, pretrained=False, normalize=False, loss_func=CrossEntropyLossFlat(),
                       lin_ftrs=[32], ps=.1)
    man = round_trip(l, tmp_path, torch.randn(4, 3, 8, 8))
    assert man['n_out'] == 4 and len(man['stats'][0]) == 3
    assert man['classes'] == ['class3', 'class2', 'class1', 'class0']


def test_timm_torchvision_and_plain_networks_are_saved(tmp_path):
    from torchvision.models import mobilenet_v3_small, resnet18
    x = torch.randn(4, 3, 32, 32)
    timm = pytest.importorskip('timm')
    assert round_trip(timm.create_model('resnet10t', num_classes=5), tmp_path, x)['arch'] == 'resnet10t'
    net = resnet18()
    net.conv1, net.maxpool, net.fc = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity(), nn.Linear(512, 6)
    assert set(round_trip(net, tmp_path, x)['build']['replace']) == {'conv1', 'maxpool', 'fc'}
    net = mobilenet_v3_small(num_classes=7)
    assert round_trip(net, tmp_path, x)['arch'] == 'mobilenet_v3_small'
    body = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU()
    round_trip(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), tmp_path, x)
    round_trip(Net(3, 3), tmp_path, x)
    with pytest.raises(EKDError, match='pass builder='): round_trip(Net(3, 3, width=6), tmp_path, x)
    round_trip(Net(3, 3, width=6), tmp_path, x, builder=Net, builder_args=dict(n_out=3, in_channels=3, width=6))


def make_net(scale=1.):
    "A builder of one's own, which is no class"
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net
        def forward(self, x): return scale*self.net(x)
    return Scaled()


def test_own_builder(tmp_path):
    net, x = make_net(3.), torch.randn(3, 3, 2, 2)
    with pytest.raises(EKDError, match='has no architecture name'): save_teacher(net, tmp_path/'t.safetensors', x=x)
    with pytest.raises(EKDError, match='computes something else'):
        save_teacher(net, tmp_path/'t.safetensors', builder=make_net, x=x)
    assert not list(tmp_path.iterdir())
    man = round_trip(net, tmp_path, x, builder=make_net, builder_args=dict(scale=3.))
    allowed_builders.clear()   # as in another program
    with pytest.raises(EKDError, match=r'expected load_teacher\(path, builder=make_net\)'):
        load_teacher(tmp_path/'t.safetensors')
    assert torch.allclose(load_teacher(tmp_path/'t.safetensors', builder=make_net)(x), net(x))
    assert man['build']['builder'].endswith('test_teachers.make_net')


@pytest.mark.parametrize('kw', [dict(split='heads'), dict(split=1, fusion='gate'),
                                dict(arch=['resnet8-w4', 'resnet14-w4'])], ids=str)
def test_a_student_is_saved_as_a_teacher(tmp_path, kw):
    s = branched_student(**dict(arch='resnet8-w4', n_branches=2, n_out=3, size=16) | kw)
    s.projections = nn.ModuleList([nn.Conv2d(4, 4, 1)]*2)   # of its own training
    man = round_trip(s, tmp_path, torch.randn(4, 3, 16, 16))
    x = torch.randn(5, 3, 16, 16)
    assert torch.allclose(TeacherEnsemble([tmp_path/'t.safetensors'])(x).logits[0], s.eval()(x), atol=1e-5)
    assert man['n_out'] == 3 and len(man['build']['student']['archs']) == 2


def test_a_distilled_learner_on_plain_loaders_is_saved_as_a_teacher(tmp_path):
    l = learner_of(torch_loaders())
    path = save_teacher(l, tmp_path/'t.safetensors')
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(load_teacher(path)(x), l.model.eval()(x), atol=1e-5)


def test_what_wraps_another_network_is_not_saved(tmp_path):
    net = get_model(SMALL, 10)
    for made in (TeacherAdapter(net, channels=3), TeacherAdapter(Net(10, 3), size=20)):
        with pytest.raises(EKDError, match=r'TeacherAdapter wraps another network; expected that one, its .model'):
            save_teacher(made, tmp_path/'t.safetensors')
    with pytest.raises(EKDError, match='save it with save_student'):
        save_teacher(branched_student(Net(10, 3), 2, 10), tmp_path/'t.safetensors')
    assert not list(tmp_path.iterdir())


def test_the_network_in_an_adapter_is_saved_with_its_normalisation(tmp_path, capsys):
    "The file does what the adapter did: its `stats` tell the next run to adapt"
    adapter = TeacherAdapter(get_model(SMALL, 10, 1), data_stats=([.25], [.5]), teacher_stats=([.5], [.25]))
    path = save_teacher(adapter.model, tmp_path/'t.safetensors', stats=([.5], [.25]))
    d = dls()
    mean, std = d.train.dataset.normalize.mean.flatten(), d.train.dataset.normalize.std.flatten()
    again = TeacherEnsemble([path]).match(d)
    x = torch.randn(4, 1, 8, 8)
    want = adapter.model((x*std+mean-.5)/.25)
    assert 'normalised in another way: adapted' in capsys.readouterr().out
    assert torch.allclose(again(x).logits[0], want, atol=1e-4)


def test_a_file_cannot_name_any_function(tmp_path):
    path = save_teacher(Net(10), tmp_path/'t.safetensors')
    m = path.with_suffix('.json')
    for name in ('os.system', 'fastai.learner.load_learner', 'torchvision.datasets.utils.download_url'):
        info = json.loads(m.read_text())
        info['build'] = dict(builder=name, args={})
        m.write_text(json.dumps(add_digest(info)))
        with pytest.raises(EKDError, match='the network is built by'): load_teacher(path)


@pytest.mark.parametrize('name, says', [('export.pkl', 'exported Learner is a pickle'),
                                        ('model.pth', 'weights without their network')])
def test_other_files_are_refused(tmp_path, name, says):
    (tmp_path/name).write_bytes(b'x')
    with pytest.raises(EKDError, match=says): TeacherEnsemble([tmp_path/name])


def test_saving_draws_no_random_number(tmp_path):
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    save_teacher(get_model(SMALL, 10, 1), tmp_path/'t.safetensors')
    torch.manual_seed(0)
    net = get_model(SMALL, 10, 1)
    torch.manual_seed(0)
    save_teacher(net, tmp_path/'t.safetensors')
    assert torch.equal(torch.rand(1), want)


def test_sets_of_pretrained_teachers():
    from ekd_nb.pretrained import PRETRAINED_ARCHS, pretrained_paths, pretrained_teachers
    assert tuple(pretrained_teachers('cifar10').names) == PRETRAINED_ARCHS == ('densenet_22_12', 'resnet20', 'wrn_16_2')
    both = set(pretrained_paths('cifar10', which='small')), set(pretrained_paths('cifar10', which='large'))
    assert not both[0] & both[1] and both[0] | both[1] == set(pretrained_paths('cifar10'))


# ---- all of it in ekd_learner

def test_a_student_learns_from_a_teacher_of_another_order(learner, capfd):
    from ekd_nb.learner import ekd_learner
    from ekd_nb.losses import EKDLoss
    torch.manual_seed(0)
    l = ekd_learner(four_classes([0, 1, 2, 3]), 'resnet8-w8', [learner], loss_func=EKDLoss(0., 1.))
    said = capfd.readouterr().err
    assert 'in another way than the data' in said and 'ok' in said
    with l.no_bar(), l.no_logging(): l.fit(6, 1e-2)
    assert l.validate()[1] > .9
    ekd_learner(four_classes([3, 2, 1, 0]), 'resnet8-w8', [learner], judge=False)
    assert capfd.readouterr().err == 'weights: new\n'


def test_no_cache_of_teachers_that_look_at_the_batch():
    from ekd_nb.learner import ekd_learner
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192, track_running_stats=False), nn.Linear(192, 4))
    ekd_learner(four_classes([0, 1, 2, 3]), SMALL, [net])
    with pytest.raises(EKDError, match='memo: outputs of teacher 0 .* depend on the rest'):
        ekd_learner(four_classes([0, 1, 2, 3]), SMALL, [net], memo=True)


def test_teachers_are_named_by_their_architecture_and_numbered_where_it_is_the_same():
    import timm
    from fastai.vision.learner import vision_learner
    from torchvision.models import resnet18
    d = folder_dls()
    learns = [vision_learner(d, a, pretrained=False) for a in (resnet18, 'test_resnet', resnet18)]
    assert TeacherEnsemble(learns).names == ['resnet18 1', 'test_resnet', 'resnet18 2']
    assert TeacherEnsemble(learns[:2]).names == ['resnet18', 'test_resnet']
    bodies = [l.model for l in learns]   # without their Learners only timm's network knows its name
    assert TeacherEnsemble(bodies).names == ['Sequential 1', 'test_resnet', 'Sequential 2']
    nets = [timm.create_model('test_resnet', num_classes=3), resnet18(), TeacherAdapter(learns[0], size=64)]
    assert TeacherEnsemble(nets).names == ['test_resnet', 'ResNet', 'resnet18']
    assert TeacherEnsemble(nets, names=['a', 'a', 'b']).names == ['a', 'a', 'b']   # the caller's stay


def test_layers_without_weights_are_refused():
    with pytest.raises(EKDError, match=r'entry 0 \(LazyLinear\) has layers without weights yet'):
        TeacherEnsemble([torch.nn.LazyLinear(3)])


@pytest.mark.parametrize('name', ['class_maps', 'layers'])
def test_entries_for_teachers_are_a_list(name):
    with pytest.raises(EKDError, match=f'{name}: got 3'): TeacherEnsemble([Net()], **{name: 3})


def test_a_teacher_whose_order_is_right_is_not_told_that_it_is_another():
    from ekd_nb.judge import _remarks
    y = torch.tensor([0]*12+[1]*6+[2]*6)
    guess = torch.tensor([0]*9+[1]*3+[1]*4+[2]*2+[2]*4+[0]*2)   # 17 of 24 right: not surely above 12, one class
    said = ' '.join(_remarks(F.one_hot(guess, 3)*5.-1, y, {}))
    assert said == 'not clearly better than always the commonest class (50.0%) for so few images'
    swapped = ' '.join(_remarks(F.one_hot((y+1) % 3, 3)*5.-1, y, {}))
    assert 'another order' in swapped and 'few' not in swapped
