"""What `fuzz.py` combines: one row for each choice. A name that begins with '!' has to be refused, with '?' may be."""
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.schedule import SchedCos, SchedLin
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.vision.augment import RandomErasing, Resize, Rotate, aug_transforms
from fastai.vision.core import PILImage, PILImageBW
from fastai.vision.data import ImageDataLoaders
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from compat import Net
from ekd_nb.arrays import ImageArrays
from ekd_nb.baselines.registry import make_baseline
from ekd_nb.data import image_dls
from ekd_nb.learner import teacher_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.models import get_model
from ekd_nb.speed import BF16Callback
from ekd_nb.student import branched_student
from ekd_nb.teachers import TeacherAdapter, TeacherEnsemble, save_teacher
from ekd_nb.unlabeled import UnlabeledImages


@dataclass
class Context:
    "What the parts of one combination share"
    folder:Path
    size:int
    channels:int
    classes:int
    i:int
    bs:int=10
    n_out:int=None
    dls:DataLoaders=None
    teachers:list=None

    @cached_property
    def arrays(self):
        "24 noise images and 12 test images"
        rng,shape = np.random.default_rng(self.i),(self.size, self.size, self.channels)
        x,y = rng.integers(0, 256, (36, *shape), dtype=np.uint8),np.arange(36) % self.classes
        return ImageArrays.from_arrays('noise', x[:24], y[:24], x[24:], y[24:], self.class_names)

    @property
    def class_names(self): return [f'c{j}' for j in range(self.classes)]

    def tensors(self):
        x = torch.from_numpy(self.arrays.x_train).permute(0,3,1,2).float()/128-1
        return x,torch.from_numpy(self.arrays.y_train)

    def net(self, name='resnet8-w4', n=None, channels=None):
        return get_model(name, n or self.classes, channels or self.channels)
    def own(self): return Net(self.classes, self.channels)
    def timm(self, name):
        import timm   # slow, and few combinations need it
        return timm.create_model(f'test_{name}', num_classes=self.classes, in_chans=self.channels)


# ---- data

def folder(c, bw=False, batch_tfms=None):
    "Pictures in a folder for each class, read by fastai"
    for i,(x,y) in enumerate(zip(c.arrays.x_train, c.arrays.y_train)):
        path = c.folder/'pictures'/f'c{y}'/f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.squeeze()).save(path)
    c.channels = 1 if bw else 3
    kw = dict(item_tfms=Resize(c.size), batch_tfms=batch_tfms, img_cls=PILImageBW if bw else PILImage, num_workers=0)
    return ImageDataLoaders.from_folder(c.folder/'pictures', valid_pct=.25, seed=1, bs=c.bs, **kw)


def plain(c, change=None, n_out=True, **kw):
    "PyTorch loaders inside of DataLoaders"
    x,y = c.tensors()
    c.n_out = c.classes if n_out else None
    items = TensorDataset(*(change(x, y) if change else (x, y)))
    kw = dict(batch_size=c.bs, **kw) if 'batch_size' not in kw else kw
    if 'sampler' not in kw and 'drop_last' not in kw: kw['shuffle'] = True
    return DataLoaders(DataLoader(items, **kw), DataLoader(items, batch_size=8))


def with_tfms(c, *tfms, **kw):
    "Our loaders with further transforms of the training batches"
    d = image_dls(c.arrays, bs=c.bs, **kw)
    d.add_tfms(list(tfms), 'after_batch', loaders='train')
    return d


def function_of_a_batch(c):
    "Our loaders with a function in place of the pipeline of training batches"
    d = image_dls(c.arrays, bs=c.bs)
    d.train.after_batch = half
    return d


def half(b): return b[0].float()*2-1,b[1]


def other_channels(c):
    "Images of two channels"
    c.channels = 2
    return plain(c, lambda x, y: (x[:,:1].repeat(1,2,1,1), y))


HALF = Normalize.from_stats([.5]*3, [.5]*3)
DATA = {
    'arrays': lambda c: image_dls(c.arrays, bs=c.bs),
    'arrays, no augmentation': lambda c: image_dls(c.arrays, bs=c.bs, augment=False),
    'arrays, one view': lambda c: image_dls(c.arrays, bs=c.bs, n_views=1),
    'arrays, held out': lambda c: image_dls(c.arrays, bs=c.bs, valid=c.classes),
    'arrays, repeated rows': lambda c: image_dls(c.arrays, idx=np.arange(30) % 24, bs=c.bs, valid=c.classes, n_views=2),
    'arrays, channels last': lambda c: image_dls(c.arrays, bs=c.bs, channels_last=True, n_views=2),
    'arrays, Rotate': lambda c: with_tfms(c, Rotate(p=1.)),
    'arrays, RandomErasing': lambda c: with_tfms(c, RandomErasing(p=1.), n_views=1),
    'arrays, a function as after_batch': function_of_a_batch,
    'folder': folder,
    'folder, grey': lambda c: folder(c, bw=True),
    'folder, transforms': lambda c: folder(c, batch_tfms=[*aug_transforms(size=c.size), HALF]),
    'folder, Normalize of a batch': lambda c: folder(c, batch_tfms=Normalize()),
    'torch': plain,
    'torch, weighted sampler': lambda c: plain(c, sampler=WeightedRandomSampler(torch.ones(24), 20)),
    'torch, subset sampler': lambda c: plain(c, sampler=SubsetRandomSampler(range(16))),
    'torch, drop_last': lambda c: plain(c, drop_last=True),
    '?torch, no n_out': lambda c: plain(c, n_out=False),
    '?torch, batches of one': lambda c: plain(c, batch_size=1),
    '?torch, one image left': lambda c: plain(c, sampler=SubsetRandomSampler(range(11))),
    '?torch, float64': lambda c: plain(c, lambda x, y: (x.double(), y)),
    '?torch, int32 labels': lambda c: plain(c, lambda x, y: (x, y.int())),
    '?torch, uint8 labels': lambda c: plain(c, lambda x, y: (x, y.byte())),
    '?torch, two channels': other_channels,
    '?torch, not square': lambda c: plain(c, lambda x, y: (x[...,:-3], y)),
    '?torch, one pixel': lambda c: plain(c, lambda x, y: (x[...,:1,:1], y)),
    '?arrays, bs=1': lambda c: image_dls(c.arrays, bs=1, n_views=1),
    '?arrays, bs=23': lambda c: image_dls(c.arrays, bs=23),
    '!torch, three items': lambda c: plain(c, lambda x, y: (x, y, y)),
    '!torch, images only': lambda c: plain(c, lambda x, y: (x,)),
    '!torch, uint8 images': lambda c: plain(c, lambda x, y: (x.byte(), y)),
    '!torch, NaN images': lambda c: plain(c, lambda x, y: (x*float('nan'), y)),
    '!torch, labels from 1': lambda c: plain(c, lambda x, y: (x, y*0+c.classes)),
    '!torch, negative labels': lambda c: plain(c, lambda x, y: (x, y*0-1)),
    '!torch, float labels': lambda c: plain(c, lambda x, y: (x, y.float())),
    '!torch, one-hot labels': lambda c: plain(c, lambda x, y: (x, F.one_hot(y, c.classes))),
    '!torch, flat images': lambda c: plain(c, lambda x, y: (x.flatten(1), y)),
    '!torch, no batch': lambda c: plain(c, batch_size=99, drop_last=True),
    '!arrays, bs=0': lambda c: image_dls(c.arrays, bs=0),
    '!arrays, bs=-4': lambda c: image_dls(c.arrays, bs=-4),
    '!arrays, bs as text': lambda c: image_dls(c.arrays, bs='10'),
    '!arrays, n_views=0': lambda c: image_dls(c.arrays, n_views=0),
    '!arrays, no rows': lambda c: image_dls(c.arrays, idx=[]),
    '!arrays, rows beyond the end': lambda c: image_dls(c.arrays, idx=[0, 24]),
    '!arrays, all held out': lambda c: image_dls(c.arrays, valid=24),
    '!arrays, valid=-3': lambda c: image_dls(c.arrays, valid=-3),
    '!arrays, valid=2.5': lambda c: image_dls(c.arrays, valid=2.5),
    '!arrays themselves': lambda c: c.arrays,
    '!no data': lambda c: None,
}


# ---- teachers and students

class NoPool(nn.Module):
    "A network that flattens its feature map"
    def __init__(self, c):
        super().__init__()
        self.conv,self.fc = nn.Conv2d(c.channels, 4, 3, 2, 1),nn.Linear(4*((c.size+1)//2)**2, c.classes)
    def forward(self, x): return self.fc(self.conv(x).relu().flatten(1))


class Functional(nn.Module):
    "A network whose activations and pooling are functions"
    def __init__(self, c, dropout=0.):
        super().__init__()
        self.a,self.b,self.fc = nn.Conv2d(c.channels, 4, 3, 1, 1),nn.Conv2d(4, 8, 3, 2, 1),nn.Linear(8, c.classes)
        self.dropout = dropout
    def forward(self, x): return self.fc(F.dropout(F.relu(self.b(F.relu(self.a(x)))).mean((2,3)), self.dropout))


def changed(net, change):
    change(net)
    return net


def finished(c, n=None, **kw):
    return branched_student('resnet8-w4', 2, n or c.classes, in_channels=c.channels, **kw)
def file(c, **kw): return save_teacher(c.net(**kw), c.folder/'t.safetensors')
def fill(value): return lambda net: nn.init.constant_(next(net.parameters()), value)
def adapter(c, **kw): return TeacherAdapter(c.net(channels=3), teacher_stats=([.5]*3, [.5]*3), channels=3, **kw)
def no_statistics(c):
    return nn.Sequential(nn.Conv2d(c.channels, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), small_head(c))
def small_head(c): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, c.classes))
def mlp(c, n): return nn.Sequential(nn.Flatten(), nn.Linear(c.channels*c.size**2, n))


TEACHERS = {
    'resnet8-w6': lambda c: c.net('resnet8-w6'),
    'densenet_10_4': lambda c: c.net('densenet_10_4'),
    'own network': lambda c: c.own(),
    'functional': lambda c: Functional(c),
    'flattens': lambda c: NoPool(c),
    'Learner': lambda c: teacher_learner(c.dls, 'resnet8-w4', n_out=c.classes),
    'file': file,
    'file of a student': lambda c: save_teacher(finished(c), c.folder/'s.safetensors'),
    'adapter': lambda c: adapter(c) if c.channels!=2 else c.net(),
    'adapter, size': lambda c: adapter(c, size=20) if c.channels!=2 else c.net(),
    'timm resnet': lambda c: c.timm('resnet'),
    'timm convnext': lambda c: c.timm('convnext'),
    'timm efficientnet': lambda c: c.timm('efficientnet'),
    '?timm vit': lambda c: c.timm('vit'),
    '?half precision': lambda c: c.net().half(),
    '?bfloat16': lambda c: c.net().bfloat16(),
    '?float64': lambda c: c.net().double(),
    '?softmax at the end': lambda c: nn.Sequential(c.own(), nn.Softmax(1)),
    '?multilayer perceptron': lambda c: mlp(c, c.classes),
    '?BatchNorm without statistics': no_statistics,
    '?dropout always on': lambda c: Functional(c, .5),
    '?traced': lambda c: torch.jit.trace(c.net().eval(), torch.zeros(2, c.channels, 16, 16)),
    '?huge logits': lambda c: changed(c.own(), lambda m: m.fc.weight.data.mul_(1e6)),
    '?a student': lambda c: finished(c),
    '!other classes': lambda c: c.net(n=c.classes+1),
    '!other channels': lambda c: c.net(channels=5),
    '!NaN': lambda c: changed(c.net(), fill(float('nan'))),
    '!a feature map': lambda c: nn.Conv2d(c.channels, c.classes, 1),
    '!a class': lambda c: Net,
    '!None': lambda c: None,
    '!a name': lambda c: 'resnet8',
    '!no such file': lambda c: c.folder/'none.safetensors',
    '!a text file': lambda c: changed(c.folder/'a.safetensors', lambda p: p.write_text('a')),
}
TEACHER_SETS = {
    '?no features': lambda c: TeacherEnsemble([c.net(), c.own()], feature_grid=0),
    'grid of 2': lambda c: TeacherEnsemble([c.net(), c.own()], feature_grid=2),
    'class maps': lambda c: TeacherEnsemble([c.net(n=12), c.net()], class_maps=[[*range(c.classes)][::-1], None]),
    '?none': lambda c: None,
    '!empty': lambda c: [],
    '!class map too long': lambda c: TeacherEnsemble([c.net(n=12)], class_maps=[[*range(c.classes), 0]]),
    '!class map beyond': lambda c: TeacherEnsemble([c.net()], class_maps=[[c.classes]*c.classes]),
    '!feature_grid=-1': lambda c: TeacherEnsemble([c.net()], feature_grid=-1),
    '!names': lambda c: TeacherEnsemble([c.net()], names=['a', 'b']),
}
STUDENTS = {
    'resnet8-w4': lambda c: 'resnet8-w4',
    'wrn_10_1': lambda c: 'wrn_10_1',
    'densenet_10_4': lambda c: 'densenet_10_4',
    'our module': lambda c: c.net('resnet8-w6'),
    'own module': lambda c: c.own(),
    'own function': lambda c: c.own,
    'function with arguments': lambda c: Net,
    'list': lambda c: ['resnet8-w4']*max(1, len(c.teachers or [0])),
    'mixed list': lambda c: ['resnet8-w4', 'resnet14-w4', c.net()][:max(1, len(c.teachers or [0]))],
    'finished student': lambda c: finished(c, split=1),
    'finished student, grouped': lambda c: finished(c, grouped=True),
    'timm resnet': lambda c: 'test_resnet',
    'timm efficientnet': lambda c: 'test_efficientnet',
    'timm convnext module': lambda c: c.timm('convnext'),
    'torchvision mobilenet': lambda c: torchvision(c, 'mobilenet_v3_small'),
    'torchvision shufflenet': lambda c: torchvision(c, 'shufflenet_v2_x0_5'),
    '?torchvision squeezenet': lambda c: torchvision(c, 'squeezenet1_1'),
    '?timm byobnet': lambda c: 'test_byobnet',
    '?timm mambaout': lambda c: 'test_mambaout',
    '?timm nfnet': lambda c: 'test_nfnet',
    '?timm vit': lambda c: 'test_vit',
    '?functional': lambda c: Functional(c),
    '?flattens': lambda c: NoPool(c),
    '?frozen': lambda c: c.net().requires_grad_(False),
    '?always the same network': lambda c: (lambda net: lambda: net)(c.own()),
    '?Learner': lambda c: teacher_learner(c.dls, 'resnet8-w4', n_out=c.classes),
    '?multilayer perceptron': lambda c: mlp(c, c.classes),
    '?mixed widths': lambda c: ['resnet8-w4', 'resnet8-w6'],
    '?torchvision function': lambda c: __import__('torchvision').models.squeezenet1_1,
    '!no such name': lambda c: 'resnet9000x',
    '!a class that is no network': lambda c: dict,
    '!a number': lambda c: 3,
    '!empty list': lambda c: [],
    '!None': lambda c: None,
    '!a function that returns text': lambda c: lambda: 'net',
    '!finished student of other classes': lambda c: finished(c, c.classes+1),
}


def torchvision(c, name):
    "A network of torchvision, for grey images too"
    import torchvision.models   # slow, and few combinations need it
    net = getattr(torchvision.models, name)(num_classes=c.classes)
    return net if c.channels==3 else lambda: getattr(torchvision.models, name)(num_classes=c.classes)


SPLITS = {
    'None': lambda c: None, ' None': lambda c: None, '  None': lambda c: None,
    'heads': lambda c: 'heads', ' heads': lambda c: 'heads',
    '1': lambda c: 1, '2': lambda c: 2, '?0': lambda c: 0, '?3': lambda c: 3, '?4': lambda c: 4,
    '?stem': lambda c: 'stem', '?blocks.0': lambda c: 'blocks.0',
    '!99': lambda c: 99, '!-1': lambda c: -1, '!True': lambda c: True, '!1.5': lambda c: 1.5,
    '!tail': lambda c: 'tail', '![]': lambda c: [],
}
BRANCHES = {
    'None': lambda c: None, ' None': lambda c: None, '  None': lambda c: None,
    '1': lambda c: 1, '2': lambda c: 2, '3': lambda c: 3,
    '!0': lambda c: 0, '!-2': lambda c: -2, '!1.5': lambda c: 1.5, '!text': lambda c: '2', '?True': lambda c: True,
}
FUSIONS = {
    'mean': lambda c: 'mean', ' mean': lambda c: 'mean', 'prob': lambda c: 'prob', 'gate': lambda c: 'gate',
    '!median': lambda c: 'median', '!None': lambda c: None, '!3': lambda c: 3,
}


# ---- losses

def own_loss(pred, y): return F.cross_entropy(pred.logits, y) + F.cross_entropy(pred.branches[0], y)
def own_loss_each(pred, y, reduction='mean'): return F.cross_entropy(pred.logits, y, reduction=reduction)
def falls(x): return 1-x
def baseline(name, **kw): return lambda c: make_baseline(name, **kw)
def ekd(*a, **kw): return lambda c: EKDLoss(*a, **kw)


LOSSES = {
    'default': lambda c: None,
    'labels only': ekd(1, 0, 0),
    'no hints': ekd(.2, .8, 0),
    'hints': ekd(gamma=1.),
    'hints, relative': ekd(gamma=1., hint_error='mse', normalize_hints=True),
    'hints, standard': ekd(gamma=.5, hint_error='standard'),
    'hints, cosine': ekd(gamma=.5, hint_error='cosine', projection='mlp'),
    'hints, linear to zero': ekd(gamma=1., hint_schedule='linear', hint_end=.5),
    'hints, cosine to zero': ekd(gamma=1., hint_schedule='cosine'),
    'hints, SchedCos': ekd(gamma=SchedCos(2, 0)),
    'beta by SchedLin': ekd(gamma=0, beta=SchedLin(0, 1), tau=SchedLin(8, 2)),
    'lam by a function': ekd(lam=falls, gamma=.1),
    'label smoothing': ekd(label_smoothing=.1),
    'class weights': lambda c: EKDLoss(weight=[1.+j for j in range(c.classes)], label_smoothing=.1),
    'mean over branches': ekd(branch_reduction='mean', gamma=.1),
    'averages': lambda c: EKDLoss(assign={0: None}),
    'teachers by confidence': ekd(gamma=0, teacher_weights='confidence'),
    'teachers by confidence, hints': ekd(gamma=.5, teacher_weights='confidence'),
    'own function': lambda c: own_loss,
    'own function with reduction': lambda c: own_loss_each,
    'fitnet': baseline('fitnet'),
    'dkd': baseline('dkd'),
    'rkd': baseline('rkd'),
    'sp': baseline('sp'),
    'dist': baseline('dist'),
    'one': baseline('one'),
    'cl_ilr': baseline('cl_ilr'),
    'separate': baseline('separate'),
    '?at': baseline('at'),
    '?crd': baseline('crd'),
    '?teacher 1': baseline('dkd', teacher=1),
    '?sum over images': ekd(reduction='sum'),
    '?CrossEntropyLossFlat': lambda c: CrossEntropyLossFlat(),
    '?label smoothing of fastai': lambda c: LabelSmoothingCrossEntropyFlat(),
    '?F.cross_entropy': lambda c: F.cross_entropy,
    '?assign to teacher 1': ekd(assign=[1, 1]),
    '?huge gamma': ekd(gamma=1e12),
    '?all zero': ekd(0, 0, 0),
    '!negative alpha': ekd(-1.),
    '!negative gamma': ekd(gamma=-.1),
    '!NaN beta': ekd(beta=float('nan')),
    '!infinite beta': ekd(beta=float('inf')),
    '!text beta': ekd(beta='much'),
    '!tau of 0': ekd(tau=0),
    '!lam of 2': ekd(lam=2),
    '!gamma falls below 0': ekd(gamma=SchedLin(1, -1)),
    '!label smoothing of 1': ekd(label_smoothing=1.),
    '!label smoothing as text': ekd(label_smoothing='0.1'),
    '!class weights of another number': lambda c: EKDLoss(weight=[1.]*(c.classes+1)),
    '!class weights below 0': lambda c: EKDLoss(weight=[-1.]*c.classes),
    '!reduction': ekd(reduction='median'),
    '!teacher_weights': ekd(teacher_weights='best'),
    '!hint_error': ekd(hint_error='l1'),
    '!hint_end': ekd(hint_schedule='linear', hint_end=0),
    '!hint_end as text': ekd(hint_schedule='linear', hint_end='1'),
    '!two schedules': ekd(gamma=SchedCos(1, 0), hint_schedule='cosine'),
    '!assign to teacher 7': ekd(assign={0: 7}),
    '!the class': lambda c: EKDLoss,
    '!a name': lambda c: 'ce',
    '!no such baseline': lambda c: make_baseline('kdx'),
    '!no such setting': lambda c: make_baseline('dkd', gamma=2),
    '!a function that returns None': lambda c: (lambda pred, y: None),
    '!a function of one argument': lambda c: (lambda pred: pred.logits.mean()),
}

ONE_BRANCH = {'fitnet', 'dkd', 'rkd', 'sp', 'dist', '?at', '?crd', '?teacher 1'} # losses of one plain network
PEERS = {'one', 'cl_ilr'} # losses of branches that learn from each other


# ---- training

def unlabelled_pictures(c):
    "A folder of pictures without labels"
    rng,shape = np.random.default_rng(c.i+1),(c.size, c.size, c.channels)
    (c.folder/'more').mkdir(parents=True, exist_ok=True)
    for j,x in enumerate(rng.integers(0, 256, (12, *shape), dtype=np.uint8)):
        Image.fromarray(x.squeeze()).save(c.folder/'more'/f'{j}.png')
    return c.folder/'more'


class Average(Callback):
    "A moving average of the student's weights"
    def before_fit(self): self.average = AveragedModel(self.learn.model)
    def after_step(self): self.average.update_parameters(self.learn.model)
    def __getstate__(self): return {}


CALLBACKS = {
    'none': lambda c: [], ' none': lambda c: [],
    'MixUp': lambda c: [MixUp(.4)],
    'CutMix': lambda c: [CutMix()],
    'GradientClip': lambda c: [GradientClip(.1)],
    'GradientAccumulation': lambda c: [GradientAccumulation(8)],
    'average': lambda c: [Average()],
    'unlabelled': lambda c: [UnlabeledImages(unlabelled_pictures(c), share=.5)],
    '!unlabelled, no share': lambda c: [UnlabeledImages(unlabelled_pictures(c), share=0)],
}
HINT_LAYERS = {
    'last': lambda c: None, ' last': lambda c: None,
    '?layer2': lambda c: ['layer2']*len(c.teachers),
    '?pairs': lambda c: [('layer2', 'layer3')]*len(c.teachers),
    '!nowhere': lambda c: ['nowhere']*len(c.teachers),
    '!a number': lambda c: 7,
}
MEMOS = {
    'off': lambda c: False, 'on': lambda c: True,
    'None': lambda c: None, '!text': lambda c: 'yes', '!a number': lambda c: 7,
}
PRECISIONS = {'float32': lambda c: [], ' float32': lambda c: [], 'bf16': lambda c: [BF16Callback()]}
FITS = {
    'fit': lambda learn: learn.fit(2, 1e-3),
    'fit_one_cycle': lambda learn: learn.fit_one_cycle(2, 1e-3),
    'fine_tune': lambda learn: learn.fine_tune(1, 1e-3),
}
