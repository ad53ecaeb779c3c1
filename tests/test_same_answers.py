"Nothing is silently wrong: further examples of each kind, with the right value"
import copy, json, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, data, dls, learner, teachers, torch_loaders
from compat import fit_quietly as fit
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.core import DataLoaders
from fastai.learner import Learner, load_learner
from fastai.vision.all import ImageDataLoaders, Resize
from ekd_nb.core import EKDError, add_digest
from ekd_nb.deploy import export_student, load_exported, load_onnx, load_student, model_card, save_onnx, save_student
from ekd_nb.learner import ekd_learner, teacher_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.models import get_model
from ekd_nb.multilabel import MultiLabelEKDLoss
from ekd_nb.student import StudentOutput, branched_student
from ekd_nb.teachers import TeacherAdapter, TeacherEnsemble, load_teacher, read_manifest, save_teacher
from ekd_nb.unlabeled import NO_LABEL, UnlabeledImages

warnings.filterwarnings('ignore')
LABELS = EKDLoss(1., 0., 0.)


def quiet(l, f):
    with l.no_bar(), l.no_logging(): return f()

def small(n=2, c=1): return branched_student(SMALL, n, 10, in_channels=c, size=8).eval()

X = torch.randn(4, 1, 8, 8)


# ---- export

@pytest.mark.parametrize('suffix', ['safetensors', 'pt2', 'onnx'])
def test_a_learner_is_exported_into_a_new_folder(suffix, tmp_path):
    if suffix == 'onnx': pytest.importorskip('onnxruntime')
    from ekd_nb.deploy import EXPORTERS
    l = fit(learner())
    path = export_student(l, tmp_path/'new'/'folder'/f's.{suffix}')
    read = next(e.read for e in EXPORTERS.values() if e.suffix == path.suffix)
    with torch.no_grad(): assert torch.allclose(read(path)(X), l.model.eval()(X), atol=1e-4)
    if suffix == 'safetensors': assert 'accuracy' in read_manifest(path)['validation']

@pytest.mark.parametrize('change, says', [
    (dict(student='s'), "student: got 'str', expected a network or the Learner"),
    (dict(x=[1.]), "x: got 'list', expected images"), (dict(x=None), "x: got 'NoneType'"),
    (dict(x=X[0]), 'expected images'), (dict(x=torch.randn(4, 3, 8, 8)), 'cannot process images of shape'),
    (dict(path=None), 'path: got None'), (dict(path='s.h5'), 'a suffix among'),
    (dict(x=X[:1], path='s.pt2'), "x: got '1 image', expected at least two")])
def test_what_cannot_be_exported_is_refused(change, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = dict(student=small(), path='s.safetensors', x=X) | change
    with pytest.raises(EKDError, match=says): export_student(**call)

def test_an_exported_file_holds_nothing_of_our_loaders(tmp_path):
    "It can be read where this package is not installed"
    import zipfile
    path = export_student(small(), tmp_path/'s.pt2', dls().one_batch()[0])
    with zipfile.ZipFile(path) as z: held = b''.join(z.read(n) for n in z.namelist())
    assert b'ViewKey' not in held and b'TensorImage' not in held

def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path/'f').touch()
    with pytest.raises(EKDError, match='path: cannot write'): export_student(small(), tmp_path/'f'/'s.pt2', X)

def test_files_of_another_kind(tmp_path):
    (tmp_path/'bad.onnx').write_bytes(b'no network'); (tmp_path/'bad.pt2').write_bytes(b'no network')
    cases = [(load_exported, tmp_path/'bad.pt2', 'is not a file of torch.export'),
             (load_exported, tmp_path/'none.pt2', 'a file of torch.export that exists')]
    try: import onnxruntime
    except ImportError: pass
    else: cases += [(load_onnx, tmp_path/'bad.onnx', 'is not an ONNX file')]
    for f, path, says in cases:
        with pytest.raises(EKDError, match=says): f(path)

def test_each_reader_names_its_own_writer(tmp_path):
    student = save_student(small(), tmp_path)
    teacher = save_teacher(get_model(SMALL, 10, 1), tmp_path/'t.safetensors')
    (tmp_path/'a.onnx').touch()
    for path, says in [(tmp_path/'none.safetensors', 'path: .* weights saved with save_student'),
                       (tmp_path, "path: .* the weights of save_student, '….safetensors'"),
                       (tmp_path/'a.onnx', 'path: .* the weights of save_student'), (None, 'path: got None'),
                       (teacher, 'holds a network of save_teacher, expected a student')]:
        with pytest.raises(EKDError, match=says): load_student(path)
    with pytest.raises(EKDError, match='holds a student of save_student'): load_teacher(student)
    with pytest.raises(EKDError, match='holds a student of save_student'): TeacherEnsemble([student])
    with pytest.raises(EKDError, match="student: got 'resnet8', expected a network"): load_student(student, 'resnet8')
    with pytest.raises(EKDError, match='folder: got None'): save_student(small(), None)
    with pytest.raises(EKDError, match='arch: got 3'): save_student(small(), tmp_path, arch=3)


# ---- which branches

@pytest.mark.parametrize('which', ['a', None, 1.5, ['a'], [None], [1.5], [], True, [True], {}, object(), [0, 0], -1])
def test_wrong_branches(which):
    with pytest.raises(EKDError, match='keep: got .*, expected 1 to 2 or different branch indices'): small().keep(which)

@pytest.mark.parametrize('which', [1, np.int64(1), [0], (0,), {0}, range(1), torch.tensor([0]), np.array([0])])
def test_branches_in_every_form(which):
    s, l = small(), learner()
    assert torch.equal(s.keep(which)(X), s.keep(1)(X)) and l.keep(which).model.n_branches == 1


# ---- images that cannot be read

@pytest.fixture
def folder(tmp_path):
    r = np.random.default_rng(0)
    def write(name, side): Image.fromarray(r.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(tmp_path/name)
    for c in 'ab':
        (tmp_path/'labelled'/c).mkdir(parents=True)
        for i in range(12): write(f'labelled/{c}/{i}.png', 16)
    for sub, sides in dict(sizes=[16, 20, 24], broken=[16]*3).items():
        (tmp_path/sub).mkdir()
        for i, side in enumerate(sides): write(f'{sub}/{i}.png', side)
    (tmp_path/'broken'/'1.png').write_bytes(b'no picture')
    return tmp_path

@pytest.mark.parametrize('sub, resize, says', [
    ('sizes', False, 'images: a batch .* expected images of one size, as item_tfms=Resize'), ('sizes', True, None),
    ('broken', True, 'images: a batch of images without labels cannot be made .*1.png')])
def test_unlabelled_folders(folder, sub, resize, says):
    d = ImageDataLoaders.from_folder(folder/'labelled', valid_pct=.3, seed=0, bs=8, num_workers=0,
                                     item_tfms=Resize(16) if resize else None)
    l = ekd_learner(d, SMALL, [get_model(SMALL, 2)], judge=False, cbs=UnlabeledImages(folder/sub))
    if says is None: return fit(l)
    with pytest.raises(EKDError, match=says): fit(l)

def test_a_labelled_picture_that_cannot_be_read():
    class Broken(TensorDataset):
        def __getitem__(self, i): raise OSError('cannot identify image file 3.png')
    dl = DataLoader(Broken(X), batch_size=2)
    with pytest.raises(EKDError, match='dls: the first batch cannot be made .cannot identify image file 3.png'):
        ekd_learner(DataLoaders(dl, dl), SMALL, n_branches=2, n_out=10, loss_func=LABELS)


# ---- metrics

class Seen(Callback):
    "Labels and predictions of every training batch"
    order, run_valid = 5, False
    def __init__(self): self.rows = []
    def after_loss(self):
        y = self.learn.yb[0]
        votes = [self.learn.pred.logits, *self.learn.pred.branches]
        self.rows.append(torch.stack([y, *[z.argmax(-1) for z in votes]])[:, y>=0])

@pytest.mark.parametrize('more', ['nothing', 'images without labels', 'MixUp'])
def test_metrics_of_training_are_those_of_the_ensemble(more):
    cbs = {'nothing': [], 'images without labels': [UnlabeledImages(data().x_train[-30:])], 'MixUp': [MixUp()]}[more]
    seen = Seen()
    l = learner(dls(bs=12), cbs=[seen, *cbs])
    l.recorder.train_metrics = True
    fit(l)
    row = dict(zip(l.recorder.metric_names[1:], l.recorder.values[-1]))
    y, *votes = torch.cat(seen.rows, 1)
    right = [float((v==y).float().mean()) for v in votes]
    assert [row[f'train_{k}'] for k in ('accuracy', 'branch_0', 'branch_1')] == pytest.approx(right, abs=1e-6)
    assert row['train_hint'] > 0 and row['valid_hint'] is None, 'terms are of training'
    loss, acc = quiet(l, l.validate)[:2]
    assert row['valid_accuracy'] == pytest.approx(acc) and row['valid_loss'] == pytest.approx(loss, rel=1e-5)

def test_the_card_knows_the_last_validation(tmp_path):
    l = fit(learner())
    want = dict(zip(l.recorder.metric_names[1:], l.recorder.values[-1]))
    def card(): return read_manifest(save_student(l, tmp_path))['validation']
    names = 'valid_loss', 'accuracy', 'branch_0', 'branch_1'
    assert card() == {k: want[k] for k in names}
    quiet(l, lambda: (l.predict(data().x_test[0]), l.get_preds(dl=l.dls.test_dl(data().x_test[:3])), l.tta(n=1)))
    assert card() == {k: want[k] for k in names}
    l.recorder.train_metrics = True
    fit(l)
    row = dict(zip(l.recorder.metric_names[1:], l.recorder.values[-1]))
    assert card()['accuracy'] == row['valid_accuracy'] and set(card()) == set(names)

def test_images_that_are_not_normalised(tmp_path):
    d = dls()
    d.train.after_batch.fs.clear(); d.valid.after_batch.fs.clear()
    info = dict(arch=[SMALL], n_branches=2, params=1, fusion='mean', in_channels=1, n_out=10, versions={})
    same = dict(mean=[0.], std=[1.])
    for norm, says in ((same, 'not normalised.'), (dict(mean=[.5], std=[.2]), 'normalised by mean [0.5]'),
                       (None, 'normalised in a way that was not recorded')):
        assert says in model_card(info | dict(normalisation=norm))


# ---- hints at named layers

def test_a_copy_made_in_a_fit_computes_its_own_maps():
    class Copies(Callback):
        run_valid = False
        def after_pred(self):
            mine = copy.deepcopy(self.learn.model)
            for p in self.learn.model.trunk.parameters(): assert p.requires_grad
            x = self.learn.xb[0].as_subclass(torch.Tensor)
            for p in mine.parameters(): p.data.mul_(1.1)
            with torch.no_grad():
                torch.manual_seed(0); other = mine(x)
                again = self.learn.model(x)
            self.same = [torch.allclose(a, b) for a, b in zip(again.features, other.features)]
            self.kept = [torch.allclose(a, b, atol=1e-5) for a, b in zip(again.features, self.learn.pred.features)]
    l = learner(hints=[('layer1', None), None], cbs=(c := Copies()))
    fit(l)
    assert not any(c.same) and all(c.kept)

def test_named_hints_outside_of_a_fit():
    l = fit(learner(hints=[('layer1', None), None]))
    with pytest.raises(EKDError, match="the map of layer 'layer1' is noted only while a fit runs"): l.model.train()(X)
    assert l.model.eval()(X).shape == (4, 10)


# ---- manifests

@pytest.mark.parametrize('kw, says', [
    (dict(classes=3), 'classes: got 3'), (dict(classes='cat'), 'classes: got'),
    (dict(classes=[None]*10), 'classes: got'), (dict(classes=list('abc')), 'classes: got 3 names for 10 outputs'),
    (dict(classes=['a']*10), 'names that do not differ'), (dict(stats=[.5]), 'stats: got'),
    (dict(stats=[['x'], ['y']]), 'stats: got'), (dict(stats=[[.5], [0.]]), 'positive std'),
    (dict(stats=[[.5]*3, [.5]*3]), '3 numbers for 1 channels')])
def test_a_manifest_is_not_written_with_what_cannot_be(kw, says, tmp_path):
    with pytest.raises(EKDError, match=says): save_teacher(get_model(SMALL, 10, 1), tmp_path/'t.safetensors', **kw)

@pytest.mark.parametrize('kw', [dict(classes=3), dict(classes=list('abc')), dict(stats=[.5]), dict(classes=['1']*10)])
def test_an_older_manifest_with_what_cannot_be_is_read_and_said(kw, tmp_path):
    path = save_teacher(get_model(SMALL, 10, 1), tmp_path/'t.safetensors')
    man = json.loads(path.with_suffix('.json').read_text())
    path.with_suffix('.json').write_text(json.dumps(add_digest(man | kw)))
    said = []
    e = TeacherEnsemble([path]).check(dls(), log=said.append)
    assert 'are not compared with the data' in said[0] and e.class_maps == [None]

def test_names_in_the_same_order_are_no_map():
    net = get_model(SMALL, 10, 1)
    net.manifest = dict(classes=list(range(10)), n_out=10)   # numbers, as some data sets name their classes
    said = []
    assert TeacherEnsemble([net]).match(dls(), said.append).class_maps == [None] and not said

@pytest.mark.parametrize('cm', [[3]*10, [0]*2, [None, 4, 4, None]])
def test_a_map_to_one_class_is_refused(cm):
    with pytest.raises(EKDError, match='at least two known and different'):
        TeacherEnsemble([Net()], class_maps=[cm])

def test_a_learner_with_another_normalisation_is_adapted():
    "Its own pixels reach it, whatever the student sees"
    from fastai.data.transforms import Normalize
    from ekd_nb.judge import data_stats
    theirs, ours = dls(), dls()
    net = get_model(SMALL, 10, 1)
    l = Learner(theirs, net, loss_func=nn.CrossEntropyLoss())
    normal = next(f for f in ours.train.after_batch.fs if isinstance(f, Normalize))
    normal.mean, normal.std = torch.full_like(normal.mean, .9), torch.full_like(normal.std, .1)
    said = []
    e = TeacherEnsemble([l]).match(ours, said.append)
    assert isinstance(e.models[0], TeacherAdapter) and 'adapted' in said[0]
    (m, s), pixels = data_stats(theirs), torch.rand(4, 1, 8, 8)
    with torch.no_grad(): want = net.eval()((pixels-m[0])/s[0])
    assert torch.allclose(e((pixels-.9)/.1).logits[0], want, atol=1e-4)


# ---- plain loaders

def test_plain_loaders_predict_one_image(tmp_path):
    d = torch_loaders()
    d.vocab = [f'digit {i}' for i in range(10)]
    l = fit(learner(d))
    l.path = tmp_path
    l.export('l.pkl')
    for o in (l, load_learner(tmp_path/'l.pkl')):
        name, i, p = quiet(o, lambda: o.predict(X[0]))
        with torch.no_grad(): want = o.model.eval()(X[:1])[0].softmax(-1)
        assert torch.allclose(p, want, atol=1e-5) and int(i) == int(want.argmax()) and name == f'digit {int(i)}'
        image, *_ = quiet(o, lambda: o.predict(X[1], with_input=True))
        assert torch.equal(image, X[1])
        with pytest.raises(EKDError, match="item: got 'a.png'"): o.predict('a.png')
        assert quiet(o, lambda: o.get_preds(dl=o.dls.test_dl(list(X))))[0].shape == (4, 10)

@pytest.mark.parametrize('make', [lambda p: learner(torch_loaders(), path=p), lambda p: learner(path=p),
                                  lambda p: teacher_learner(dls(), SMALL, path=p)])
@pytest.mark.parametrize('call', ['get_preds', 'validate'])
def test_an_exported_learner_says_that_it_has_no_data(make, call, tmp_path):
    l = make(tmp_path)
    l.export('l.pkl')
    m = load_learner(tmp_path/'l.pkl')
    with pytest.raises(EKDError, match='an exported Learner has no data of its own: pass dl='):
        quiet(m, getattr(m, call))


# ---- batches without a label

@pytest.mark.parametrize('weight', [None, [.1, .2, .3]])
def test_a_batch_without_labels_has_no_loss_of_labels(weight):
    torch.manual_seed(0)
    z, none = torch.randn(2, 5, 3), torch.full((5,), NO_LABEL)
    for loss, y in ((EKDLoss(1., 0., 0., weight=weight), none),
                    (MultiLabelEKDLoss(1., 0., 0., weight=weight), none[:, None].expand(5, 3).float())):
        loss.has_unlabeled = True
        zs = z.clone().requires_grad_()
        got = loss(StudentOutput(zs.mean(0), zs), y)
        got.backward()
        assert got.item() == 0 and not zs.grad.any()

def test_several_labels_mixed_with_images_without():
    torch.manual_seed(0)
    y = (torch.rand(24, 4)<.4).float()
    x = torch.randn(24, 1, 12, 12)
    d = DataLoaders.from_dsets(*[TensorDataset(x, y)]*2, bs=4, num_workers=0)
    more = DataLoader(TensorDataset(torch.randn(40, 1, 12, 12)), 8)
    l = ekd_learner(d, SMALL, [get_model(SMALL, 4, 1)], n_branches=2, n_out=4, loss_func=MultiLabelEKDLoss(),
                    cbs=[MixUp(1.), UnlabeledImages(more, share=2)])
    fit(l, 2)
    assert all(p.isfinite().all() for p in l.model.parameters())


# ---- arguments

@pytest.mark.parametrize('f', [ekd_learner, teacher_learner])
@pytest.mark.parametrize('name, close', [('nbranches', ''), ('metric', 'metrics'), ('callbacks', ''), ('zzz', '')])
def test_an_argument_that_nobody_has(f, name, close, monkeypatch):
    class Never(nn.Module):
        def forward(self, x): raise AssertionError('nothing is run')
    with pytest.raises(EKDError, match=f"{f.__name__}: got '{name}', expected an argument.*{close}"):
        f(dls(), Never(), **{name: 2})

def test_a_cache_that_cannot_be_is_said_when_the_learner_is_made():
    with pytest.warns(UserWarning, match='memo: this DataLoader does not name its images'):
        l = learner(torch_loaders(), memo=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        fit(l)

def test_a_student_in_a_plain_learner_is_refused_in_one_sentence():
    l = learner()
    plain = Learner(l.dls, l.model.keep(1), loss_func=l.loss_func.__class__(1., 0., 0.))
    fit(plain)   # a loss of this package knows what a student gives
    from fastai.losses import CrossEntropyLossFlat
    with pytest.raises(EKDError, match="StudentOutput.*has no 'view', expected .*ekd_learner"):
        fit(Learner(l.dls, l.model.keep(1), loss_func=CrossEntropyLossFlat()))


# ---- fewer branches, in another order

def test_branches_keep_their_teachers_in_another_order():
    l = fit(learner(ts=[*teachers(), get_model(SMALL, 10, 1)]))
    k = l.keep([2, 0])
    assert k.loss_func.assign == [2, 0]
    with torch.no_grad():
        h = l.model.eval().trunk(X)
        want = (l.model.branches[2](h)[0]+l.model.branches[0](h)[0])/2
        assert torch.allclose(k.model.eval()(X), want, atol=1e-6)
    for i, j in enumerate([2, 0]):
        pair = k.model.projections[i].state_dict(), l.model.projections[j].state_dict()
        assert all(torch.equal(a, b) for a, b in zip(*[o.values() for o in pair]))
    fit(k)

def test_an_exported_student_is_read_without_the_modules_that_train(tmp_path):
    import subprocess
    path = save_student(fit(learner()), tmp_path)
    code = ('import sys; from ekd_nb.deploy import load_student; load_student(sys.argv[1]); '
            "print([m for m in ('learner', 'callbacks', 'losses', 'memo') if f'ekd_nb.{m}' in sys.modules])")
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, path], capture_output=True, text=True)
    assert run.stdout.strip() == '[]', run.stderr[-500:]


# ---- whose numbers the card holds

NAMES = 'valid_loss', 'accuracy', 'branch_0', 'branch_1'

def card(l, folder):
    path = save_student(l, folder)
    return read_manifest(path)['validation'], path.with_suffix('.md').read_text()

def measured(l):
    "Loss and accuracies of the weights that the Learner has now, computed without it"
    m, hits, losses, n = l.model.eval(), torch.zeros(3), 0., 0
    with torch.no_grad():
        for x, y in l.dls.valid:
            x, y = x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)
            z, h = m(x), m.trunk(x)
            hits += torch.stack([(o.argmax(-1)==y).float().sum() for o in (z, *[b(h)[0] for b in m.branches])])
            losses, n = losses+F.cross_entropy(z, y, reduction='sum'), n+len(y)
    return dict(zip(NAMES, [float(losses/n), *(hits/n).tolist()]))

def holds_its_own(l, folder):
    got, text = card(l, folder)
    want = measured(l)
    assert set(got) == set(NAMES) and all(got[k] == pytest.approx(want[k], abs=1e-4) for k in NAMES)
    assert f'| accuracy | {want["accuracy"]:.4f} |' in text
    return True

def holds_none(l, folder):
    got, text = card(l, folder)
    return got == {} and 'Not measured.' in text

@pytest.mark.parametrize('train_metrics', [False, True])
def test_a_search_for_a_learning_rate_measures_nothing(train_metrics, tmp_path):
    l = learner()
    l.recorder.train_metrics = train_metrics
    fit(l)
    quiet(l, lambda: l.lr_find(show_plot=False, num_it=12, stop_div=False))
    assert holds_its_own(l, tmp_path)
    new = learner()
    quiet(new, lambda: new.lr_find(show_plot=False, num_it=12, stop_div=False))
    assert holds_none(new, tmp_path)

@pytest.mark.parametrize('train_metrics', [False, True])
def test_validation_that_is_skipped_measures_nothing(train_metrics, tmp_path):
    from fastai.callback.core import CancelValidException
    class Skip(Callback):
        def before_validate(self): raise CancelValidException
    l = learner()
    l.recorder.train_metrics = train_metrics
    with l.added_cbs(Skip()): fit(l)
    assert l.validation_record.row == {} and holds_none(l, tmp_path)
    fit(l)
    assert holds_its_own(l, tmp_path)
    with l.added_cbs(Skip()): fit(l)
    assert holds_none(l, tmp_path), 'the weights have moved since'
    quiet(l, l.validate)
    assert holds_its_own(l, tmp_path)

@pytest.mark.parametrize('train_metrics', [False, True])
def test_metrics_of_training_are_not_those_of_validation(train_metrics, tmp_path):
    l = learner()
    l.recorder.train_metrics, l.recorder.valid_metrics = train_metrics, False
    fit(l)
    assert l.validation_record.row == {} and holds_none(l, tmp_path)

def test_weights_that_are_put_back_have_no_numbers_of_others(tmp_path):
    from fastai.callback.tracker import SaveModelCallback
    l = learner(path=tmp_path)
    quiet(l, lambda: (l.fit(1, 1e-2), l.save('first'), l.fit(1, 1e-2)))
    assert holds_its_own(l, tmp_path)
    l.load('first')
    assert holds_none(l, tmp_path)
    quiet(l, l.validate)
    assert holds_its_own(l, tmp_path)
    class Falls(SaveModelCallback):
        "The first epoch is the best"
        def __init__(self): super().__init__(monitor='valid_loss', comp=np.less)
        def after_epoch(self):
            if self.epoch == 0: self._save(self.fname)
    quiet(l, lambda: l.fit(2, 1e-2, cbs=Falls()))
    assert holds_none(l, tmp_path)

@pytest.mark.parametrize('change', [lambda l: l.model.trunk.register_buffer('more', torch.ones(1)),
                                    lambda l: l.model(torch.randn(4, 1, 8, 8)) if l.model.train() else None])
def test_changed_statistics_are_other_weights(change, tmp_path):
    l = fit(learner())
    assert l.validation_record.current
    change(l)
    assert l.validation_record.current == {}


# ---- a saved student as a teacher

def test_a_student_with_another_normalisation_is_adapted(tmp_path):
    "From its file as from its Learner"
    from fastai.data.transforms import Normalize
    from ekd_nb.judge import data_stats
    l, ours = learner(), dls()
    normal = next(f for f in ours.train.after_batch.fs if isinstance(f, Normalize))
    normal.mean, normal.std = torch.full_like(normal.mean, .9), torch.full_like(normal.std, .1)
    pixels, (m, s) = torch.rand(4, 1, 8, 8), data_stats(l.dls)
    with torch.no_grad(): want = l.model.eval()((pixels-m[0])/s[0])
    for source in (l, load_student(save_student(l, tmp_path))):
        said = []
        e = TeacherEnsemble([source]).match(ours, said.append)
        assert isinstance(e.models[0], TeacherAdapter) and 'adapted' in said[0] and e.names == [SMALL]
        assert torch.allclose(e((pixels-.9)/.1).logits[0], want, atol=1e-4)
        assert e.match(ours, said.append) is e and len(said) == 1
        same = TeacherEnsemble([source])
        assert same.match(dls(), said.append) is same and len(said) == 1
    student = load_student(save_student(l, tmp_path))
    student.manifest['normalisation'] = dict(mean=['x'], std=[0])
    said = []
    TeacherEnsemble([student]).match(ours, said.append)
    assert 'stats are not compared with the data' in said[0]


# ---- a Learner without data, names that cannot be

@pytest.fixture
def exported(tmp_path):
    l = fit(learner(path=tmp_path))
    l.export('l.pkl')
    return load_learner(tmp_path/'l.pkl')

def test_an_exported_learner_is_saved(exported, tmp_path):
    for x, size in ((None, []), (X, [8, 8])):
        path = save_student(exported, tmp_path/'s', x=x)
        man = read_manifest(path)
        assert man['size'] == size and 'accuracy' in man['validation'] and man['classes'] == [str(i) for i in range(10)]
        said = 'trained at 8×8' if size else 'trained at a size that was not recorded'
        assert said in path.with_suffix('.md').read_text()
    for name in ('s.safetensors', 's.pt2'):
        with pytest.raises(EKDError, match='x: got none, .* pass x, images'):
            export_student(exported, tmp_path/'e'/name)
        assert export_student(exported, tmp_path/'e'/name, x=X).is_file()
    with pytest.raises(EKDError, match="x: got 'str', expected images"): save_student(exported, tmp_path, x='x')

def test_training_without_a_batch_is_refused(exported):
    empty = DataLoader(TensorDataset(X[:0], torch.zeros(0).long()), 4)
    plain = teacher_learner(dls(), SMALL)
    plain.dls = DataLoaders(empty, empty)
    for l in (exported.keep(1), plain):
        with pytest.raises(EKDError, match='dls: the training loader has no batch, expected images'): fit(l)
    with pytest.raises(EKDError, match='exported without its teachers'): fit(exported)

@pytest.mark.parametrize('vocab, names', [
    (np.array(list('abcdefghij')), list('abcdefghij')), (np.arange(10), list('0123456789')),
    (list(range(10)), list('0123456789')),
    (torch.arange(10), list('0123456789')), (tuple('abcdefghij'), list('abcdefghij')),
    (['a', 'b'], []), (['a']*10, []), (3, [])])
def test_names_of_classes_in_every_form(vocab, names, tmp_path):
    d = torch_loaders()
    d.vocab, d.c = vocab, 10
    l = learner(d)
    assert read_manifest(save_student(l, tmp_path))['classes'] == names
    if names:
        name, i, _ = quiet(l, lambda: l.predict(X[0]))
        assert str(int(name) if isinstance(name, torch.Tensor) else name) == names[int(i)]

@pytest.mark.parametrize('info, says', [
    (dict(classes=np.arange(10)), 'classes: got array'),
    (dict(classes=['a', 'b']), 'classes: got 2 names for 10 outputs'),
    (dict(classes='abcdefghij'), 'classes: got'),
    (dict(classes=['a']*10), 'names that do not differ'),
    (dict(teachers=3), 'teachers: got 3, expected a list of names'),
    (dict(teachers=[None]), 'teachers: got'), (dict(normalisation=3), 'normalisation: got'),
    (dict(normalisation=dict(mean=[0.], std=[0.])), 'normalisation: got'),
    (dict(more=object()), 'folder: cannot write')])
def test_a_card_is_not_written_with_what_cannot_be(info, says, tmp_path):
    for source in (small(), learner()):
        with pytest.raises(EKDError, match=says): save_student(source, tmp_path, **info)

def test_one_name_of_a_teacher_is_one_name(tmp_path):
    path = save_student(small(), tmp_path, teachers='resnet18', classes=list('abcdefghij'))
    assert read_manifest(path)['teachers'] == ['resnet18']
    assert 'teachers: resnet18.' in path.with_suffix('.md').read_text()
