"""What two other libraries for distillation offer, beside this one: one row each.

nbs/results/compat.ipynb shows it, tests/test_peers.py runs our column.

    python tools/peers.py [part of a name]

Theirs was read, not run: the guide to fasterai's losses (SOURCES), and the losses, the command line and the open
issues of torchdistill. Ours is a small function that trains, or the name of a row of tools/compat.py; None: missing.
"""
import sys
from pathlib import Path

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
row(ONE, 'signs of activations (AB)', True, False, None, ('AltActTransferLoss',))
row(ONE, 'flow between layers (FSP)', False, False, None, ('FSPLoss',))
row(ONE, 'probabilities of neighbours (PKT)', False, False, None, ('PKTLoss',))
row(ONE, 'translated factors (FT)', False, False, None, ('FTLoss',))
row(ONE, 'mutual information bound (VID)', False, False, None, ('VIDLoss',))
row(ONE, 'correlation of images (CCKD)', False, False, None, ('CCKDLoss',))
row(ONE, 'self-supervision (SSKD)', False, False, None, ('AuxSSKDLoss', 'SSKDLoss'))
row(ONE, 'feature maps by their uncertainty (PAD)', False, False, None, ('PADL2Loss',))
row(ONE, 'several levels at once (knowledge review)', False, False, None, ('HierarchicalContextLoss',))
row(ONE, 'translated knowledge, affinity (KTAAD)', False, False, None, ('KTALoss', 'AffinityLoss'))
row(ONE, 'similarity of channels (ICKD)', False, False, None, ('ChSimLoss',))
row(ONE, 'simplified representation (SRD)', False, False, None, ('SRDLoss',))
row(ONE, 'a teacher that is trained along (DIST+)', False, False, None, ('DISTPlusLoss',))
row(ONE, 'spherical features (SKD)', False, False, None, ('SKDInstanceLoss', 'SKDDirectionLoss'))

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
row(HOW, 'experiments from a YAML file, without code', False, True, None)
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
row(HOW, 'detection, segmentation, text', False, True, None)
row(HOW, 'pruning, sparse weights, quantisation', True, False, None)

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
    "`yes`, `missing`, or what went wrong"
    if f is None: return MISSING
    got = run_row(f)
    return YES if got == 'ok' else got


def table():
    "(group, feature, fasterai, torchdistill, ekd_nb) for every row"
    return [(g, n, f, t, ours(o)) for g, n, f, t, _, o in ROWS]


if __name__ == '__main__':
    for g, n, f, t, _, o in ROWS:
        if all(a in f'{g} {n}' for a in sys.argv[1:]): print(f'{n:70}{f:5}{t:5}{ours(o)}', flush=True)
