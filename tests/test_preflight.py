"What is checked before training, and how often data, teachers and student are run for it"
import sys, warnings
from pathlib import Path
import pytest, torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, SubsetRandomSampler, TensorDataset
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, dls, learner, teachers
from fastai.data.core import DataLoaders
from ekd_nb.core import EKDError
from ekd_nb.learner import ekd_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.models import get_model
from ekd_nb.preflight import first_batch, preflight
from ekd_nb.teachers import TeacherEnsemble

warnings.filterwarnings('ignore')
LABELS = EKDLoss(1., 0., 0.)


class Counted(nn.Module):
    "A network that counts the images of its batches; two images are for finding its features"
    def __init__(self, net): super().__init__(); self.net, self.seen = net, []
    def forward(self, x):
        if len(x)>2: self.seen.append(len(x))
        return self.net(x)


class Loader(DataLoader):
    "Counts passes that were begun"
    begun = 0
    def __iter__(self): self.begun += 1; return super().__iter__()


def loader(n=65, cls=DataLoader, size=8, **kw):
    return cls(TensorDataset(torch.randn(n, 1, size, size), torch.arange(n)%10), **kw)
def loaders(dl): return DataLoaders(dl, loader(20, batch_size=10))


def test_one_batch_is_drawn_and_each_teacher_runs_once_on_eight_images():
    dl = loader(64, Loader, batch_size=16)
    l = ekd_learner(loaders(dl), SMALL, [Counted(t) for t in teachers()], n_out=10, judge=False,
                    loss_func=EKDLoss(gamma=1.))
    assert dl.begun == 1
    assert [t.seen for t in l.distill.teachers.models] == [[8], [8]]
    with l.no_bar(), l.no_logging(): l.fit(1, 1e-2)
    assert dl.begun == 2, 'no batch is drawn to check what is checked'
    assert [t.seen for t in l.distill.teachers.models] == [[8]+[16]*4]*2


def test_a_cache_costs_four_images_more():
    "Whole and half batches are compared; the whole one is already known"
    kw = dict(judge=False, memo=True, loss_func=EKDLoss(gamma=1.))
    l = ekd_learner(dls(n_views=1), SMALL, [Counted(t) for t in teachers()], **kw)
    assert [t.seen for t in l.distill.teachers.models] == [[8, 4]]*2


def test_accuracy_is_measured_on_at_most_512_images():
    d = DataLoaders(loader(64, batch_size=16), loader(600, batch_size=200))
    l = ekd_learner(d, SMALL, [Counted(Net())], n_out=10, loss_func=EKDLoss(gamma=1.))
    assert l.distill.teachers.models[0].seen == [8, 200, 200, 112, 4]


def test_the_student_runs_once_on_eight_images():
    from ekd_nb.student import branched_student
    s = branched_student(SMALL, 2, 10, in_channels=1, size=8)
    s.trunk = Counted(s.trunk)
    learner(arch=s, loss_func=EKDLoss(gamma=1.))
    assert s.trunk.seen == [8]


# ---- batches

@pytest.mark.parametrize('kw, says', [
    (dict(sampler=SubsetRandomSampler(range(64)), batch_size=16), None),
    (dict(sampler=SubsetRandomSampler(range(33)), batch_size=16), '33 images, bs=16'),
    (dict(sampler=SubsetRandomSampler(range(33)), batch_size=16, drop_last=True), None),
    (dict(batch_sampler=BatchSampler(SequentialSampler(range(33)), 16, False)), '33 images'),
    (dict(batch_size=1), '65 images, bs=1'),
    (dict(batch_size=16), '65 images, bs=16'),
])
def test_a_batch_of_one_image(kw, says):
    "What the sampler draws counts, not the size of the data set"
    import torchvision.models as tv
    ds = TensorDataset(torch.randn(65, 3, 32, 32), torch.arange(65)%4)
    d = DataLoaders(DataLoader(ds, **kw), DataLoader(ds, batch_size=16))
    def go():
        l = ekd_learner(d, lambda: tv.resnet18(num_classes=4), n_branches=2, n_out=4, split='layer3', loss_func=LABELS)
        if not says and kw.get('batch_size'): return l
    if says is None: go()
    else:
        with pytest.raises(EKDError, match=says): go()


def test_exactly_images_and_labels():
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32)%10
    for tensors, n in (((x, y, torch.arange(32)), 3), ((x,), 1), ((x, y, y, y), 4)):
        d = DataLoaders(*[DataLoader(TensorDataset(*tensors), batch_size=8)]*2)
        with pytest.raises(EKDError, match=f'a batch has {n} items .*, expected two: images and labels'): first_batch(d)


# ---- classes and weights

def test_classes_come_from_the_width_of_the_teachers_answer():
    class Odd(nn.Module):
        "A layer that forward does not use comes last"
        def __init__(self): super().__init__(); self.net, self.ssl = Net(10), nn.Linear(8, 32)
        def forward(self, x): return self.net(x)
    assert preflight(loaders(loader(batch_size=16)), EKDLoss(), [Odd()]).n_out == 10


def test_class_weights_fit_the_classes():
    with pytest.raises(EKDError, match='got 3 class weights, expected one for each of the 10 classes'):
        learner(ts=[Net()], loss_func=EKDLoss(weight=[1., 2., 3.]))


def test_what_a_preflight_has_found():
    found = preflight(dls(), EKDLoss(gamma=1.), teachers())
    assert (found.n_out, found.n_teachers, list(found.probe.logits.shape)) == (10, 2, [2, 8, 10])
    assert torch.equal(found.probe.idx, found.x.key.idx[:8])
    found = preflight(dls(), LABELS)
    assert found.teachers is None and found.probe is None

def test_a_teacher_of_colour_images_without_normalisation_is_adapted_as_one(monkeypatch):
    "Statistics of one number say nothing about channels"
    net = get_model('resnet8-w4', 10, 3)
    net.manifest = dict(stats=[[0.], [1.]])
    monkeypatch.setattr('ekd_nb.judge.data_stats', lambda dls: [[.5]*3, [.25]*3])
    found = TeacherEnsemble([net]).match(None, log=lambda line: None)
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(found.models[0](x), net.eval()(x*.25+.5), atol=1e-4)


# ---- teachers that are weaker than the student

class Knows(nn.Module):
    "The class that lights up, right for a share of the images; the class after it for the others"
    def __init__(self, share):
        super().__init__()
        self.share = share
        self.register_buffer('scale', torch.tensor(5.))
    def forward(self, x):
        y, m = x[:, 0, :, 0].argmax(1), x[:, 0, :, 1].mean(1)
        return self.scale*nn.functional.one_hot(torch.where(m<self.share, y, (y+1)%8), 8).float()

def lit(n, seed):
    "Images whose class is a bright row; their second column holds a number in [0,1] for `Knows`"
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(8, (n,), generator=g)
    x = .1*torch.rand(n, 1, 8, 8, generator=g)
    x[torch.arange(n), 0, y] = 1.5
    x[..., 1] = torch.arange(n).view(-1, 1, 1)/n
    return TensorDataset(x, y)

def lit_learner(*shares, n_valid=200, **kw):
    d = DataLoaders(DataLoader(lit(400, 0), 20, shuffle=True), DataLoader(lit(n_valid, 1), 100))
    torch.manual_seed(0)
    ts = TeacherEnsemble([Knows(s) for s in shares], feature_grid=0, class_maps=kw.pop('class_maps', None))
    return ekd_learner(d, SMALL, ts, n_out=8, loss_func=EKDLoss(.9, .1, 0.), **kw)

def said(l, capsys, epochs=4):
    "The accuracy of the student, and what is printed of weak teachers"
    with l.no_bar(), l.no_logging():
        capsys.readouterr()
        l.fit_one_cycle(epochs, 1e-2)
        lines = [o for o in capsys.readouterr().err.splitlines() if 'weaker' in o]
        return l.validate()[1], lines

def test_teachers_that_are_weaker_than_the_student_are_named(capsys):
    l = lit_learner(.34, 1., .5)
    judged = [o for o in capsys.readouterr().err.splitlines() if o.startswith('teacher ')]
    acc, lines = said(l, capsys)
    assert acc>.7, 'it has learned what tells the classes apart'
    assert lines == [f'teachers 0 (Knows 1, 34.0% of 200 images), 2 (Knows 3, 50.0% of 200 images) are weaker than the '
                     f'student ({acc:.1%} of 200): train without them, too, and compare']
    assert judged[0].startswith('teacher Knows 1: 34.0% of 200 images') and len(judged) == 3
    acc, lines = said(l, capsys, 1)
    assert not lines, 'once for each Learner'

def test_one_weak_teacher(capsys):
    acc, lines = said(lit_learner(1., .3), capsys)
    assert lines == [f'teacher 1 (Knows 2, 30.0% of 200 images) is weaker than the student ({acc:.1%} of 200): '
                     'train without it, too, and compare']

@pytest.mark.parametrize('kw, shares', [(dict(), (1., 1.)), (dict(judge=False), (.3, .3)),
                                        (dict(class_maps=[None, [*range(7), None]]), (1., .3))],
                         ids=['better', 'not judged', 'knows some classes'])
def test_nothing_is_said_of_other_teachers(kw, shares, capsys): assert said(lit_learner(*shares, **kw), capsys)[1] == []

def test_nothing_is_said_by_what_is_no_fit(capsys):
    l = lit_learner(.2)
    said(l, capsys)
    with l.no_bar(), l.no_logging():
        l.validate(); l.get_preds(); l.lr_find(num_it=8, show_plot=False)
        assert 'weaker' not in capsys.readouterr().err
    kept = lit_learner(.2, 1.).keep(1)
    assert len(said(kept, capsys)[1]) == 1

@pytest.mark.parametrize('right, n, judged, weaker', [
    (54, 100, (34, 512), True), (36, 100, (34, 512), False), (540, 1000, (519, 1000), False), (60, 100, (54, 100),
                                                                                               False),
    (6000, 10_000, (5700, 10_000), True), (5810, 10_000, (5700, 10_000), False),
    (4, 8, (0, 4), False), (54, 100, (0, 0), False)])
def test_noise_is_considered(right, n, judged, weaker, monkeypatch, capsys):
    "More than two points, and more than two standard errors of the difference"
    import ekd_nb.watch
    from ekd_nb.judge import Verdict
    hits, m = judged if judged[1] != 512 else (174, 512)
    cb = ekd_nb.watch.NameWeakTeachers([Verdict('t', hits/max(m, 1), m, [])])
    cb.last, cb.learn = (right, n), None
    monkeypatch.setattr(ekd_nb.watch, 'is_training_fit', lambda learn: True)
    cb.after_fit()
    assert ('weaker' in capsys.readouterr().err) == weaker

def test_no_image_more_is_shown_to_a_teacher():
    nets = [Counted(Knows(.3)), Counted(Knows(1.))]
    d = DataLoaders(DataLoader(lit(40, 0), 20), DataLoader(lit(50, 1), 50))
    l = ekd_learner(d, SMALL, TeacherEnsemble(nets, feature_grid=0), n_out=8, loss_func=EKDLoss(.9, .1, 0.))
    with l.no_bar(), l.no_logging(): l.fit(1, 1e-2)
    assert [t.seen for t in l.distill.teachers.models] == [[8, 50, 4, 20, 20]]*2


# ---- which images teachers and student are measured on

class Mistakes(nn.Module):
    "Takes one class for the next"
    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong
        self.register_buffer('scale', torch.tensor(5.))
    def forward(self, x):
        y = x[:, 0, :, 0].argmax(1)
        return self.scale*nn.functional.one_hot(torch.where(y==self.wrong, (y+1)%8, y), 8).float()

def rows(y):
    x = torch.zeros(len(y), 1, 8, 8)
    x[torch.arange(len(y)), 0, y] = 1.5
    return TensorDataset(x, y)

SORTED, TURNS = torch.arange(4).repeat_interleave(520), torch.arange(2048)%4

def of_fastai(ds):
    from fastai.data.core import TfmdDL
    return TfmdDL(ds, bs=64)

@pytest.mark.parametrize('y', [SORTED, TURNS], ids=['sorted', 'in turns'])
@pytest.mark.parametrize('make', [lambda ds: DataLoader(ds, 64), lambda ds: DataLoader(ds, 100, shuffle=True),
                                  of_fastai],
                         ids=['PyTorch', 'shuffled', 'fastai'])
def test_the_judge_sees_images_from_all_over_the_validation_data(make, y):
    d = DataLoaders(DataLoader(rows(torch.zeros(32).long()), 8), make(rows(y)))
    teachers = TeacherEnsemble([Mistakes(i) for i in range(4)], feature_grid=0)
    before = torch.get_rng_state()
    found = teachers.judge(d)
    assert torch.equal(before, torch.get_rng_state())
    assert found == teachers.judge(d), 'the same images each time'
    for v in found:
        assert v.n == 512 and v.comparable and not v.remarks
        assert abs(v.accuracy-.75)<(.04 if y is TURNS else .003)

def test_the_judge_does_not_see_training_images_of_this_package():
    from compat import dls
    from ekd_nb.judge import _judged_images, _spread
    d = dls()
    every = torch.cat([b[0].as_subclass(torch.Tensor) for b in d.valid])
    for n, where in ((600, list(range(539))), (512, _spread(539, 512))):
        batches, comparable = _judged_images(d, n)
        assert comparable and torch.equal(torch.cat([x for x, _ in batches]), every[where])

def test_images_that_cannot_be_picked_are_the_first_and_compared_with_no_student(capsys):
    class Own(DataLoader):
        def __iter__(self): return super().__iter__()
    d = DataLoaders(DataLoader(lit(400, 0), 20, shuffle=True), Own(lit(600, 1), 100))
    ts = TeacherEnsemble([Knows(.3)], feature_grid=0)
    v, = ts.judge(d)
    assert v.n == 512 and not v.comparable and v.accuracy == pytest.approx(180/512)
    assert said(ekd_learner(d, SMALL, ts, n_out=8, loss_func=EKDLoss(.9, .1, 0.)), capsys)[1] == []

def at_epoch_end(f):
    from fastai.callback.core import Callback
    class AtEnd(Callback):
        order,busy = 60,False
        def after_epoch(self):   # `validate` ends with it, too
            if self.busy or self.learn.lock.locked(): return
            self.busy = True
            f(self.learn)
            self.busy = False
    return AtEnd()

def test_only_validations_of_the_fit_are_compared(capsys):
    other = DataLoader(TensorDataset(*[o[:40]*0 for o in lit(400, 0).tensors]), 20)
    for f in (lambda l: l.validate(0), lambda l: l.validate(dl=other), lambda l: l.get_preds(dl=other)):
        acc, lines = said(lit_learner(1., .3, cbs=at_epoch_end(f)), capsys, 1)
        assert len(lines) == 1 and f'student ({acc:.1%} of 200)' in lines[0]

def test_a_validation_that_was_cut_short_is_not_compared(capsys):
    from fastai.callback.core import Callback, CancelValidException
    class Cut(Callback):
        def after_batch(self):
            if not self.training and self.learn.epoch in self.at: raise CancelValidException
    l = lit_learner(1., .3)
    l.add_cb(Cut())
    l.cut.at = [0]
    with l.no_bar(), l.no_logging(): l.fit_one_cycle(1, 1e-2)
    assert 'weaker' not in capsys.readouterr().err
    l.cut.at = [1]   # of two epochs: the first one was validated
    with l.no_bar(), l.no_logging(): l.fit_one_cycle(2, 1e-2)
    assert capsys.readouterr().err.count('weaker') == 1
