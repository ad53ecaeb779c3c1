"Switches that make training faster must not change what is learned; a cache of teacher outputs is made once and shared"
from functools import partial
from types import SimpleNamespace
import pytest, torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from fastai.callback.core import Callback
from fastai.optimizer import SGD
from ekd_nb.study.benchmark import QUICK, ratio, relative_run_time, median_range
from ekd_nb.callbacks import DistillCallback, LossTermRecorder, StopOnNonFinite
from ekd_nb.core import EKDError
from ekd_nb.data import image_dls, load_images, stratified_subset
from ekd_nb.speed import BF16Callback, CompileCallback, FusedSGD, optimize_teachers
from ekd_nb.deploy import deploy
from ekd_nb.fold import fold_batchnorm
from ekd_nb.learner import ekd_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.memo import TeacherMemo, load_memo, save_memo
from ekd_nb.models import get_model
from ekd_nb.student import branched_student
from ekd_nb.teachers import TeacherEnsemble

DATA = load_images('digits')
ROWS = stratified_subset(DATA.y_train, fraction=.1, seed=0)
TEACHERS = TeacherEnsemble([get_model('resnet8-w4', 10, 1) for _ in range(2)])


def trained(seed=0, memo=False, channels_last=False, grouped=False, n_branches=2, epochs=2, n_views=2, loss=None,
            fit=None, **kw):
    torch.manual_seed(7)
    student = branched_student('resnet8-w4', n_branches, 10, split='layer1', in_channels=1, size=8, grouped=grouped)
    if channels_last: student.to(memory_format=torch.channels_last)
    dls = image_dls(DATA, ROWS, bs=64, seed=seed, n_views=n_views, channels_last=channels_last, device='cpu')
    learn = ekd_learner(dls, student, TEACHERS, memo=memo, loss_func=loss or EKDLoss(), **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2, **(fit or dict(wd=0.)))
    return learn


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


@pytest.fixture(scope='module')
def usual(): return weights(trained(opt_func=lambda p, **kw: SGD(p, mom=.9, **kw)))


def test_fused_sgd_learns_the_same(usual):
    assert torch.allclose(weights(trained(opt_func=FusedSGD)), usual, atol=1e-4)


@pytest.mark.parametrize('wd', [0., 1e-2])
def test_fused_sgd_decays_as_the_recipe_of_the_experiments(wd):
    kw = dict(wd=wd, wd_bn_bias=True, fit=dict(wd=wd))
    want = weights(trained(opt_func=partial(SGD, mom=.9, decouple_wd=False), **kw))
    assert torch.allclose(weights(trained(opt_func=FusedSGD, **kw)), want, atol=1e-5)


def test_fused_sgd_refuses_to_spare_biases():
    with pytest.raises(EKDError, match='wd_bn_bias'): trained(opt_func=FusedSGD, fit=dict(wd=1e-2))


def test_fused_sgd_follows_a_schedule_and_frozen_layers():
    def run(opt_func):
        learn = trained(opt_func=opt_func, epochs=0)
        learn.freeze_to(1)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2, wd=0.)
        return learn, weights(learn)
    (theirs, a), (learn, b) = run(partial(SGD, mom=.9, decouple_wd=False)), run(FusedSGD)
    assert torch.allclose(a, b, atol=1e-5)
    for k in ('mom', 'lr'): assert learn.opt.hypers[-1][k] == theirs.opt.hypers[-1][k] != dict(mom=.9, lr=1e-2)[k]
    assert not any(p.requires_grad for p in learn.model.trunk.parameters() if p.ndim == 4)


# ---- precision

def test_bfloat16_changes_the_precision_and_little_else(usual):
    half = weights(trained(opt_func=partial(SGD, mom=.9), cbs=BF16Callback()))
    assert half.dtype == torch.float32 and not torch.equal(half, usual)
    assert torch.allclose(half, usual, atol=.05)


def test_a_memo_filled_in_bfloat16_is_not_for_float32(tmp_path):
    new = lambda: TeacherMemo(TEACHERS, ROWS, DATA.views, 2, DATA.fingerprint)
    memo = new()
    trained(memo=memo, epochs=1, cbs=BF16Callback())
    path = save_memo(memo, tmp_path/'m.safetensors')
    for m in (memo, load_memo(new(), path)):
        assert m.precision == 'bfloat16'
        with pytest.raises(EKDError, match='filled in bfloat16'): trained(memo=m, epochs=1)
        trained(memo=m, epochs=1, cbs=BF16Callback())


def test_compiled_student_learns_the_same_and_is_left_alone(usual, tmp_path):
    learn = trained(opt_func=partial(SGD, mom=.9), cbs=CompileCallback(backend='aot_eager'))
    assert torch.allclose(weights(learn), usual, atol=1e-3)
    assert learn.compile.first_batch_seconds > 0 and learn.model._compiled_call_impl is None
    learn.export(tmp_path/'s.pkl')


@pytest.mark.parametrize('arch', ['resnet8', 'resnet8x4', 'wrn_10_1', 'densenet_40_12'])
@pytest.mark.parametrize('precision,tol', [('float32', 1e-5), ('bfloat16', .05)])
def test_fast_teachers_say_the_same(arch, precision, tol):
    torch.manual_seed(0)
    m = get_model(arch, 10, 1)
    for _ in range(3): m(torch.randn(32, 1, 16, 16))
    x, old = torch.randn(8, 1, 16, 16), TeacherEnsemble([m])
    new = optimize_teachers(old, precision, x)
    for a, b in ((old(x).logits, new(x).logits), (old(x).features[0], new(x).features[0].float())):
        assert (a-b).abs().max() < tol*a.abs().max()
    assert new.names == old.names and all(p.dtype == torch.float32 for p in old.parameters())


@pytest.mark.parametrize('kw', [dict(channels_last=True), dict(grouped=True)], ids=str)
def test_layouts_learn_the_same(usual, kw):
    assert torch.allclose(weights(trained(opt_func=lambda p, **k: SGD(p, mom=.9, **k), **kw)), usual, atol=1e-3)


def test_one_memo_for_seeds_students_and_methods():
    memo = TeacherMemo(TEACHERS, ROWS, DATA.views, 2, DATA.fingerprint)
    trained(seed=0, memo=memo)
    filled = memo.misses
    assert filled == 2*len(ROWS)
    others = dict(seed=1), dict(seed=2, n_branches=3), dict(seed=0, loss=EKDLoss(lam=0., beta=.5)), dict(n_branches=1)
    for kw in others: trained(memo=memo, **kw)
    assert memo.misses == filled and memo.hits == 4*filled


def test_memo_of_other_teachers_is_refused_before_training():
    memo = TeacherMemo(TeacherEnsemble([get_model('resnet8-w4', 10, 1)]*2), ROWS, DATA.views, 2, DATA.fingerprint)
    with pytest.raises(EKDError, match='memo'): trained(memo=memo)


def test_too_little_memory_is_a_usable_run(monkeypatch):
    monkeypatch.setattr('ekd_nb.memo.free_memory', lambda device: 10)
    with pytest.warns(UserWarning, match='teachers run live'): learn = trained(memo=True, epochs=1)
    assert learn.distill.memo is False and weights(learn).isfinite().all()


def test_deployed_student_says_the_same():
    learn = trained(epochs=1)
    x,_ = learn.dls.valid.one_batch()
    want = learn.model.eval()(x)
    for m in (deploy(learn.model), deploy(learn.model, fused=True), fold_batchnorm(learn.model)):
        assert torch.allclose(m(x), want, atol=1e-3)
        assert not any(isinstance(o, nn.BatchNorm2d) for o in m.modules())


def test_ratios_are_of_one_round():
    a,b = dict(seconds=[2., 40.], cpu_seconds=[1., 1.]), dict(seconds=[1., 10.], cpu_seconds=[1., 2.])
    assert ratio(a, b) == median_range([2., 4.]) and ratio(a, b, 'cpu_seconds') == median_range([1., .5])
    cases = dict(ekd_cold=dict(seconds=[10.]), ekd_warm=dict(seconds=[1.]), branched=dict(seconds=[1.]))
    assert relative_run_time(cases, 6)['median'] == pytest.approx((60+54)/60)
    assert relative_run_time({}, 6) is None


def test_quick_is_quick(): assert QUICK['rounds'] >= 5 and QUICK['images'] < 1024


# ---- nothing waits for a GPU

class NoWait(TorchDispatchMode):
    "Copies to the device must not block, and nothing may be copied or read back from it"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device != out.device:
            assert out.device.type == 'meta' and kwargs.get('non_blocking'), f'{args[0].device} to {out.device} waits'
        return out


@pytest.mark.parametrize('n_views', [2, 1])
def test_no_batch_waits_for_the_device(n_views):
    "PyTorch's meta device holds no numbers, so whatever would read one back fails, as it would make a GPU wait"
    dl = image_dls(DATA, ROWS, bs=32, n_views=2, device='meta').train
    student = branched_student('resnet8-w4', 2, 10, split='layer1', in_channels=1, size=8).to('meta')
    teachers = TeacherEnsemble(list(TEACHERS.models)).to('meta')
    memo = TeacherMemo(teachers, ROWS, DATA.views, n_views, device='meta')
    memo.checked = True   # the one look at the first batch, which reads numbers back
    learn = SimpleNamespace(model=student, loss_func=EKDLoss(), iter=0)
    distill, parts, stop = DistillCallback(teachers, memo), LossTermRecorder(), StopOnNonFinite()
    for cb in (distill, parts, stop): cb.learn = learn
    parts.distill_loss = learn.loss_func; parts.before_train(); stop.before_train()
    opt = torch.optim.SGD(student.parameters(), .1, momentum=.9, foreach=True)
    dl.make_batch(torch.arange(2))   # the images move once
    with NoWait():
        for idxs in (torch.arange(32), torch.arange(32), torch.arange(16, 48), torch.arange(16, 48)):
            x, y = dl.make_batch(idxs)
            learn.xb = (x,)
            distill.before_batch()
            x, y = (o.as_subclass(torch.Tensor) for o in (x, y))   # as fastai's CastToTensor
            learn.xb, learn.pred = (x,), student(x)
            distill.after_pred()
            learn.loss = learn.loss_func(learn.pred, y)
            for cb in (parts, stop): cb.after_loss()
            learn.loss.backward(); opt.step(); opt.zero_grad()
            dl.epoch += n_views == 2 and learn.iter == 1
            learn.iter += 1
    assert memo.hits and memo.misses and memo.table.device.type == 'meta'
    with pytest.raises(AssertionError, match='waits'), NoWait(): torch.zeros(2).to('meta')

class Broken(Callback):
    "Raises an error in the middle of a batch"
    order = -3
    def after_pred(self): raise ZeroDivisionError('stop')

def test_no_precision_is_left_behind_by_an_error():
    few = image_dls(load_images('digits'), idx=range(64), bs=32)
    kw = dict(loss_func=EKDLoss(1, 0, 0), n_branches=2)
    learn = ekd_learner(few, 'resnet8-w4', cbs=[BF16Callback(), Broken()], **kw)
    with learn.no_bar(), learn.no_logging(), pytest.raises(ZeroDivisionError): learn.fit(1)
    assert not torch.is_autocast_enabled('cpu')
    learn.remove_cb(Broken)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert not torch.is_autocast_enabled('cpu') and 'one_batch' not in vars(learn)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_teacher_in_half_precision_teaches_a_run_in_bfloat16(dtype):
    teacher = get_model('resnet8-w4', 10, 1).to(dtype)
    few = image_dls(load_images('digits'), idx=range(64), bs=32)
    learn = ekd_learner(few, 'resnet8-w4', [teacher], judge=False, cbs=[BF16Callback()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert all(p.isfinite().all() for p in learn.model.parameters())

def test_a_finished_student_refuses_a_fusion_that_does_not_exist():
    student = branched_student('resnet8-w4', 2, 10, in_channels=1)
    with pytest.raises(EKDError, match='fusion: got 3, expected one of mean, prob, gate'):
        ekd_learner(image_dls(load_images('digits'), bs=32), student, loss_func=EKDLoss(1, 0, 0), fusion=3)

def test_bfloat16_with_a_teacher_without_features():
    traced = torch.jit.trace(get_model('resnet8-w4', 10, 1).eval(), torch.zeros(2, 1, 8, 8))
    learn = ekd_learner(image_dls(DATA, ROWS, bs=64), 'resnet8-w4', [traced], judge=False, cbs=[BF16Callback()],
                        loss_func=EKDLoss(gamma=0))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)


def test_operations_of_a_step_are_counted_without_a_clock():
    from ekd_nb.study.timing import OperationCount, step_operations
    with OperationCount() as c: (torch.ones(2)+1).sum()
    assert c.n == 3
    data = load_images('digits')
    nets = [get_model('resnet8-w4', 10, 1)]
    def learner(n):
        torch.manual_seed(0)
        return ekd_learner(image_dls(data, range(n), bs=20, seed=0, device='cpu'), 'resnet8-w4', nets, judge=False)
    assert step_operations(learner(60)) == step_operations(learner(60)) > 100
    text = 'learn: got .1 training batches., expected at least 2'
    with pytest.raises(EKDError, match=text): step_operations(learner(20))
