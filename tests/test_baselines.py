"Other distillation methods: each trains through ekd_learner, leaves teachers and the student alone, says what is wrong"
import pickle, subprocess, sys, warnings
from pathlib import Path
import pytest, torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, data, folder_dls, torch_loaders
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from ekd_nb.baselines.registry import BASELINES, make_baseline
from ekd_nb.checkpoint import Checkpoint
from ekd_nb.core import EKDError
from ekd_nb.data import image_dls, stratified_subset
from ekd_nb.deploy import load_student, save_student
from ekd_nb.baselines.feature_based import CRDLoss, SPLoss
from ekd_nb.learner import ekd_learner
from ekd_nb.losses import DistillLoss, EKDLoss
from ekd_nb.memo import TeacherMemo
from ekd_nb.models import get_model
from ekd_nb.baselines.peers import ONELoss
from ekd_nb.student import StudentOutput, branched_student
from ekd_nb.teachers import TeacherEnsemble

warnings.filterwarnings('ignore')
try: import torchdistill; missing = ()
except ImportError: missing = ('at', 'rkd', 'crd', 'dist', 'lskd')   # need the optional library
NAMES = [n for n in BASELINES if n not in missing]
needs_torchdistill = pytest.mark.skipif(bool(missing), reason='torchdistill is not installed')


def teachers(feature_grid=2):
    torch.manual_seed(5)
    return TeacherEnsemble([get_model('resnet8-w6', 10, 1), get_model('wrn_10_1', 10, 1)], feature_grid=feature_grid)

def loaders(n=6, bs=20, **kw):
    return image_dls(data(), stratified_subset(data().y_train, n_per_class=n), bs=bs, device='cpu', **kw)

def learner(name, d=None, ts=None, cbs=None, memo=False, teacher=None, **own):
    b = BASELINES[name]
    torch.manual_seed(0)
    n = 1 if b.student == 'single' else 2
    student = branched_student(SMALL, n, 10, 0 if b.student == 'separate' else None, b.fusion or 'mean', in_channels=1,
                               size=16)
    return ekd_learner(d or loaders(), student, (ts or teachers()) if b.uses else None, memo=memo,
                       loss_func=make_baseline(name, .1 if b.uses else 1., .9, None, teacher, **own), cbs=cbs)

def fit(l, n=2, lr=1e-3):
    with l.no_bar(), l.no_logging(): l.fit(n, lr)
    return l

def batch(l):
    "Images and labels as fastai hands them to the model, and which images they are"
    x, y = l.dls.one_batch()
    key = x.key
    return x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor), key.idx

def losses(l): return [r[0] for r in l.recorder.values]
def weights(m): return torch.cat([v.flatten().double() for v in m.state_dict().values()])


@pytest.mark.parametrize('name', NAMES)
def test_trains_and_leaves_nothing_behind(name, tmp_path):
    l = learner(name, loaders(15, 10))
    ts = l.distill.teachers if BASELINES[name].uses else None
    before = ts and weights(ts)
    fit(l, 6 if name == 'crd' else 2, 3e-3)   # CRD's memory is noise for an epoch, and becomes harder when it is not
    first, *_, last = losses(l)
    assert torch.isfinite(torch.tensor([first, last])).all() and last < first
    row = dict(zip(l.recorder.metric_names[1:], l.recorder.values[-1]))
    assert isinstance(l.loss_func, DistillLoss) and all(row[p] is not None for p in l.loss_func.term_names)
    if ts:
        assert torch.equal(weights(ts), before) and all(p.grad is None and not p.requires_grad for p in ts.parameters())
    split = 0 if BASELINES[name].student == 'separate' else None
    kept, saved = l.model.keep(l.model.n_branches), load_student(save_student(l, tmp_path, arch=SMALL, split=split))
    for m in (kept, saved):
        assert m.projections is None and not [k for k in m.state_dict() if 'projection' in k or 'teacher' in k]
    x = batch(l)[0]
    with torch.no_grad(): assert torch.allclose(kept.eval()(x), l.model.eval()(x), atol=1e-6)
    z, _ = l.get_preds(act=lambda z: z)
    assert z.shape[1] == 10 and z.isfinite().all()


@pytest.mark.parametrize('name', [n for n in NAMES if BASELINES[n].student == 'single'])
def test_one_teacher_is_another_thing_than_all(name):
    one, other, avg = (losses(fit(learner(name, teacher=t), 1))[0] for t in (0, 1, None))
    assert len({one, other, avg}) == 3
    with pytest.raises(EKDError, match='an index below 2'): learner(name, teacher=2)


@pytest.mark.parametrize('name', NAMES)
def test_parts_sum_to_the_loss_for_each_image(name):
    l = learner(name)
    x, y, idx = batch(l)
    loss = l.loss_func
    with torch.no_grad():   # nothing is remembered: CRD answers the same twice
        pred = l.model.train()(x)
        if BASELINES[name].uses: pred = pred._replace(teacher=l.distill.teachers(x)._replace(idx=idx))
        torch.manual_seed(0)
        total = loss(pred, y)
        assert (torch.allclose(sum(loss.last_terms.values()), total, rtol=1e-4) and
                list(loss.last_terms) == loss.term_names)
        loss.reduction = 'none'
        torch.manual_seed(0)
        each = loss(pred, y)
    assert each.shape == (len(x),) and torch.allclose(each.mean(), total, rtol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_no_gradient_reaches_a_teacher(name):
    l = learner(name)
    if not BASELINES[name].uses: return
    x, y, idx = batch(l)
    out = l.distill.teachers(x)._replace(idx=idx)
    out = out._replace(logits=out.logits.requires_grad_(), features=tuple(f.requires_grad_() for f in out.features))
    l.loss_func(l.model.train()(x)._replace(teacher=out), y).backward()
    assert any(p.grad is not None and p.grad.any() for p in l.model.parameters())
    assert out.logits.grad is None and (name == 'crd' or all(f.grad is None for f in out.features))


def test_without_weight_for_the_teachers_it_is_training_on_labels():
    for name in [n for n in NAMES if BASELINES[n].uses]:
        loss = make_baseline(name, 1., 0.)
        assert (not loss.needs_teacher and not loss.gamma and
                loss.term_names == (['ce'] if BASELINES[name].student == 'single' else ['ce_ens', 'ce_branch']))


# ---- modules that are trained beside the student

@pytest.mark.parametrize('name', [n for n in ('fitnet', 'crd') if n in NAMES])
def test_projections_are_trained_by_the_learner(name):
    l = learner(name)
    mine = {k: v.clone() for k, v in l.model.projections.named_parameters()}
    fit(l, 1)
    assert (len(mine) == dict(fitnet=2, crd=4)[name] and
            all(not torch.equal(v, mine[k]) for k, v in l.model.projections.named_parameters()))
    in_opt = {id(p) for g in l.opt.param_lists for p in g}
    assert all(id(p) in in_opt for p in l.model.projections.parameters())


@needs_torchdistill
def test_crd_remembers_exactly_the_images_it_saw():
    l = learner('crd')
    m = l.model.projections[1]
    before = m.crd.memory_v1.clone()
    assert float(m.crd.params[2]) == -1, 'the rehearsal is forgotten'
    assert m.k == 60-6 and len(before) == 60
    x, y, idx = batch(l)
    l.loss_func(l.model.train()(x)._replace(teacher=l.distill.teachers(x)._replace(idx=idx)), y)
    changed = (m.crd.memory_v1 != before).any(1)
    assert sorted(m.slot[idx].tolist()) == changed.nonzero()[:, 0].tolist()
    assert torch.equal(m.labels[m.slot[idx]], y)


@needs_torchdistill
def test_crd_resumes_with_its_memory(tmp_path):
    whole = fit(learner('crd'), 3)
    l = learner('crd', cbs=Checkpoint(tmp_path))
    class Cut(Callback):
        order = 80
        def before_batch(self):
            if self.training and (self.epoch, self.iter) == (2, 1): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), l.no_bar(), l.no_logging(): l.fit(3, 1e-3, cbs=Cut())
    again = fit(learner('crd', cbs=Checkpoint(tmp_path)), 3)
    assert torch.equal(weights(again.model), weights(whole.model))


@needs_torchdistill
def test_crd_has_to_know_which_image_is_which():
    for d,n in ((torch_loaders(), 10), (folder_dls(), 3)):
        c = next(iter(d.train))[0].shape[1]
        ts = TeacherEnsemble([get_model('resnet8-w6', n, c)])
        with pytest.raises(EKDError, match='image_dls'):
            ekd_learner(d, SMALL, ts, n_branches=1, n_out=n, loss_func=CRDLoss())
    with pytest.raises(EKDError, match='no MixUp'): fit(learner('crd', cbs=MixUp()), 1)


def test_features_from_a_memo_are_those_of_the_teachers():
    ts, d = teachers(), loaders(augment=False)
    live = fit(learner('sp', d, ts), 1)
    memo = TeacherMemo(ts, d.train.rows, d.train.views, 1, d.data_fingerprint, features=True, dtype=torch.float32)
    both = [fit(learner('sp', loaders(augment=False), ts, memo=memo), 1) for _ in range(2)]
    assert memo.misses == 60 and memo.hits >= 60
    for l in both: assert abs(losses(l)[0]-losses(live)[0]) < 1e-3


# ---- together with fastai and torch

@pytest.mark.parametrize('name', [n for n in NAMES if n != 'crd'])
def test_mixup(name):
    l = fit(learner(name, cbs=MixUp()), 1)
    assert torch.isfinite(torch.tensor(losses(l)[0]))


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16(name):
    l = learner(name)
    x, y, idx = batch(l)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        pred = l.model.train()(x)
        if BASELINES[name].uses: pred = pred._replace(teacher=l.distill.teachers(x)._replace(idx=idx))
        loss = l.loss_func(pred, y)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in l.model.parameters())


@pytest.mark.parametrize('name', [n for n in NAMES if BASELINES[n].uses == 'features' and n != 'crd'])
def test_a_batch_of_one_image(name):
    l = learner(name)
    x, y, _ = (o[:1] for o in batch(l))
    out = l.model.eval().trunk(x)
    f = l.model.projections[0](l.model.branches[0](out)[1])
    z = l.model.branches[0](out)[0]
    assert l.loss_func(StudentOutput(z, z[None], (f,), l.distill.teachers(x)), y).isfinite()


@pytest.mark.parametrize('name', NAMES)
def test_pickles_and_describes_itself(name):
    loss = fit(learner(name), 1).loss_func
    again = pickle.loads(pickle.dumps(loss))
    assert repr(again) == repr(loss) and 'β=0.9' in repr(loss)
    assert len(pickle.dumps(loss)) < 6000, 'neither teacher nor memory is in there'


# ---- who is taught

def test_separate_students_are_those_trained_alone():
    "Same batches, same weights: two networks that only meet at the test"
    ts = teachers()
    pair = learner('separate', ts=ts)
    alone = []
    for i in range(2):
        torch.manual_seed(0)
        s = branched_student(SMALL, 2, 10, 0, in_channels=1, size=16).keep([i])
        alone.append(fit(ekd_learner(loaders(), s, TeacherEnsemble([ts.models[i]]), loss_func=EKDLoss(.1, .9, 0., 4.))))
    fit(pair)
    assert not list(pair.model.trunk.parameters())
    for i, l in enumerate(alone): assert torch.allclose(weights(pair.model.keep([i])), weights(l.model), atol=1e-5)
    x = batch(pair)[0]
    with torch.no_grad():
        assert torch.allclose(pair.model.eval()(x), torch.stack([l.model.eval()(x) for l in alone]).mean(0), atol=1e-4)


def test_one_wants_a_gate_and_trains_it():
    with pytest.raises(EKDError, match="fusion: got 'mean', expected 'gate'"):
        ekd_learner(loaders(), SMALL, n_branches=2, loss_func=ONELoss())
    l = learner('one')
    was = l.model.fusion.gate.weight.clone()
    fit(l, 1)
    assert not torch.equal(was, l.model.fusion.gate.weight)


@pytest.mark.parametrize('name', ['one', 'cl_ilr', 'dml'])
def test_peers_bring_branches_together(name):
    "The divergence between branches that are only taught by each other shrinks"
    b = BASELINES[name]
    torch.manual_seed(0)
    s = branched_student(SMALL, 3, 10, 0, b.fusion or 'mean', in_channels=1, size=16)
    l = fit(ekd_learner(loaders(), s, loss_func=make_baseline(name, 0., 1.)), 2)
    peers = [dict(zip(l.recorder.metric_names[1:], r))['peers'] for r in l.recorder.values]
    assert peers[1] < peers[0]


def test_crd_needs_other_classes():
    if 'crd' not in NAMES: return
    rows = [i for i, y in enumerate(data().y_train) if y == 3][:20]
    with pytest.raises(EKDError, match='one class'): learner('crd', image_dls(data(), rows, bs=10, device='cpu'))


@pytest.mark.parametrize('wrong, says', [(dict(name='magic'), "got 'magic', expected one of fitnet, at"),
                                         (dict(name='sp', weight=-1), 'weight: got -1'),
                                         (dict(name='sp', wieght=1), 'wieght: SPLoss has no such setting'),
                                         (dict(name='dkd', tau=0), 'tau: got 0'),
                                         (dict(name='dkd', alpha=-1), 'alpha: got -1'),
                                         (dict(name='dkd', teacher='best'), "teacher: got 'best'"),
                                         (dict(name='dkd', teacher=True), 'teacher: got True'),
                                         (dict(name='one', teacher=0), 'ONELoss has no teacher'),
                                         (dict(name='separate', teacher=0), 'a teacher of its own'),
                                         (dict(name='sp', reduction='batch'), "reduction: got 'batch'"),
                                         (dict(name='sp', kd_weight=-1), 'kd_weight: got -1')])
def test_wrong_calls(wrong, says):
    with pytest.raises(EKDError, match=says): make_baseline(**wrong)


def test_wrong_students_and_teachers():
    ask = lambda loss, ts=None, n=1: ekd_learner(loaders(), SMALL, ts or teachers(), n_branches=n, loss_func=loss)
    with pytest.raises(EKDError, match='expected 1: SPLoss teaches one plain network'): ask(SPLoss(), n=2)
    with pytest.raises(EKDError, match='feature_grid=0'): ask(SPLoss(), teachers(0))
    if 'at' in NAMES:
        with pytest.raises(EKDError, match='got feature_grid=1'): ask(make_baseline('at'), teachers(1))
    with pytest.raises(EKDError, match='teachers: got none'):
        ekd_learner(loaders(), SMALL, n_branches=1, loss_func=SPLoss())
    with pytest.raises(EKDError, match='at least 2 for CLILRLoss'):
        ekd_learner(loaders(), SMALL, n_branches=1, loss_func=make_baseline('cl_ilr'))


def test_without_torchdistill_the_rest_works():
    "The package imports without the optional library; a loss that needs it says so before training"
    code = '''
import sys; sys.modules['torchdistill'] = None
from ekd_nb.baselines.registry import BASELINES, make_baseline
for name in BASELINES:
    try: make_baseline(name); print(name)
    except Exception as e: print(name, type(e).__name__, e)
'''
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    lines = out.stdout.strip().splitlines()
    assert len(lines) == len(BASELINES), out.stderr
    refused = {l.split()[0] for l in lines if 'EKDError torchdistill' in l and 'ekd_nb[bench]' in l}
    assert (refused == {'at', 'rkd', 'crd', 'dist', 'lskd'} and
            all(' ' not in l for l in lines if l.split()[0] not in refused))
