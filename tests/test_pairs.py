"A loss of one's own between each branch and its teacher: what is no lesson in nbs/07_pairs.ipynb"
import copy, sys
from pathlib import Path

import pytest, torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, dls, learner, trained
from ekd_nb.core import EKDError
from ekd_nb.pairs import PairLoss
from ekd_nb.student import StudentOutput
from ekd_nb.teachers import TeacherEnsemble, TeacherOutput


def mse(s, t): return (s-t).square().flatten(1).mean(1)
def products(f): return F.normalize(f.flatten(1) @ f.flatten(1).T)
def alike(s, t): return (products(s)-products(t)).square().mean()


def output(n=2, T=2):
    torch.manual_seed(0)
    z, fs = torch.randn(n, 4, 5, requires_grad=True), [torch.randn(4, 3, 2, 2, requires_grad=True) for _ in range(n)]
    out = TeacherOutput(torch.randn(T, 4, 5, requires_grad=True),
                        tuple(torch.randn(4, 3, 2, 2, requires_grad=True) for _ in range(T)))
    return StudentOutput(z.mean(0), z, tuple(fs), out), torch.randint(0, 5, (4,))


@pytest.mark.parametrize('on', ['features', 'logits'])
def test_each_branch_learns_from_its_own_teacher(on):
    pred, y = output()
    loss = PairLoss(mse, 2., on=on, alpha=0., beta=0.)
    pairs = zip(pred.features, pred.teacher.features) if on == 'features' else zip(pred.branches, pred.teacher.logits)
    want = 2*sum(mse(s, t).mean() for s, t in pairs)
    got = loss(pred, y)
    assert torch.allclose(got, want)
    got.backward()
    assert all(f.grad is None for f in pred.teacher.features) and pred.teacher.logits.grad is None
    ours = pred.features if on == 'features' else [pred.branches]
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in ours)


def test_assignment_mean_over_branches_and_the_average():
    pred, y = output(n=3)
    t = pred.teacher.logits
    loss = PairLoss(mse, 1., on='logits', alpha=0., beta=0., assign=[1, 1, None], branch_reduction='mean')
    want = sum(mse(z, u).mean() for z, u in zip(pred.branches, (t[1], t[1], t.mean(0))))/3
    assert torch.allclose(loss(pred, y), want)


def test_labels_and_soft_targets_are_those_of_the_loss_without_hints():
    from ekd_nb.losses import EKDLoss
    pred, y = output()
    loss = PairLoss(mse, 0., alpha=.3, beta=.7, lam=.2)
    assert torch.allclose(loss(pred, y), EKDLoss(.3, .7, 0., lam=.2)(pred, y))
    assert loss.term_names == ['ce_ens', 'ce_branch', 'kd_ens', 'kd_branch', 'pair'] == list(loss.last_terms)


@pytest.mark.parametrize('kw', [dict(pair=mse), dict(pair=alike, project=None), dict(pair=mse, on='logits'),
                                dict(pair=mse, project=lambda n, m: nn.Sequential(nn.Conv2d(n, m, 1), nn.ReLU()))])
@pytest.mark.parametrize('memo', [False, True])
def test_it_trains(kw, memo):
    l = trained(loss_func=PairLoss(**kw), memo=memo, n_branches=3)
    modules = list(l.model.projections or ())
    assert len(modules) == (0 if kw.get('on') else 3)


def test_projections_are_trained_and_left_behind():
    torch.manual_seed(0)
    l = learner(loss_func=PairLoss(mse))
    before = copy.deepcopy(l.model.projections.state_dict())
    l.fit(1, 1e-2)
    after = l.model.projections.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    assert l.model.keep(2).projections is None
    one = l.keep([1])
    one.fit(1, 1e-2)
    assert one.loss_func.assign == [1] and len(one.model.projections) == 1


def test_a_weight_follows_its_schedule():
    from fastai.callback.schedule import SchedLin
    l = trained(loss_func=PairLoss(mse, SchedLin(4., 0.)), epochs=2)
    at = l.recorder.metric_names.index('pair_weight')-1
    first, last = (row[at] for row in l.recorder.values)
    assert first > last and last < 1


def test_images_without_labels_and_mixed_images():
    from fastai.callback.mixup import MixUp
    from compat import data
    from ekd_nb.unlabeled import UnlabeledImages
    trained(UnlabeledImages(data().x_train[-40:], share=.5), loss_func=PairLoss(mse))
    trained(MixUp(), loss_func=PairLoss(alike, project=None))


@pytest.mark.parametrize('kw, text', [
    (dict(pair=3), 'pair: got 3'), (dict(pair=nn.MSELoss), 'pair: got <class'),
    (dict(pair=nn.Linear(2, 2)), 'has parameters'),
    (dict(on='images'), "on: got 'images'"), (dict(project='mlp'), "project: got 'mlp'"),
    (dict(gamma=1.), 'gamma: got 1'),
    (dict(pair_weight=-1), 'pair_weight: got -1'), (dict(pair_weight='a'), "pair_weight: got 'a'"),
    (dict(tau=0), 'tau: got 0')])
def test_bad_input(kw, text):
    with pytest.raises(EKDError, match=text): PairLoss(**{'pair': mse, **kw})


@pytest.mark.parametrize('loss, text', [
    (PairLoss(lambda s, t: s.mean((2, 3))), r'pair: got \(8, \d+\), expected a number or one for each of the 8 images'),
    (PairLoss(lambda s, t: 3), "pair: got 'int'"),
    (PairLoss(lambda s, t: s-t[:, :1, :9]), 'pair: <lambda> raises|pair: got'),
    (PairLoss(mse, project=None), 'pair: mse raises RuntimeError'),
    (PairLoss(mse, project=lambda n, m: 3), "project: got 'int'"),
    (PairLoss(mse, assign=[0, None]), 'which has no features')])
def test_what_does_not_fit_is_refused_before_training(loss, text):
    with pytest.raises(EKDError, match=text): learner(loss_func=loss)


def test_other_teachers():
    few = [*range(6), *[None]*4]
    ts = TeacherEnsemble([Net(6), Net(10)], class_maps=[few, None])
    trained(ts=ts, loss_func=PairLoss(mse))
    with pytest.raises(EKDError, match='knows 6 of 10'): learner(ts=ts, loss_func=PairLoss(mse, on='logits'))
    flat = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10))]*2
    trained(ts=flat, loss_func=PairLoss(mse))   # their features are single cells
    trained(ts=flat, loss_func=PairLoss(mse, on='logits'))
    with pytest.raises(EKDError, match='hints: got'): learner(hints=['layer1', None], loss_func=PairLoss(mse))
    with pytest.raises(EKDError, match='teachers: got none'):
        from ekd_nb.learner import ekd_learner
        ekd_learner(dls(), SMALL, loss_func=PairLoss(mse))


