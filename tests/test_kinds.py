"One more example of every kind of silent fault, with the right value"
import copy, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, data, dls, learner, teachers
from compat import fit_quietly as fit
from fastai.data.core import DataLoaders
from fastai.torch_core import set_seed
from ekd_nb.core import EKDError, output_distance
from ekd_nb.learner import ekd_learner, teacher_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.models import get_model
from ekd_nb.student import branched_student
from ekd_nb.teachers import TeacherEnsemble, load_teacher, save_teacher

warnings.filterwarnings('ignore')
LABELS = EKDLoss(1., 0., 0.)


class Combine(nn.Module):
    "Parts called in the order that a function gives"
    def __init__(self, f, **parts):
        super().__init__()
        for k, m in parts.items(): self.add_module(k, m)
        self.f = f
    def forward(self, x): return self.f(self, x)

def settled(net, channels=1, side=8):
    "With BatchNorm statistics that are not those of a new network"
    net.train()
    for _ in range(3): net(torch.randn(16, channels, side, side)*2+1)
    return net.eval()

def trained_weights(l): return torch.cat([p.detach().flatten() for p in fit(l).model.parameters()])


def test_a_pixels_darkened_by_a_function():
    "A: with the cache the student learns what it learns without"
    from fastai.vision.core import TensorImage
    from fasttransform import Transform
    def darker(x:TensorImage): return x*.7
    found = []
    for memo in (False, True):
        d = dls()
        d.add_tfms([Transform(darker)], 'after_batch', loaders='train')
        set_seed(0)
        found.append(trained_weights(learner(d, memo=memo)))
    assert torch.equal(*found)

def test_a2_a_teacher_that_centres_its_batch():
    t = Combine(lambda m, x: m.net(x-x.mean(0)), net=get_model(SMALL, 10, 1))
    with pytest.raises(EKDError, match='memo: outputs of teacher 0 .* depend on the rest of the batch'):
        learner(ts=[t], memo=True)

def test_b_names_in_reverse_order(tmp_path):
    "B: a file that remembers names gives our classes in our order"
    net = settled(get_model('resnet8-w6', 10, 1))
    path = save_teacher(net, tmp_path/'t.safetensors', classes=[str(i) for i in reversed(range(10))])
    found, x = TeacherEnsemble([path]).match(dls(), lambda line: None), torch.randn(4, 1, 8, 8)
    assert torch.allclose(found(x).logits[0], net(x).flip(1), atol=1e-5)

def test_c_a_map_whose_channels_are_last():
    "C: the features are the map that is pooled, channels where we have them"
    conv = nn.Sequential(nn.Conv2d(1, 12, 3, 1, 1), nn.ReLU())
    net = Combine(lambda m, x: m.fc(m.map(m.conv(x).permute(0, 2, 3, 1)).mean((1, 2))), conv=conv, map=nn.Identity(),
                  fc=nn.Linear(12, 10)).eval()
    x = torch.randn(4, 1, 8, 8)
    f = TeacherEnsemble([net], feature_grid=4)(x).features[0]
    assert torch.allclose(f, F.adaptive_avg_pool2d(conv(x), 4), atol=1e-5)

def test_d_a_network_with_two_ways():
    "D: a student of one branch with the network's own classifier computes what the network computes"
    def two(m, x):
        a = F.relu(m.a(x))
        return m.fc(F.hardswish(m.c(torch.cat([a, m.b(a).tanh()], 1))).mean((2, 3)))
    net = settled(Combine(two, a=nn.Conv2d(1, 6, 3, 1, 1), b=nn.Conv2d(6, 6, 3, 1, 1), c=nn.Conv2d(12, 8, 3, 2, 1),
                          fc=nn.Linear(8, 10)))
    s, x = branched_student(net, 1, 10, in_channels=1, size=8, split=1).eval(), torch.randn(4, 1, 8, 8)
    s.branches[0].head.load_state_dict(net.fc.state_dict())
    assert torch.allclose(s(x), net(x), atol=1e-5)

@pytest.mark.parametrize('f', [lambda m, x: m.n(m.c(x)) + m.n(m.d(x)), lambda m, x: m.n(F.relu(m.c(x))),
                               lambda m, x: m.n(m.c(x)) + m.c(x)])
def test_e_one_batchnorm_after_two_convolutions(f):
    "E: folded to the same answers, or refused"
    from ekd_nb.fold import fold_batchnorm
    net = settled(Combine(f, c=nn.Conv2d(1, 4, 3, padding=1), d=nn.Conv2d(1, 4, 3, padding=1), n=nn.BatchNorm2d(4)))
    x = torch.randn(4, 1, 8, 8)
    try: new = fold_batchnorm(net, x)
    except EKDError as e: assert 'computes something else: outputs differ by' in str(e)
    else: assert output_distance(net(x), new(x)) < 1e-5

def test_f_an_own_order_is_shared_by_processes():
    "F: every rank draws from the order that the caller gave, nothing twice"
    from ekd_nb.distributed import StepShardedLoader
    order = [5, 9, 1, 30, 2, 17, 8, 4]
    dl = DataLoader(TensorDataset(torch.arange(64)[:, None]), 4, sampler=order)
    seen = [torch.cat([b[0] for b in StepShardedLoader(dl, r, 2)]).flatten().tolist() for r in range(2)]
    assert sorted(seen[0]+seen[1]) == sorted(order)

def test_g_a_picture_that_is_there_three_times():
    "G: pictures that are held out are not trained on, whichever row they are"
    from ekd_nb.arrays import ImageArrays
    from ekd_nb.data import image_dls
    x = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 1), np.uint8)
    x, y = np.concatenate([x, x, x]), np.concatenate([np.arange(30)%3]*3)
    many = ImageArrays.from_arrays('my', x, y, x[:3], y[:3], range(3), warn=False)
    d = image_dls(many, valid=9, bs=8)
    def pictures(dl): return {im.tobytes() for im in many.x_train[dl.dataset.rows.numpy()]}
    assert not pictures(d.train) & pictures(d.valid) and len(d.valid.dataset) >= 9

def test_h_predictions_between_two_fits_change_nothing():
    "H: tta, validate and get_preds count as no epoch and leave views and weights as they were"
    weights = []
    for look in (False, True):
        set_seed(0)
        l = fit(learner())
        if look:
            with l.no_bar(): l.tta(n=2), l.get_preds(), l.validate()
        set_seed(1)
        weights.append(trained_weights(l))
    assert torch.equal(*weights)

def test_i_weights_of_classes_and_smoothing_stay_out_of_validation():
    "I: the reported validation loss is the plain cross-entropy"
    l = fit(learner(loss_func=EKDLoss(gamma=0., label_smoothing=.2, weight=torch.arange(1., 11.))))
    with torch.no_grad(), l.no_bar():
        loss, *_ = l.validate()
        zs, ys = zip(*[(l.model.eval()(x), y) for x, y in l.dls.valid])
        plain = F.cross_entropy(torch.cat(zs).as_subclass(torch.Tensor), torch.cat(ys).as_subclass(torch.Tensor))
    assert loss == pytest.approx(plain.item(), abs=1e-4)

def test_j_a_parameter_that_no_reset_knows():
    "J: a function's network keeps an own parameter, drawn anew for every branch"
    class Scaled(Net):
        def __init__(self):
            super().__init__(10, 1)
            self.scale = nn.Parameter(torch.rand(1)+5)
        def forward(self, x): return self.fc(self.pool(self.body(x)*self.scale).flatten(1))
    s = branched_student(Scaled, 2, 10, in_channels=1, size=8, split=1)
    scales = [p for n, p in s.named_parameters() if n.endswith('scale')]
    assert len(scales) == 2 and all(5 <= p.item() <= 6 for p in scales) and scales[0].item() != scales[1].item()

def test_k_a_teacher_that_normalises_its_outputs_weights():
    "K: spectral normalisation, which keeps a computed weight, teaches and stays as it is"
    net = Net(10, 1)
    net.fc = nn.utils.spectral_norm(net.fc)
    x = torch.randn(4, 1, 8, 8)
    right = net.eval()(x)
    l = fit(learner(ts=[net]))
    assert torch.allclose(l.distill.teachers(x).logits[0], right, atol=1e-5)

def test_l_one_image_is_left_by_a_loader_of_fastai():
    from fastai.data.load import DataLoader as FastaiLoader
    import torchvision.models as tv
    ds = TensorDataset(torch.randn(33, 3, 32, 32), torch.arange(33)%4)
    def go(**kw):
        d = DataLoaders(FastaiLoader(ds, bs=16, **kw), FastaiLoader(ds, bs=16))
        return ekd_learner(d, lambda: tv.resnet18(num_classes=4), n_branches=2, n_out=4, split='layer3',
                           loss_func=LABELS)
    with pytest.raises(EKDError, match='the last batch has one image .33 images, bs=16.'): go()
    fit(go(drop_last=True))

def test_m_predictions_find_the_rows_of_held_out_images():
    "M: rows of your own arrays are found for images that `valid` holds out"
    from ekd_nb.data import image_dls
    from ekd_nb.arrays import ImageArrays
    x = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 1), np.uint8)
    y = np.arange(40)%4
    mine = ImageArrays.from_arrays('my', x, y, x[:4], y[:4], range(4), warn=False)
    d = image_dls(mine, valid=12, bs=8)
    l = fit(teacher_learner(d, SMALL))
    with l.no_bar(): _, labels = l.get_preds()
    rows = mine.order_train[d.valid.dataset.rows.numpy()]
    assert (y[rows] == labels.numpy()).all() and (x[rows] == mine.x_train[d.valid.dataset.rows.numpy()]).all()

def test_n_one_changed_bit_of_a_half_precision_teacher():
    "N: another fingerprint; the same weights have the same"
    a = get_model(SMALL, 10, 1).to(torch.bfloat16)
    b = copy.deepcopy(a)
    with torch.no_grad(): next(b.parameters()).view(-1)[0] *= 1.01
    assert len({TeacherEnsemble([m]).fingerprint() for m in (a, copy.deepcopy(a), b)}) == 2

def test_o_a_changed_layer_under_a_known_name(tmp_path):
    "O: a network that says it is one of ours and is not is refused when it is saved"
    net = get_model(SMALL, 10, 1)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.eps = .5
    settled(net)
    with pytest.raises(EKDError, match='outputs differ by|computes something else'):
        save_teacher(net, tmp_path/'t.safetensors', arch=SMALL)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('change', ['bs=0', 'tau=0', 'epochs=-1'])
def test_p_numbers_of_a_command_that_cannot_be(change, tmp_path, capsys):
    from ekd_nb.study.reproduce import main
    assert main(['--set', change, '--out', str(tmp_path)]) and not list(tmp_path.glob('**/*.json'))
    err = capsys.readouterr().err
    assert f'{change.split("=")[0]}: got ' in err and 'expected a number' in err and err.count('\n') == 1

def test_q_a_trained_teacher_learner_of_plain_loaders_is_saved(tmp_path):
    "Q: what was saved gives the answers back"
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32)%10
    dl = DataLoader(TensorDataset(x, y), 16)
    l = fit(teacher_learner(DataLoaders(dl, dl), SMALL, n_out=10))
    again = load_teacher(save_teacher(l, tmp_path/'t.safetensors'))
    with torch.no_grad(): assert torch.allclose(again(x), l.model.eval()(x), atol=1e-6)

def test_r_the_last_branch_alone():
    "R: a Learner of one branch predicts what that branch did"
    l = fit(learner())
    x = l.dls.valid.one_batch()[0]
    k = l.keep([1])
    with torch.no_grad(): right = l.model.eval().branches[1](l.model.trunk(x))[0]
    assert torch.allclose(k.model.eval()(x), right, atol=1e-5)
    assert fit(k).model.n_branches == 1 and len(k.validate()) == len(k.recorder.metric_names[2:-1])

def test_s_a_temperature_that_falls_from_later_on():
    "S: a schedule that is set after the Learner was made is followed"
    from fastai.callback.schedule import SchedLin
    l = learner(loss_func=EKDLoss(gamma=0., tau=4.))
    l.loss_func.tau = SchedLin(4, 2)
    fit(l)
    n = len(l.dls.train)
    assert l.loss_func.current_value('tau') == pytest.approx(4-2*(n-1)/n)
