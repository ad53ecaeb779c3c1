"Students that begin with the weights of timm and torchvision, from local files: nothing is downloaded"
import sys
from functools import partial
from pathlib import Path
import numpy as np, pytest, torch
import torchvision.models as tv
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import Net
from ekd_nb.arrays import ImageArrays
from ekd_nb.core import EKDError
from ekd_nb.data import image_dls
from ekd_nb.learner import ekd_learner, teacher_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.networks import create_network

TV,TIMM = 'shufflenet_v2_x0_5','test_resnet'


def images(channels=3, side=32, n=16):
    rng = np.random.default_rng(0)
    def part(n): return rng.integers(0, 256, (n, side, side, channels)).astype(np.uint8), np.arange(n)%4
    if channels not in (1, 3):   # plain loaders of PyTorch
        def ds(x, y): return TensorDataset(torch.tensor(x).permute(0, 3, 1, 2).float()/255, torch.tensor(y))
        return DataLoaders(DataLoader(ds(*part(n)), 8, shuffle=True), DataLoader(ds(*part(8)), 8))
    data = ImageArrays.from_arrays('random', *part(n), *part(8), classes=list('abcd'), warn=False)
    return image_dls(data, bs=8, n_views=1, device='cpu')


@pytest.fixture
def files(tmp_path, monkeypatch):
    "Weights of both libraries where they keep what they have downloaded; every attempt to download fails"
    def no_download(*a, **k): raise OSError('no download in tests')
    monkeypatch.setattr('torch.hub.download_url_to_file', no_download)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    torch.manual_seed(5)
    saved = {TV: tv.get_model(TV).state_dict()}
    folder = tmp_path/'hub'/'checkpoints'
    folder.mkdir(parents=True)
    torch.save(saved[TV], folder/Path(tv.get_model_weights(TV).DEFAULT.url).name)
    timm = pytest.importorskip('timm')
    saved[TIMM] = timm.create_model(TIMM).state_dict()
    save_file(saved[TIMM], tmp_path/'t.safetensors')
    from timm.models import _builder
    right = _builder._resolve_pretrained_source
    monkeypatch.setattr(_builder, '_resolve_pretrained_source', lambda cfg: ('file', str(tmp_path/'t.safetensors')))
    return saved

FIRST = {TV: 'conv1.0.weight', TIMM: 'conv1.0.weight'}

def first_layer(student): return next(p for p in student.trunk.parameters() if p.ndim==4)

def adapted(w, channels):
    "The first layer for other channels: summed for grey, repeated and scaled for more"
    if channels==1: return w.sum(1, keepdim=True)
    return w.repeat(1, 2, 1, 1)[:, :channels]*(3/channels) if channels!=3 else w

def learner(name, channels=3, **kw):
    d, ts = images(channels), [Net(4, channels), Net(4, channels)]
    return ekd_learner(d, name, ts, pretrained=True, judge=False, loss_func=EKDLoss(gamma=0.), **kw)


@pytest.mark.parametrize('channels', [3, 1, 4])
@pytest.mark.parametrize('name', [TV, TIMM])
def test_a_name_begins_with_its_weights(name, channels, files, capsys):
    l = learner(name, channels, n_branches=2)
    w = files[name][FIRST[name]]
    assert torch.allclose(first_layer(l.model), adapted(w, channels), atol=1e-6)
    kept = [k for k, v in files[name].items() if v.ndim==4 and any(
        torch.equal(v, p) for b in l.model.branches for p in b.parameters())]
    assert kept, 'no weights of the file in the branches'
    assert 'weights: trunk kept; branches 0, 1 kept' in ''.join(capsys.readouterr())
    a, b = l.model.branches
    assert all(torch.equal(p, q) for p, q in zip(a.body.parameters(), b.body.parameters()))
    assert not torch.equal(a.head.weight, b.head.weight)   # new classifiers
    l.model.eval()
    with torch.no_grad(): assert l.model(torch.randn(2, channels, 32, 32)).shape==(2, 4)


@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('name', [TV, TIMM])
def test_fine_tune_trains_what_is_new_first(name, channels, files):
    "Frozen: the trunk and the branches, which have the weights of the file. New: the classifiers"
    l, moved = learner(name, channels), []
    before = {k: p.detach().clone() for k, p in l.model.named_parameters()}
    bn = {id(p) for m in l.model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    class Watch(Callback):
        def after_fit(self):
            now = dict(self.learn.model.named_parameters())
            moved.append({k for k, p in now.items() if id(p) not in bn and not torch.equal(p, before[k])})
    with l.no_bar(), l.no_logging(): l.fine_tune(1, 1e-2, cbs=Watch())
    assert moved[0] and all('.head.' in k for k in moved[0])
    everything = {k for k, p in l.model.named_parameters() if id(p) not in bn}
    assert moved[1]==everything and {k for k in moved[1] if k.startswith('trunk')}


@pytest.mark.parametrize('name', [TV, TIMM])
def test_heads_are_new_and_train_first(name, files):
    l = learner(name, split='heads')
    assert 'heads new' in l.model.config['weights'] and torch.equal(first_layer(l.model), files[name][FIRST[name]])
    trunk, new = l.model.param_groups()
    assert {id(p) for p in new}=={id(p) for b in l.model.branches for p in b.parameters()}


@pytest.mark.parametrize('channels', [3, 1, 4])
@pytest.mark.parametrize('name', [TV, TIMM])
def test_a_teacher_begins_with_its_weights(name, channels, files):
    l = teacher_learner(images(channels), name, n_out=4, pretrained=True)
    first = next(p for p in l.model.parameters() if p.ndim==4)
    assert torch.allclose(first, adapted(files[name][FIRST[name]], channels), atol=1e-6)
    assert l.model(torch.randn(2, channels, 32, 32)).shape==(2, 4)


def test_a_file_of_ones_own_through_timm(files, tmp_path, capsys):
    "The way of timm: a function that says where the file is"
    import timm
    make = partial(timm.create_model, TIMM, pretrained_cfg_overlay=dict(file=str(tmp_path/'t.safetensors')))
    l = learner(make)
    assert torch.equal(first_layer(l.model), files[TIMM][FIRST[TIMM]])


def test_a_missing_file_is_one_sentence(files, tmp_path):
    (tmp_path/'t.safetensors').unlink()
    for p in (tmp_path/'hub'/'checkpoints').iterdir(): p.unlink()
    for name in (TV, TIMM):
        with pytest.raises(EKDError, match=f'arch: {name} raises') as e: learner(name)
        assert '\n' not in str(e.value)


@pytest.mark.parametrize('arch', ['resnet8', lambda n_out, in_channels: Net(n_out, in_channels)])
def test_what_has_no_weights_is_refused(arch):
    with pytest.raises(EKDError, match='pretrained: got True'): create_network(arch, 4, 3, pretrained=True)
