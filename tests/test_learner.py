"ekd_learner: what it promises to a fastai user"
import copy, inspect, subprocess, sys, warnings
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, data, dls, folder_dls, learner, teachers, torch_loaders, trained
from fastai.learner import Learner, load_learner
from ekd_nb.core import EKDError
from ekd_nb.data import image_dls, stratified_subset
from ekd_nb.learner import ekd_learner, teacher_learner
from ekd_nb.preflight import first_batch
from ekd_nb.losses import DEFAULT_GAMMA, EKDLoss
from ekd_nb.student import StudentOutput
from ekd_nb.teachers import TeacherEnsemble

warnings.filterwarnings('ignore')


def test_signature_knows_the_learner_s_arguments():
    mine, theirs = inspect.signature(ekd_learner).parameters, inspect.signature(Learner.__init__).parameters
    assert list(mine)[:3] == ['dls', 'arch', 'teachers']
    assert ({'opt_func', 'lr', 'wd', 'path', 'moms'} <= set(mine) and
            set(theirs)-{'self', 'model', 'kwargs'} <= set(mine))
    assert mine['n_branches'].kind is inspect.Parameter.KEYWORD_ONLY


def test_training_and_evaluation_outputs():
    l = learner()
    x, _ = first_batch(l.dls)
    out = l.model.train()(x)
    assert isinstance(out, StudentOutput) and out.branches.shape == (2, len(x), 10)
    z = l.model.eval()(x)
    assert type(z.as_subclass(torch.Tensor)) is torch.Tensor and z.shape == (len(x), 10)


def test_validation_loss_is_plain_cross_entropy_of_the_ensemble():
    l = trained()
    z, y = l.get_preds(act=lambda z: z)
    assert abs(F.cross_entropy(z, y).item()-l.validate()[0]) < 1e-4


def test_a_column_for_every_part():
    l = trained()
    names = list(l.recorder.metric_names)
    assert names == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'ce_ens', 'ce_branch', 'kd_ens', 'kd_branch',
                     'hint', 'gamma', 'branch_0', 'branch_1', 'time']


def test_columns_are_the_loss():
    "Without momentum of the smooth average: the parts add up to the mean training loss of the epoch"
    from fastai.callback.core import Callback
    class Mean(Callback):
        run_valid, order = False, 70
        def before_fit(self): self.sum = self.n = 0
        def after_loss(self): self.sum += float(self.learn.loss.detach())*len(self.yb[0]); self.n += len(self.yb[0])
    l = trained(m := Mean())
    row = dict(zip(l.recorder.metric_names[1:], l.recorder.values[-1]))
    assert abs(sum(row[p] for p in l.loss_func.term_names)-m.sum/m.n) < 1e-4


def test_memo_false_and_true_see_the_same_teachers():
    l = trained(memo=True)
    assert l.distill.memo.misses == 40


def test_learning_happens():
    torch.manual_seed(0)
    l = ekd_learner(image_dls(data(), stratified_subset(data().y_train, fraction=.5), bs=32), 'resnet8', [Net()],
                    n_branches=2, loss_func=EKDLoss(1., 0., 0.))
    with l.no_bar(), l.no_logging(): l.fit_one_cycle(3, 1e-2)
    assert l.recorder.values[-1][2] > .8


def test_exported_student(tmp_path):
    l = trained(memo=True, path=tmp_path)
    x = data().x_test[:16]
    p = l.get_preds(dl=l.dls.test_dl(x))[0]
    l.export('e.pkl')
    raw = (tmp_path/'e.pkl').read_bytes()
    assert b'TeacherEnsemble' not in raw.replace(b'ekd_nb.teachers', b'') or len(raw) < 200_000
    m = load_learner(tmp_path/'e.pkl')
    assert m.distill.teachers is None and not m.distill.memo
    assert torch.equal(m.get_preds(dl=m.dls.test_dl(x))[0], p)
    assert m.predict(x[0])[1] == p[0].argmax()


def test_own_callbacks_are_not_doubled():
    from ekd_nb.callbacks import LossTermRecorder, StopOnNonFinite
    l = learner(cbs=[StopOnNonFinite(every=7), LossTermRecorder])
    assert (len(l._grab_cbs(StopOnNonFinite)) == len(l._grab_cbs(LossTermRecorder)) == 1 and
            l.stop_on_non_finite.every == 7)


def test_rehearsal_leaves_no_trace():
    torch.manual_seed(0)
    from ekd_nb.student import branched_student
    s = branched_student(SMALL, 2, 10, in_channels=1)
    before, rng = {k: v.clone() for k, v in s.state_dict().items()}, torch.get_rng_state()
    l = learner(arch=s, loss_func=EKDLoss(gamma=0.))   # hints would add projections
    assert (all(torch.equal(v, before[k]) for k, v in s.state_dict().items()) and s.training and
            all(m.training for m in s.modules()))


def test_teacher_learner_refuses_a_network_of_other_classes():
    with pytest.raises(EKDError, match=r'expected logits \[B,10\]'): teacher_learner(dls(), Net(7))
    with pytest.raises(EKDError, match='cannot process images'): teacher_learner(dls(), Net(10, 3))


def test_import_is_light():
    "The learner loads no other wing, no front door, no library that only some need; the package alone loads nothing"
    code = """if True:
        import sys, ekd_nb
        first = {m for m in sys.modules if m.startswith('ekd_nb.') or m in ('torch', 'fastai')}
        import ekd_nb.learner
        heavy = 'timm', 'onnx', 'fastai.vision.all', 'fastai.text.all', 'ekd_nb.all', 'ekd_nb.study', 'ekd_nb.baselines'
        print(sorted(first), [m for m in heavy if m in sys.modules])"""
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert r.stdout.strip() == '[] []', r.stderr


def test_front_door_knows_the_names_and_the_modules():
    import ekd_nb, ekd_nb.all, ekd_nb.study.runs
    from ekd_nb import TeacherEnsemble as ensemble, ekd_learner as same, losses
    assert same is ekd_learner is ekd_nb.all.ekd_learner and ensemble is TeacherEnsemble and losses.EKDLoss is EKDLoss
    assert ekd_nb.learner.ekd_learner is same and all(getattr(ekd_nb.all, n) is not None for n in ekd_nb.all.__all__)
    with pytest.raises(ImportError, match='no_such_name'): from ekd_nb import no_such_name
    assert not hasattr(ekd_nb, '_private')


def test_the_package_runs_as_the_command_line():
    r = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'ekd_nb', '--help'], capture_output=True, text=True)
    assert r.returncode == 0 and '--preset' in r.stdout
    assert (Path(__file__).parents[1]/'ekd_nb/py.typed').exists()


@pytest.mark.parametrize('split, trunk', [(None, ['stem']), ('heads', ['stem', 'layer1', 'layer2', 'layer3'])])
def test_branches_are_the_default_and_both_kinds_survive_saving(split, trunk, tmp_path):
    from ekd_nb.deploy import load_student, save_student
    l = learner(split=split)
    assert [n for n, _ in l.model.trunk.named_children()] == trunk
    assert l.model.kind == ('heads' if split else 'branches')
    x = torch.randn(3, 1, 8, 8)
    for k in (l.model.n_branches, 1):
        student = l.model.keep(k)
        assert torch.equal(load_student(save_student(student, tmp_path/str(k)))(x), student.eval()(x))

# ---- loss functions and numbers

def fit(l, n=1, lr=1e-2, **kw):
    with l.no_bar(), l.no_logging(): l.fit(n, lr, **kw)
    return l


def mine(pred, y): return F.cross_entropy(pred.logits, y)
def with_reduction(pred, y, reduction='mean'): return F.cross_entropy(pred.branches[0], y, reduction=reduction)


@pytest.mark.parametrize('func, ts', [(mine, None), (mine, []), (with_reduction, [])])
def test_a_function_as_loss(func, ts):
    l = ekd_learner(dls(), SMALL, teachers() if ts is None else None, n_branches=2, loss_func=func)
    fit(l)
    z, y = l.get_preds(act=lambda z: z)
    assert abs(F.cross_entropy(z, y).item()-l.validate()[0]) < 1e-4
    assert l.get_preds(with_loss=True)[2].shape == (len(y),)


def test_a_function_with_mixup():
    from fastai.callback.mixup import MixUp
    fit(ekd_learner(dls(), SMALL, None, n_branches=2, loss_func=with_reduction, cbs=MixUp()))
    l = ekd_learner(dls(), SMALL, None, n_branches=2, loss_func=mine, cbs=MixUp())
    with pytest.raises(EKDError, match='mine gives no loss of each image'): fit(l)


def mean_loss_and_parts(l):
    from fastai.callback.core import Callback
    class Total(Callback):
        order, run_valid, sum, n = 20, False, 0., 0
        def after_loss(self):
            self.sum, self.n = self.sum+float(self.learn.loss.detach())*len(self.xb[0]), self.n+len(self.xb[0])
    fit(l, cbs=(t := Total()))
    row = dict(zip(l.recorder.metric_names[1:], l.recorder.values[-1]))
    return t.sum/t.n, sum(row[k] for k in l.loss_func.term_names)


@pytest.mark.parametrize('name', ['MixUp', 'CutMix', None])
@pytest.mark.parametrize('labels_only', [True, False])
def test_parts_are_mixed_like_the_loss(name, labels_only):
    import fastai.callback.mixup as mixup
    kw = dict(ts=None, loss_func=EKDLoss(1., 0., 0.)) if labels_only else dict(loss_func=EKDLoss(.5, .5, 2.))
    total, parts = mean_loss_and_parts(learner(dls(n=6), cbs=getattr(mixup, name)(1.) if name else None, **kw))
    assert abs(total-parts) < 1e-4


@pytest.mark.parametrize('kw', [dict(label_smoothing=.3), dict(weight=torch.arange(1., 11.)),
                                dict(label_smoothing=.1, weight=[2.]+[1.]*9)])
def test_validation_loss_has_no_smoothing_and_no_weights(kw):
    l = fit(learner(loss_func=EKDLoss(1., 0., 0., **kw)), 2)
    z, y = l.get_preds(act=lambda z: z)
    assert abs(F.cross_entropy(z, y).item()-l.validate()[0]) < 1e-4


def test_class_weights_are_those_of_pytorch():
    torch.manual_seed(0)
    z, y, w = torch.randn(12, 10), torch.arange(12)%10, torch.rand(10)+.1
    for smoothing in (0., .2):
        loss = EKDLoss(1., 0., 0., weight=w, label_smoothing=smoothing)
        want = F.cross_entropy(z, y, w, label_smoothing=smoothing)
        assert torch.allclose(loss(StudentOutput(z, z[None]), y), want)
        loss.reduction = 'none'
        want = F.cross_entropy(z, y, w, label_smoothing=smoothing, reduction='none')
        assert torch.allclose(loss(StudentOutput(z, z[None]), y), want)


# ---- weights that change

def test_schedules_of_every_number_are_shown():
    from fastai.callback.schedule import SchedCos, SchedLin
    loss = EKDLoss(alpha=SchedLin(.1, .2), beta=lambda share: 1-share, gamma=SchedCos(6, 0), tau=SchedLin(4, 2),
                   lam=SchedLin(1, 0))
    l = fit(learner(dls(n=8, bs=16), loss_func=loss), 2)   # 5 batches an epoch
    row = dict(zip(l.recorder.metric_names[1:], l.recorder.values[-1]))
    share = .9   # of the training before the last batch
    assert [round(row[k], 5) for k in ('alpha', 'beta', 'tau', 'lam')] == [.19, .1, 2.2, .1]
    assert abs(row['gamma']-SchedCos(6, 0)(share)) < 1e-5


def test_a_weight_set_later_is_used():
    a, b = learner(loss_func=EKDLoss(gamma=1.)), learner(loss_func=EKDLoss(gamma=1.))
    b.model.load_state_dict(a.model.state_dict())
    b.loss_func.gamma = 3.
    x, y = (o.as_subclass(torch.Tensor) for o in first_batch(a.dls))
    def hint(l):
        pred = l.model.train()(x)._replace(teacher=a.distill.teachers(x))
        return l.loss_func(pred, y) and l.loss_func.last_terms['hint'].item()
    assert abs(hint(b)-3*hint(a)) < 1e-4*hint(b)


def test_a_hint_that_was_off_is_refused_later():
    l = learner(loss_func=EKDLoss(gamma=0.))
    l.loss_func.gamma = 1.
    with pytest.raises(EKDError, match='make the Learner with gamma above 0'): fit(l)
    with pytest.raises(EKDError, match='beta: got -2'): l.loss_func.beta = -2


# ---- fewer branches

def test_keep_trains_validates_and_exports(tmp_path):
    l = fit(learner(dls(n=6), n_branches=3, memo=True, path=tmp_path))
    x = l.dls.valid.one_batch()[0]
    for which, idx in ((2, [0, 1]), (1, [0]), ([2], [2])):
        k = l.keep(which)
        assert torch.equal(k.model.eval()(x), l.model.eval().keep(which)(x))
        fit(k)
        branches = [n for n in k.recorder.metric_names if n.startswith('branch_')]
        assert len(branches) == (len(idx) if len(idx)>1 else 0)
        assert k.loss_func.assign == [i%2 for i in idx] and k.model.projections is not None
        k.validate(); k.export('k.pkl')
        m = load_learner(tmp_path/'k.pkl')
        assert torch.allclose(m.model.eval()(x), k.model.eval()(x))
        assert torch.allclose(m.keep([0]).model.eval()(x), m.model.keep([0]).eval()(x))
    assert l.loss_func.assign is None and l.model.n_branches == 3


def test_a_learner_as_student():
    from ekd_nb.models import get_model
    a = fit(learner())
    b = ekd_learner(a.dls, a, teachers()[:1], loss_func=EKDLoss(gamma=1.))   # hints of one teacher: other projections
    x = a.dls.valid.one_batch()[0]
    assert torch.equal(a.model.eval()(x), b.model.eval()(x)) and b.model is not a.model
    fit(b)
    plain = teacher_learner(a.dls, get_model(SMALL, 10, 1))
    c = ekd_learner(a.dls, plain, teachers())
    assert c.model.n_branches == 2
    with pytest.raises(EKDError, match='keep: got'): plain.keep(1)


def test_a_student_with_fewer_branches_put_into_a_learner():
    l = fit(learner())
    l.model = l.model.keep(1)
    l.validate()
    assert l.recorder.values


def test_the_default_goes_on_without_hints_where_teachers_have_no_features():
    teacher = TeacherEnsemble(teachers(), feature_grid=0)
    with pytest.warns(UserWarning, match='goes on without hints'): l = learner(ts=teacher, loss_func=EKDLoss())
    assert l.loss_func.gamma == 0 and l.model.projections is None
    with pytest.raises(EKDError, match='feature_grid=0 gives no features'):
        learner(ts=teacher, loss_func=EKDLoss(gamma=1.))
    assert learner(loss_func=EKDLoss()).loss_func.gamma == DEFAULT_GAMMA


# ---- plain PyTorch loaders

@pytest.mark.parametrize('make', [learner, lambda d: teacher_learner(d, SMALL, n_out=10)], ids=['student', 'teacher'])
def test_a_learner_on_plain_loaders_is_exported(make, tmp_path):
    from torch.utils.data import DataLoader, TensorDataset
    d = torch_loaders()
    d.c = 10
    l = make(d)
    l.path = tmp_path
    with l.no_bar(), l.no_logging(): l.fit(1, 1e-2)
    l.export('l.pkl')
    assert len(l.dls.train)==len(d.train) and l.dls.train is d.train   # as it was
    new = DataLoader(TensorDataset(torch.randn(12, 1, 8, 8), torch.arange(12)%10), batch_size=5)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        again = load_learner(tmp_path/'l.pkl')
    assert len(again.dls.train)==0 and again.dls.c==10
    for o in (l, again): o.no_bar().__enter__()
    assert torch.equal(again.get_preds(dl=new)[0], l.get_preds(dl=new)[0])
    again.path = tmp_path
    again.export('again.pkl')


def test_no_memo_is_no_memo():
    assert not learner(memo=None).distill.memo


@pytest.mark.parametrize('name', ['resnet18', 'mobilenet_v3_small'])
def test_teacher_learner_takes_a_function_as_ekd_learner_does(name):
    from torchvision import models
    t = teacher_learner(dls(), getattr(models, name))   # made for 1,000 classes in colour, the data are grey
    assert t.model.eval()(torch.randn(2, 1, 40, 40)).shape == (2, 10)
    def odd(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7), torch.nn.LogSoftmax(1))
    with pytest.raises(EKDError, match=r'arch: Sequential returns float32 \[2, 7\], expected logits \[B,10\]'):
        teacher_learner(dls(), odd)   # no layer of its own gives the outputs
    if name == 'resnet18': t.fit(1)


def test_teacher_learner_begins_with_given_weights(monkeypatch):
    from torchvision import models
    net = models.resnet18()
    def trained(weights=None):
        assert weights == 'DEFAULT'
        return copy.deepcopy(net)
    t = teacher_learner(folder_dls(), trained, pretrained=True)
    assert torch.equal(t.model.layer1[0].conv1.weight, net.layer1[0].conv1.weight) and t.model.fc.out_features == 3


@pytest.mark.parametrize('arch, text', [(torch.nn.Linear, 'Linear needs other'), (lambda n: 3, 'needs other'),
                                        (lambda: 3, "got 'int'"), (None, 'got NoneType'), (['resnet8'], 'got list')])
def test_teacher_learner_refuses_what_builds_no_network(arch, text):
    with pytest.raises(EKDError, match=f'arch: .*{text}'): teacher_learner(dls(), arch)


def test_parameters_of_hints_are_told_apart_the_same_way_everywhere(tmp_path):
    from ekd_nb.deploy import load_student, save_student
    from ekd_nb.models import count_params
    l = learner(loss_func=EKDLoss(gamma=1.))
    n, extra = l.model.param_counts()
    assert n == count_params(l.model.keep(2)) and extra == count_params(l.model.projections) > 0
    both = f'{n:,} parameters, and {extra:,} of hint projections, for training only'
    rows = l.model.summary().splitlines()
    assert [r for r in rows if r.startswith('student')][0].split()[3] == f'{n:,}'
    assert [r for r in rows if r.startswith('hints')][0].split()[-2] == f'{extra:,}'
    path = save_student(l, tmp_path)
    assert both in path.with_suffix('.md').read_text() and both in repr(l.model)
    bare = load_student(path)
    assert bare.param_counts() == (n, 0) and 'hint' not in bare.summary()


def test_a_step_of_the_plain_call_is_a_step_by_hand():
    "No option that was not asked for costs a plain call anything: the operations of a step, with a Learner and by hand"
    from ekd_nb.study.timing import OperationCount, step_operations
    l = learner(loss_func=EKDLoss())
    n = step_operations(l)
    x, y = l.dls.one_batch()
    x, y = x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)
    l.model.train()
    with OperationCount() as by_hand:
        with torch.no_grad(): out = l.distill.teachers(x)
        loss = l.loss_func(l.model(x)._replace(teacher=out), y)
        loss.backward()
        l.opt.step()
        l.opt.zero_grad()
    assert 0 <= n-by_hand.n < .05*by_hand.n


def test_the_plain_call_loads_and_adds_nothing_that_was_not_asked_for():
    optional = {'UnlabeledImages', 'HintLayers', 'Checkpoint', 'BF16Callback', 'CompileCallback'}
    l = learner()
    assert not optional & {type(c).__name__ for c in l.cbs}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in l.model.modules())
    code = """if True:
        import sys, ekd_nb.learner
        rooms = 'unlabeled multilabel pairs votes uncertainty compare hub deploy speed'.split()
        extra = 'timm', 'huggingface_hub', 'accelerate', 'onnx', 'tensorboard', 'wandb', 'torchdistill'
        print([m for m in [*(f'ekd_nb.{r}' for r in rooms), *extra] if m in sys.modules])"""
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert r.stdout.strip() == '[]', r.stdout+r.stderr
