"The training loop around the teachers: what it promises, resumption, guards"
import gc, io, pickle, random, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, dls, folder_dls, learner, teachers, three, torch_loaders
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from ekd_nb.callbacks import DistillCallback, NonFiniteLoss, StopOnNonFinite, WarnDeadBranch
from ekd_nb.checkpoint import Checkpoint
from ekd_nb.checkpoint import to_plain_types, rng_state, set_rng_state
from ekd_nb.core import EKDError
from ekd_nb.losses import EKDLoss
from ekd_nb.teachers import TeacherEnsemble

warnings.filterwarnings('ignore')


def fit(l, n=1, **kw):
    with l.no_bar(), l.no_logging(): l.fit(n, 1e-2, **kw)
    return l

def bits(l): return torch.cat([v.flatten().double() for v in l.model.state_dict().values()])

class Cut(Callback):
    "Interrupts training at (epoch, batch)"
    order = 80
    def __init__(self, epoch, batch=0): self.at = epoch, batch
    def before_batch(self):
        if self.training and (self.epoch, self.iter) == self.at: raise KeyboardInterrupt


# ---- DistillCallback

def test_contract():
    cb = learner().distill
    assert cb.run_valid is False and cb.order < 10


def test_teachers_stay_as_they_are_and_get_no_gradient():
    ts = teachers()
    for t in ts: t.train()
    l = learner(ts=ts)
    before = {k: v.clone() for k, v in l.distill.teachers.state_dict().items()}
    modes = []
    class Look(Callback):
        def after_pred(self): modes.extend(m.training for m in self.learn.distill.teachers.modules())
    fit(l, 2, cbs=Look())
    assert modes and not any(modes)
    assert all(torch.equal(v, before[k]) for k, v in l.distill.teachers.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in l.distill.teachers.parameters())
    assert all(t.training for t in ts), 'the caller\'s own networks are left alone'


def test_teachers_are_not_asked_while_validating():
    l, asked = fit(learner()), []
    l.distill.teachers.forward = lambda x: asked.append(len(x))
    l.validate(); l.get_preds()
    assert not asked


def test_no_pickle_holds_a_teacher(tmp_path):
    l = fit(learner(memo=True))
    assert pickle.loads(pickle.dumps(l.distill)).teachers is None
    assert not any(k.startswith('distill') or 'teacher' in k for k in l.model.state_dict())


def test_memo_gives_the_same_weights_and_is_asked():
    def run(memo):
        torch.manual_seed(0)
        l = learner(dls(n=4, bs=16, n_views=2))
        l.distill.memo, l.distill.dtype = memo, torch.float32
        return fit(l, 4)
    live, kept = run(False), run(True)
    assert torch.equal(bits(live), bits(kept))
    assert (kept.distill.memo.hits, kept.distill.memo.misses) == (2*40, 2*40)


def test_same_seed_same_bits():
    def run():
        torch.manual_seed(5); np.random.seed(5); random.seed(5)
        return bits(fit(learner(), 2))
    assert torch.equal(run(), run())


# ---- guards

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_non_finite_loss_names_epoch_and_batch(tmp_path, value):
    class Poison(Callback):
        def before_batch(self):
            if self.training and (self.epoch, self.iter) == (1, 2):
                self.learn.model.branches[0].head.bias.data[0] = value
    l = learner(cbs=[Poison(), Checkpoint(tmp_path)])
    with pytest.raises(NonFiniteLoss, match='epoch 1, batch 2'): fit(l, 3)
    good = l.checkpoint.files()
    assert len(good) == 1
    s = torch.load(good[0], weights_only=True)
    assert s['epoch'] == 0 and all(v.isfinite().all() for v in s['model'].values())


@pytest.mark.parametrize('where', ['weight', 'statistics'])
def test_weights_that_are_not_finite_are_noticed(tmp_path, where):
    "The loss of every batch is finite: only what is left after the epoch tells"
    class Overflow(Callback):
        def after_batch(self):
            if not self.training or (self.epoch, self.iter) != (1, self.n_iter-1): return
            norm = next(m for m in self.learn.model.trunk.modules() if isinstance(m, torch.nn.BatchNorm2d))
            if where == 'weight': norm.weight.data[0] = float('inf')
            else: norm.running_var[0] = float('nan')
    l = learner(cbs=[Overflow(), Checkpoint(tmp_path)])
    says = 'Weights are not finite after epoch 1 .*1 of .*expected a lower learning rate'
    with pytest.raises(NonFiniteLoss, match=says): fit(l, 3)
    assert len(l.checkpoint.files()) == 1


def test_stop_leaves_autocast():
    from fastai.callback.fp16 import MixedPrecision
    l = learner(cbs=MixedPrecision())
    l.model.branches[0].head.bias.data[0] = float('nan')
    with pytest.raises(NonFiniteLoss): fit(l)
    assert not torch.is_autocast_enabled('cuda')


@pytest.mark.parametrize('seed', range(2))
def test_healthy_branches_are_not_called_dead(seed):
    torch.manual_seed(seed)
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        fit(learner())
    assert not [o for o in w if 'gets no gradient' in str(o.message)]


def test_dead_branch_is_named():
    l = learner(loss_func=EKDLoss(gamma=0))
    l.model.branches[1].head.weight.data.zero_()
    l.model.branches[1].head.weight.requires_grad_(False)
    with pytest.warns(UserWarning, match='branch 1 gets no gradient'): fit(l)


def test_large_logits_are_noticed():
    big = Net()
    big.fc.weight.data.mul_(1e9)
    with pytest.warns(UserWarning, match='logits of up to'): learner(ts=[big])


@pytest.mark.parametrize('memo', [False, True])
def test_logits_that_become_large_are_noticed(memo):
    l = learner(memo=memo)
    class Explode(Callback):
        def before_fit(self): self.distill.teachers.models[1].fc.bias.data.fill_(2e4)
    l.add_cb(Explode())
    with pytest.warns(UserWarning, match='teacher 1 gives logits of up to .* at the end of epoch 0'): fit(l)


# ---- Checkpoint

def test_rng_of_everything():
    dl = folder_dls().train
    s = rng_state(dl)
    draw = lambda: (torch.rand(3).tolist(), np.random.rand(), random.random(), dl.rng.random())
    a = draw(); draw()
    set_rng_state(s, dl)
    assert draw() == a


def test_checkpoints_are_plain(tmp_path):
    fit(learner(cbs=Checkpoint(tmp_path)), 3)
    files = sorted(tmp_path.glob('*.pth'))
    assert [p.name.split('-')[1] for p in files] == ['epoch0001', 'epoch0002']
    for p in files: torch.load(p, weights_only=True)


@pytest.mark.parametrize('make', [
    pytest.param(lambda: (dls(bs=16), None, {}), id='tensor loader'),
    pytest.param(lambda: (torch_loaders(), None, {}), id='plain torch loaders'),
    pytest.param(lambda: (folder_dls(size=16), three(), {}), id='image folder with augmentation'),
    pytest.param(lambda: (dls(bs=16), None, dict(cbs=[GradientAccumulation(30)])), id='accumulated gradients'),
])
def test_resumes_bit_for_bit(tmp_path, make):
    def run(folder, *cbs):
        torch.manual_seed(2); np.random.seed(2); random.seed(2)
        d, ts, kw = make()
        l = learner(d, ts=ts, **kw)
        l.add_cb(Checkpoint(tmp_path/folder))
        try: fit(l, 3, cbs=list(cbs))
        except KeyboardInterrupt: return None
        return l
    whole = run('a')
    for at in (Cut(1, 1), Cut(2, 2)): assert run('b', at) is None
    again = run('b')
    assert torch.equal(bits(again), bits(whole))
    assert again.recorder.values == whole.recorder.values


def test_lr_find_and_validate_leave_checkpoints_alone(tmp_path):
    import fastai.callback.schedule
    l = learner(cbs=Checkpoint(tmp_path), path=tmp_path)
    with l.no_bar(), l.no_logging(): l.lr_find(num_it=3, show_plot=False)
    l.validate()
    assert not list(tmp_path.glob('*.pth'))
    fit(l)
    assert len(list(tmp_path.glob('*.pth'))) == 1


def test_second_fit_of_a_learner_trains(tmp_path):
    l = fit(learner(cbs=Checkpoint(tmp_path)))
    one = bits(l)
    assert not torch.equal(bits(fit(l)), one)
    assert [p.name[:4] for p in l.checkpoint.files()] == ['fit0', 'fit1']


def test_other_network_or_data_in_the_folder(tmp_path):
    fit(learner(cbs=Checkpoint(tmp_path)))
    with pytest.raises(EKDError, match=r'holds another network \(.+: .+, here .+\)'):
        fit(learner(arch='resnet8-w8', cbs=Checkpoint(tmp_path)))
    with pytest.raises(EKDError, match='other data'): fit(learner(torch_loaders(), cbs=Checkpoint(tmp_path)))


def test_all_damaged_starts_anew(tmp_path):
    def run(): torch.manual_seed(0); return fit(learner(cbs=Checkpoint(tmp_path)))
    one = bits(run())
    for p in tmp_path.glob('*.pth'): p.write_bytes(b'x')
    with pytest.warns(UserWarning, match='damaged and left out'): l = run()
    assert torch.equal(bits(l), one)


def test_plain_keeps_values():
    got = to_plain_types(dict(a=np.float32(1), b=(1, None, 'x'), c=torch.nn.Parameter(torch.ones(1))))
    assert got['a'] == 1. and got['b'] == [1, None, 'x'] and type(got['c']) is torch.Tensor
    buf = io.BytesIO(); torch.save(got, buf); buf.seek(0)
    torch.load(buf, weights_only=True)


# ---- the cache and callbacks that come early

@pytest.mark.parametrize('change', [lambda x: x.flip(3), lambda x: x*.5, lambda x: x.clone(), lambda x: x.mul_(2)])
def test_an_early_callback_that_changes_the_batch_is_seen(change):
    worst = []
    class Mine(Callback):
        order = -20
        def before_batch(self):
            if self.training and self.epoch: self.learn.xb = (change(self.xb[0]),)
    class Spy(Callback):
        order = 50
        def after_pred(self):
            if not self.training: return
            true = self.distill.teachers(self.xb[0].as_subclass(torch.Tensor)).logits
            worst.append(float((self.pred.teacher.logits-true).abs().max()))
    fit(learner(dls(n=4, bs=16, n_views=1), memo=True, cbs=[Mine(), Spy()]), 3)
    assert max(worst) < 2e-3   # the cache is fp16


# ---- what is a fit

def test_tta_is_no_fit(tmp_path):
    from fastai.callback.progress import ProgressCallback
    def script():
        torch.manual_seed(2); np.random.seed(2); random.seed(2)
        l = learner(folder_dls(size=16), ts=three(), cbs=Checkpoint(tmp_path/'ck'))
        fit(l)
        with l.no_bar(): l.tta(n=1)
        fit(l)
        return l
    first = script()
    assert [p.name[:4] for p in first.checkpoint.files()] == ['fit0', 'fit1'] and first.checkpoint.n_fit == 1
    assert torch.equal(bits(script()), bits(first))


def test_a_loaded_learner_predicts_by_every_way(tmp_path):
    from fastai.data.transforms import get_image_files
    from fastai.learner import load_learner
    from compat import image_folder
    l = fit(learner(folder_dls(size=16), ts=three(), path=tmp_path))
    l.export('e.pkl')
    m = load_learner(tmp_path/'e.pkl')
    files = get_image_files(image_folder())[:4]
    with m.no_bar():
        m.get_preds(dl=m.dls.test_dl(files)); m.predict(files[0])
        p, _ = m.tta(dl=m.dls.test_dl(files), n=1)
    assert p.shape == (4, 3)


# ---- hints that outweigh everything

def said(l, n=2):
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        l.fit(n, 1e-6)
    return [str(o.message) for o in w if str(o.message).startswith('hints were')]


def test_hints_that_outweigh_everything_are_noticed_once():
    l = learner(loss_func=EKDLoss(gamma=1e5))
    for b in l.model.branches: b.head.requires_grad_(False).weight.zero_()   # one class for every image
    with l.no_bar(), l.no_logging(): messages = said(l, 3)
    assert len(messages) == 1 and '100% of the loss in epoch 0' in messages[0]


def test_no_warning_where_the_student_learns_or_hints_are_small():
    l = learner(loss_func=EKDLoss(gamma=1e-3))
    with l.no_bar(), l.no_logging(): assert not said(l)
    class Right(torch.nn.Module):
        "An ensemble that knows the labels"
        def __init__(self, fusion): super().__init__(); self.fusion, self.y = fusion, None
        def forward(self, z, h):
            return self.fusion(z, h) if self.training else torch.nn.functional.one_hot(self.y, 10).float()
    l = learner(loss_func=EKDLoss(gamma=1e5))
    l.model.fusion = Right(l.model.fusion)
    class Tell(Callback):
        def before_batch(self): self.learn.model.fusion.y = self.yb[0].long()
    l.add_cb(Tell())
    with l.no_bar(), l.no_logging(): assert not said(l)


def test_hints_that_fall_may_be_most_of_the_loss_at_first():
    for gamma, schedule, n in ((10., 'cosine', 0), (10., None, 1)):
        l = learner(loss_func=EKDLoss(gamma=gamma, hint_schedule=schedule))
        for b in l.model.branches: b.head.requires_grad_(False).weight.zero_()
        with l.no_bar(), l.no_logging(): assert len(said(l)) == n


# ---- schedules and checkpoints

def test_schedules_resume_exactly(tmp_path):
    from fastai.callback.schedule import SchedCos
    def run(folder, *cbs):
        torch.manual_seed(2); np.random.seed(2); random.seed(2)
        l = learner(dls(bs=16), loss_func=EKDLoss(beta=lambda share: 1-share/2, gamma=SchedCos(2, 0)),
                    cbs=Checkpoint(tmp_path/folder))
        try: return fit(l, 3, cbs=list(cbs))
        except KeyboardInterrupt: return None
    whole = run('a')
    assert run('b', Cut(1, 1)) is None
    again = run('b')
    assert torch.equal(bits(again), bits(whole)) and again.recorder.values == whole.recorder.values


def test_a_cache_that_cannot_be_saved_only_warns(tmp_path, monkeypatch):
    import ekd_nb.checkpoint as module
    def broken(*args): raise TypeError('Got unsupported ScalarType BFloat16')
    monkeypatch.setattr(module, 'save_memo', broken)
    l = learner(memo=True, cbs=Checkpoint(tmp_path))
    with pytest.warns(UserWarning, match='could not be saved'): fit(l, 2)
    assert len(l.checkpoint.files()) == 2


def test_frozen_branches_are_noticed():
    l = learner(loss_func=EKDLoss())
    l.model.branches[1].requires_grad_(False)
    with pytest.warns(UserWarning, match='branch 1 does not learn'): fit(l)
