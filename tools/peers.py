"""What two other libraries for distillation offer, beside this one: one row each.

nbs/results/compat.ipynb shows it, tests/test_peers.py runs our column.

    python tools/peers.py [part of a name]

Theirs was read, not run: the guide to fasterai's losses (SOURCES), and the losses, the command line and the open
issues of torchdistill. Ours is a small function that trains, a row of tools/compat.py, or why it is missing.
"""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from compat import ROWS as COMPAT, SMALL, dls, learner, run_row, trained

SOURCES = {
    'fasterai': 'https://fasterai-labs.github.io/fasterai/tutorials/distill/losses_guide.html',
    'torchdistill': 'https://github.com/yoshitomo-matsubara/torchdistill'}
YES, NO, MISSING = 'yes', 'no', 'missing'
ROWS = []   # (group, feature, fasterai, torchdistill, class of torchdistill, ours)


def row(group, feature, fasterai, torchdistill, ours=None, classes=()):
    "Register a feature; `torchdistill` may name its classes"
    ROWS.append((group, feature, YES if fasterai else NO, YES if torchdistill or classes else NO, classes, ours))


def why(reason):
    "Marks a feature that is missing here, with the reason"
    return f'{MISSING}: {reason}'


def compat_row(name):
    "The function of a row of tools/compat.py, which is a test of its own"
    return next(f for _, n, f in COMPAT if n == name)


def ekd(**kw):
    from ekd_nb.losses import EKDLoss
    return EKDLoss(**kw)


def baseline(name):
    "Trains with the loss of another paper"
    def f():
        from ekd_nb.baselines.registry import make_baseline
        from ekd_nb.learner import ekd_learner
        from ekd_nb.models import get_model
        from ekd_nb.teachers import TeacherEnsemble
        loss, kw = make_baseline(name), dict(n_branches=2, split={'dml': 0}.get(name, 'layer1'), fusion='mean')
        if name == 'one': kw['fusion'] = 'gate'
        if name in ('one', 'cl_ilr', 'dml'): l = ekd_learner(dls(), SMALL, loss_func=loss, **kw)
        else:
            ts = TeacherEnsemble([get_model(a, 10, 1) for a in ('resnet8-w6', 'wrn_10_1')], feature_grid=2)
            l = learner(ts=ts, loss_func=loss, n_branches=1)
        l.fit(1, 1e-2)
    return f


# ---- what is compared

ONE = 'What student and teacher compare'
row(ONE, 'soft targets, with a temperature', True, False, lambda: trained(loss_func=ekd(gamma=0)), ('KDLoss',))
def logits():
    import torch.nn.functional as F
    l = learner(loss_func=lambda pred, y: F.mse_loss(pred.logits, pred.teacher.logits.mean(0)))
    l.fit(1, 1e-2)
row(ONE, 'logits, squared error (here a function as loss)', True, True, logits)
row(ONE, 'decoupled soft targets (DKD)', True, False, baseline('dkd'))
row(ONE, 'standardised logits', False, False, baseline('lskd'), ('LogitStdKDLoss',))
row(ONE, 'relations between and within classes (DIST)', False, False, baseline('dist'), ('DISTLoss',))
row(ONE, 'feature maps (FitNets)', True, True, lambda: trained(loss_func=ekd(gamma=1.)))
row(ONE, 'attention maps (AT)', True, False, baseline('at'), ('ATLoss',))
row(ONE, 'similarities between images (SP)', True, False, baseline('sp'), ('SPKDLoss',))
row(ONE, 'distances and angles between images (RKD)', False, False, baseline('rkd'), ('RKDLoss',))
row(ONE, 'contrast between images (CRD)', False, False, baseline('crd'), ('CRDLoss',))
row(ONE, 'networks that teach each other (DML)', True, False, baseline('dml'))
def paired(pair, **kw):
    "Trains two branches with a loss between each and its own teacher"
    def f():
        from ekd_nb.pairs import PairLoss
        trained(loss_func=PairLoss(pair(), **kw))
    return f


def theirs(name, *args, **kw):
    "A loss of torchdistill as a function of two tensors"
    from ekd_nb.baselines.logit_based import call_torchdistill, torchdistill_loss
    loss = torchdistill_loss(name)('s', 'output', 't', 'output', *args, **kw)
    return lambda s, t: call_torchdistill(loss, s, t)


def pooled(pair): return lambda s, t: pair(s.mean((2, 3)), t.mean((2, 3)))


class MeanAndVariance(nn.Module):
    "Features of a teacher's channels, and a variance above 0 for each channel (VID), or for each image (PAD)"
    def __init__(self, n, n_teacher, of_images=False):
        super().__init__()
        self.mean = nn.Conv2d(n, n_teacher, 1)
        self.spread = nn.Conv2d(n, n_teacher, 1) if of_images else nn.Parameter(torch.zeros(1, n_teacher, 1, 1))
    def forward(self, f):
        m = self.mean(f)
        v = self.spread(f) if isinstance(self.spread, nn.Module) else self.spread.expand_as(m)
        return torch.cat([m, F.softplus(v)+1e-3], 1)


def likelihood(s, t):
    "Negative logarithm of the probability of the teacher's features, as in torchdistill's VIDLoss and PADL2Loss"
    mean, var = s.chunk(2, 1)
    return .5*((mean-t).square()/var+var.log()).flatten(1).mean(1)


def signs():
    from ekd_nb.baselines.logit_based import torchdistill_loss
    loss = torchdistill_loss('AltActTransferLoss').compute_alt_act_transfer_loss
    return lambda s, t: loss(s, t, 1.)/len(s)
row(ONE, 'signs of activations (AB)', True, False, paired(signs), ('AltActTransferLoss',))
row(ONE, 'probabilities of neighbours (PKT)', False, False,
    paired(lambda: pooled(theirs('PKTLoss')), project=None), ('PKTLoss',))
row(ONE, 'mutual information bound (VID)', False, False,
    paired(lambda: likelihood, project=MeanAndVariance), ('VIDLoss',))
row(ONE, 'feature maps by their uncertainty (PAD)', False, False,
    paired(lambda: likelihood, project=lambda n, m: MeanAndVariance(n, m, of_images=True)), ('PADL2Loss',))
def correlation():
    from ekd_nb.baselines.logit_based import torchdistill_loss
    kernel = dict(type='gaussian', gamma=.4, max_p=2)
    loss = torchdistill_loss('CCKDLoss')('s', 't', kernel, 'batchmean')
    def pair(s, t):
        s, t = (F.normalize(f.mean((2, 3)), dim=1) for f in (s, t))
        return loss({'s': dict(output=s)}, {'t': dict(output=t)})
    return pair
row(ONE, 'correlation of images (CCKD)', False, False, paired(correlation), ('CCKDLoss',))
def channels():
    from ekd_nb.baselines.logit_based import torchdistill_loss
    return torchdistill_loss('ChSimLoss').batch_loss
row(ONE, 'similarity of channels (ICKD)', False, False, paired(channels), ('ChSimLoss',))
def simple_recipe():
    "Its term for features; the soft targets are those of the loss"
    def norm(f): return F.batch_norm(f, None, None, training=True)
    return lambda s, t: (norm(s)-norm(t)).abs().pow(4).sum().log()
row(ONE, 'simplified representation (SRD)', False, False, paired(simple_recipe), ('SRDLoss',))
def spherical():
    a, b = theirs('SKDInstanceLoss'), theirs('SKDDirectionLoss')
    return lambda s, t: a(s, t)+b(s, t)
row(ONE, 'spherical features (SKD)', False, False, paired(spherical, on='logits'),
    ('SKDInstanceLoss', 'SKDDirectionLoss'))
row(ONE, 'flow between layers (FSP)', False, False,
    why('student and teacher need pairs of layers of the same widths; teachers of different families share none'),
    ('FSPLoss',))
row(ONE, 'translated factors (FT)', False, False,
    why('a translator of the teacher is trained first; several teachers would need one each'), ('FTLoss',))
row(ONE, 'self-supervision (SSKD)', False, False,
    why('trains the teacher again, on rotated images; teachers here stay as they are'),
    ('AuxSSKDLoss', 'SSKDLoss'))
row(ONE, 'several levels at once (knowledge review)', False, False,
    why('fuses the stages of one student from the last to the first; branches share the first ones'),
    ('HierarchicalContextLoss',))
row(ONE, 'translated knowledge, affinity (KTAAD)', False, False,
    why('for segmentation; an autoencoder of the teacher is trained first'), ('KTALoss', 'AffinityLoss'))
row(ONE, 'a teacher that is trained along (DIST+)', False, False,
    why('needs a teacher that is trained along; teachers here stay as they are'), ('DISTPlusLoss',))

# ---- how it is used

HOW = 'How it is used'
row(HOW, 'layers of student and teacher by name', True, True,
    compat_row('hints at named layers of teachers and student, with memo'))
def schedule():
    from fastai.callback.schedule import SchedCos
    l = trained(loss_func=ekd(gamma=SchedCos(1., 0.)), epochs=2)
    at = l.recorder.metric_names.index('gamma')-1
    assert l.recorder.values[0][at] > l.recorder.values[-1][at]
row(HOW, 'a weight that follows a schedule', True, False, schedule)
def stages():
    first = learner(loss_func=ekd(alpha=0., beta=0., gamma=1.))
    first.fit(1, 1e-2)
    trained(arch=first, loss_func=ekd(gamma=0))   # the second stage begins with the student of the first
row(HOW, 'training in several stages', False, True, stages)
row(HOW, 'a loss of your own', True, True, lambda: logits())
row(HOW, 'any Learner and callback of fastai', True, False, compat_row('fit one cycle'))
row(HOW, 'experiments from a YAML file, without code', False, True,
    why('here an experiment is three lines of Python, or a protocol of the study'))
row(HOW, 'gradient accumulation', True, True, compat_row('GradientAccumulation'))
def processes():
    "The example script, started by Accelerate with two processes"
    import accelerate   # optional
    import os, subprocess
    from ekd_nb.models import get_model
    from ekd_nb.teachers import save_teacher
    save_teacher(get_model('resnet8-w6', 10, 1), 't.safetensors')
    root = Path(__file__).resolve().parents[1]
    launch = [sys.executable, '-W', 'ignore', '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes=2']
    script = [root/'examples'/'several_processes.py', 't.safetensors', '--cpu', '--epochs', '1']
    env = os.environ | dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1')
    r = subprocess.run(launch+script, capture_output=True, text=True, env=env)
    assert '2 process(es)' in r.stdout and Path('out/student.safetensors').is_file(), r.stderr[-300:]
row(HOW, 'several processes, started by Accelerate', True, True, processes)
row(HOW, 'detection, segmentation, text', False, True,
    why('the student, its branches and its fusion are for image classifiers'))
row(HOW, 'pruning, sparse weights, quantisation', True, False,
    why('no distillation; the student is an ordinary module, to which such tools apply afterwards'))

# ---- what several teachers need

MANY = 'Several teachers'
row(MANY, 'several teachers in one run', False, False, compat_row('fit'))
row(MANY, 'a branch for each teacher', False, False,
    compat_row('teachers ≠ branches, fusion prob and gate, hints on a 2×2 grid'))
row(MANY, 'teachers of different families', False, False,
    compat_row('teachers of mixed families: torchvision, timm CNN, timm transformer, plain'))
row(MANY, 'teachers with other normalisation and size', False, False,
    compat_row('teacher with other normalisation and input size (TeacherAdapter)'))
row(MANY, 'teachers with more classes', False, False, compat_row('teacher with more classes (class map)'))
row(MANY, 'teachers of different classes, weighed by their confidence', False, False,
    compat_row('teachers of different classes; teachers weighted by confidence'))
row(MANY, 'confidence and hints of several teachers (CA-MKD)', False, False, baseline('camkd'))
row(MANY, 'images without labels, where only teachers speak', False, False,
    compat_row('UnlabeledImages: arrays, with a memo and MixUp'))
row(MANY, 'where branches and teachers disagree', False, False,
    compat_row('BranchInterpretation, show_disagreement, get_uncertainty, drawn student'))
row(MANY, 'outputs of teachers computed once', False, False, compat_row('lr_find and fine_tune with a memo'))
row(MANY, 'fewer branches after training', False, False, compat_row('keep fewer branches'))
row(MANY, 'branches that teach each other (ONE)', False, False, baseline('one'))
row(MANY, 'branches that teach each other (CL-ILR)', False, False, baseline('cl_ilr'))


def ours(f):
    "`yes`, `missing: …` with the reason, or what went wrong"
    if isinstance(f, str): return f
    got = run_row(f)
    return YES if got == 'ok' else got


def table():
    "(group, feature, fasterai, torchdistill, ekd_nb) for every row"
    return [(g, n, f, t, ours(o)) for g, n, f, t, _, o in ROWS]


if __name__ == '__main__':
    for g, n, f, t, _, o in ROWS:
        if all(a in f'{g} {n}' for a in sys.argv[1:]): print(f'{n:70}{f:5}{t:5}{ours(o)}', flush=True)
