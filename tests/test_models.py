"Models: what is no lesson in nbs/03_models.ipynb"
import copy, pickle, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from ekd_nb import models
from ekd_nb.core import EKDError
from ekd_nb.models import MODELS, CifarResNet, DenseNetBC, WideResNet, get_model
from ekd_nb.models import count_flops, count_params, width_for_params, width_for_flops

SMALL = ['resnet8', 'resnet8-B', 'resnet8-w5', 'resnet8x4', 'wrn_16_1', 'densenet_22_6']
STAGES = ['stem', 'layer1', 'layer2', 'layer3']

def published_counts():
    return {'resnet20': (269722, 10), 'resnet56': (853018, 10), 'resnet110': (1727962, 10), 'wrn_28_10': (36479194, 10),
            'densenet_100_12': (769162, 10), 'resnet8x4': (1233540, 100), 'resnet32x4': (7433860, 100),
            'wrn_40_2': (2255156, 100)}

@pytest.mark.parametrize('name', published_counts())
def test_exact_parameter_counts(name):
    n, n_out = published_counts()[name]
    with torch.device('meta'): assert count_params(get_model(name, n_out)) == n

@pytest.mark.parametrize('name', list(MODELS))
def test_every_named_network_has_the_same_stages(name):
    with torch.device('meta'):
        m = MODELS[name](n_out=7, in_channels=1)
        x = torch.zeros(2,1,32,32)
    assert [n for n,_ in m.stages.named_children()] == STAGES
    assert m.arch == name == MODELS[name].__name__ and (m.n_out, m.in_channels) == (7, 1)
    assert isinstance(m.head, nn.Linear) and m.head.in_features == m.n_features
    assert m.eval().stages(x).shape[:2] == (2, m.n_features) and m(x).shape == (2,7)

@pytest.mark.parametrize('name', SMALL)
def test_cut_after_any_stage(name):
    m, x = get_model(name).eval(), torch.randn(3,3,16,16)
    for i in range(1,5):
        trunk, rest = m.stages[:i], m.stages[i:]
        assert torch.equal(m.head(torch.nn.functional.adaptive_avg_pool2d(rest(trunk(x)), 1).flatten(1)), m(x))

@pytest.mark.parametrize('name', SMALL)
def test_two_branches_may_read_one_trunk(name):
    "no stage changes its input in place: a trunk's output is read by every branch"
    m = get_model(name).train()
    for i,stage in enumerate(m.stages):
        x = m.stages[:i](torch.randn(2,3,16,16)) if i else torch.randn(2,3,16,16)
        before = x.clone()
        (stage(x).sum() + copy.deepcopy(stage)(x).sum()).backward()
        assert torch.equal(x, before)

@pytest.mark.parametrize('name', SMALL)
def test_every_parameter_gets_a_gradient(name):
    m = get_model(name)
    m(torch.randn(4,3,16,16)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum()>0 for n,p in m.named_parameters() if n!='head.bias')

@pytest.mark.parametrize('name', SMALL)
def test_channels_last_changes_nothing(name):
    m, x = get_model(name).double().eval(), torch.randn(2,3,32,32).double()
    y = m(x)
    torch.testing.assert_close(m.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), y)

@pytest.mark.parametrize('name', SMALL)
def test_torch_export(name):
    m, x = get_model(name).eval(), torch.randn(2,3,32,32)
    program = torch.export.export(m, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=1024)},))
    x = torch.randn(5,3,32,32)
    torch.testing.assert_close(program.module()(x), m(x))

@pytest.mark.parametrize('name', SMALL)
def test_same_seed_same_network(name):
    def make(seed): torch.manual_seed(seed); return get_model(name).state_dict()
    a,b,c = make(0), make(0), make(1)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a['head.weight'], c['head.weight'])

def test_initialisation():
    for m in (CifarResNet(20), WideResNet(16,4), DenseNetBC(40,12)):
        for k,l in m.named_modules():
            if isinstance(l, nn.Conv2d) and l.weight.numel()>5000:
                assert l.weight.std().item() == pytest.approx((2/(l.kernel_size[0]**2*l.out_channels))**.5, rel=.06), k
            if isinstance(l, nn.BatchNorm2d): assert (l.weight==1).all() and (l.bias==0).all()

def test_network_and_its_maker_survive_pickle():
    m = pickle.loads(pickle.dumps(get_model('resnet8'))).eval()
    assert m.arch == 'resnet8' and pickle.loads(pickle.dumps(models.resnet8)) is models.resnet8

@settings(deadline=None, max_examples=30)
@given(st.integers(1,60), st.sampled_from([8,14,20]), st.integers(2,100))
def test_width_for_is_the_inverse_of_count(w, depth, n_out):
    with torch.device('meta'): n = count_params(CifarResNet(depth, n_out, 3, w))
    assert width_for_params(n, depth, n_out) == w

@settings(deadline=None, max_examples=30)
@given(st.integers(100, 3_000_000))
def test_width_for_is_the_nearest(n):
    w = width_for_params(n)
    with torch.device('meta'): off = [abs(count_params(CifarResNet(8, width=v))-n) for v in (max(w-1,1), w, w+1)]
    assert off[1] == min(off)

def test_width_for_flops_is_the_inverse_of_count():
    with torch.device('meta'):
        for w in (1,7,33): assert width_for_flops(count_flops(CifarResNet(8, 10, 1, w), (1,8,8)), size=(1,8,8)) == w

def test_count_flops_leaves_the_network_as_it_was():
    m = get_model('resnet8').train()
    m.stages.stem.eval()
    before = {k: v.clone() for k,v in m.state_dict().items()}
    count_flops(m)
    assert m.training and not m.stages.stem.training and m.stages.layer1.training
    assert all(torch.equal(v, before[k]) for k,v in m.state_dict().items())

@pytest.mark.parametrize('bad, says', [
    (lambda: get_model('resnet50'), 'expected one of'),
    (lambda: get_model('resnet9x4'), '6n\\+2'),
    (lambda: get_model('resnet2-w16'), '6n\\+2'),
    (lambda: get_model('resnet8-w0'), 'width: got 0'),
    (lambda: get_model('wrn_17_1'), '6n\\+4'),
    (lambda: get_model('wrn_16_0'), 'k: got 0'),
    (lambda: get_model('densenet_41_12'), '6n\\+4'),
    (lambda: DenseNetBC(40, 12, reduction=0), 'reduction: got 0'),
    (lambda: get_model(''), 'expected one of'),
    (lambda: get_model(None), 'expected one of'),
    (lambda: get_model('resnet8', n_out=0), 'n_out: got 0'),
    (lambda: get_model('resnet8', in_channels=0), 'in_channels: got 0'),
    (lambda: CifarResNet(8, shortcut='C'), "shortcut: got 'C'"),
])
def test_refusals(bad, says):
    with pytest.raises(EKDError, match=says): bad()
