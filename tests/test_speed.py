"Switches that make training faster must not change what is learned, and a memo must be shared without being asked for twice"
import pytest, torch
from torch import nn
from fastai.optimizer import SGD
from ekd_nb.benchmark import QUICK, ratio, run60, spread
from ekd_nb.cases import torch_sgd
from ekd_nb.data import EKDError, image_dls, load_images, subset
from ekd_nb.inference import deploy, fold_batchnorm
from ekd_nb.learner import ekd_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.memo import TeacherMemo
from ekd_nb.models import get_model
from ekd_nb.student import branched_student
from ekd_nb.teachers import TeacherEnsemble

DATA = load_images('digits')
ROWS = subset(DATA.y_train, fraction=.1, seed=0)
TEACHERS = TeacherEnsemble([get_model('resnet8-w4', 10, 1) for _ in range(2)])


def trained(seed=0, memo=False, channels_last=False, stacked=False, n_branches=2, epochs=2, n_views=2, loss=None, **kw):
    torch.manual_seed(7)
    student = branched_student('resnet8-w4', n_branches, 10, split='layer1', in_channels=1, size=8, stacked=stacked)
    if channels_last: student.to(memory_format=torch.channels_last)
    dls = image_dls(DATA, ROWS, bs=64, seed=seed, n_views=n_views, channels_last=channels_last, device='cpu')
    learn = ekd_learner(dls, student, TEACHERS, memo=memo, loss_func=loss or EKDLoss(), **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2, wd=0.)
    return learn


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


@pytest.fixture(scope='module')
def usual(): return weights(trained(opt_func=lambda p, **kw: SGD(p, mom=.9, **kw)))


@pytest.mark.parametrize('kw', [dict(foreach=True), dict(fused=True)], ids=str)
def test_torch_optimisers_learn_the_same(usual, kw):
    assert torch.allclose(weights(trained(opt_func=torch_sgd(**kw))), usual, atol=1e-4)


@pytest.mark.parametrize('kw', [dict(channels_last=True), dict(stacked=True)], ids=str)
def test_layouts_learn_the_same(usual, kw):
    assert torch.allclose(weights(trained(opt_func=lambda p, **k: SGD(p, mom=.9, **k), **kw)), usual, atol=1e-3)


def test_one_memo_for_seeds_students_and_methods():
    memo = TeacherMemo(TEACHERS, ROWS, DATA.views, 2, DATA.fingerprint)
    trained(seed=0, memo=memo)
    filled = memo.misses
    assert filled == 2*len(ROWS)
    for kw in (dict(seed=1), dict(seed=2, n_branches=3), dict(seed=0, loss=EKDLoss(lam=0., beta=.5)), dict(n_branches=1)): trained(memo=memo, **kw)
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
    assert ratio(a, b) == spread([2., 4.]) and ratio(a, b, 'cpu_seconds') == spread([1., .5])
    cases = dict(ekd_cold=dict(seconds=[10.]), ekd_warm=dict(seconds=[1.]), branched=dict(seconds=[1.]))
    assert run60(cases, 6)['median'] == pytest.approx((60+54)/60)
    assert run60({}, 6) is None


def test_quick_is_quick(): assert QUICK['rounds'] >= 5 and QUICK['images'] < 1024
