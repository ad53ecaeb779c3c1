"`learn.keep`: the branches compute what they did, and every setting is kept or named in a warning"
import inspect, sys, warnings
from pathlib import Path
import pytest, torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, dls, learner, teachers
from compat import fit_quietly as fit
import fastai.callback.all
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.preds import MCDropoutCallback
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.schedule import ParamScheduler, SchedNo
from fastai.callback.tracker import (EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback,
                                     TerminateOnNaNCallback)
from fastai.callback.training import BnFreeze, GradientAccumulation, GradientClip, ShortEpochCallback
from fastai.learner import Learner
from ekd_nb.callbacks import DistillCallback
from ekd_nb.checkpoint import Checkpoint
from ekd_nb.learner import ekd_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.speed import BF16Callback, CompileCallback
from ekd_nb.student import branched_student
from ekd_nb.teachers import TeacherEnsemble
from ekd_nb.watch import StopOnNonFinite, WarnDeadBranch

warnings.filterwarnings('ignore')

def kept(l, which=1):
    "The Learner of some branches, and the warnings on the way"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        return l.keep(which), ' '.join(str(w.message) for w in caught if str(w.message).startswith('keep: '))

def settings(cb):
    "The arguments of a callback that it keeps as attributes"
    names = inspect.signature(type(cb)).parameters
    plain = (int, float, str, bool, type(None), torch.dtype)
    return {k: v for k, v in vars(cb).items() if k in names and isinstance(v, plain)}

class OwnStop(StopOnNonFinite):
    "A caller's class in place of ours"
    def __init__(self, every=3, note='a'):
        super().__init__(every)
        self.note = note

CARRIED = [StopOnNonFinite(every=5), OwnStop(7, 'b'), GradientClip(.25), GradientAccumulation(24), MixUp(.7),
           CutMix(.3), MixedPrecision(AMPMode.BF16), BF16Callback(), ChannelsLast(), BnFreeze(),
           TerminateOnNaNCallback(), MCDropoutCallback(), ShortEpochCallback(.5), CompileCallback('default', 'eager')]
LEFT = [lambda f: EarlyStoppingCallback('branch_1', patience=7), lambda f: SaveModelCallback(fname='best'),
        lambda f: ReduceLROnPlateau(patience=7), lambda f: CSVLogger(f/'a.csv'), lambda f: ShowGraphCallback(),
        lambda f: ParamScheduler({'lr': SchedNo(1., 1.)}), lambda f: Checkpoint(f/'c', keep=5), lambda f: Callback()]

@pytest.mark.parametrize('cb', CARRIED, ids=lambda c: type(c).__name__)
def test_settings_of_callbacks_are_kept(cb):
    l = learner(cbs=cb)
    new, said = kept(l)
    same = next(c for c in new.cbs if type(c) is type(cb))
    assert settings(same)==settings(cb) and not said
    assert same is not cb and same.learn is new and cb.learn is l

@pytest.mark.parametrize('make', LEFT)
def test_what_stays_is_named(make, tmp_path):
    cb = make(tmp_path)
    new, said = kept(learner(cbs=cb))
    assert f'has no {type(cb).__name__}' in said and not any(type(c) is type(cb) for c in new.cbs)

def test_every_callback_of_fastai_is_carried_or_named():
    "Also those of versions to come: none is lost without a word"
    def below(c): return {s for o in c.__subclasses__() for s in (o, *below(o))}
    ours = learner().cbs
    for c in {o for o in below(Callback) if o.__module__.startswith('fastai.callback')}:
        try: cb = c()
        except Exception: continue   # needs arguments; see the tables above
        if any(isinstance(cb, type(o)) or isinstance(o, c) for o in ours): continue
        l = learner()
        try: l.add_cb(cb)
        except Exception: continue   # not for a Learner of images
        new, said = kept(l)
        found = [o for o in new.cbs if type(o) is c]
        assert f'{c.__name__}' in said or found and settings(found[0])==settings(cb), c

def test_arguments_of_distill_callback_are_kept():
    ts = teachers()
    cb = DistillCallback(TeacherEnsemble(ts), memo=True, n_views=3, budget=12345678, dtype=torch.float32)
    s = branched_student(SMALL, 2, 10, in_channels=1, size=8)
    l = Learner(dls(), s, loss_func=EKDLoss(gamma=0.), cbs=cb)
    new = l.keep(1)
    assert (new.distill.n_views, new.distill.budget, new.distill.dtype)==(3, 12345678, torch.float32)
    assert new.distill.teachers is cb.teachers and new.distill is not cb
    fit(new)

def test_a_watcher_that_was_removed_stays_away():
    l = learner()
    l.remove_cb(WarnDeadBranch)
    new = l.keep(1)
    assert not hasattr(new, 'warn_dead_branch') and new.stop_on_non_finite.every==50
    fit(new)

def test_settings_of_the_learner_are_kept():
    from functools import partial
    from fastai.optimizer import SGD
    l = learner(lr=.05, wd=.2, moms=(.9, .8, .9), wd_bn_bias=True, train_bn=False, opt_func=partial(SGD, mom=.5),
                path='.', model_dir='m')
    l.recorder.train_metrics,l.recorder.add_time = True,False
    new = l.keep([1])
    for k in ('lr', 'wd', 'moms', 'wd_bn_bias', 'train_bn', 'opt_func', 'path', 'model_dir', 'splitter'):
        assert getattr(new, k)==getattr(l, k), k
    assert new.recorder.train_metrics and not new.recorder.add_time and new.dls is l.dls

@pytest.mark.parametrize('fusion', ['mean', 'prob', 'gate'])
@pytest.mark.parametrize('kw', [{}, dict(split='heads'), dict(grouped=True)])
def test_kept_branches_give_the_same_logits(fusion, kw):
    s, x = branched_student(SMALL, 4, 10, in_channels=1, size=8, fusion=fusion, **kw), torch.randn(3, 1, 8, 8)
    for _ in range(3): s(x*2)   # statistics of BatchNorm
    with torch.no_grad(): z = s.branch_logits(x)
    for which in (1, 3, [2], [3, 1]):
        idx = list(range(which)) if isinstance(which, int) else which
        new = s.keep(which)
        assert torch.allclose(new.branch_logits(x), z[idx], atol=1e-5) and new.training==s.training
        if fusion=='mean': assert torch.allclose(new.eval()(x), z[idx].mean(0), atol=1e-5)
        if fusion=='prob': assert torch.allclose(new.eval()(x).exp(), z[idx].softmax(-1).mean(0), atol=1e-5)

def test_keep_in_the_middle_of_a_fit_changes_nothing():
    "Hints of named layers are noted while it compares"
    from ekd_nb.learner import ekd_learner
    class Keep(Callback):
        order = 5
        def after_batch(self): self.learn.model.keep(1)
    def weights(*cbs):
        torch.manual_seed(0)
        l = ekd_learner(dls(seed=1), SMALL, teachers(), hints=['stages.layer2', 'body'], loss_func=EKDLoss(gamma=1.),
                        judge=False, cbs=list(cbs))
        torch.manual_seed(1)
        return torch.cat([p.detach().flatten() for p in fit(l).model.parameters()])
    assert torch.equal(weights(), weights(Keep()))
