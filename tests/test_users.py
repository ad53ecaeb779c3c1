"Data, functions and callbacks of the user: the right value, or one sentence that says whose fault it is"
import copy, re, sys, warnings
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, dls, learner, teachers, torch_loaders
from compat import fit_quietly as fit
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.metrics import F1Score
from fastai.callback.schedule import SchedCos
from fastai.optimizer import Adam, OptimWrapper, RMSProp
from ekd_nb.checkpoint import Checkpoint
from ekd_nb.core import EKDError
from ekd_nb.learner import ekd_learner, export_learner, teacher_learner
from ekd_nb.losses import DistillLoss, EKDLoss
from ekd_nb.models import get_model
from ekd_nb.pairs import PairLoss
from ekd_nb.teachers import TeacherEnsemble

warnings.filterwarnings('ignore')
LABELS = EKDLoss(1., 0., 0.)


def refused(f, says):
    "Refused with this sentence, and nothing more"
    with pytest.raises(EKDError) as e: f()
    assert str(e.value) == says


# ---- a student of an earlier Learner

def named_hints(pair=True):
    ts = [get_model('resnet8-w6', 10, 1) for _ in range(2)]
    return fit(learner(ts=ts, hints=[('layer2', 'layer2') if pair else 'layer2', None]))

@pytest.mark.parametrize('pair', [True, False])
@pytest.mark.parametrize('loss', [dict(gamma=0.), dict(alpha=1., beta=0., gamma=0.), dict()])
def test_a_student_with_hints_of_named_layers_is_trained_again(pair, loss):
    "The projections of the layers go where nothing reads them; what the student computes stays"
    l = named_hints(pair)
    x = l.dls.valid.one_batch()[0]
    before = l.model.eval()(x)
    again = ekd_learner(l.dls, l.model, teachers(), judge=False, loss_func=EKDLoss(**loss))
    assert torch.equal(again.model.eval()(x), before)
    fit(again)
    assert len(again.recorder.values) == 1
    assert (again.model.projections is None) == (pair and 'gamma' in loss)

def test_the_first_learner_says_that_its_projections_are_gone():
    l = named_hints()
    ekd_learner(l.dls, l.model, teachers(), judge=False, loss_func=EKDLoss(gamma=0.))
    with pytest.raises(EKDError, match='gamma: hints need projections that this student does not have'): fit(l)


# ---- teachers without features

FLAT = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())

@pytest.mark.parametrize('loss, advice', [
    (PairLoss(F.mse_loss), "set on='logits'"), (EKDLoss(gamma=1.), 'set gamma=0')])
def test_the_advice_is_one_that_the_loss_takes(loss, advice):
    refused(lambda: learner(ts=[FLAT], loss_func=loss),
            f'teachers: entry 0 (Sequential) has no feature layer to learn from; {advice}')
    refused(lambda: learner(ts=TeacherEnsemble(teachers(), feature_grid=0), loss_func=loss),
            f'teachers: feature_grid=0 gives no features, the loss wants them; {advice} or feature_grid=4')
    fit(learner(ts=[FLAT], loss_func=PairLoss(F.mse_loss, on='logits')))
    fit(learner(ts=[FLAT], loss_func=EKDLoss(gamma=0.)))


# ---- functions of the caller

def fails(*args, **kwargs): raise KeyError('mine')
def of_one(n): return nn.Conv2d(n, n, 1)
def too_wide(n, m): return nn.Conv2d(n+1, m, 1)

@pytest.mark.parametrize('kw, says', [
    (dict(project=fails), "project: fails raises KeyError for 16 and 24 channels ('mine'), expected no error"),
    (dict(project=of_one), 'project: of_one raises TypeError for 16 and 24 channels (of_one() takes 1 positional '
     'argument but 2 were given), expected no error'),
    (dict(pair=fails), "pair: fails raises KeyError for [8, 24, 4, 4] and [8, 24, 4, 4] ('mine'), expected no error")])
def test_a_function_of_a_pair_loss_is_named(kw, says):
    refused(lambda: learner(loss_func=PairLoss(**dict(pair=F.mse_loss) | kw)), says)

def test_a_projection_that_does_not_fit_is_named():
    text = r'project: a module of too_wide cannot process features \[8, 16, 4, 4\] \(Given groups'
    with pytest.raises(EKDError, match=text):
        learner(loss_func=PairLoss(F.mse_loss, project=too_wide))

@pytest.mark.parametrize('make', [teacher_learner, lambda d, arch: ekd_learner(d, arch, teachers(), judge=False)])
def test_a_builder_that_raises_is_named(make):
    def builder(): raise ZeroDivisionError('division by zero')
    text = 'arch: builder raises ZeroDivisionError (division by zero), expected no error'
    refused(lambda: make(dls(), builder), text)
    class Broken(Net):
        def __init__(self): raise RuntimeError
    refused(lambda: make(dls(), Broken), 'arch: Broken raises RuntimeError (no reason given), expected no error')


# ---- data

class Stream(IterableDataset):
    def __iter__(self): return iter([(torch.randn(1, 8, 8), i%10) for i in range(32)])

@pytest.mark.parametrize('make', [lambda d: teacher_learner(d, SMALL, n_out=10), lambda d: learner(d, n_out=10)])
def test_loaders_without_a_length(make):
    stream, plain = DataLoader(Stream(), 8), torch_loaders(64)
    says = 'dls: the {} loader does not say how many batches it has, expected a length'
    refused(lambda: make(DataLoaders(stream, stream)), says.format('training'))
    refused(lambda: make(DataLoaders(plain.train, stream)), says.format('validation'))

@pytest.mark.parametrize('make', [
    lambda d: teacher_learner(d, SMALL), lambda d: ekd_learner(d, SMALL, teachers(), judge=False)])
def test_classes_that_are_no_classes(make):
    d = torch_loaders(64)
    d.vocab = 3
    refused(lambda: make(d), 'dls: got c=None and vocab=3, expected the number of classes and their names')
    d.c = 'ten'
    refused(lambda: make(d), "n_out: got 'ten', expected a number of classes of at least 2")

def test_numbers_of_numpy_and_pytorch_are_numbers():
    import numpy as np
    d = torch_loaders(64)
    d.c = np.int64(10)
    fit(ekd_learner(d, SMALL, teachers(), judge=False))


# ---- a copy of a Learner

def test_a_copied_learner_trains_as_the_first():
    from fastai.callback.mixup import MixUp
    from fastai.torch_core import set_seed
    from ekd_nb.unlabeled import UnlabeledImages
    for kw in (dict(), dict(memo=True), dict(cbs=[MixUp(), UnlabeledImages(dls())])):
        d = dls()
        a = learner(d, **kw)
        b = copy.deepcopy(a)
        assert b.distill.teachers is a.distill.teachers and b.distill.learn is b and b.model is not a.model
        for l in (a, b):
            set_seed(0)
            fit(l)
        assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters()))

def test_an_exported_learner_still_has_no_teachers(tmp_path):
    from fastai.learner import load_learner
    l = learner(path=tmp_path)
    l.export('l.pkl')
    with pytest.raises(EKDError, match='was exported without its teachers'): fit(load_learner(tmp_path/'l.pkl'))

def test_keep_takes_callbacks_along_and_names_the_others(tmp_path):
    from fastai.callback.mixup import MixUp
    from fastai.callback.tracker import EarlyStoppingCallback
    from fastai.callback.training import GradientClip
    from ekd_nb.checkpoint import Checkpoint
    from ekd_nb.speed import BF16Callback
    from ekd_nb.unlabeled import UnlabeledImages
    cbs = [MixUp(.3), UnlabeledImages(dls()), GradientClip(.7), BF16Callback()]
    l = fit(learner(cbs=cbs))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        k = l.keep(1)
    assert k.gradient_clip.max_norm == .7 and k.gradient_clip is not cbs[2] and cbs[2].learn is l
    assert float(k.mix_up.distrib.concentration1) == pytest.approx(.3)
    fit(k)
    assert k.unlabeled_images.learn is k and l.unlabeled_images.learn is l
    fit(l)
    l = learner(cbs=[Checkpoint(tmp_path/'run'), EarlyStoppingCallback(), MixUp()])
    with pytest.warns(UserWarning) as w: k = l.keep(1)
    text = 'keep: the new Learner has no Checkpoint, EarlyStoppingCallback; add them to it with add_cb'
    assert [str(o.message) for o in w] == [text]
    fit(k)


# ---- the model card

def test_the_card_has_every_metric_of_the_validation(tmp_path):
    "Also of images with several labels; not the terms of the training loss, and nothing that is no number"
    from fastai.metrics import accuracy, error_rate
    from fastai.learner import AvgMetric
    from ekd_nb.deploy import save_student
    from ekd_nb.teachers import read_manifest
    def both(p, y): return torch.stack([p.mean(), p.std()])
    class Pair(AvgMetric):
        @property
        def value(self): return [1., 2.]
    l = fit(learner(metrics=[accuracy, error_rate, Pair(both)]))
    found = read_manifest(save_student(l, tmp_path))['validation']
    assert list(found) == ['valid_loss', 'accuracy', 'error_rate', 'branch_0', 'branch_1']
    assert found['accuracy']+found['error_rate'] == pytest.approx(1)

def test_the_card_of_a_student_of_several_labels_shows_its_accuracy(tmp_path):
    from ekd_nb.deploy import save_student
    from ekd_nb.multilabel import MultiLabelEKDLoss
    from ekd_nb.teachers import read_manifest
    x, y = torch.randn(40, 1, 8, 8), (torch.rand(40, 5)<.3).float()
    dl = DataLoader(torch.utils.data.TensorDataset(x, y), 8)
    d = DataLoaders(dl, dl)
    d.c = 5
    l = fit(ekd_learner(d, SMALL, teachers(n_out=5), judge=False, loss_func=MultiLabelEKDLoss()))
    path = save_student(l, tmp_path)
    with torch.no_grad(): right = ((l.model.eval()(x)>0) == (y>.5)).float().mean().item()
    assert read_manifest(path)['validation']['accuracy_multi'] == pytest.approx(right, abs=1e-5)
    assert f'| accuracy_multi | {right:.4f} |' in path.with_suffix('.md').read_text()


# ---- pictures that cannot be read

@pytest.fixture
def pictures(tmp_path):
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    for c in 'ab':
        (tmp_path/'data'/c).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path/'data'/c/f'{i}.png')
    return tmp_path/'data'

def folder_dls(path, workers=0):
    from fastai.vision.all import ImageDataLoaders
    return ImageDataLoaders.from_folder(path, valid_pct=.3, seed=0, bs=4, num_workers=workers)

def damage(path, truncate):
    path.write_bytes(path.read_bytes()[:80] if truncate else b'no picture')

@pytest.mark.parametrize('truncate', [False, True])
@pytest.mark.parametrize('part', ['training', 'validation'])
@pytest.mark.parametrize('make', [lambda d, **kw: ekd_learner(d, SMALL, [get_model(SMALL, 2)], judge=False, **kw),
                                  lambda d, **kw: teacher_learner(d, SMALL, **kw)], ids=['student', 'teacher'])
def test_a_damaged_picture_in_a_later_batch(pictures, make, part, truncate):
    l = make(folder_dls(pictures))
    broken = getattr(l.dls, {'training': 'train', 'validation': 'valid'}[part]).items[1]
    damage(broken, truncate)
    with pytest.raises(EKDError) as e: fit(l)
    assert str(e.value).startswith(f'dls: a batch of {part} images cannot be made (')
    assert str(broken) in str(e.value) and '\n' not in str(e.value)

class Files(torch.utils.data.Dataset):
    "A data set of the user's own, which opens pictures and reads them later"
    def __init__(self, path): self.items = sorted(Path(path).rglob('*.png'))
    def __len__(self): return len(self.items)
    def __getitem__(self, i):
        import numpy as np
        from PIL import Image
        return torch.tensor(np.asarray(self.opened(Image, i))/255.).permute(2, 0, 1).float(), i % 2
    def opened(self, Image, i): return Image.open(self.items[i])

def own_dls(path, workers, persistent=False):
    dl = DataLoader(Files(path), 4, num_workers=workers, persistent_workers=persistent)
    return DataLoaders(dl, DataLoader(Files(path), 4))

@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize('make', [folder_dls, own_dls], ids=['fastai', 'pytorch'])
def test_a_picture_cut_short_is_named_by_a_worker_process(pictures, make, workers):
    "In a later epoch, too; the worker that reads it knows its name"
    from fastai.callback.core import Callback
    d = make(pictures, workers)
    broken = d.train.items[1] if make is folder_dls else d.train.dataset.items[7]
    class Later(Callback):
        def before_epoch(self):
            if self.epoch == 1: damage(broken, True)
    before = d.train.worker_init_fn if make is own_dls else d.train.fake_l.worker_init_fn
    l = ekd_learner(d, SMALL, [get_model(SMALL, 2)], judge=False, n_out=2, cbs=Later())
    with pytest.raises(EKDError) as e: fit(l, 2)
    assert str(e.value).startswith('dls: a batch of training images cannot be made (') and '\n' not in str(e.value)
    assert str(broken) in str(e.value) and 'runcated' in str(e.value) and l.epoch == 1
    after = d.train.worker_init_fn if make is own_dls else d.train.fake_l.worker_init_fn
    assert after is before, 'the loader is as it was'

def test_workers_that_stay_and_an_error_of_ours_in_a_worker(pictures):
    damage(sorted((pictures/'a').iterdir())[0], True)
    with pytest.raises(EKDError, match='dls: the first batch cannot be made .*png'):
        ekd_learner(own_dls(pictures, 1, True), SMALL, [get_model(SMALL, 2)], judge=False, n_out=2)
    class Ours(torch.utils.data.Dataset):
        def __len__(self): return 16
        def __getitem__(self, i): raise EKDError('row: got 3, expected 4')
    dl = DataLoader(Ours(), 4, num_workers=1)
    refused(lambda: teacher_learner(DataLoaders(dl, dl), SMALL, n_out=2), 'row: got 3, expected 4')

def test_a_damaged_picture_is_named_when_teachers_are_tried(pictures):
    d = folder_dls(pictures)
    for i, kind in ((5, 'labelled'), (0, 'validation')):   # of the second batch, of the first
        damage(d.valid.items[i], False)
        with pytest.raises(EKDError, match=f'dls: a batch of {kind} images cannot be made .*png'):
            ekd_learner(d, SMALL, [get_model(SMALL, 2)])

def test_an_error_in_a_step_is_not_one_of_the_data():
    from fastai.callback.core import Callback
    class Mine(Callback):
        def after_pred(self): raise RuntimeError('mine')
    for make in (lambda **kw: learner(**kw), lambda **kw: teacher_learner(dls(), SMALL, **kw)):
        with pytest.raises(RuntimeError, match='mine') as e: fit(make(cbs=Mine()))
        assert not isinstance(e.value, EKDError)

@pytest.mark.parametrize('error', [KeyError('x'), IndexError('row 7'), AssertionError()])
def test_a_data_set_that_raises_anything(error):
    class Mine(torch.utils.data.Dataset):
        def __len__(self): return 32
        def __getitem__(self, i): raise error
    dl = DataLoader(Mine(), 8)
    with pytest.raises(EKDError, match=f'dls: the first batch cannot be made .{type(error).__name__}: '):
        ekd_learner(DataLoaders(dl, dl), SMALL, teachers(), n_out=10)

def test_batches_are_watched_in_an_exported_learner_too(pictures, tmp_path):
    from fastai.learner import load_learner
    l = ekd_learner(folder_dls(pictures), SMALL, [get_model(SMALL, 2)], judge=False, path=tmp_path)
    l.export('l.pkl')
    m = load_learner(tmp_path/'l.pkl')
    files = sorted((pictures/'a').iterdir())
    damage(files[2], False)
    with m.no_bar(), pytest.raises(EKDError, match='dls: a batch of new images cannot be made .*png'):
        m.get_preds(dl=m.dls.test_dl(files))


# ---- an exported Learner is read back

class Forgetful(Net):
    "A network whose copy computes something else"
    factor = 1.
    def __getstate__(self): return {k: v for k, v in vars(self).items() if k != 'factor'}
    def forward(self, x): return super().forward(x)*self.factor

def test_an_exported_learner_is_compared(tmp_path):
    from ekd_nb.deploy import export_student
    l = teacher_learner(dls(), Forgetful(), path=tmp_path)
    assert export_learner(l, tmp_path/'new'/'l.pkl') == tmp_path/'new'/'l.pkl'
    l.model.factor = 2.
    for export in (export_learner, export_student):
        says = r'the Learner read back from .*l.pkl computes something else: outputs differ by '
        with pytest.raises(EKDError, match=says):
            export(l, tmp_path/'l.pkl')

@pytest.mark.parametrize('kind', ['folder', 'ours', 'plain'])
def test_every_kind_of_data_is_exported_and_predicts_the_same(kind, pictures, tmp_path):
    from fastai.learner import load_learner
    d = dict(folder=lambda: folder_dls(pictures), ours=dls, plain=torch_loaders)[kind]()
    ts = [get_model(SMALL, 2)] if kind == 'folder' else teachers()
    l = fit(ekd_learner(d, SMALL, ts, judge=False, n_out=None if kind == 'folder' else 10))
    dls_before, opt = l.dls, l.opt
    m = load_learner(export_learner(l, tmp_path/'l.pkl'))
    assert l.dls is dls_before and l.opt is opt
    x = l.dls.one_batch()[0] if kind != 'plain' else next(iter(l.dls.train))[0]
    with torch.no_grad(): assert torch.equal(m.model.eval()(x), l.model.eval()(x))
    fit(l)

def test_transforms_that_an_exported_learner_loses_are_noticed(pictures, tmp_path):
    from fastai.vision.all import ImageDataLoaders, Transform, PILImage
    class Invert(Transform):
        on = True
        def __getstate__(self): return {}
        def encodes(self, x: PILImage):
            import numpy as np
            return PILImage.create(255-np.asarray(x)) if self.on else x
    t = Invert()
    d = ImageDataLoaders.from_folder(pictures, valid_pct=.3, seed=0, bs=4, num_workers=0, item_tfms=[t])
    l = fit(teacher_learner(d, SMALL))
    export_learner(l, tmp_path/'l.pkl')
    t.on = False
    with pytest.raises(EKDError, match='computes something else'): export_learner(l, tmp_path/'l.pkl')

def test_a_failed_export_leaves_the_learner_as_it_was(tmp_path):
    l = fit(teacher_learner(dls(), SMALL))
    l.mine = (i for i in range(3))   # cannot be pickled
    with pytest.raises(EKDError, match='path: the Learner cannot be written to .*l.pkl and read .cannot pickle'):
        export_learner(l, tmp_path/'l.pkl')
    fit(l)
    (tmp_path/'f').touch()
    with pytest.raises(EKDError, match='path: the Learner cannot be written'): export_learner(l, tmp_path/'f'/'l.pkl')


# ---- what was exchanged after the Learner was made

def test_labels_of_one_byte_beside_images_without_labels():
    "156 is -100 in a byte: it would be a class"
    x, y = torch.randn(24, 1, 8, 8), torch.arange(24)%10
    from torch.utils.data import TensorDataset
    from ekd_nb.unlabeled import UnlabeledImages
    from fastai.torch_core import set_seed
    weights = []
    for labels in (y, y.to(torch.uint8)):
        dl = DataLoader(TensorDataset(x, labels), 8)
        set_seed(0)
        l = ekd_learner(DataLoaders(dl, dl), SMALL, [get_model(SMALL, 10, 1)], judge=False, n_out=10,
                        cbs=UnlabeledImages(DataLoaders(dl, dl)))
        weights.append(torch.cat([p.detach().flatten() for p in fit(l).model.parameters()]))
    assert torch.equal(*weights)

def test_a_network_that_changes_its_images_is_refused():
    class Doubles(Net):
        def forward(self, x): return super().forward(x.mul_(2))
    says = 'changes the images that it is given, which others get too; expected a network that works on a copy'
    refused(lambda: learner(ts=[Doubles(10, 1)]), f'teachers: entry 0 (Doubles) {says}')
    student = nn.Sequential(nn.ReLU(inplace=True), get_model(SMALL, 10, 1).stages, nn.AdaptiveAvgPool2d(1),
                            nn.Flatten(), nn.Linear(16, 10))
    says = 'arch: the student changes the images in place, which the teachers get too; expected a copy'
    refused(lambda: learner(arch=student, split=1), says)

@pytest.mark.parametrize('label', [-1, 7])
@pytest.mark.parametrize('make', [lambda d: teacher_learner(d, SMALL, n_out=3),
                                  lambda d: ekd_learner(d, SMALL, [get_model(SMALL, 3, 1)], judge=False, n_out=3)])
def test_a_label_that_is_no_class_in_a_later_batch(make, label):
    from torch.utils.data import TensorDataset
    x, y = torch.randn(24, 1, 8, 8), torch.arange(24)%3
    good, bad = [DataLoader(TensorDataset(x, torch.where(torch.arange(24) == i, label, y)), 8) for i in (-1, 20)]
    for part, d in dict(training=(bad, good), validation=(good, bad)).items():
        l = make(DataLoaders(*d))
        with pytest.raises(EKDError) as e: fit(l)
        assert str(e.value) == f'dls: a batch of {part} images has label {label}, which is no class of the network; '\
            'expected another number of classes (n_out=), or labels from 0'

def test_another_loss_model_or_fewer_callbacks():
    from ekd_nb.callbacks import BranchLogitsHook
    l = learner()
    l.loss_func = lambda o, y: F.cross_entropy(getattr(o, 'logits', o), y)
    fit(l)
    l = learner()
    l.remove_cb(BranchLogitsHook)
    fit(l)
    l = learner()
    l.model = Net(10, 1)
    with pytest.raises(EKDError, match="model: got 'Net', expected a BranchedStudent, or another splitter"): fit(l)
    l = fit(learner())
    l.model = Net(10, 1)
    refused(lambda: fit(l), "model: got 'Tensor', expected a StudentOutput: teachers teach a BranchedStudent")

def test_callbacks_that_are_none():
    from ekd_nb.checkpoint import Checkpoint
    raises = "Checkpoint.__init__() missing 1 required positional argument: 'folder'"
    for cbs, says in ((3, 'cbs: got 3, expected callbacks of fastai'),
                      (['mixup'], "cbs: got 'mixup', expected callbacks of fastai"),
                      (Checkpoint, f'cbs: Checkpoint raises TypeError ({raises}), expected no error')):
        refused(lambda: learner(cbs=cbs), says)
        refused(lambda: teacher_learner(dls(), SMALL, cbs=cbs), says)

def test_networks_that_are_wrapped_or_unfinished():
    net = get_model(SMALL, 10, 1)
    x = dls().valid.one_batch()[0]
    for arch in (nn.DataParallel(net), torch.compile(net)):
        a, b = [learner(arch=m, n_branches=1).model.eval().trunk(x) for m in (arch, net)]   # the classifier is new
        assert torch.equal(a, b)
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))
    says = 'arch: Sequential has layers without weights yet, expected a network that has seen an image'
    refused(lambda: learner(arch=lazy), says)

def test_numbers_of_numpy_count_branches_and_teachers():
    import numpy as np
    l = learner(n_branches=np.int64(2), loss_func=EKDLoss(assign=[np.int64(1), 0]))
    assert l.model.n_branches == 2 and l.model.assigned == l.distill.teachers.names[::-1]


# ---- optimizers, splitters and metrics of the caller

def of_some(p, y): return p[:, 99].mean()

@pytest.mark.parametrize('kw, says', [
    (dict(opt_func=torch.optim.AdamW), "opt_func: got <class 'torch.optim.adamw.AdamW'>, expected one of fastai, "
     'such as partial(OptimWrapper, opt=torch.optim.AdamW)'),
    (dict(opt_func=3), 'opt_func: got 3, expected a function that makes an optimizer'),
    (dict(splitter=fails), "splitter: fails raises KeyError ('mine'), expected no error"),
    (dict(metrics='accuracy'), "metrics: got 'accuracy', expected metrics of fastai, "
     'or functions of predictions and labels'),
    (dict(metrics=[of_some]), 'metrics: of_some raises IndexError '
     '(index 99 is out of bounds for dimension 1 with size 10), expected no error')])
def test_what_fastai_would_use_later_is_tried_before(kw, says):
    refused(lambda: learner(**kw), says)
    refused(lambda: teacher_learner(dls(), SMALL, **kw), says)

def test_a_splitter_that_leaves_out_parameters():
    def some(m): return [list(m.parameters())[:3]]
    for make in (lambda **kw: learner(**kw), lambda **kw: teacher_learner(dls(), SMALL, **kw)):
        says = r'splitter: leaves out \d+ of \d+ tensors, such as .*, which nothing would train'
        with pytest.raises(EKDError, match=says): make(splitter=some)
    from fastai.torch_core import trainable_params
    from fastai.optimizer import OptimWrapper, SGD
    from functools import partial
    fit(learner(splitter=trainable_params, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)))
    fit(learner(opt_func=SGD))


# ---- what is tried before training, and what is not refused

def test_a_metric_that_needs_more_images_than_are_tried_trains():
    tried = []
    def of_many(p, y):
        tried.append(len(y))
        if len(tried)==1: raise ValueError('a class is missing')   # as metrics of scikit-learn say
        return (p.argmax(1)==y).float().mean()
    l = fit(learner(metrics=of_many))
    assert tried[0] == 8 and 0 <= l.recorder.values[-1][l.recorder.metric_names.index('of_many')-1] <= 1

def test_groups_of_parameters_as_pytorch_has_them():
    def groups(m): return [dict(params=list(m.parameters()))]
    l = learner(opt_func=partial(OptimWrapper, opt=torch.optim.SGD), splitter=groups)
    before = [p.clone() for p in l.model.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, fit(l).model.parameters()))

@pytest.mark.parametrize('kw, says', [
    (dict(opt_func=partial(Adam, momentumx=3)), 'opt_func: .*raises TypeError'),
    (dict(opt_func=partial(torch.optim.SGD, momentum=.9)), 'opt_func: .*raises TypeError'),
    (dict(metrics=F1Score), 'metrics: got .*expected a function that returns a number'),
    (dict(metrics=lambda p, y: None), 'metrics: got .*expected a function that returns a number')])
def test_parts_that_would_fail_in_the_first_epoch(kw, says):
    with pytest.raises(EKDError, match=says): learner(**kw)

def test_a_failed_export_leaves_an_earlier_file_alone(tmp_path):
    l, path = fit(learner()), tmp_path/'l.pkl'
    export_learner(l, path)
    before = path.read_bytes()
    l.mine = (i for i in range(3))   # cannot be pickled
    with pytest.raises(EKDError, match='cannot be written'): export_learner(l, path)
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ['l.pkl']
    with pytest.raises(EKDError, match="learn: got 'NoneType', expected a Learner"): export_learner(None, path)

def test_keep_after_the_loss_was_exchanged():
    l = learner()
    l.loss_func = lambda o, y: F.cross_entropy(getattr(o, 'logits', o), y)
    assert fit(l.keep(1)).model.n_branches == 1

def test_a_loss_is_of_one_type_whatever_its_terms_have():
    "Teachers in double precision made the loss double in some batches, single in others: fastai's average stopped"
    class Double(DistillLoss):
        def terms(self, pred, y): return dict(term=torch.ones(len(y), dtype=torch.float64))
    student = learner().model.train()
    loss = Double(1., 0.)(student(torch.rand(4, 1, 8, 8)), torch.arange(4))
    assert loss.dtype == torch.float32 and loss == 1


# ---- a refusal inside a fit is one sentence, without the name of the callback before it

def test_every_refusal_in_a_fit_is_our_sentence():
    import pickle
    from fastai.callback.core import Callback
    from ekd_nb.arrays import DataNotFound
    from ekd_nb.callbacks import DistillCallback, NonFiniteLoss
    from ekd_nb.unlabeled import UnlabeledImages
    l = learner()
    l.add_cb(DistillCallback(l.distill.teachers))
    refused(lambda: fit(l), 'cbs: two DistillCallbacks in one Learner would run the teachers twice, expected one')
    for event in ('before_fit', 'before_batch', 'after_loss', 'after_epoch'):
        for kind in (EKDError, NonFiniteLoss, DataNotFound):
            def fail(self): raise kind('memo: got 3, expected 4')
            with pytest.raises(kind) as e: fit(learner(cbs=Callback(**{event: fail})))
            assert str(e.value) == 'memo: got 3, expected 4' == str(pickle.loads(pickle.dumps(e.value)))
    own = Callback(after_loss=lambda self: 1/0)
    with pytest.raises(ZeroDivisionError, match='Exception occured in'): fit(learner(cbs=own))   # fastai's own word

def test_a_loss_that_is_not_finite_is_one_sentence():
    with pytest.raises(EKDError) as e: fit(learner(), lr=1e30)
    assert str(e.value).startswith(('The loss is not finite in epoch 0', 'Weights are not finite'))


# ---- batches as other libraries give them

X, Y = torch.randn(32, 1, 8, 8), torch.arange(32)%10

def pairs(x, y):
    from torch.utils.data import TensorDataset
    dl = DataLoader(TensorDataset(x, y), 16)
    return DataLoaders(dl, dl)

MAKERS = [lambda d, **kw: teacher_learner(d, SMALL, n_out=10, **kw),
          lambda d, **kw: ekd_learner(d, SMALL, teachers(), judge=False, n_out=10, **kw)]

@pytest.mark.parametrize('make', MAKERS, ids=['teacher', 'student'])
@pytest.mark.parametrize('y, says', [
    (Y[:, None], 'a batch has labels int64 [16, 1], expected class numbers, int [B]: y.flatten().long()'),
    (Y.float()[:, None], 'a batch has labels float32 [16, 1], expected class numbers, int [B]: y.flatten().long()'),
    (Y.double(), 'a batch has labels float64 [16], expected class numbers, int [B]: y.long()'),
    (Y > 4, 'a batch has labels bool [16], expected class numbers, int [B]: y.long()'),
    (torch.full((32, 10), .1), 'a batch has labels float32 [16, 10], expected class numbers, int [B]: y.argmax(1), '
     'or MultiLabelEKDLoss() if an image may have several'),
    (Y+1, 'the first batch has label 10, expected 0 to 9 for 10 classes: subtract 1 from labels that begin at 1'),
    (Y-1, 'the first batch has label -1, expected 0 to 9 for 10 classes: '
     'images without a label are for UnlabeledImages'),
])
def test_labels_of_another_form(make, y, says): refused(lambda: make(pairs(X, y)), 'dls: '+says)

@pytest.mark.parametrize('kind', [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_type_train_alike(kind):
    from fastai.torch_core import set_seed
    losses = []
    for y in (Y, Y.to(kind)):
        for make in MAKERS:
            set_seed(0)
            losses.append(fit(make(pairs(X, y))).recorder.values[-1][0])
    assert losses[:2] == losses[2:]

@pytest.mark.parametrize('kind', [torch.float32, torch.int64, torch.bool])
def test_one_hot_labels(kind):
    y = torch.eye(10)[Y].to(kind)
    refused(lambda: MAKERS[1](pairs(X, y)), f'dls: a batch has labels {str(kind)[6:]} [16, 10], '
            'expected class numbers, int [B]: y.argmax(1), or MultiLabelEKDLoss() if an image may have several')
    with pytest.warns(UserWarning, match='exactly one label.*y.argmax'): l = MAKERS[0](pairs(X, y))
    assert fit(l).recorder.metric_names[-2] == 'accuracy_multi'   # several labels are learned, and that is said

def test_batches_that_are_dictionaries():
    rows = [dict(pixel_values=x, labels=int(y)) for x, y in zip(X, Y)]
    for collate in (None, lambda rows: {k: torch.stack([torch.as_tensor(r[k]) for r in rows]) for k in rows[0]}):
        dl = DataLoader(rows, 16, collate_fn=collate)
        for make in MAKERS:
            refused(lambda: make(DataLoaders(dl, dl)), 'dls: a batch is dict, expected images and labels: '
                    "(row['pixel_values'], row['labels']) for each row of the data set")
    dl = DataLoader([(r['pixel_values'], r['labels']) for r in rows], 16)   # the advice
    for make in MAKERS: fit(make(DataLoaders(dl, dl)))
    dl = DataLoader([dict(a=1) for _ in range(16)], 8)
    refused(lambda: MAKERS[0](DataLoaders(dl, dl)),
            'dls: a batch is dict, expected images and labels, not a dictionary')

@pytest.mark.parametrize('x, says', [
    (torch.randn(32, 8, 8, 3),
     'images float32 [16, 8, 8, 3], channels last; expected [B,channels,H,W]: x.permute(0, 3, 1, 2)'),
    (torch.randn(32, 8, 8, 1),
     'images float32 [16, 8, 8, 1], channels last; expected [B,channels,H,W]: x.permute(0, 3, 1, 2)'),
    (torch.randn(32, 8, 8),
     'inputs float32 [16, 8, 8], expected images [B,channels,H,W]; unsqueeze(1) gives grey images their channel'),
    (torch.zeros(32, 1, 8, 8, dtype=torch.uint8), 'images uint8 [16, 1, 8, 8], expected floats: normalise them')])
def test_images_of_another_form(x, says):
    for make in MAKERS: refused(lambda: make(pairs(x, Y)), f'dls: a batch has {says}')

def test_images_that_are_not_normalised_are_said():
    with pytest.warns(UserWarning, match='values of up to 2..; are they normalised'):
        MAKERS[0](pairs(X.abs().clamp(0, 1)*255, Y))

def test_arrays_of_another_form():
    import numpy as np
    from ekd_nb.arrays import ImageArrays
    x, y = np.zeros((10, 32, 32, 3), np.uint8), np.arange(10)
    x[:, 0, 0, 0] = y
    def make(x, y, n=10): return ImageArrays.from_arrays('my', x, y, x, y, range(n), warn=False)
    good = make(x, y)
    def images(got, advice): return f'my: x_train is {got}, expected uint8 [N,H,W,C] with C 1 or 3: {advice}'
    def labels(got, advice): return f'my: y_train is {got}, expected integers [10], one for each image: {advice}'
    chw = x.transpose(0, 3, 1, 2)
    for bad, says in [
            (chw, images('uint8 [10, 3, 32, 32]', 'x.transpose(0, 2, 3, 1) for [N,C,H,W]')),
            (x[..., 0], images('uint8 [10, 32, 32]', 'x[..., None] for grey images')),
            (x/255, images('float64 [10, 32, 32, 3]', '(x*255).round().astype(np.uint8) for floats from 0 to 1')),
            (torch.tensor(x), images('torch.uint8 [10, 32, 32, 3]', 'np.asarray(…)'))]:
        refused(lambda: make(bad, y), says)
    for bad, says in [
            (y[:, None], labels('int64 [10, 1]', 'y.ravel().astype(int)')),
            (np.eye(10), labels('float64 [10, 10]', 'y.argmax(1) for one-hot labels')),
            (y/1., labels('float64 [10]', 'y.astype(int)')),
            (list(y), labels('list [10]', 'np.asarray(…)')),
            (y+1, 'my: y_train holds labels 1 to 10, expected 0 to 9 for 10 classes: '
             'subtract 1 from labels that begin at 1'),
            (y-1, 'my: y_train holds labels -1 to 8, expected 0 to 9 for 10 classes')]:
        refused(lambda: make(x, bad), says)
    for a, b in [
            (chw.transpose(0, 2, 3, 1), y), ((x/255*255).round().astype(np.uint8), y),
            (x, y[:, None].ravel().astype(int)), (x, np.eye(10).argmax(1)), (x, (y/1.).astype(int)),
            (np.asarray(torch.tensor(x)), np.asarray(list(y)))]:
        assert make(a, b).fingerprint == good.fingerprint   # each advice gives the same data


# ---- predictions with PyTorch loaders

@pytest.mark.parametrize('make', MAKERS, ids=['teacher', 'student'])
def test_predictions_of_plain_loaders(make):
    from torch.utils.data import SubsetRandomSampler, TensorDataset
    x, y = torch.randn(70, 1, 8, 8), torch.arange(70)%10
    ds = TensorDataset(x, y)
    valid = DataLoader(ds, 16, sampler=SubsetRandomSampler([6, 5, 4, 3]))
    l = fit(make(DataLoaders(DataLoader(ds, 16, shuffle=True, drop_last=True), valid)))
    with torch.no_grad(): right = l.model.eval()(x).softmax(1)
    p, t = l.get_preds(ds_idx=0)
    assert torch.equal(t, y) and torch.allclose(p, right, atol=1e-5), 'all of them, in order'
    p, t = l.get_preds()
    assert torch.equal(t, y[[6, 5, 4, 3]]) and torch.allclose(p, right[[6, 5, 4, 3]], atol=1e-5)
    loss, acc, *_ = l.validate(ds_idx=0)
    assert acc == pytest.approx((right[:64].argmax(1) == y[:64]).float().mean().item(), abs=.2) and loss > 0
    assert torch.allclose(l.predict(x[3])[2], right[3], atol=1e-5)
    assert l.get_preds(with_loss=True)[2].shape == (4,)
    fit(l)

SHOW = ('show: got a PyTorch loader or one of your own, which cannot draw its images; expected one of fastai or '
        'of image_dls, or get_preds() for the predictions')
TTA = ('tta: got a PyTorch loader or one of your own, which has no transforms to vary; expected one of fastai '
       'or of image_dls')

def test_what_plain_loaders_cannot_do_is_one_sentence():
    l = fit(MAKERS[1](pairs(X, Y)))
    for f in (l.show_results, l.dls.show_batch): refused(f, SHOW)
    refused(l.tta, TTA)
    with pytest.raises(EKDError, match='item: got .*expected an image as the loaders give it'): l.predict('a.png')

class Batches:
    "Neither fastai's nor PyTorch's: it knows how many batches it has, and gives them"
    def __init__(self, rows, bs=8): self.rows, self.bs = list(rows), bs
    def __len__(self): return -(-len(self.rows)//self.bs)
    def __iter__(self):
        for i in range(0, len(self.rows), self.bs):
            rows = self.rows[i:i+self.bs]
            yield X[rows], Y[rows]

class Slotted(Batches):
    "It takes no attribute"
    __slots__ = ()
    def __setattr__(self, k, v): vars(self)[k] = v if k in ('rows', 'bs') else 1/0

@pytest.mark.parametrize('make', MAKERS)
@pytest.mark.parametrize('kind', [Batches, Slotted, lambda rows: list(Batches(rows)),
                                  lambda rows: tuple(Batches(rows))],
                         ids=['class', 'slots', 'list', 'tuple'])
def test_loaders_of_ones_own_predict(kind, make):
    "Predictions come in the loader's own order, and validation counts them"
    there = [20, 3, 17, 9, 30, 5, 11, 2, 8, 28, 1, 0, 7]
    d = DataLoaders(kind(range(32)), kind(there))
    d.vocab = list('abcdefghij')
    l = fit(make(d))
    with torch.no_grad(): right = l.model.eval()(X).softmax(1)
    for ds_idx, rows in ((1, there), (0, list(range(32)))):
        p, t = l.get_preds(ds_idx)
        assert torch.equal(t, Y[rows]) and torch.allclose(p, right[rows], atol=1e-5)
        acc = (right[rows].argmax(1) == Y[rows]).float().mean().item()
        assert l.validate(ds_idx)[1] == pytest.approx(acc, abs=1e-6)
    p, t, loss = l.get_preds(with_loss=True)
    assert loss == pytest.approx(-right[there, Y[there]].log().numpy(), abs=1e-4)
    p, t, d = l.get_preds(with_decoded=True)
    assert torch.equal(d, right[there].argmax(1))
    p, t = l.get_preds(dl=kind(there[:8]))
    assert torch.allclose(p, right[there[:8]], atol=1e-5)
    assert l.predict(X[3])[0] == 'abcdefghij'[int(right[3].argmax())]
    refused(l.show_results, SHOW)
    refused(l.tta, TTA)
    fit(l)

def test_a_student_of_a_learner_with_loaders_of_ones_own():
    d = DataLoaders(Batches(range(32)), Batches(range(8)))
    d.c = 10
    l = fit(learner(d))
    again = fit(learner(l.dls, arch=l.model))
    assert again.get_preds()[0].shape == (8, 10) and l.keep(1).get_preds()[0].shape == (8, 10)

def test_batches_without_a_length_are_refused():
    l = fit(MAKERS[0](pairs(X, Y)))
    for f in (l.get_preds, l.validate):
        refused(lambda: f(dl=iter([(X, Y)])), 'dl: the loader does not say how many batches it has, expected a length')

class Shuffles(Batches):
    "In another order in each pass"
    epoch = 0
    def __iter__(self):
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(self.epoch))
        self.epoch += 1
        for i in order.split(self.bs): yield X[i], Y[i]

def test_a_learner_keeps_loaders_of_ones_own():
    "The same objects, in the caller's own list"
    for make in MAKERS:
        a, b = Shuffles(range(32)), Batches(range(8))
        d = DataLoaders(a, b)
        l = make(d)
        assert l.dls.train is a and l.dls.valid is b and l.dls.loaders is d.loaders
        l.dls.train.bs = 16
        assert fit(l).train_iter == 2 and a.bs == 16
        l.validate(dl=b)
        assert l.validation_record.current['accuracy'] == pytest.approx(l.validate()[1])

@pytest.mark.parametrize('make', MAKERS, ids=['teacher', 'student'])
def test_loaders_that_are_exchanged_later_are_used(make):
    for kind in (lambda rows: DataLoader(Rows(rows), 8), Batches, lambda rows: list(Batches(rows))):
        d = DataLoaders(kind(range(32)), kind(range(8)))
        l = make(d)
        d.train, d.loaders[1] = kind(range(24)), kind(range(16, 32))
        d.loaders.append(kind([5, 3]))
        assert fit(l).train_iter == 3
        with torch.no_grad(): right = l.model.eval()(X).softmax(1)
        for ds_idx, rows in ((0, range(24)), (1, range(16, 32)), (2, [5, 3])):
            p, t = l.get_preds(ds_idx)
            assert torch.equal(t, Y[list(rows)]) and torch.allclose(p, right[list(rows)], atol=1e-5)
        refused(l.tta, TTA)
        with pytest.raises(EKDError, match='^show: '): l.show_results()

def test_a_loader_of_ones_own_that_counts_epochs_is_resumed(tmp_path):
    def run(folder, stop=None):
        torch.manual_seed(0)
        a = Shuffles(range(32))
        class Stop(Callback):
            def before_epoch(self):
                if self.epoch==stop: raise KeyboardInterrupt
        l = MAKERS[1](DataLoaders(a, Batches(range(8))), cbs=[Checkpoint(tmp_path/folder), Stop()])
        with l.no_bar(), l.no_logging():
            try: l.fit(4, 1e-2)
            except KeyboardInterrupt: return
        return a.epoch, [p.detach().clone() for p in l.model.parameters()]
    whole = run('whole')
    run('cut', 2)
    again = run('cut')
    assert again[0] == whole[0] and all(map(torch.equal, again[1], whole[1]))

def test_batches_that_do_not_come_are_missed():
    "An iterator gives its batches once, and the first has been looked at"
    class Once(Batches):
        def __init__(self, rows): super().__init__(rows); self.left = Batches.__iter__(self)
        def __iter__(self): return self.left
    says = 'batches came, expected all of them in every pass; an iterator gives them once'
    for make in MAKERS:
        l = make(DataLoaders(Batches(range(32)), Once(range(24))))
        refused(l.get_preds, f'dl: 2 of 3 {says}')
        once = Once(range(24))
        assert len(l.get_preds(dl=once)[0]) == 24
        next(iter(fresh := Once(range(24))))
        refused(lambda: l.validate(dl=fresh), f'dl: 2 of 3 {says}')
        assert len(l.get_preds(0)[0]) == 32

@pytest.mark.parametrize('make', MAKERS, ids=['teacher', 'student'])
def test_what_is_no_loader_is_one_sentence(make):
    plain, ours = pairs(X, Y), dls()
    l = fit(make(plain))
    x, y = X[:8], Y[:8]
    for f in (l.get_preds, l.validate, l.tta, l.show_results):
        for dl, name in ((plain, 'DataLoaders'), (l.dls, 'DataLoaders'), (ours, 'DataLoaders'), ('test', 'str'),
                         ({'a': x}, 'dict'),
                         (X, 'Tensor'), (X.numpy(), 'ndarray')):
            refused(lambda: f(dl=dl), f'dl: got {name}, expected one loader, such as dls.valid')
        for v in (2, -3, 1.5, 'a', None, torch.tensor(1.)):
            refused(lambda: f(v),
                    f'ds_idx: got {v!r}, expected 0 to 1, one of the loaders; another loader is given as dl=')
    for f in (l.get_preds, l.validate):
        for b, name in (({'x': x, 'y': y}, 'dict'), ((x.numpy(), y.numpy()), '(ndarray [8, 1, 8, 8], ndarray [8])'),
                        (x, 'Tensor [8, 1, 8, 8]'), ((x[0], y[0]), '(Tensor [1, 8, 8], Tensor [])'), ((), '()')):
            refused(lambda: f(dl=[b]), f'batch: got {name}, expected images, float [B,channels,H,W], and labels')
    p, t = l.get_preds(torch.tensor(1))
    assert torch.equal(t, Y) and torch.equal(p, l.get_preds()[0]) and torch.equal(p, l.get_preds(-1)[0])
    assert l.validate(ds_idx=5, dl=plain.valid) == l.validate(torch.tensor(1)) == l.validate(None, plain.valid)
    assert torch.equal(l.get_preds(ds_idx=5, dl=[(x, y)])[1], y)
    assert l.get_preds(dl=[(x,)])[0].shape == (8, 10), 'images without labels'


# ---- numbers of a fit

COUNT = 'expected a whole number of at least '
RATE = 'expected a Python number of at least 0, or one for each parameter group'

@pytest.mark.parametrize('make', MAKERS)
def test_wrong_numbers_of_a_fit_are_one_sentence(make):
    l = make(pairs(X, Y))
    before = [p.clone() for p in l.model.parameters()]
    for v in ('3', 1.5, -1, None, int, [1], float('nan'), torch.tensor(1.)):
        for name, f in dict(n_epoch=l.fit, epochs=l.fine_tune).items():
            refused(lambda: f(v), f'{name}: got {v!r}, {COUNT}0')
        for f in (l.fit_one_cycle, l.fit_flat_cos): refused(lambda: f(v, 1e-3), f'n_epoch: got {v!r}, {COUNT}0')
    for v in ('1e-3', -1e-3, float('nan'), float('inf'), [1e-3, 'a'], slice('a', 1.), [], {}, torch.tensor(1e-3),
              np.float32(1e-3),
              1e-3+0j, slice(1e-3, None), slice(None), slice([1e-3], 1e-2), Decimal('.001')):
        for name, f in dict(lr=l.fit, lr_max=l.fit_one_cycle).items():
            refused(lambda: f(1, v), f'{name}: got {v!r}, {RATE}')
        refused(lambda: l.fit_flat_cos(1, lr=v), f'lr: got {v!r}, {RATE}')
        refused(lambda: l.fit(1, wd=v), f'wd: got {v!r}, {RATE}')
        refused(lambda: l.fine_tune(1, wd=v), f'wd: got {v!r}, {RATE}')
    refused(lambda: l.lr_find(num_it=3),
            'num_it: got 3, expected at least 6 steps, since fastai leaves out the last five')
    refused(lambda: l.lr_find(num_it='3'), f"num_it: got '3', {COUNT}1")
    for v in ('1e-3', -1e-3, float('nan'), None, slice(1e-4, 1e-2), slice(1e-3), [1e-3]*3, np.array([1e-3]*3),
              torch.ones(3)):
        refused(lambda: l.fine_tune(1, v), f'base_lr: got {v!r}, expected one number of at least 0')
    for v in ('a', 0, [1e-7], slice(1e-7, 1), np.float64(1e-7), None, -1):
        refused(lambda: l.lr_find(v), f'start_lr: got {v!r}, expected one Python number above 0')
    refused(lambda: l.lr_find(end_lr=0.), 'end_lr: got 0.0, expected one Python number above 0')
    refused(lambda: l.fit_sgdr(0, 1), f'n_cycles: got 0, {COUNT}1')
    refused(lambda: l.fine_tune(1, freeze_epochs=.5), f'freeze_epochs: got 0.5, {COUNT}0')
    assert all(torch.equal(a, b) for a, b in zip(before, l.model.parameters())) and l.opt is None

@pytest.mark.parametrize('v', ['1', -1., None, float('nan')])
@pytest.mark.parametrize('make', MAKERS)
def test_a_wrong_learning_rate_of_a_learner(make, v):
    with pytest.raises(EKDError, match=f'lr: got {v!r}, expected a '): make(pairs(X, Y), lr=v)

def test_numbers_that_fastai_takes_are_taken():
    from fastai.learner import Learner
    l = MAKERS[1](pairs(X, Y), lr=slice(1e-4, 1e-3))
    assert isinstance(l, Learner)
    with l.no_bar(), l.no_logging():
        l.fit(np.int64(1)); l.fit(0); l.fit_one_cycle(0); l.fit(1, [np.float64(1e-3)], wd=0)
        l.fit(1, 0); l.fine_tune(1, freeze_epochs=0); l.fit_sgdr(1, 1); l.fit_flat_cos(n_epoch=1, lr=1e-3)
        l.fit_one_cycle(1, lr_max=slice(1e-5, 1e-3), wd=.1, start_epoch=0)
        l.fit_one_cycle(1, np.array([1e-3]*len(l.opt.hypers)))
        for n in (5, 6, 7): assert l.lr_find(num_it=n, show_plot=False).valley > 0
        l.lr_find(num_it=3, show_plot=False, suggest_funcs=None); l.get_preds(-1)
        with pytest.raises(TypeError, match='lrs'): l.fit(1, lrs=1e-3)
    import inspect
    assert inspect.signature(type(l).fit_one_cycle) == inspect.signature(Learner.fit_one_cycle)

T = torch.tensor
TAKEN = [('fit', (1, T([1e-4, 1e-3, 1e-2])), (1, [1e-4, 1e-3, 1e-2])), ('fit', (1, [T(1e-3)]*3), (1, 1e-3)),
         ('fit', (1, lambda: (r for r in [1e-4, 1e-3, 1e-2])), (1, [1e-4, 1e-3, 1e-2])),
         ('fit', (1, lambda: map(float, ['.001'])), (1, 1e-3)),
         ('fit', (1, dict(a=1e-4, b=1e-3, c=1e-2).values()), (1, [1e-4, 1e-3, 1e-2])), ('fit', (T(1), 1e-3), (1, 1e-3)),
         ('fit', (True, 1e-3), (1, 1e-3)), ('fit', (1, slice(T(1e-4), T(1e-2))), (1, slice(1e-4, 1e-2))),
         ('fit_one_cycle', (1, slice(np.float64(1e-4), np.float64(1e-2))), (1, slice(1e-4, 1e-2))),
         ('fit_one_cycle', (1, slice(np.float64(1e-2))), (1, slice(1e-2))),
         ('fine_tune', (1, np.float64(2e-3)), (1, 2e-3)),
         ('fine_tune', (1, lambda: T(2e-3)), (1, 2e-3)),
         ('fit_one_cycle', (2, 1e-3, dict(start_epoch=T(1))), (2, 1e-3, dict(start_epoch=1)))]

@pytest.mark.parametrize('name, given, same', TAKEN, ids=[f'{n} {i}' for i, (n, *_) in enumerate(TAKEN)])
def test_numbers_of_any_type_give_what_python_numbers_give(name, given, same):
    def trained(n, lr, kw={}):
        torch.manual_seed(0)
        l = MAKERS[1](pairs(X, Y))
        with l.no_bar(), l.no_logging(): getattr(l, name)(n, lr() if callable(lr) else lr, **kw)
        return [float(h['lr']) for h in l.opt.hypers], [p.detach() for p in l.model.parameters()]
    (lr, ps), (other, qs) = trained(*given), trained(*same)
    assert lr == pytest.approx(other, rel=1e-5) and all(torch.allclose(p, q, atol=1e-5) for p, q in zip(ps, qs))

def test_a_fit_of_ones_own_counts_epochs_in_its_own_way():
    l = MAKERS[1](pairs(X, Y))
    class Halves(type(l)):
        def fit(self, n_epoch, *args, **kw): return super().fit(int(n_epoch), *args, **kw)
    l.__class__ = Halves
    with l.no_bar(), l.no_logging():
        l.fit_one_cycle(1.0); l.fine_tune(1.0, freeze_epochs=1.)
        refused(lambda: l.fit_one_cycle(1.0, 'a'), f"lr_max: got 'a', {RATE}")

def test_numbers_for_other_parameter_groups():
    l = MAKERS[1](pairs(X, Y))
    says = 'got 2 numbers for 3 parameter groups, expected one number, or one for each group'
    for f in (l.fit, l.fit_one_cycle, l.fit_flat_cos):
        for v in ([1e-3]*2, (r for r in [1e-3]*2)): refused(lambda: f(1, v), f'lr: {says}')
    refused(lambda: l.fit(1, wd=[.1, .1]), f'wd: {says}')

def test_a_search_that_leaves_too_little_for_what_suggests():
    from fastai.callback.schedule import minimum, slide, steep, valley
    l = MAKERS[1](pairs(X, Y))
    last = 'steps, since fastai leaves out the last five'
    with l.no_bar(), l.no_logging():
        for f, least in ((steep, 7), (slide, 23), ((valley, steep), 7)):
            says = f'expected at least {least} {last}' + (' and the first tenth' if least>9 else '')
            refused(lambda: l.lr_find(num_it=least-1, show_plot=False, suggest_funcs=f),
                    f'num_it: got {least-1}, {says}')
            assert l.lr_find(num_it=least, show_plot=False, suggest_funcs=f, stop_div=False)[0] > 0
        l.lr_find(num_it=6, show_plot=False, suggest_funcs=minimum)

def test_a_confusion_matrix_of_plain_loaders():
    from fastai.interpret import ClassificationInterpretation
    d = pairs(X, Y)
    d.vocab = list('abcdefghij')
    l = fit(ekd_learner(d, SMALL, teachers(), judge=False))
    found = ClassificationInterpretation.from_learner(l)
    found.top_losses(3)
    assert found.confusion_matrix().sum() == 32


# ---- which weights a student has

def weights_line(capsys, arch, ts=None, **kw):
    "What `ekd_learner` prints of the weights, once"
    capsys.readouterr()
    l = learner(arch=arch, ts=ts, **kw)
    out = capsys.readouterr()
    lines = [o for o in (out.out+out.err).splitlines() if o.startswith('weights: ')]
    assert lines in ([l.model.config['weights']], []) and (not lines or lines[0] in l.model.summary())
    return lines[0] if lines else None

def test_the_weights_are_said_by_one_rule(capsys):
    net, n = get_model(SMALL, 10, 1), 0
    def mine(): return get_model(SMALL, 10, 1)
    def loads_its_own():
        new = get_model(SMALL, 10, 1)
        new.load_state_dict(net.state_dict())
        return new
    same = 'weights: trunk kept; branches 0, 1 kept'
    for arch, says in ((SMALL, 'weights: new'), (net, same), (lambda: net, same), (loads_its_own, same),
                       (mine, 'weights: trunk as mine made it; branches 0, 1 as mine made it'),
                       ([net, SMALL], 'weights: trunk kept; branch 0 kept; branch 1 new'),
                       ([mine, net], 'weights: trunk as mine made it; branch 0 as mine made it; branch 1 kept')):
        assert weights_line(capsys, arch) == says
    assert weights_line(capsys, loads_its_own, [net]) == \
        'weights: trunk as loads_its_own made it; branch 0 as loads_its_own made it'
    assert weights_line(capsys, learner().model) is None   # a finished student is not made

def test_a_builder_of_its_own_weights_keeps_them():
    net = get_model(SMALL, 10, 1)
    def loads():
        new = get_model(SMALL, 10, 1)
        new.load_state_dict(net.state_dict())
        return new
    s = learner(arch=loads, n_branches=1, ts=[net], split=1).model
    assert all(torch.equal(v, net.stages[0].state_dict()[k]) for k, v in s.trunk[0].state_dict().items())


# ---- batches of validation, and other things that would end an epoch later

@pytest.mark.parametrize('make', MAKERS, ids=['teacher', 'student'])
@pytest.mark.parametrize('valid, says', [
    ((X, Y, Y), 'a validation batch has 3 items (float32 [16, 1, 8, 8], int64 [16], int64 [16]), '
     'expected two: images and labels'),
    ((X, Y.float()), 'a validation batch has labels float32 [16], expected class numbers, int [B]: y.long()'),
    ((X, torch.eye(10)[Y]), 'a validation batch has labels float32 [16, 10], expected class numbers, int [B]: '
     'y.argmax(1), or MultiLabelEKDLoss() if an image may have several'),
    ((torch.randn(32, 3, 8, 8), Y), 'a validation batch has images of 3 channels, expected 1 as in training'),
    (((X*9).byte(), Y), 'a validation batch has images uint8 [16, 1, 8, 8], expected floats: normalise them')])
def test_validation_batches_are_looked_at_before_training(make, valid, says):
    from torch.utils.data import TensorDataset
    train = DataLoader(TensorDataset(X, Y), 16)
    refused(lambda: make(DataLoaders(train, DataLoader(TensorDataset(*valid), 16))), f'dls: {says}')

def test_a_look_at_validation_draws_no_random_number():
    from ekd_nb.preflight import first_batch
    d = pairs(X, Y)
    states = []
    for look in (False, True):
        torch.manual_seed(0)
        first_batch(d, False, look)
        states.append(torch.rand(3))
    assert torch.equal(*states)

def test_loaders_that_lack_one():
    for make in MAKERS:
        refused(lambda: make(DataLoaders(pairs(X, Y).train)),
                'dls: got one loader, expected one for training and one for validation')
        l = fit(make(DataLoaders(pairs(X, Y).train, pairs(X[:0], Y[:0]).train)))
        assert l.recorder.values[-1][1] is None   # nothing to measure

def test_images_in_double_precision():
    for make in MAKERS:
        with pytest.raises(EKDError, match='cannot process images .*expected images of float32, not of float64'):
            make(pairs(X.double(), Y))

@pytest.mark.parametrize('loss, says', [
    (torch.nn.BCEWithLogitsLoss(), 'loss_func: BCEWithLogitsLoss raises ValueError .*expected no error'),
    ('ce', "loss_func: got 'ce', expected a function of logits and labels"),
    (nn.CrossEntropyLoss, 'loss_func: got <class .*expected a function of logits and labels'),
    (lambda z, y: 0., 'loss_func: got .*expected a function that returns a tensor')])
def test_the_loss_of_a_teacher_is_tried(loss, says):
    with pytest.raises(EKDError, match=says): teacher_learner(pairs(X, Y), SMALL, n_out=10, loss_func=loss)
    for good in (nn.CrossEntropyLoss(label_smoothing=.1), F.cross_entropy):
        fit(teacher_learner(pairs(X, Y), SMALL, n_out=10, loss_func=good))

@pytest.mark.parametrize('wrap', [lambda z: dict(logits=z), lambda z: (z, z)])
def test_networks_that_return_more_than_logits(wrap):
    class Wrapped(Net):
        def forward(self, x): return wrap(super().forward(x))
    kind = type(wrap(0)).__name__
    refused(lambda: learner(ts=[Wrapped(10, 1)]),
            f'teachers: entry 0 (Wrapped) returns {kind}, expected logits [B,C]: '
            'a module around it can return them alone')
    refused(lambda: teacher_learner(dls(), Wrapped(10, 1)),
            f'arch: Wrapped returns {kind}, expected logits [B,10] alone')

def test_teachers_in_odd_containers():
    nets = teachers()
    for ts in (nn.ModuleList(nets), tuple(nets), (t for t in nets)): assert len(learner(ts=ts).distill.teachers) == 2
    refused(lambda: learner(ts=[TeacherEnsemble(nets)]),
            'teachers: got a TeacherEnsemble in a list, expected it alone, or the networks it is made of')
    says = 'has layers without weights yet, expected a'
    with pytest.raises(EKDError, match=says): learner(ts=[Net(10, 1).to('meta')])
    with pytest.raises(EKDError, match=says): learner(arch=Net(10, 1).to('meta'))


# ---- loaders, data sets and samplers of the caller's own

class Rows(torch.utils.data.Dataset):
    "Images with whatever attributes a data set of the caller's may have"
    def __init__(self, mine, **attrs):
        self.mine = list(mine)
        vars(self).update(attrs)
    def __len__(self): return len(self.mine)
    def __getitem__(self, i): return X[self.mine[i]], Y[self.mine[i]]

class Mine(torch.utils.data.Sampler):
    "In batches of eight, or one by one"
    def __init__(self, rows, bs=None): self.mine = [rows[i:i+bs] for i in range(0, len(rows), bs)] if bs else rows
    def __len__(self): return len(self.mine)
    def __iter__(self): return iter(self.mine)

def shared(train, valid):
    from ekd_nb.loaders import shared_images
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(learner(DataLoaders(train, valid)).dls.loaders) == 2
    return shared_images(valid, train)

@pytest.mark.parametrize('attrs', [
    lambda: dict(samples=Y.numpy()), lambda: dict(samples=X), lambda: dict(items=__import__('pandas').DataFrame(Y)),
    lambda: dict(indices=None, dataset=X), lambda: dict(indices=print, dataset=X), lambda: dict(items=['a.npz']),
    lambda: dict(store=1, rows=print)], ids=['array', 'tensor', 'table', 'None', 'method', 'one file', 'rows'])
def test_a_data_set_with_odd_attributes(attrs):
    d = DataLoaders(DataLoader(Rows(range(24), **attrs()), 8), DataLoader(Rows(range(24, 32), **attrs()), 8))
    assert len(fit(learner(d)).recorder.values) == 1

def test_images_without_names_are_not_called_shared():
    ds = torch.utils.data.TensorDataset(X, Y)
    def batches(rows): return DataLoader(ds, batch_sampler=Mine(rows, 8))
    def single(rows): return DataLoader(ds, 8, sampler=Mine(rows))
    def one_file(rows): return DataLoader(Rows(rows, samples=[('/data/volume.npy', i) for i in rows]), 8)
    def classes(rows): return DataLoader(Rows(rows, samples=[(f'class {i}', i) for i in range(len(rows))]), 8)
    for f in (batches, single, one_file, classes): assert shared(f(range(24)), f(range(24, 32)))[0] == 0
    def files(rows): return DataLoader(Rows(rows, samples=[(f'/data/{i}.png', i) for i in rows]), 8)
    assert shared(files(range(24)), files(range(24, 32))) == (0, 8)
    with pytest.raises(UserWarning, match='2 of 10 validation images'): shared(files(range(24)), files(range(22, 32)))

@pytest.mark.parametrize('most', [23, 24])
def test_images_that_are_not_compared_are_said_to_be(most, monkeypatch, capsys):
    "One line for a loader of too many images; none for images that were compared, or that have no names at all"
    from ekd_nb import loaders
    from ekd_nb.unlabeled import UnlabeledImages
    monkeypatch.setattr(loaders, '_MOST_NAMED', most)
    says = f'over {most} images; whether images of validation are among them is not looked at'
    def lines(f):
        capsys.readouterr()
        f()
        return [l for l in capsys.readouterr().err.splitlines() if 'not looked at' in l]
    ds = torch.utils.data.TensorDataset(X, Y)
    few, many = [DataLoader(Rows(rows), 8) for rows in (range(8), range(8, 32))]
    assert lines(lambda: learner(DataLoaders(many, few))) == [f'dls: {says}']*(most<24)
    assert lines(lambda: learner(DataLoaders(DataLoader(ds, batch_sampler=Mine(range(24), 8)), few))) == []
    assert lines(lambda: learner(dls(n=4))) == [], 'rows of image_dls are named, however many'
    l = learner(dls(n=4), cbs=UnlabeledImages(many))
    assert lines(lambda: fit(l)) == [f'images: {says}']*(most<24)

def test_names_of_very_many_images_are_not_made(monkeypatch):
    from ekd_nb import loaders
    dl = DataLoader(Rows(range(24)), 8)
    monkeypatch.setattr(loaders, '_MOST_NAMED', 24)
    assert len(loaders.image_names(dl)) == 24
    monkeypatch.setattr(loaders, '_MOST_NAMED', 23)
    assert loaders.image_names(dl) is None

@pytest.mark.parametrize('kind', ['shuffle', 'sampler'])
def test_a_loader_of_a_learner_keeps_its_order_for_images_without_labels(kind):
    from ekd_nb.unlabeled import UnlabeledImages
    kw = dict(shuffle=True) if kind == 'shuffle' else dict(sampler=Mine([5, 3, 4, 2, 1]*4))
    u = DataLoaders(DataLoader(Rows(range(32)), 8, **kw), DataLoader(Rows(range(32)), 8))
    learner(u)
    l = learner(pairs(X, Y), cbs=UnlabeledImages(u))
    fit(l)
    assert l.unlabeled_images.loader is u.train

class Halved(DataLoader):
    "Changes its batches"
    def __iter__(self): return ((x/2, y) for x, y in super(Halved, self).__iter__())

def test_predictions_of_loaders_that_make_their_own_batches():
    class Counted(Stream):
        def __len__(self): return 32
        def __iter__(self): return iter(zip(X, Y))
    for make, x in ((lambda: Halved(Rows(range(32)), 16), X/2), (lambda: DataLoader(Counted(), 16), X)):
        l = fit(learner(DataLoaders(make(), make())))
        with torch.no_grad(): right = l.model.eval()(x).softmax(1)
        assert torch.allclose(l.get_preds()[0], right, atol=1e-5)

def test_a_loader_for_predictions_is_as_the_first():
    from ekd_nb.loaders import in_order
    from torch.utils.data import BatchSampler, SubsetRandomSampler
    g = torch.Generator().manual_seed(3)
    dl = DataLoader(Rows(range(32)), 8, num_workers=1, persistent_workers=True, multiprocessing_context='fork',
                    generator=g, shuffle=True)
    new = in_order(dl)
    assert new.persistent_workers and new.multiprocessing_context is dl.multiprocessing_context
    assert new.generator is not g and torch.equal(new.generator.get_state(), g.get_state())
    batches = in_order(DataLoader(Rows(range(32)), batch_sampler=BatchSampler(SubsetRandomSampler([5, 2, 7]), 2, True)))
    assert torch.equal(torch.cat([b[0] for b in batches]), X[[5, 2, 7]])

def test_loaders_that_take_no_attribute():
    batches = [(X[:8], Y[:8]), (X[8:16], Y[8:16])]
    class Slots:
        __slots__ = ('b',)
        def __init__(self, b): self.b = b
        def __len__(self): return len(self.b)
        def __iter__(self): return iter(self.b)
    class Workers(Slots): num_workers = 4
    for kind in (list, Slots, Workers):
        for make in MAKERS: assert len(fit(make(DataLoaders(kind(batches), kind(batches)))).recorder.values) == 1

def test_a_look_at_validation_leaves_a_shared_generator():
    g = torch.Generator().manual_seed(0)
    ds = torch.utils.data.TensorDataset(X, Y)
    from ekd_nb.preflight import first_batch
    states = []
    for look in (False, True):
        g.manual_seed(0)
        d = DataLoaders(DataLoader(ds, 8, shuffle=True, generator=g), DataLoader(ds, 8, shuffle=True, generator=g))
        first_batch(d, False, look)
        states.append(g.get_state())
    assert torch.equal(*states)

def test_a_look_leaves_the_generator_of_a_fastai_loader():
    from ekd_nb.loaders import same_order
    dl = dls().train
    rng, state = dl.rng, dl.rng.getstate()
    with same_order(dl): dl.one_batch()
    assert dl.rng is rng and rng.getstate() == state

@pytest.mark.parametrize('same', [True, False])
def test_a_run_goes_on_in_another_folder_of_the_same_images(same, tmp_path):
    from ekd_nb.checkpoint import Checkpoint, _images_digest
    def job(name, n=24):
        d = Rows(range(24), samples=[(str(tmp_path/name/'images'/f'{i+24-n}.png'), 0) for i in range(24)])
        return DataLoaders(DataLoader(d, 8), DataLoader(Rows(range(24, 32)), 8))
    fit(learner(job('job.1'), cbs=Checkpoint(tmp_path/'ck')), 2)
    l = learner(job('job.2', 24 if same else 23), cbs=Checkpoint(tmp_path/'ck'))
    if same: fit(l, 2)
    else:
        with pytest.raises(EKDError, match='other training images of these data'): fit(l, 2)
    assert _images_digest(l.dls) and _images_digest(DataLoaders([], [])) is None


# ---- a folder of checkpoints belongs to its settings

def _resume(tmp_path, kw=None, fit='fit_one_cycle', lr=1e-3, n=2, **args):
    from ekd_nb.checkpoint import Checkpoint
    l = learner(cbs=Checkpoint(tmp_path/'ck'), **(kw or {}))
    with l.no_bar(), l.no_logging(): getattr(l, fit)(n, lr, **args)
    return l

@pytest.mark.parametrize('change, named', [
    (dict(lr=5e-2), 'lr was 0.001, now 0.05'),
    (dict(wd=.3), 'wd was 0.01, now 0.3'),
    (dict(fit='fit'), 'schedules was lr '),
    (dict(pct_start=.7), 'schedules was lr '),
    (dict(kw=dict(loss_func=EKDLoss(.9, .1, 5))),
     'alpha of the loss was 0.7, now 0.9, beta of the loss was 0.3, now 0.1'),
    (dict(kw=dict(loss_func=EKDLoss(tau=SchedCos(4, 2)))), 'tau of the loss was 4.0, now 4 '),
    (dict(kw=dict(loss_func=EKDLoss(hint_error='mse'))), 'hint_error of the loss was standard, now mse'),
    (dict(kw=dict(trunk_grad=.25)), 'trunk_grad was None, now 0.25'),
    (dict(kw=dict(opt_func=RMSProp)), 'opt_func was fastai.optimizer.Adam, now fastai.optimizer.RMSProp'),
])
def test_a_folder_of_checkpoints_refuses_other_settings(tmp_path, change, named):
    _resume(tmp_path)
    with pytest.raises(EKDError, match=re.escape(named)) as e: _resume(tmp_path, **change)
    assert str(e.value).startswith('folder: in ') and str(e.value).endswith('expected the same, or another folder')


def test_a_folder_of_checkpoints_knows_a_foreign_loss(tmp_path):
    _resume(tmp_path, dict(loss_func=EKDLoss(gamma=0.)))
    def mine(pred, y): return F.cross_entropy(pred.logits, y)
    with pytest.raises(EKDError, match='loss_func was ekd_nb.losses.EKDLoss, now '):
        _resume(tmp_path, dict(loss_func=mine))


def test_a_fit_that_was_trained_before_says_so_and_has_its_weights(tmp_path, capsys):
    one = _resume(tmp_path)
    assert 'trained before' not in capsys.readouterr().err
    again = _resume(tmp_path)
    assert f"all 2 epochs were trained before: weights of {tmp_path/'ck'}" in capsys.readouterr().err
    for a,b in zip(one.model.parameters(), again.model.parameters()): assert torch.equal(a, b)


def test_settings_of_each_fit_are_compared(tmp_path):
    l = _resume(tmp_path)
    with l.no_bar(), l.no_logging(): l.fit_one_cycle(1, 1e-2, wd=.2)
    again = _resume(tmp_path)
    with again.no_bar(), again.no_logging(), pytest.raises(EKDError, match='lr was 0.01, now 0.02'):
        again.fit_one_cycle(1, 2e-2, wd=.2)
    with pytest.raises(EKDError, match='lr was 0.001, now 0.002'):
        _resume(tmp_path, lr=2e-3)   # of the first fit, a later one is saved
    last = _resume(tmp_path)
    with last.no_bar(), last.no_logging(): last.fit_one_cycle(1, 1e-2, wd=.2)
    for a,b in zip(l.model.parameters(), last.model.parameters()): assert torch.equal(a, b)


def test_checkpoints_of_before_have_no_settings_and_continue(tmp_path, capsys):
    import io
    from ekd_nb.checkpoint import _digest
    old = _resume(tmp_path).checkpoint.files()[-1]
    state, out = torch.load(old, weights_only=True), io.BytesIO()
    del state['settings']
    torch.save(state, out)
    old.with_name(f'{old.stem[:-16]}{_digest(out.getvalue())}.pth').write_bytes(out.getvalue())
    old.unlink()
    _resume(tmp_path, lr=5e-2)
    assert 'all 2 epochs were trained before' in capsys.readouterr().err


# ---- the first calls of a newcomer

def _said(f):
    with pytest.raises(EKDError) as e: f()
    return str(e.value)

def _wide(n=1000): return get_model(SMALL, n, 1)

def test_class_maps_are_passed_beside_the_teachers():
    ts, n = [_wide(12), _wide(10)], 10
    cm = [*range(11, 1, -1)]
    l = ekd_learner(dls(), SMALL, ts, class_maps=[cm, None])
    x = l.dls.train.one_batch()[0].as_subclass(torch.Tensor)
    got = l.distill.teachers.eval()(x).logits
    assert torch.allclose(got[0], ts[0].eval()(x)[:, cm], atol=1e-5) and l.distill.teachers.class_maps == [cm, None]
    e = TeacherEnsemble(ts, class_maps=[cm, None])
    assert 'the TeacherEnsemble has its own' in _said(lambda: ekd_learner(dls(), SMALL, e, class_maps=[cm, None]))
    assert _said(lambda: ekd_learner(dls(), SMALL, ts, class_maps=[cm])).startswith('class_maps: got 1 for 2 teachers')
    assert 'no teachers' in _said(lambda: ekd_learner(dls(), SMALL, class_maps=[cm], loss_func=LABELS))

def test_a_teacher_of_more_classes_may_be_trained_first():
    says = _said(lambda: ekd_learner(dls(), SMALL, [_wide()]))
    assert says.endswith('has 1000 classes, the data has 10: pass class_maps, or train it on these classes first '
                         '(teacher_learner)')

def test_compare_takes_class_maps(tmp_path):
    from ekd_nb.compare import compare
    ts = [_wide(12), _wide(10)]
    c = compare(dls(), SMALL, ts, epochs=1, seeds=1, folder=tmp_path, class_maps=[[*range(10)], None], log=None)
    assert c.methods == ['labels', 'kd', 'ekd']

def test_another_order_is_told_for_all_teachers():
    from ekd_nb.judge import _permuted
    y = torch.tensor([0, 1, 2, 3]*5)
    z = F.one_hot((y+3) % 4, 4)*5.
    assert _permuted(z, y, 1, 3) == ['its classes seem to be in another order (class_maps=[None, [3, 0, 1, 2], '
                                     'None] gives 100.0%)']

def test_n_out_is_that_of_the_data():
    says = 'n_out: got 7, expected 10, the classes of the data'
    refused(lambda: ekd_learner(dls(), SMALL, teachers(), n_out=7), says)
    refused(lambda: teacher_learner(dls(), SMALL, n_out=7), says)
    assert ekd_learner(torch_loaders(), SMALL, n_out=12,
                       loss_func=LABELS).model.branches[0].head.out_features == 12   # they do not say

@pytest.mark.parametrize('make', [lambda: dls().train, lambda: torch_loaders().train])
def test_one_loader_is_no_dataloaders(make, tmp_path):
    from ekd_nb.compare import compare
    dl = make()
    says = f'dls: got a {type(dl).__name__}, expected DataLoaders (of training and validation)'
    for f in (lambda: ekd_learner(dl, SMALL, teachers()), lambda: teacher_learner(dl, SMALL),
              lambda: TeacherEnsemble(teachers()).check(dl),
              lambda: TeacherEnsemble(teachers()).judge(dl), lambda: compare(dl, SMALL, teachers(), folder=tmp_path)):
        refused(f, says)

@pytest.mark.parametrize('name, near', [('resent8', 'resnet8'), ('mobilenetv3_smal', 'mobilenet')])
def test_an_unknown_network_is_told_before_teachers_run(name, near):
    class Loud(Net):
        def forward(self, x): raise AssertionError('the teacher was run')
    says = _said(lambda: ekd_learner(dls(), name, [Loud()]))
    assert 'a name of torchvision' in says and f'did you mean {near}' in says

@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), F.cross_entropy])
def test_a_loss_of_logits_is_no_loss_of_branches(loss):
    says = _said(lambda: ekd_learner(dls(), SMALL, teachers(), loss_func=loss))
    name = getattr(loss, '__name__', type(loss).__name__)
    assert says.startswith(f'loss_func: got {name}, expected a loss of a branched student, such as EKDLoss()')

def test_a_function_of_branches_is_a_loss():
    def mine(pred, y): return F.cross_entropy(pred.logits, y)
    fit(ekd_learner(dls(), SMALL, teachers(), loss_func=mine))

@pytest.mark.parametrize('counts, says', [
    ((28, 20, 16, 16), 'not clearly better than always the commonest class (35.0%)'),
    ((20, 20, 20, 20), 'near chance (25.0%)')])
def test_chance_is_a_word_for_equal_classes(counts, says):
    from ekd_nb.judge import _remarks
    y = torch.cat([torch.full((n,), i) for i,n in enumerate(counts)])
    assert _remarks(F.one_hot(torch.zeros_like(y), 4)*5.-1, y, {})[0] == says

def test_an_unknown_argument_of_compare_is_named_there():
    from ekd_nb.compare import compare
    refused(lambda: compare(dls(), SMALL, teachers(), epoch=1),
            "compare: got 'epoch', expected an argument that it or Learner has, such as epochs")

def test_no_connection_for_weights_is_named():
    from urllib.error import URLError
    def resnet(weights=None): raise URLError('no route to host')
    for f in (lambda: teacher_learner(dls(), resnet, pretrained=True),
              lambda: ekd_learner(dls(), resnet, loss_func=LABELS)):
        assert _said(f).startswith('pretrained: no connection to download the weights of resnet (<urlopen error no '
                                   'route to host>)')

def test_a_name_is_no_teacher_but_may_be_trained_as_one():
    assert _said(lambda: ekd_learner(dls(), SMALL, ['resnet18'])).endswith(
        ", or a network to train first: teacher_learner(dls, 'resnet18')")

def test_a_network_of_one_size_is_adapted():
    class Fixed(Net):
        def forward(self, x):
            if x.shape[-1]!=224: raise AssertionError(f'Input height ({x.shape[-2]}) is not that of the model (224).')
            return super().forward(x)
    assert _said(lambda: ekd_learner(dls(), SMALL, [Fixed()])).endswith('a TeacherAdapter resizes them')

def test_compare_judges_first_and_tells_what_comes_from_a_record(tmp_path, capfd):
    from ekd_nb.compare import compare
    ts = teachers()
    def judge_first(line): judged.append(len(re.findall(r'^teacher \S+: ', capfd.readouterr().err, re.M)))
    judged = []
    compare(dls(), SMALL, ts, epochs=1, seeds=1, folder=tmp_path, log=judge_first)
    assert judged == [2, 0, 0]   # before the first result, not after
    compare(dls(), SMALL, ts, epochs=1, seeds=1, folder=tmp_path)
    assert capfd.readouterr().out.count('(from its record)') == 3

def test_a_format_that_is_not_installed_names_the_call(monkeypatch, tmp_path):
    from ekd_nb import deploy
    l = learner()
    monkeypatch.setattr(deploy, 'find_spec', lambda p: None)
    assert _said(lambda: deploy.export_student(l, tmp_path/'s.onnx')).endswith(
        "expected the packages onnx and onnxruntime: pip install 'ekd_nb[onnx]'")
