"""What works with `ekd_learner`: one small function a row.

tests/test_compat.py runs them, nbs/results/compat.ipynb shows them.

    python tools/compat.py [part of a name]
"""
import io, os, sys, tempfile, time, warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

ROWS = []


def row(group, name=None):
    "Register a combination under a heading"
    def reg(f):
        ROWS.append((group, name or f.__name__.replace('_', ' '), f))
        return f
    return reg


def run_row(f):
    "`'ok'`, `'not installed: …'`, or the error's first line"
    import matplotlib
    matplotlib.use('agg')
    old = os.getcwd()
    silent = io.StringIO()
    with (tempfile.TemporaryDirectory() as tmp, warnings.catch_warnings(),
          redirect_stdout(silent), redirect_stderr(silent)):
        warnings.simplefilter('ignore')
        os.chdir(tmp)
        torch.manual_seed(0)
        try: f()
        except ModuleNotFoundError as e: return f'not installed: {e.name}'
        except Exception as e: return f'{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ""}'
        finally:
            os.chdir(old)
            import matplotlib.pyplot as plt
            plt.close('all')
    return 'ok'


# ---- what the rows are made of: digits, tiny networks

@lru_cache
def data():
    from ekd_nb.data import load_images
    return load_images('digits')


def dls(n=4, bs=16, **kw):
    from ekd_nb.data import image_dls, stratified_subset
    return image_dls(data(), stratified_subset(data().y_train, n_per_class=n), bs=bs, **kw)


class Net(nn.Module):
    "A plain network that knows nothing of this package"
    def __init__(self, n_out=10, in_channels=1, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
                                  nn.Conv2d(width, 2*width, 3, 2, 1), nn.BatchNorm2d(2*width), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(2*width, n_out)
    def forward(self, x): return self.fc(self.pool(self.body(x)).flatten(1))


SMALL = 'resnet8-w4'


def teachers(c=1, n_out=10):
    from ekd_nb.models import get_model
    return [get_model('resnet8-w6', n_out, c), Net(n_out, c)]


def learner(d=None, arch=SMALL, ts=None, **kw):
    from ekd_nb.learner import ekd_learner
    from ekd_nb.losses import EKDLoss
    kw.setdefault('loss_func', EKDLoss(gamma=.5))
    d = d or dls()
    c = next(iter(d.train))[0].shape[1]
    return ekd_learner(d, arch, teachers(c) if ts is None else ts, **kw)


def fit_quietly(l, n=1, lr=1e-2, **kw):
    "Train a Learner without a word, and return it"
    with l.no_bar(), l.no_logging(): l.fit(n, lr, **kw)
    return l


def trained(*cbs, epochs=1, fit='fit', d=None, arch=SMALL, ts=None, **kw):
    "A Learner after an epoch, checked: the weights moved, they are finite, every part of the loss was recorded"
    l = learner(d, arch, ts, **kw)
    before = [p.detach().clone() for p in l.model.parameters()]
    frozen = {k: v.clone() for k, v in l.distill.teachers.state_dict().items()}
    getattr(l, fit)(epochs, 1e-2, cbs=list(cbs))
    after = list(l.model.parameters())
    assert any(not torch.equal(a, b.cpu()) for a, b in zip(before, (p.detach() for p in after))), 'no weight has moved'
    assert all(p.isfinite().all() for p in after), 'weights are not finite'
    assert all(torch.equal(v, frozen[k]) for k, v in l.distill.teachers.state_dict().items()), 'a teacher has changed'
    if l.recorder.values and len(l.recorder.values[-1]) == len(l.recorder.metric_names)-2:
        got = dict(zip(l.recorder.metric_names[1:], l.recorder.values[-1]))
        terms = [got[p] for p in l.loss_func.term_names]
        assert all(t is not None and np.isfinite(float(t)) for t in terms), f'a part of the loss is missing: {got}'
    return l


# ---- Learner

@row('Learner')
def fit(): trained(epochs=2)

@row('Learner')
def fit_one_cycle(): trained(fit='fit_one_cycle')

@row('Learner')
def fit_flat_cos(): trained(fit='fit_flat_cos')

@row('Learner', 'fine_tune: trunk, branches, heads')
def fine_tune():
    from fastai.callback.core import Callback
    l, seen = learner(), []
    class Groups(Callback):
        def before_step(self): seen.append([h['lr'] for h in self.opt.hypers])
    l.fine_tune(1, 1e-2, cbs=Groups())
    assert len(seen[-1]) == 3 and seen[-1][0] < seen[-1][1] < seen[-1][2]

@row('Learner', 'freeze, freeze_to, unfreeze')
def freezing():
    l = learner()
    l.freeze(); l.fit(1)
    assert not any(m.weight.requires_grad for m in l.model.trunk.modules() if isinstance(m, nn.Conv2d))
    l.freeze_to(-2); l.fit(1); l.unfreeze(); l.fit(1)
    assert all(p.requires_grad for p in l.model.parameters())

@row('Learner')
def lr_find():
    l = learner()
    before = [p.detach().clone() for p in l.model.parameters()]
    l.lr_find(num_it=8, show_plot=False)
    assert all(torch.equal(a, b) for a, b in zip(before, l.model.parameters()))

@row('Learner', 'validate')
def validate():
    l = trained()
    v = l.validate()
    z, y = l.get_preds(act=lambda z: z)
    assert abs(v[0]-F.cross_entropy(z, y).item()) < 1e-4 and abs(v[1]-(z.argmax(1) == y).float().mean().item()) < 1e-6

@row('Learner', 'get_preds with inputs, decoded, loss')
def get_preds():
    l = trained()
    x, p, y, dec, loss = l.get_preds(with_input=True, with_decoded=True, with_loss=True)
    assert x.shape[1:] == (1, 8, 8) and torch.allclose(p.sum(1), torch.ones(len(p)), atol=1e-5)
    assert torch.equal(dec, p.argmax(1)) and torch.allclose(loss, -p.gather(1, y[:, None])[:, 0].log(), atol=1e-4)

@row('Learner', 'predict one image')
def predict():
    label, i, p = trained().predict(data().x_test[0])
    assert label in data().classes and int(i) == int(p.argmax())

@row('Learner')
def show_results(): trained().show_results()

@row('Learner')
def show_training_loop(): trained().show_training_loop()

@row('Learner')
def summary():
    import fastai.callback.hook
    assert 'Total params' in learner().summary()

@row('Learner', 'save and load, with optimiser')
def save_load():
    l = trained()
    p = l.get_preds()[0]
    l.path = Path('.')
    l.save('m')
    m = learner()
    m.path = Path('.')
    m.load('m')
    assert torch.equal(m.get_preds()[0], p)
    m.fit(1)

@row('Learner', 'export and load_learner, no teacher inside')
def export():
    from fastai.learner import load_learner
    l = trained()
    p = l.get_preds(dl=l.dls.test_dl(data().x_test[:20]))[0]
    l.path = Path('.')
    l.export('e.pkl')
    size = sum(p.numel()*4 for p in l.model.parameters())
    assert b'wrn' not in Path('e.pkl').read_bytes() and Path('e.pkl').stat().st_size < 2*size+60_000
    m = load_learner('e.pkl')
    assert torch.equal(m.get_preds(dl=m.dls.test_dl(data().x_test[:20]))[0], p)
    l.fit(1)

@row('Learner', 'ClassificationInterpretation')
def interpretation():
    from fastai.interpret import ClassificationInterpretation
    i = ClassificationInterpretation.from_learner(trained())
    assert i.confusion_matrix().sum() == len(data().x_test)
    i.plot_confusion_matrix(); i.plot_top_losses(4)

@row('Learner', 'BranchInterpretation, show_disagreement, get_uncertainty, drawn student')
def votes():
    from ekd_nb.votes import BranchInterpretation, get_uncertainty, show_disagreement
    l = trained()
    show_disagreement(l, n=4)
    i = BranchInterpretation.from_learner(l)
    assert i.confusion_matrix(branch=1).sum() == len(get_uncertainty(l)['entropy']) == len(data().x_test)
    i.plot_top_losses(4)
    assert l.model.draw().axes

@row('Learner', 'tta')
def tta():
    import fastai.vision.learner
    l = trained(d=folder_dls(), ts=three())
    p, y = l.tta(n=2)
    assert p.shape == (len(y), 3)

@row('Learner', 'lr_find and fine_tune with a memo')
def memo_fine_tune():
    l = learner(memo=True)
    l.lr_find(num_it=4, show_plot=False)
    l.fine_tune(2, 1e-2)
    assert l.distill.memo.hits

@row('Learner', 'two fits, another learning rate, another optimiser')
def optimisers():
    from functools import partial
    from fastai.optimizer import SGD, OptimWrapper, ranger
    for o in (partial(SGD, decouple_wd=False), ranger, partial(OptimWrapper, opt=torch.optim.AdamW)):
        trained(opt_func=o, wd_bn_bias=True).fit(1, 1e-3)


# ---- Callbacks

@row('Callbacks', 'mixed precision bf16')
def bf16():
    "fastai's callback switches on CUDA's autocast only; on the CPU autocast is entered around it"
    from fastai.callback.fp16 import MixedPrecision
    with torch.autocast('cpu', dtype=torch.bfloat16): trained()
    if torch.cuda.is_available(): trained(MixedPrecision('bf16'))

@row('Callbacks', 'MixedPrecision() and to_fp16()')
def fp16():
    from fastai.callback.fp16 import MixedPrecision
    trained(MixedPrecision())
    l = learner().to_fp16()
    l.fit(1); l.to_fp32().fit(1)

@row('Callbacks', 'GradientAccumulation')
def accumulate():
    from fastai.callback.training import GradientAccumulation
    trained(GradientAccumulation(20), epochs=2)

@row('Callbacks', 'GradientClip')
def clip():
    from fastai.callback.training import GradientClip
    trained(GradientClip(.1))

@row('Callbacks', 'BnFreeze, ShortEpochCallback')
def bnfreeze():
    from fastai.callback.training import BnFreeze, ShortEpochCallback
    trained(BnFreeze()); trained(ShortEpochCallback(.5))

@row('Callbacks', 'ChannelsLast')
def channels_last():
    from fastai.callback.channelslast import ChannelsLast
    trained(ChannelsLast())
    l = learner(dls(channels_last=True))
    l.to_channelslast(use_amp=False)
    l.fit(1)

@row('Callbacks', 'MixUp')
def mixup():
    from fastai.callback.mixup import MixUp
    trained(MixUp(), memo=True)

@row('Callbacks', 'CutMix')
def cutmix():
    from fastai.callback.mixup import CutMix
    trained(CutMix(), memo=True)

@row('Callbacks', 'label smoothing')
def smoothing():
    from ekd_nb.losses import EKDLoss
    trained(loss_func=EKDLoss(label_smoothing=.1))

@row('Callbacks', 'EarlyStoppingCallback')
def early():
    from fastai.callback.tracker import EarlyStoppingCallback
    l = trained(EarlyStoppingCallback('accuracy', min_delta=2., patience=1), epochs=5)
    assert len(l.recorder.values) < 5

@row('Callbacks', 'SaveModelCallback on a branch\'s accuracy')
def save_model():
    from fastai.callback.tracker import SaveModelCallback
    trained(SaveModelCallback('branch_0', fname='best'), epochs=2, path='.')
    assert Path('models/best.pth').exists()

@row('Callbacks', 'ReduceLROnPlateau')
def plateau():
    from fastai.callback.tracker import ReduceLROnPlateau
    trained(ReduceLROnPlateau('accuracy', min_delta=2.), epochs=3)

@row('Callbacks', 'CSVLogger')
def csv():
    from fastai.callback.progress import CSVLogger
    trained(CSVLogger('h.csv'), path='.', epochs=2)
    lines = Path('h.csv').read_text().splitlines()
    assert len(lines) == 3 and 'kd_branch' in lines[0] and 'branch_1' in lines[0]

@row('Callbacks', 'TensorBoardCallback with graph and predictions')
def tensorboard():
    from fastai.callback.tensorboard import TensorBoardCallback
    import fastai.vision.learner
    trained(TensorBoardCallback('tb', n_preds=2), d=folder_dls(), ts=teachers(3, 3))
    assert list(Path('tb').iterdir())

@row('Callbacks', 'ShowGraphCallback')
def show_graph():
    from fastai.callback.progress import ShowGraphCallback
    trained(ShowGraphCallback(), epochs=2)

@row('Callbacks', 'ParamScheduler')
def scheduler():
    from fastai.callback.schedule import ParamScheduler, SchedCos
    trained(ParamScheduler({'lr': SchedCos(1e-2, 1e-3)}))

@row('Callbacks', 'exponential moving average of weights (torch.optim.swa_utils, fastai has none)')
def ema():
    from fastai.callback.core import Callback
    from torch.optim.swa_utils import AveragedModel
    class Ema(Callback):
        def before_fit(self): self.avg = AveragedModel(self.learn.model)
        def after_batch(self):
            if self.training: self.avg.update_parameters(self.learn.model)
    l = trained(e := Ema())
    assert e.avg.eval()(l.dls.one_batch()[0]).shape[1] == 10

@row('Callbacks', 'together: MixUp, ChannelsLast, GradientAccumulation, GradientClip, ParamScheduler, SaveModel, '
                  'EarlyStopping, CSVLogger, Checkpoint')
def together():
    from fastai.callback.channelslast import ChannelsLast
    from fastai.callback.mixup import MixUp
    from fastai.callback.progress import CSVLogger
    from fastai.callback.schedule import ParamScheduler, SchedCos
    from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
    from fastai.callback.training import GradientAccumulation, GradientClip
    from ekd_nb.checkpoint import Checkpoint
    cbs = [MixUp(), ChannelsLast(), GradientAccumulation(32), GradientClip(1.),
           ParamScheduler({'lr': SchedCos(1e-2, 1e-3)}), SaveModelCallback('accuracy'),
           EarlyStoppingCallback('accuracy', patience=9), CSVLogger('h.csv'), Checkpoint('c')]
    l = trained(*cbs, epochs=2, memo=True, path='.')
    assert len(l.recorder.values) == 2 and len(list(Path('c').glob('*.pth'))) == 2 and Path('models/model.pth').exists()

@row('Callbacks', 'CutMix and label smoothing on images from files')
def cutmix_files():
    from fastai.callback.mixup import CutMix
    from ekd_nb.losses import EKDLoss
    trained(CutMix(), d=folder_dls(), ts=three(), loss_func=EKDLoss(label_smoothing=.1))

@row('Callbacks', 'Checkpoint through fine_tune: two fits, resumed')
def checkpoint_fine_tune():
    from ekd_nb.checkpoint import Checkpoint
    def run():
        torch.manual_seed(3)
        l = learner(memo=True, cbs=Checkpoint('c'))
        l.fine_tune(2, 1e-2)
        return torch.cat([p.flatten() for p in l.model.parameters()])
    assert torch.equal(run(), run())   # the second finds all done

@row('Callbacks', 'UnlabeledImages: arrays, with a memo and MixUp')
def unlabeled():
    from fastai.callback.mixup import MixUp
    from ekd_nb.unlabeled import UnlabeledImages
    trained(UnlabeledImages(data().x_train[-40:], share=.5), memo=True)
    trained(UnlabeledImages(data().x_train[-40:]), MixUp())

@row('Callbacks', 'two DistillCallbacks are refused')
def two_copies():
    from ekd_nb.callbacks import DistillCallback
    from ekd_nb.core import EKDError
    from ekd_nb.teachers import TeacherEnsemble
    for late in (False, True):
        cb = DistillCallback(TeacherEnsemble(teachers()))
        try:
            if late: learner().fit(1, cbs=cb)
            else: learner(cbs=cb)
        except EKDError: continue
        raise AssertionError('accepted')

@row('Callbacks', 'Checkpoint: stopped, resumed, same weights')
def checkpoint():
    from fastai.callback.core import Callback, CancelFitException
    from ekd_nb.checkpoint import Checkpoint
    class Cut(Callback):
        def before_epoch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    def run(folder, *cbs):
        torch.manual_seed(3)
        l = learner(memo=True, cbs=[Checkpoint(folder)])
        try: l.fit_one_cycle(3, 1e-2, cbs=list(cbs))
        except KeyboardInterrupt: return
        return torch.cat([p.flatten() for p in l.model.parameters()])
    whole = run('a')
    run('b', Cut())
    assert torch.equal(run('b'), whole)


# ---- Data

@lru_cache
def image_folder(grey=False):
    "A folder of PNG files, three classes, train and valid"
    from PIL import Image
    root = Path(tempfile.mkdtemp(prefix='ekd_compat_'))
    rng = np.random.default_rng(0)
    for part, n in (('train', 8), ('valid', 4)):
        for c in 'abc':
            (root/part/c).mkdir(parents=True)
            for i in range(n):
                shape = (24+i, 30) if grey else (24+i, 30, 3)
                Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root/part/c/f'{i}.png')
    return root


def folder_dls(size=32, bs=8, **kw):
    from fastai.vision.data import ImageDataLoaders
    from fastai.vision.augment import Resize, aug_transforms
    return ImageDataLoaders.from_folder(image_folder(), train='train', valid='valid', item_tfms=Resize(size),
                                        batch_tfms=aug_transforms(size=size), bs=bs, num_workers=0, **kw)

def three(c=3): return teachers(c, 3)

@row('Data', 'tensor loaders of this package, with memo')
def own_loader():
    l = trained(memo=True, epochs=2)
    assert l.distill.memo.hits+l.distill.memo.misses == 2*40

@row('Data', 'ImageDataLoaders with Resize and aug_transforms')
def image_dataloaders(): trained(d=folder_dls(), ts=three())

@row('Data', 'DataBlock with normalisation and presizing')
def datablock():
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import GrandparentSplitter, Normalize, get_image_files, parent_label
    from fastai.vision.augment import RandomResizedCrop, aug_transforms
    from fastai.vision.core import imagenet_stats
    from fastai.vision.data import ImageBlock
    batch_tfms = [*aug_transforms(size=24), Normalize.from_stats(*imagenet_stats)]
    db = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, splitter=GrandparentSplitter(),
                   get_y=parent_label, item_tfms=RandomResizedCrop(40), batch_tfms=batch_tfms)
    l = trained(d=db.dataloaders(image_folder(), bs=8, num_workers=0), ts=three())
    l.show_results()
    assert l.predict(next((image_folder()/'valid').rglob('*.png')))[0] in 'abc'

@row('Data', 'grey ImageBlock(PILImageBW)')
def grey():
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import GrandparentSplitter, get_image_files, parent_label
    from fastai.vision.augment import Resize
    from fastai.vision.core import PILImageBW
    from fastai.vision.data import ImageBlock
    db = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, splitter=GrandparentSplitter(),
                   get_y=parent_label, item_tfms=Resize(24))
    trained(d=db.dataloaders(image_folder(True), bs=8, num_workers=0), ts=three(1))

@row('Data', 'RGB tensors')
def rgb():
    from ekd_nb.data import ImageArrays, image_dls
    rng = np.random.default_rng(0)
    xs = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    d = ImageArrays.from_arrays('noise', xs[:30], np.arange(30) % 3, xs[30:], np.arange(10) % 3, list('abc'))
    trained(d=image_dls(d, bs=8), ts=three(), memo=True)

def torch_loaders(bs=8, drop_last=False):
    from torch.utils.data import DataLoader, TensorDataset
    from fastai.data.core import DataLoaders
    x, y = torch.randn(25, 1, 8, 8), torch.arange(25) % 10
    train = DataLoader(TensorDataset(x, y), bs, shuffle=True, drop_last=drop_last)
    return DataLoaders(train, DataLoader(TensorDataset(x, y), bs))

@row('Data', 'plain torch DataLoaders; classes from the teachers')
def plain_torch():
    l = trained(d=torch_loaders())
    assert l.model.branches[0].head.out_features == 10
    l.validate()

@row('Data', 'last batch of one image')
def last_one():
    trained(d=dls(bs=13))   # 40 = 3·13+1
    trained(d=torch_loaders(bs=8))       # 25 = 3·8+1

@row('Data', 'worker processes')
def workers():
    from fastai.vision.augment import Resize
    from fastai.vision.data import ImageDataLoaders
    d = ImageDataLoaders.from_folder(image_folder(), train='train', valid='valid', item_tfms=Resize(16), bs=8,
                                     num_workers=1)
    trained(d=d, ts=three())


# ---- Networks

@row('Networks', 'students: name, callable, module, list, finished student')
def students():
    from ekd_nb.models import get_model, resnet8
    from ekd_nb.student import branched_student
    for a in (SMALL, get_model(SMALL, 10, 1), [SMALL, 'resnet14-w4'], branched_student(SMALL, 2, 10, in_channels=1)):
        trained(arch=a)

@row('Networks', 'student: a plain nn.Module, cut by fastai')
def plain_student(): trained(arch=Net(), split=1)

@row('Networks', 'heads on a whole network, and branches: stored and loaded')
def light():
    from ekd_nb.deploy import load_student, save_student
    for split in ('heads', None):
        l = trained(split=split)
        x = l.dls.valid.one_batch()[0]
        assert torch.equal(load_student(save_student(l, 'out'))(x), l.model.eval()(x))

@row('Networks', 'student: torchvision resnet18')
def tv_student():
    from torchvision.models import resnet18
    trained(d=folder_dls(), arch=resnet18, ts=three(), split='layer1')

@row('Networks', 'student: torchvision mobilenet_v3_small')
def tv_mobile():
    from torchvision.models import mobilenet_v3_small
    trained(d=folder_dls(size=64), arch=mobilenet_v3_small, ts=three())

@row('Networks', 'student: timm resnet10t')
def timm_student(): import timm; trained(d=folder_dls(), arch='resnet10t', ts=three())

@row('Networks', 'teachers of mixed families: torchvision, timm CNN, timm transformer, plain')
def mixed_teachers():
    import timm
    from torchvision.models import squeezenet1_1
    vit = timm.create_model('vit_tiny_patch16_224', num_classes=3, img_size=32, depth=1)
    ts = [squeezenet1_1(num_classes=3), timm.create_model('resnet10t', num_classes=3), vit, Net(3, 3)]
    trained(d=folder_dls(), ts=ts)

@row('Networks', 'teacher with other normalisation and input size (TeacherAdapter)')
def adapter():
    from torchvision.models import resnet18
    from ekd_nb.teachers import TeacherAdapter
    trained(ts=[TeacherAdapter(resnet18(num_classes=10), data_stats=data().stats, size=40, channels=3), Net()])

@row('Networks', 'teacher with more classes (class map)')
def class_map():
    from ekd_nb.teachers import TeacherEnsemble
    trained(ts=TeacherEnsemble([Net(100), Net(10)], class_maps=[list(range(20, 30)), None]))

@row('Networks', 'teachers of different classes; teachers weighted by confidence')
def partial_teachers():
    from ekd_nb.losses import EKDLoss
    from ekd_nb.teachers import TeacherEnsemble
    few = [*range(6), *[None]*4]
    trained(ts=TeacherEnsemble([Net(6), Net(6), Net(10)], class_maps=[few, few[::-1], None]), loss_func=EKDLoss())
    trained(loss_func=EKDLoss(teacher_weights='confidence'))

@row('Networks', 'hints at named layers of teachers and student, with memo')
def named_layers():
    trained(hints=[('layer1', 'layer2'), ('layer2', 'body.2')], memo=True)

@row('Networks', 'teachers: Learner, weights file, BranchedStudent')
def teacher_sources():
    from ekd_nb.learner import teacher_learner
    from ekd_nb.models import get_model
    from ekd_nb.student import branched_student
    from ekd_nb.teachers import save_teacher
    path = save_teacher(get_model(SMALL, 10, 1), Path('t.safetensors'))
    trained(ts=[teacher_learner(dls(), Net()), path, branched_student(SMALL, 2, 10, in_channels=1)])

@row('Networks', 'teachers ≠ branches, fusion prob and gate, hints on a 2×2 grid')
def counts():
    from ekd_nb.losses import EKDLoss
    from ekd_nb.teachers import TeacherEnsemble
    trained(n_branches=3, fusion='prob'); trained(n_branches=1, fusion='gate')
    loss = EKDLoss(gamma=1., assign=[0, 1, None, 1])
    trained(ts=TeacherEnsemble(teachers(), feature_grid=2), n_branches=4, loss_func=loss)


# ---- Deployment

@row('Deployment', 'safetensors weights with manifest and model card')
def safetensors():
    from ekd_nb.deploy import load_student, save_student
    l = trained()
    x = l.dls.valid.one_batch()[0]
    s = load_student(save_student(l, 'out'))
    assert torch.equal(s(x), l.model.eval()(x)) and 'resnet8-w4' in Path('out/student.md').read_text()

@row('Deployment', 'a process of its own loads and predicts; no teacher and none of the modules that train')
def alone():
    import subprocess
    from ekd_nb.deploy import save_student
    l = trained()
    x = l.dls.valid.one_batch()[0][:4]
    path, want = save_student(l, 'out'), l.model.eval()(x)
    np.save('x.npy', x.numpy())
    code = ("import sys, numpy as np, torch; from ekd_nb.deploy import load_student; "
            "np.save('z.npy', load_student(sys.argv[1])(torch.from_numpy(np.load('x.npy'))).detach().numpy()); "
            "print([m for m in ('learner', 'callbacks', 'losses', 'memo', 'study') if f'ekd_nb.{m}' in sys.modules])")
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, path], capture_output=True, text=True)
    assert out.stdout.strip() == '[]', out.stdout+out.stderr[-500:]
    assert np.allclose(np.load('z.npy'), want.detach().numpy(), atol=1e-6)

@row('Deployment', 'torch.export')
def torch_export():
    m, x = trained().model.eval(), torch.randn(5, 1, 8, 8)
    ep = torch.export.export(m, (x,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    assert (ep.module()(x[:3])-m(x[:3])).abs().max() < 1e-5

@row('Deployment', 'ONNX, onnxruntime agrees to 1e-5')
def onnx():
    import onnxruntime
    from ekd_nb.deploy import save_onnx
    for f in ('mean', 'prob', 'gate'):
        m, x = trained(fusion=f).model.eval(), torch.randn(5, 1, 8, 8)
        s = onnxruntime.InferenceSession(save_onnx(m, Path('s.onnx'), x))
        assert np.abs(s.run(None, {'images': x[:3].numpy()})[0]-m(x[:3]).detach().numpy()).max() < 1e-5

@row('Deployment', 'keep fewer branches')
def keep():
    l = trained()
    x = l.dls.valid.one_batch()[0]
    assert torch.equal(l.model.keep(2).eval()(x), l.model.eval()(x)) and l.model.keep([1])(x).shape[1] == 10

@row('Deployment', 'torch.compile, eager backend')
def compiled():
    l = trained()
    m = torch.compile(l.model.eval(), backend='eager')
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(m(x), l.model(x), atol=1e-6)


def table():
    "Rows of (group, combination, result, seconds)"
    out = []
    for g, n, f in ROWS:
        start = time.perf_counter()
        out.append((g, n, run_row(f), time.perf_counter()-start))
    return out


if __name__ == '__main__':
    part = sys.argv[1] if len(sys.argv) > 1 else ''
    for g, n, f in ROWS:
        if part in n:
            start = time.perf_counter()
            print(f'{g:12}{n:75}{run_row(f)}   {time.perf_counter()-start:.1f} s', flush=True)
