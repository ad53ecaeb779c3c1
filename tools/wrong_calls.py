"""Wrong calls and what they say: one row each, run by tests/test_bad_input.py and shown by nbs/results/compat.ipynb.

Every call has to be refused before training with one sentence (an `EKDError`) that names what was given.
"""
import json, os, sys, tempfile, warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compat import Net, SMALL, data, dls, teachers, torch_loaders

CALLS = []


def wrong(group, call, says):
    "Register a wrong call: how it reads, and what its message has to contain"
    def reg(f):
        CALLS.append((group, call, says, f))
        return f
    return reg


def message(f):
    "What the call says; `None` when it is accepted, the error itself when it is not ours"
    from ekd_nb.core import EKDError
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: f()
        except EKDError as e: return str(e)
        except BaseException as e: return e


@lru_cache
def tmp(): return Path(tempfile.mkdtemp(prefix='ekd_wrong_'))
@lru_cache
def shared(): return dls(), teachers()

def ekd(*a, d=None, **kw):
    from ekd_nb.learner import ekd_learner
    return ekd_learner(d or shared()[0], *(a or (SMALL,)), **kw)

def good(**kw): return dict(teachers=shared()[1]) | kw
def model(name=SMALL, n=10, c=1):
    from ekd_nb.models import get_model
    return get_model(name, n, c)
def loss(*a, **kw):
    from ekd_nb.losses import EKDLoss
    return EKDLoss(*a, **kw)
def several(**kw):
    from ekd_nb.multilabel import MultiLabelEKDLoss
    return MultiLabelEKDLoss(**kw)
def ensemble(*a, **kw):
    from ekd_nb.teachers import TeacherEnsemble
    return TeacherEnsemble(*a, **kw)


def broken(value=float('nan')):
    m = model()
    m.head.bias.data[0] = value
    return m

def saved(name, change=None, manifest=None):
    "A weights file, damaged"
    from ekd_nb.teachers import save_teacher
    p = save_teacher(model(), tmp()/f'{name}.safetensors', accuracy=.9)
    if change: p.write_bytes(change(p.read_bytes()))
    if manifest: p.with_suffix('.json').write_text(manifest(p.with_suffix('.json').read_text()))
    return p

def unnamed():
    class Local(Net): pass
    return Local()

class Payload:
    def __reduce__(self): return (Path.touch, (tmp()/'executed',))

def pickled(): import pickle; return pickle.dumps(Payload())


# ---- teachers
T = 'teachers'
wrong(T, "ekd_learner(dls, 'resnet8')", 'teachers: got none')(lambda: ekd())
wrong(T, "teachers=[]", 'teachers: got none')(lambda: ekd(teachers=[]))
wrong(T, "teachers=[ResNet] (a class)", 'is the class Net, expected a trained network')(lambda: ekd(teachers=[Net]))
wrong(T, "teachers=[3]", 'entry 0 is a int')(lambda: ekd(teachers=[3]))
wrong(T, "teachers=[net, None]", 'entry 1 is a NoneType')(lambda: ekd(teachers=[model(), None]))
wrong(T, "teacher of 7 classes, data of 10", 'has 7 classes, the data has 10')(lambda: ekd(teachers=[model(n=7)]))
wrong(T, "teacher of 3 channels, grey data", 'takes images of 3 channels, the data has 1')(
    lambda: ekd(teachers=[model(c=3)]))
wrong(T, "teacher for larger images", 'cannot process images of shape [1, 8, 8]')(
    lambda: ekd(teachers=[nn.Sequential(nn.Conv2d(1, 2, 9), nn.Flatten(), nn.Linear(2, 10))]))
wrong(T, "teacher with NaN in its output", 'not finite')(lambda: ekd(teachers=[broken()]))
wrong(T, "teacher with infinite output", 'not finite')(lambda: ekd(teachers=[model(), broken(float('inf'))]))
wrong(T, "teacher that returns a feature map", 'expected logits [B,C]')(lambda: ekd(teachers=[nn.Conv2d(1, 10, 3)]))
wrong(T, "teacher without a feature layer, gamma=1", 'no feature layer')(
    lambda: ekd(teachers=[nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())], loss_func=loss(gamma=1.)))
wrong(T, "feature_grid=0 and gamma=1", 'feature_grid=0 gives no features')(
    lambda: ekd(teachers=ensemble([model()], feature_grid=0), loss_func=loss(gamma=1.)))
wrong(T, "names=['a'] for two teachers", 'names: got 1 for 2 teachers')(
    lambda: ensemble([model(), model()], names=['a']))
wrong(T, "class_maps of another number", 'class_maps: got 1 for 2 teachers')(
    lambda: ensemble([model(), model()], class_maps=[None]))
wrong(T, "class map with a negative index", 'class_maps: entry 0')(lambda: ensemble([model()], class_maps=[[-1, 2]]))
wrong(T, "class map beyond the teacher's classes", 'class map has index 12')(
    lambda: ekd(teachers=ensemble([model()], class_maps=[list(range(3, 13))])))
wrong(T, "class map of 9 entries, data of 10 classes", 'has 9 classes, the data has 10')(
    lambda: ekd(teachers=ensemble([model()], class_maps=[list(range(9))])))
wrong(T, "feature_grid=-1", 'feature_grid: got -1')(lambda: ensemble([model()], feature_grid=-1))

wrong(T, "class map to one class", 'at least two known and different')(lambda: ensemble([model()], class_maps=[[3]*10]))

@wrong(T, "TeacherAdapter(size='large')", "size: got 'large'")
def _():
    from ekd_nb.teachers import TeacherAdapter
    TeacherAdapter(model(), size='large')

@wrong(T, "TeacherAdapter with a std of 0", 'expected (mean, std) with positive std')
def _():
    from ekd_nb.teachers import TeacherAdapter
    TeacherAdapter(model(), data_stats=((.5,), (0.,)))

@wrong(T, "TeacherAdapter(channels=2)", 'channels: got 2')
def _():
    from ekd_nb.teachers import TeacherAdapter
    TeacherAdapter(model(), channels=2)

# ---- files
W = 'files'
wrong(W, "weights file missing", 'does not exist')(lambda: ekd(teachers=[tmp()/'none.safetensors']))
wrong(W, "weights file truncated", 'is damaged')(lambda: ekd(teachers=[saved('cut', lambda b: b[:len(b)//2])]))
wrong(W, "weights file with a flipped bit", 'is damaged')(
    lambda: ekd(teachers=[saved('flip', lambda b: b[:999]+bytes([b[999] ^ 1])+b[1000:])]))
wrong(W, "weights file empty", 'is damaged')(lambda: ekd(teachers=[saved('empty', lambda b: b'')]))
wrong(W, "a pickle in place of weights", 'is damaged')(lambda: ekd(teachers=[saved('pickle', lambda b: pickled())]))
wrong(W, "manifest missing", 'does not exist')(
    lambda: ekd(teachers=[saved('nomanifest', manifest=lambda t: t).rename(tmp()/'moved.safetensors')]))
wrong(W, "manifest that is not JSON", 'not JSON')(lambda: ekd(teachers=[saved('notjson', manifest=lambda t: t[:40])]))
wrong(W, "manifest of something else", 'is not a manifest')(
    lambda: ekd(teachers=[saved('other', manifest=lambda t: '{"a": 1}')]))
wrong(W, "accuracy changed in the manifest", 'changed by hand')(
    lambda: ekd(teachers=[saved('changed', manifest=lambda t: t.replace('0.9', '0.99'))]))

@wrong(W, "a pickle in place of weights, manifest forged to match", 'is not a safetensors file')
def _():
    from ekd_nb.core import add_digest, sha256_file
    p = saved('forged', lambda b: pickled())
    m = json.loads(p.with_suffix('.json').read_text())
    p.with_suffix('.json').write_text(json.dumps(add_digest(dict(m, sha256=sha256_file(p)))))
    ekd(teachers=[p])

@wrong(W, "weights of a resnet8 as those of a wrn_16_1", 'are not those of a wrn_16_1')
def _():
    from ekd_nb.core import add_digest
    p = saved('wrongarch')
    m = json.loads(p.with_suffix('.json').read_text())
    p.with_suffix('.json').write_text(json.dumps(add_digest(dict(m, arch='wrn_16_1'))))
    ekd(teachers=[p])

def save(m, *a, **kw):
    from ekd_nb.teachers import save_teacher
    return save_teacher(m, *a, **kw)

wrong(W, "save_teacher(…, 't.pth')", "ends in '.safetensors'")(lambda: save(model(), tmp()/'t.pth'))
wrong(W, "save_teacher(…, accuracy=91.3)", 'accuracy: got 91.3')(
    lambda: save(model(), tmp()/'t.safetensors', accuracy=91.3))
wrong(W, "save_teacher(…, classes=['cat', 'dog']) of 10 outputs", 'classes: got 2 names for 10 outputs')(
    lambda: save(model(), tmp()/'t.safetensors', classes=['cat', 'dog']))
wrong(W, "save_teacher(…, stats=([.5], [0]))", 'positive std')(
    lambda: save(model(), tmp()/'t.safetensors', stats=([.5], [0])))
wrong(W, "save_teacher(net of no known architecture)", 'has no architecture name')(
    lambda: save(unnamed(), tmp()/'t.safetensors'))
wrong(W, "save_teacher(…, arch='resnet14') of a resnet8", 'not the weights of a resnet14')(
    lambda: save(model(), tmp()/'t.safetensors', arch='resnet14'))
wrong(W, "save_teacher into a folder that is a file", 'cannot write')(
    lambda: (tmp()/'file').touch() or save(model(), tmp()/'file'/'t.safetensors'))

def memo(**kw):
    from ekd_nb.memo import TeacherMemo
    d = shared()[0]
    return TeacherMemo(**(dict(teachers=ensemble(shared()[1]), images=d.train.rows, views=d.train.views) | kw))

def filled_memo():
    from ekd_nb.memo import save_memo
    m = memo()
    b = shared()[0].one_batch()[0]
    m(b.key, b)
    return m, save_memo(m, tmp()/'memo.safetensors')

def load(p, **kw):
    from ekd_nb.memo import load_memo
    return load_memo(memo(**kw), p)

wrong(W, "memo file missing", 'does not exist')(lambda: load(tmp()/'nomemo.safetensors'))
wrong(W, "a pickle in place of a memo", 'is damaged')(
    lambda: (tmp()/'p.safetensors').write_bytes(pickled()) and load(tmp()/'p.safetensors'))
wrong(W, "memo of other teachers", 'does not fit the teachers')(
    lambda: load(filled_memo()[1], teachers=ensemble([model(), model()])))
wrong(W, "memo of other data", 'does not fit the data')(lambda: load(filled_memo()[1], fingerprint='else'))
wrong(W, "memo=TeacherMemo of other teachers", 'other teachers')(
    lambda: ekd(**good(memo=memo(teachers=ensemble([model(), model()])))))
wrong(W, "memo='yes'", 'memo: got a str')(lambda: ekd(**good(memo='yes')))
wrong(W, "memo without features, gamma=1", 'holds no features')(
    lambda: ekd(**good(teachers=(e := ensemble(shared()[1])), memo=memo(teachers=e), loss_func=loss(gamma=1.))))

def checkpointed(folder, n=1, **kw):
    from ekd_nb.checkpoint import Checkpoint
    l = ekd(**good(cbs=Checkpoint(folder, **kw)))
    with l.no_bar(), l.no_logging(): l.fit(n)

wrong(W, "Checkpoint(folder that is a file)", 'cannot write checkpoints')(
    lambda: (tmp()/'file').touch() or checkpointed(tmp()/'file'))
wrong(W, "Checkpoint of a run of 1 epoch, now 2", 'belongs to a run of 1 epochs')(
    lambda: (checkpointed(tmp()/'run'), checkpointed(tmp()/'run', 2)))
wrong(W, "Checkpoint(keep=0)", 'keep: got 0')(lambda: checkpointed(tmp()/'run', keep=0))

# ---- student
S = 'student'
wrong(S, "arch='resnet9'", 'resnet9')(lambda: ekd('resnet9', **good()))
wrong(S, "arch=3", 'arch: expected a name, a callable or an nn.Module, got int')(lambda: ekd(3, **good()))
wrong(S, "arch=dict (a class)", 'the class dict')(lambda: ekd(dict, **good()))
def unfinished(): raise ZeroDivisionError('division by zero')
wrong(S, "arch=<a function that raises an error>", 'arch: unfinished raises ZeroDivisionError (division by zero)')(
    lambda: ekd(unfinished, **good()))
wrong(S, "split='layer7'", "no stage 'layer7'")(lambda: ekd(**good(split='layer7')))
wrong(S, "split=9", 'split: got 9')(lambda: ekd(**good(split=9)))
wrong(S, "fusion='vote'", "fusion: got 'vote'")(lambda: ekd(**good(fusion='vote')))
wrong(S, "n_branches=0", 'n_branches: got 0')(lambda: ekd(**good(n_branches=0)))
wrong(S, "n_branches=2.5", 'n_branches: got 2.5')(lambda: ekd(**good(n_branches=2.5)))
wrong(S, "two networks for n_branches=3", '2 networks for n_branches=3')(
    lambda: ekd([SMALL, SMALL], **good(n_branches=3)))
wrong(S, "branches of different widths at the split", 'channels at the split')(
    lambda: ekd(['resnet8-w4', 'resnet8-w8'], **good()))
wrong(S, "different networks and split='layer3'", 'leaves nothing of the others')(
    lambda: ekd([SMALL, 'resnet14-w4'], **good(split='layer3')))
wrong(S, "arch=[]", 'arch: got an empty list')(lambda: ekd([], **good()))

def finished(n=2, n_out=10, c=1):
    from ekd_nb.student import branched_student
    return branched_student(SMALL, n, n_out, in_channels=c)

wrong(S, "a student of 2 branches and n_branches=3", 'n_branches: got 3, the student has 2')(
    lambda: ekd(finished(), **good(n_branches=3)))
wrong(S, "a student of 7 classes, data of 10", 'the student has 7 classes')(lambda: ekd(finished(n_out=7), **good()))
wrong(S, "a student for RGB, grey data", 'arch: the student cannot process images')(
    lambda: ekd(finished(c=3), **good()))
wrong(S, "a finished student and split='layer1'", 'the student is finished')(
    lambda: ekd(finished(), **good(split='layer1')))
wrong(S, "student.keep(3) of 2 branches", 'keep: got 3')(lambda: finished().keep(3))
wrong(S, "student.keep([0, 0])", 'keep: got [0, 0]')(lambda: finished().keep([0, 0]))
wrong(S, "student.keep('a')", "keep: got 'a'")(lambda: finished().keep('a'))
wrong(S, "learn.keep(1.5)", 'keep: got 1.5')(lambda: ekd(**good()).keep(1.5))

# ---- loss
L = 'loss'
wrong(L, "EKDLoss(alpha=-1)", 'alpha: got -1')(lambda: loss(alpha=-1))
wrong(L, "EKDLoss(beta=nan)", 'beta: got nan')(lambda: loss(beta=float('nan')))
wrong(L, "EKDLoss(tau=0)", 'tau: got 0')(lambda: loss(tau=0))
wrong(L, "EKDLoss(lam=2)", 'lam: got 2')(lambda: loss(lam=2))
wrong(L, "EKDLoss(branch_reduction='max')", "branch_reduction: got 'max'")(lambda: loss(branch_reduction='max'))
wrong(L, "EKDLoss(label_smoothing=2)", 'label_smoothing: got 2')(lambda: loss(label_smoothing=2))
wrong(L, "EKDLoss(reduction='batch')", "reduction: got 'batch'")(lambda: loss(reduction='batch'))
wrong(L, "assign={9: 0}", 'branch 9 does not exist')(lambda: ekd(**good(loss_func=loss(assign={9: 0}))))
wrong(L, "assign=[0, 5]", 'got teacher 5')(lambda: ekd(**good(loss_func=loss(assign=[0, 5]))))
wrong(L, "assign=[0] for two branches", 'got 1 entries')(lambda: ekd(**good(loss_func=loss(assign=[0]))))
wrong(L, "loss_func=nn.CrossEntropyLoss()", "loss_func: got CrossEntropyLoss, expected a loss of a branched student")(
    lambda: ekd(**good(loss_func=nn.CrossEntropyLoss())))
wrong(L, "loss_func that returns a float", 'loss_func: returns a float')(lambda: ekd(**good(loss_func=lambda p, y: 1.)))
wrong(L, "EKDLoss(teacher_weights='best')", "teacher_weights: got 'best'")(lambda: loss(teacher_weights='best'))
wrong(L, "MultiLabelEKDLoss() for images with one label each", 'expected zeros and ones')(
    lambda: ekd(**good(loss_func=several())))
wrong(L, "MultiLabelEKDLoss(thresh=1)", 'thresh: got 1')(lambda: several(thresh=1))
wrong(L, "hints=['layer9', None]", "has no layer 'layer9'")(lambda: ekd(**good(hints=['layer9', None])))
wrong(L, "hints=[('layer9', None), None]", "neither the trunk nor branch 0 has a layer 'layer9'")(
    lambda: ekd(**good(hints=[('layer9', None), None])))
wrong(L, "hints=['layer2'] for two teachers", 'hints: got 1 entries')(lambda: ekd(**good(hints=['layer2'])))
wrong(L, "hints='layer2'", "hints: got 'layer2'")(lambda: ekd(**good(hints='layer2')))

def pairs(f=nn.functional.mse_loss, **kw):
    from ekd_nb.pairs import PairLoss
    return PairLoss(f, **kw)
def of_one(n): return nn.Conv2d(n, n, 1)
def too_wide(n, m): return nn.Conv2d(n+1, m, 1)
wrong(L, "PairLoss(project=<a function of one number>)", 'project: of_one raises TypeError for 16 and 24 channels')(
    lambda: ekd(**good(loss_func=pairs(project=of_one))))
wrong(L, "PairLoss(project=<wrong channels>)", 'project: a module of too_wide cannot process features')(
    lambda: ekd(**good(loss_func=pairs(project=too_wide))))
wrong(L, "PairLoss(mse_loss, project=None), other channels", 'pair: mse_loss raises RuntimeError for [8, 16, 4, 4]')(
    lambda: ekd(**good(loss_func=pairs(project=None))))
wrong(L, "PairLoss, a teacher without a feature layer", "no feature layer to learn from; set on='logits'")(
    lambda: ekd(teachers=[nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())], loss_func=pairs()))

# ---- data
D = 'data'
def loaders(x, y):
    from torch.utils.data import DataLoader, TensorDataset
    from fastai.data.core import DataLoaders
    dl = DataLoader(TensorDataset(x, y), 8)
    return DataLoaders(dl, dl)
X, Y = torch.randn(20, 1, 8, 8), torch.arange(20) % 10

def unreadable():
    "Loaders whose pictures cannot be read"
    d = loaders(X, Y)
    def read(i): raise OSError('cannot identify image file 3.png')
    d.train.dataset.__class__ = type('Pictures', (type(d.train.dataset),), dict(__getitem__=lambda self, i: read(i)))
    return d

wrong(D, "dls=[…] (a list)", 'dls: got a list, expected DataLoaders')(lambda: ekd(d=[1], **good()))
wrong(D, "images [B,H,W]", 'expected images [B,channels,H,W]')(lambda: ekd(d=loaders(X[:, 0], Y), **good()))
wrong(D, "images as bytes", 'expected floats')(lambda: ekd(d=loaders(X.byte(), Y), **good()))
wrong(D, "images with NaN", 'dls: the first batch has images with values that are not finite')(
    lambda: ekd(d=loaders(X*float('nan'), Y), **good()))
wrong(D, "labels as floats", 'expected class numbers')(lambda: ekd(d=loaders(X, Y.float()), **good()))
wrong(D, "one-hot labels", 'expected class numbers')(lambda: ekd(d=loaders(X, torch.eye(10)[Y].long()), **good()))
wrong(D, "labels up to 14 of 10 classes", 'label 10, expected 0 to 9')(lambda: ekd(d=loaders(X, Y+5), **good()))
wrong(D, "no batch: 4 images, bs=8, drop_last", 'the training loader has no batch')(
    lambda: ekd(d=torch_loaders(64, True), **good()))
wrong(D, "plain loaders, no teachers, no n_out", 'n_out: the data does not say')(
    lambda: ekd(d=loaders(X, Y), loss_func=loss(1, 0, 0)))
wrong(D, "a picture that cannot be read", 'dls: the first batch cannot be made (cannot identify image file 3.png)')(
    lambda: ekd(d=unreadable(), **good()))
def stream():
    "Loaders that do not know their length"
    from torch.utils.data import DataLoader, IterableDataset
    from fastai.data.core import DataLoaders
    class Stream(IterableDataset):
        def __iter__(self): return iter(zip(X, Y))
    return DataLoaders(DataLoader(Stream(), 8), DataLoader(Stream(), 8))
def named(vocab):
    d = loaders(X, Y)
    d.vocab = vocab
    return d
wrong(D, "a loader without a length", 'dls: the training loader does not say how many batches it has')(
    lambda: ekd(d=stream(), **good()))
wrong(D, "dls.vocab = 3", 'vocab=3, expected the number of classes and their names')(lambda: ekd(d=named(3), **good()))
wrong(D, "n_out=1", 'n_out: got 1')(lambda: ekd(n_out=1, loss_func=loss(1, 0, 0)))
wrong(D, "last batch of one image, features 1×1", 'too few for BatchNorm')(
    lambda: ekd(Net(), d=loaders(torch.randn(17, 1, 4, 4), Y[:17]), **good(teachers=[Net()], split=1)))

def arrays(f, *a, **kw):
    import ekd_nb.data as d
    return getattr(d, f)(*a, **kw)
y = np.repeat(np.arange(3), 4)
wrong(D, "load_images('mnist')", "'mnist'")(lambda: arrays('load_images', 'mnist'))
wrong(D, "load_images('cifar10', path=nowhere)", 'no cifar10.npz')(
    lambda: arrays('load_images', 'cifar10', tmp()/'nowhere'))
wrong(D, "a pickle in place of cifar10.npz", 'cannot be read as an .npz file')(
    lambda: (tmp()/'cifar10.npz').write_bytes(pickled()) and arrays('load_images', 'cifar10', tmp()/'cifar10.npz'))
wrong(D, "stratified_subset(fraction=.01) that empties a class", 'leaves no image of class')(
    lambda: arrays('stratified_subset', y, fraction=.01))
wrong(D, "stratified_subset(fraction=2)", 'fraction: got 2')(lambda: arrays('stratified_subset', y, fraction=2))
wrong(D, "stratified_subset(n_per_class=99)", 'n_per_class=99')(lambda: arrays('stratified_subset', y, n_per_class=99))
wrong(D, "stratified_split(n_valid=0)", 'n_valid: got 0')(lambda: arrays('stratified_split', y, 0))
wrong(D, "image_dls(idx=[99999])", 'idx holds rows 99999')(lambda: arrays('image_dls', data(), [99999]))
wrong(D, "image_dls(n_views=99)", 'n_views: got 99')(lambda: arrays('image_dls', data(), n_views=99))
wrong(D, "image_dls(valid='train')", "valid: got 'train'")(lambda: arrays('image_dls', data(), valid='train'))

# ---- Learner
K = 'Learner'
def two():
    from ekd_nb.callbacks import DistillCallback
    ekd(**good(cbs=DistillCallback(ensemble(shared()[1]))))
wrong(K, "ekd_learner(…, nbranches=2)", "got 'nbranches', expected an argument that it or Learner has, such as n_")(
    lambda: ekd(**good(nbranches=2)))
wrong(K, "ekd_learner(…, cbs=DistillCallback(…))", 'cbs: got a DistillCallback')(two)

wrong(K, "ekd_learner(…, cbs='mixup')", "cbs: got 'mixup', expected callbacks of fastai")(
    lambda: ekd(**good(cbs='mixup')))
wrong(K, "ekd_learner(…, metrics='accuracy')", "metrics: got 'accuracy'")(lambda: ekd(**good(metrics='accuracy')))
wrong(K, "ekd_learner(…, opt_func=torch.optim.AdamW)", 'expected one of fastai, such as partial(OptimWrapper')(
    lambda: ekd(**good(opt_func=torch.optim.AdamW)))
wrong(K, "a splitter that leaves out parameters", 'splitter: leaves out')(
    lambda: ekd(**good(splitter=lambda m: [list(m.trunk.parameters())])))

def loaded():
    "An exported Learner, read back"
    from fastai.learner import load_learner
    l = ekd(**good())
    l.path = tmp()
    l.export('e.pkl')
    return load_learner(tmp()/'e.pkl')

@wrong(K, "fitting an exported student again", 'exported without its teachers')
def _():
    m = loaded()
    with m.no_bar(), m.no_logging(): m.fit(1)

@wrong(K, "get_preds() of an exported student", 'an exported Learner has no data of its own')
def _():
    m = loaded()
    with m.no_bar(), m.no_logging(): m.get_preds()

@wrong(K, "a student in a plain Learner with CrossEntropyLossFlat", 'a student in training gives a StudentOutput')
def _():
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    l = Learner(shared()[0], ekd(**good()).model, loss_func=CrossEntropyLossFlat())
    with l.no_bar(), l.no_logging(): l.fit(1)

def unlabeled(images, **kw):
    from ekd_nb.unlabeled import UnlabeledImages
    l = ekd(**good(cbs=UnlabeledImages(images, **kw)))
    with l.no_bar(), l.no_logging(): l.fit(1)
wrong(K, "UnlabeledImages('nowhere')", 'nowhere is no folder')(lambda: unlabeled('nowhere'))
wrong(K, "UnlabeledImages(images, share=0)", 'share: got 0')(lambda: unlabeled([], share=0))
wrong(K, "UnlabeledImages of another shape", 'images: those without labels are [3, 9, 9]')(
    lambda: unlabeled(loaders(torch.rand(8, 3, 9, 9), Y[:8])))

def disagreement(learn, **kw):
    from ekd_nb.votes import show_disagreement
    show_disagreement(learn, **kw)
wrong(K, "show_disagreement(learn.model)", 'learn: got')(lambda: disagreement(finished()))
wrong(K, "show_disagreement(learn, n=0)", 'n: got 0')(lambda: disagreement(ekd(**good()), n=0))
wrong(K, "learn.model.draw((1, 8))", 'size: got (1, 8)')(lambda: ekd(**good()).model.draw((1, 8)))

def student_files(*a, **kw):
    from ekd_nb.deploy import save_student
    return save_student(*a, **kw)

wrong(K, "save_student(a plain network)", 'expected a BranchedStudent')(lambda: student_files(Net(), tmp()))
wrong(K, "save_student(…, arch='resnet14') of a resnet8", 'is not this student')(
    lambda: student_files(finished(), tmp(), arch='resnet14'))

def exported_student(*a):
    from ekd_nb.deploy import export_student
    return export_student(*a)

wrong(K, "export_student(…, 's.h5', x)", 'expected a suffix among')(lambda: exported_student(finished(), 's.h5', X))
wrong(K, "export_student(…, 's.pt2', images of 3 channels)", 'cannot process images of shape')(
    lambda: exported_student(finished(), tmp()/'s.pt2', torch.zeros(2, 3, 8, 8)))

@wrong(K, "load_student of a saved teacher", 'holds a network of save_teacher, expected a student')
def _():
    from ekd_nb.deploy import load_student
    load_student(save(model(), tmp()/'teacher.safetensors'))

@wrong(K, "load_student of a damaged file", 'is damaged')
def _():
    from ekd_nb.deploy import load_student
    p = student_files(finished(), tmp(), 'damaged', arch=SMALL)
    p.write_bytes(p.read_bytes()[:-7])
    load_student(p)


# ---- the machine
M = 'machine'
def without(module, f):
    "Call `f` as if `module` were not installed"
    held = {k: v for k, v in sys.modules.items() if k == module or k.startswith(module+'.')}
    for k in held: del sys.modules[k]
    sys.modules[module] = None
    try: return f()
    finally: del sys.modules[module]; sys.modules.update(held)

def exported():
    from ekd_nb.deploy import save_onnx
    save_onnx(model(), tmp()/'m.onnx', torch.zeros(2, 1, 8, 8))

wrong(M, "save_onnx, onnx not installed", 'the package onnx is not installed')(lambda: without('onnx', exported))
wrong(M, "a name of timm, timm not installed", 'need timm, which is not installed')(
    lambda: without('timm', lambda: ekd('resnet10t', **good())))

# ---- the command line
C = 'command line'
def command(*args):
    "What `ekd_reproduce` says; its exit status has to be 2, and there may be no traceback"
    import io
    from contextlib import redirect_stderr, redirect_stdout
    from ekd_nb.core import EKDError
    from ekd_nb.study.reproduce import main
    out = [] if '--out' in args else ['--out', str(tmp()/'out')]
    with redirect_stderr(err := io.StringIO()), redirect_stdout(io.StringIO()): status = main([*args, *out])
    assert status == 2 and 'Traceback' not in err.getvalue(), (status, err.getvalue())
    raise EKDError(err.getvalue().strip())

COMMANDS = [
    (('--data', 'mnist'), "data: got 'mnist', expected one of cifar10, cifar100, digits"),
    (('--preset', 'huge'), "preset: got 'huge', expected one of"),
    (('--methods', 'ekd,magic'), "method: got 'magic', expected one of plain"),
    (('--seeds', '0,x'), "seeds: got '0,x'"),
    (('--fraction', '1.5'), 'fraction: got 1.5'),
    (('--device', 'warp9'), "device: got 'warp9'"),
    (('--set', 'lambda=1'), "set: got 'lambda=1', expected FIELD=VALUE"),
    (('--jobs', '0'), 'jobs: got 0, expected at least 1'),
    (('--backend', 'slurm', '--jobs', '2'), "backend: got 'slurm', expected one of loky"),
    (('--out', '/proc/nowhere'), 'out: cannot write to /proc/nowhere')]

for args, says in COMMANDS:
    wrong(C, f"ekd_reproduce {' '.join(args)}", says)(lambda args=args: command(*args))


def table():
    "Rows of (group, wrong call, what it says)"
    return [(g, c, message(f)) for g, c, _, f in CALLS]


if __name__ == '__main__':
    for g, c, says, f in CALLS:
        m = message(f)
        ok = isinstance(m, str) and says in m
        print('ok ' if ok else 'BAD', g, '|', c, '->', m if isinstance(m, str) else repr(m), flush=True)
