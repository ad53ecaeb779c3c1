"Compare: what is no lesson in nbs/14_compare.ipynb"
import copy, json, math, os, subprocess, sys

import pytest, torch, torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.core import DataLoaders
from fastai.vision.augment import RandomErasing, aug_transforms
from torch.utils.data import DataLoader, Subset, TensorDataset, WeightedRandomSampler

from ekd_nb.compare import COMPARED, Comparison, compare
from ekd_nb.core import EKDError
from ekd_nb.data import ViewSet, image_dls, load_images, stratified_subset
from ekd_nb.intervals import difference_sentence, mean_ci, paired_difference
from ekd_nb.losses import EKDLoss
from ekd_nb.memo import TeacherMemo
from ekd_nb.models import get_model
from ekd_nb.pairs import PairLoss
from ekd_nb.run_key import run_key as _key
from ekd_nb.student import branched_student
from ekd_nb.teachers import as_ensemble


@pytest.fixture(scope='module')
def case():
    data = load_images('digits')
    dls = image_dls(data, stratified_subset(data.y_train, n_per_class=2), bs=10, device='cpu')
    torch.manual_seed(0)
    return dls, [get_model('resnet8-w4', 10, 1), get_model('resnet8-w4', 10, 1)]


def small(tmp_path, **kw): return {**dict(epochs=1, seeds=1, folder=tmp_path, judge=False, log=lambda line: None), **kw}


class Stop(Callback):
    def before_fit(self): raise KeyboardInterrupt


def test_an_interrupted_call_goes_on_and_repeats_nothing(case, tmp_path):
    dls, teachers = case
    lines = []
    def stop_after_one(line):
        lines.append(line)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): compare(dls, 'resnet8-w4', teachers, **small(tmp_path, log=stop_after_one))
    first = {p: p.stat().st_mtime_ns for p in tmp_path.glob('*.json')}
    assert len(first) == 1
    whole = compare(dls, 'resnet8-w4', teachers, **small(tmp_path))
    assert len(whole.records) == 3 and all(p.stat().st_mtime_ns == t for p, t in first.items())
    assert not list((tmp_path/'checkpoints').iterdir())
    fresh = compare(dls, 'resnet8-w4', teachers, **small(tmp_path/'again'))
    assert [r['nll'] for r in fresh.records] == [r['nll'] for r in whole.records]   # order of runs does not matter


def test_a_damaged_or_edited_record_is_made_again(case, tmp_path):
    dls, teachers = case
    want = compare(dls, 'resnet8-w4', teachers, **small(tmp_path, methods=('labels',))).records[0]
    path = next(tmp_path.glob('*.json'))
    for text in ('{"half', json.dumps(want | dict(test_accuracy=.99))):
        path.write_text(text)
        got = compare(dls, 'resnet8-w4', teachers, **small(tmp_path, methods=('labels',))).records[0]
        assert got['test_accuracy'] == want['test_accuracy'] and json.loads(path.read_text()) == got


def test_another_loss_split_or_teacher_is_another_run(case, tmp_path):
    dls, teachers = case
    def keys(**kw): return {r['key'] for r in compare(dls, 'resnet8-w4', kw.pop('teachers', teachers),
                                                      **small(tmp_path, methods=('ekd',), **kw)).records}
    calls = [{}, dict(loss_func=EKDLoss(gamma=0)), dict(loss_func=EKDLoss(gamma=1)), dict(split='heads'), dict(lr=.02),
             dict(teachers=teachers[:1])]
    assert len(set.union(*[keys(**c) for c in calls])) == len(calls) == len(list(tmp_path.glob('*.json')))


def test_the_callers_networks_stay_as_they_are(case, tmp_path):
    dls, teachers = case
    for arch in (get_model('resnet8-w4', 10, 1), branched_student('resnet8-w4', 2, 10, in_channels=1)):
        before = copy.deepcopy(arch.state_dict())
        compare(dls, arch, teachers, **small(tmp_path, methods=('labels', 'ekd')))
        assert all(torch.equal(v, before[k]) for k, v in arch.state_dict().items())


def test_what_a_learner_refuses_is_refused_before_training(case, tmp_path):
    dls, teachers = case
    for kw, text in ((dict(split='layer9'), 'split'), (dict(n_branches=0), 'n_branches'), (dict(memo=3), 'memo')):
        with pytest.raises(EKDError, match=text):
            compare(dls, 'resnet8-w4', teachers, **small(tmp_path, methods=('ekd',), **kw))
    with pytest.raises(EKDError, match='teachers: entry 0'):
        compare(dls, 'resnet8-w4', get_model('resnet8', 7, 1), **small(tmp_path))
    with pytest.raises(EKDError, match='resnet9000'): compare(dls, 'resnet9000', teachers, **small(tmp_path))
    assert not list(tmp_path.glob('*.json'))


def test_a_sentence_names_what_is_not_settled():
    def runs(name, *accs): return [dict(method=name, seed=s, test_accuracy=a, n_images=100) for s, a in enumerate(accs)]
    rs = runs('ekd', .80, .82, .81) + runs('kd', .80, .81, .82) + runs('labels', .70, .71, .70)
    text = difference_sentence(rs, 'ekd', dict(labels='labels', kd='KD'), 'EKD')
    assert text.startswith('3 seeds, 100 images: EKD is 10.7 ± 1.4 points above labels '
                           'and 0.0 ± 2.5 points above KD (the interval')
    assert paired_difference(rs, 'ekd', 'kd').side == 0 and mean_ci([.1]).half is None

@pytest.mark.parametrize('change', ['images', 'a callback'])
def test_records_of_other_data_or_callbacks_are_not_taken(change, tmp_path):
    def loaders(seed):
        x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        ds = TensorDataset(x, torch.arange(40)%2)
        return DataLoaders(DataLoader(ds, batch_size=20), DataLoader(ds, batch_size=20))
    ts,kw = [get_model('resnet8-w4', 2, 3)],dict(epochs=1, seeds=1, methods=('labels',), folder=tmp_path, n_out=2)
    kw |= dict(log=lambda line: None, judge=False)
    first = compare(loaders(0), 'resnet8-w4', ts, cbs=MixUp(.4), **kw)
    same = compare(loaders(0), 'resnet8-w4', ts, cbs=MixUp(.4), **kw)
    other = dict(cbs=MixUp(.1)) if change=='a callback' else dict(cbs=MixUp(.4))
    third = compare(loaders(int(change=='images')), 'resnet8-w4', ts, **other, **kw)
    assert first.records==same.records and first.records[0]['key']!=third.records[0]['key']


def test_every_interval_of_the_table_is_one_of_95_percent(case, tmp_path):
    dls, teachers = case
    c = compare(dls, 'resnet8-w4', teachers, **small(tmp_path, seeds=2))
    for m in c.methods:
        mean, half, _ = mean_ci([100*r['test_accuracy'] for r in c.of(m)])
        assert f'{mean:.1f} ± {half:.1f}' in c.table()
    assert c.table().endswith('± is half of the 95 % interval of a mean over seeds.')
    one = compare(dls, 'resnet8-w4', teachers, **small(tmp_path, methods=('ekd',)))
    assert '±' not in one.table()


def test_methods_without_teachers_get_no_hints_and_no_images_without_labels(case, tmp_path):
    from ekd_nb.unlabeled import UnlabeledImages
    dls, teachers = case
    images = UnlabeledImages(load_images('digits').x_train[-20:])
    hints = ['layer1', ('layer1', 'layer2')]
    c = compare(dls, 'resnet8-w4', teachers, hints=hints, cbs=images, **small(tmp_path))
    plain = compare(dls, 'resnet8-w4', teachers, **small(tmp_path))
    nll = [[r['nll'] for r in o.records] for o in (c, plain)]
    assert nll[0][0] == nll[1][0] and nll[0][1] != nll[1][1] and nll[0][2] != nll[1][2]


@pytest.mark.parametrize('wrong, text', [
    (dict(lr='a'), "lr: got 'a'"), (dict(lr=float('inf')), 'lr: got inf'), (dict(lr=True), 'lr: got True'),
    (dict(folder=None), 'folder: got None'), (dict(folder=''), "folder: got ''"), (dict(folder=3), 'folder: got 3'),
    (dict(log=3), 'log: got 3'), (dict(epochs=0), 'epochs: got 0'), (dict(epochs=True), 'epochs: got True'),
    (dict(epochs=1.5), 'epochs: got 1.5'), (dict(seeds=0), 'seeds: got 0'),
    (dict(seeds=[0, 1]), r'seeds: got \[0, 1\]'),
    (dict(methods=['ekd', 'ekd']), 'expected each once'), (dict(methods=[['ekd']]), r"methods: got \['ekd'\]"),
    (dict(methods={'ekd'}), 'methods: got'), (dict(methods=()), 'methods: got'),
    (dict(loss_func='a'), "loss_func: got 'a'")])
def test_bad_input_costs_one_sentence(case, tmp_path, wrong, text):
    dls, teachers = case
    with pytest.raises(EKDError, match=text): compare(dls, 'resnet8-w4', teachers, **small(tmp_path, **wrong))
    assert not list(tmp_path.iterdir())


def test_several_labels_are_refused(case, tmp_path):
    from ekd_nb.multilabel import MultiLabelEKDLoss
    dls, teachers = case
    with pytest.raises(EKDError, match='several labels'):
        compare(dls, 'resnet8-w4', teachers, loss_func=MultiLabelEKDLoss(), **small(tmp_path))
    ds = TensorDataset(torch.randn(20, 1, 8, 8), (torch.rand(20, 10) > .5).float())
    several = DataLoaders(DataLoader(ds, 10), DataLoader(ds, 10))
    with pytest.raises(EKDError, match='several labels'): compare(several, 'resnet8-w4', teachers, **small(tmp_path))


def test_lines_of_every_learner_are_printed_once(case, tmp_path, capsys):
    "Nine Learners and three that were tried before: which weights are kept, what was mended, how good teachers are"
    from ekd_nb.core import log_line
    dls,nets = case
    turned = [copy.deepcopy(n) for n in nets]
    turned[1].manifest = dict(classes=[str(c) for c in reversed(dls.vocab)])
    compare(dls, 'resnet8-w4', turned, memo=True, **{k: v for k,v in small(tmp_path, seeds=3).items() if k!='judge'})
    seen = capsys.readouterr()
    lines = [l for l in (seen.err+seen.out).splitlines() if l.startswith(('weights:', 'teacher', 'memo of'))]
    assert len(lines)==len(set(lines)), lines
    assert any('numbers its classes in another way' in l for l in lines)
    assert sum(l.startswith('weights: ') for l in lines)==len({l for l in lines if l.startswith('weights: ')})>0
    assert sum(bool(l.startswith('teacher ') and ' images, ' in l) for l in lines)==2
    assert sum(l.startswith('memo of') for l in lines)==2, 'KD needs no features'
    for _ in range(2): log_line('weights: afterwards')
    assert capsys.readouterr().err.count('afterwards')==2, 'only inside compare'

def test_lines_once_in_one_another(capsys):
    from ekd_nb.core import lines_once, log_line
    with lines_once():
        log_line('a')
        with lines_once(): log_line('a'); log_line('b')
        log_line('b')
        with pytest.raises(KeyError), lines_once(): raise KeyError
    log_line('a')
    assert capsys.readouterr().err=='a\nb\na\n'

def test_no_log_is_silent(case, tmp_path, capsys):
    dls, teachers = case
    compare(dls, 'resnet8-w4', teachers, **small(tmp_path, methods=('ekd',), log=None))
    assert 'seed 0' not in capsys.readouterr().out


def _plain(bs=8, train=None, valid=None, **kw):
    "PyTorch loaders of 24 grey images of four classes"
    x = torch.randn(36, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ds, held = TensorDataset(x, torch.arange(36)%4), TensorDataset(x[:12], torch.arange(12)%4)
    shown = ds if train is None else train(ds)
    dls = DataLoaders(DataLoader(shown, bs, **kw), DataLoader(held, 8) if valid is None else valid)
    dls.c = 4
    return dls


class Own(torch.utils.data.Dataset):
    def __init__(self, ds, flip): self.ds, self.flip, self.reads = ds, flip, 0
    def __len__(self): return len(self.ds)
    def __getitem__(self, i):
        self.reads += 1
        x, y = self.ds[i]
        return x, 3-int(y) if self.flip else int(y)


@pytest.fixture(scope='module')
def networks():
    torch.manual_seed(0)
    return as_ensemble([get_model('resnet8-w4', 4, 1), get_model('resnet8-w4', 4, 1)]), get_model('resnet8-w4', 4, 1)


def key(networks, dls=None, **kw):
    ts, arch = networks
    return _key(dls or _plain(), kw.pop('arch', arch), ts, 2, .01, dict(dict(loss_func=None), **kw))


@pytest.mark.parametrize('a, b', [
    (dict(train=lambda ds: Subset(ds, range(12))), dict(train=lambda ds: Subset(ds, range(12, 24)))),
    (dict(train=lambda ds: Subset(ds, range(12))), dict(train=lambda ds: Subset(Subset(ds, range(24)), range(12)))),
    (dict(train=lambda ds: Own(ds, False)), dict(train=lambda ds: Own(ds, True))),
    (dict(bs=8), dict(bs=12)), (dict(), dict(shuffle=True)), (dict(bs=10), dict(bs=10, drop_last=True)),
    (dict(sampler=WeightedRandomSampler([1.]*36, 36)), dict(sampler=WeightedRandomSampler([1.]*35+[2.], 36)))])
def test_other_data_or_another_loader_is_another_run(networks, a, b):
    assert key(networks, _plain(**a))==key(networks, _plain(**a))!=key(networks, _plain(**b))


SCALE = 2.
def _scaled(s, t): return SCALE*(s-t).square().mean()
def _made(k): return lambda s, t: k*(s-t).square().mean()


@pytest.mark.parametrize('a, b', [
    (lambda s, t: (s-t).square().mean(), lambda s, t: (s-t).abs().mean()),
    (lambda s, t: F.mse_loss(s, t), lambda s, t: F.l1_loss(s, t)), (lambda s, t: 2*s.sum(), lambda s, t: 3*s.sum()),
    (lambda s, t, k=1: k*s.sum(), lambda s, t, k=2: k*s.sum()), (_made(1), _made(2)),
    (lambda s, t: (lambda u: u.sum())(s), lambda s, t: (lambda u: u.mean())(s))])
def test_another_function_is_another_run(networks, a, b):
    copy_of_a = type(a)(a.__code__, a.__globals__, a.__name__, a.__defaults__, a.__closure__)
    for wrap in (lambda f: dict(loss_func=PairLoss(f)), lambda f: dict(loss_func=f), lambda f: dict(opt_func=f),
                 lambda f: dict(arch=f),
                 lambda f: dict(loss_func=PairLoss(F.mse_loss, project=f))):
        assert key(networks, **wrap(a))==key(networks, **wrap(copy_of_a))!=key(networks, **wrap(b))


def test_a_value_that_a_function_reads_is_part_of_the_run(networks, monkeypatch):
    first = key(networks, loss_func=_scaled)
    monkeypatch.setitem(globals(), 'SCALE', 3.)
    assert first!=key(networks, loss_func=_scaled)


def test_transforms_of_the_training_batches_count(networks):
    data = [(i/24*torch.ones(3, 8, 8), i%4) for i in range(24)]
    def loaders(tfms):
        dls = DataLoaders.from_dsets(data, data, bs=8, after_batch=tfms, device='cpu')
        dls.c = 4
        return dls
    made = [lambda: [], lambda: [RandomErasing(p=1.)], lambda: [RandomErasing(p=.5)], lambda: aug_transforms(size=8),
            lambda: aug_transforms(size=8, max_rotate=20.)]
    keys = []
    for make in made:
        dls = loaders(make())
        keys.append(key(networks, dls))
        dls.one_batch()   # random transforms remember what they have drawn
        assert keys[-1]==key(networks, dls)==key(networks, loaders(make()))
    assert len(set(keys))==len(made)


def test_a_cache_that_has_been_used_is_the_same_run(case, networks):
    memo = TeacherMemo(networks[0], torch.arange(24), ViewSet(1, False))
    first = key(networks, memo=memo)
    memo.hits += 1
    assert first==key(networks, memo=memo)


def test_a_key_is_the_same_in_another_process(tmp_path):
    code = ('import torch; from ekd_nb.run_key import name_of, short_digest\n'
            'from fastai.vision.augment import aug_transforms\n'
            'def f(a, k={"x", "y", "z"}): return a in {"p", "q", "r"} and (lambda b: b)(k)\n'
            'print(short_digest(name_of([f, aug_transforms(), torch.optim.SGD, {"b": {"u", "v"}}])))')
    runs = [subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True,
                           env=os.environ | dict(PYTHONHASHSEED=str(i))).stdout for i in range(2)]
    assert runs[0]==runs[1]


def test_the_same_call_with_an_ensemble_of_teachers_reads_the_records(tmp_path, networks):
    ts, arch = networks
    for _ in range(2): compare(_plain(), arch, ts, **small(tmp_path, methods=('ekd',)))
    assert len(list(tmp_path.glob('*.json')))==1


def test_all_methods_have_the_smoothing_and_weights_of_the_caller(networks):
    weight = [1., 1., 1., 5.]
    for m in COMPARED:
        ours = EKDLoss(label_smoothing=.3, weight=weight)
        loss = COMPARED[m].make(_plain(), networks[1], networks[0], ours, judge=False).loss_func
        assert loss.label_smoothing==.3 and loss.class_weights.tolist()==weight
    y, z = torch.arange(8)%4, torch.randn(8, 4)
    ours = EKDLoss(label_smoothing=.3, weight=weight)
    loss = COMPARED['labels'].make(_plain(), networks[1], networks[0], ours, judge=False).loss_func
    want = F.cross_entropy(z, y, torch.tensor(weight), label_smoothing=.3)
    assert torch.allclose(loss.ce(z, y).mean(), want)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self): return iter([(torch.randn(1, 8, 8), i%4) for i in range(16)])


def _held_out(y, n=8): return DataLoader(TensorDataset(torch.randn(n, 1, 8, 8), *y), 8)

def _two(train, *valid):
    dls = DataLoaders(train, *valid)
    dls.c = 4
    return dls

@pytest.mark.parametrize('make, kw, text', [
    (_plain, dict(loss=EKDLoss()), "compare: got 'loss', expected an argument .* such as loss_func"),
    (lambda: _two(_plain().train), {}, 'got no validation loader'),
    (lambda: _two(DataLoader(Endless(), 8), _plain().valid), {}, 'the training loader does not say how many batches'),
    (lambda: _two(_plain().train, DataLoader(Endless(), 8)), {}, 'the validation loader does not say how many batches'),
    (lambda: _plain(valid=_held_out([torch.full((8,), 7)])), {},
     'validation batch has label 7, expected 0 to 3 for 4 classes'),
    (lambda: _plain(valid=_held_out([])), {}, 'a validation batch has items .*, expected two: images and labels'),
    (lambda: _plain(valid=_held_out([torch.rand(8)])), {},
     r'a validation batch has labels float32 \[8\], expected class numbers'),
    (lambda: _plain(valid=_held_out([torch.zeros(0).long()], 0)), {}, 'the validation loader has no batch')])
def test_data_that_cannot_be_judged_costs_one_sentence(networks, tmp_path, make, kw, text):
    with pytest.raises(EKDError, match=text): compare(make(), networks[1], networks[0], **small(tmp_path, **kw))
    assert not list(tmp_path.glob('*'))


def test_labels_outside_the_classes_are_seen_where_the_data_does_not_count_them(networks, tmp_path):
    dls = _plain(valid=_held_out([torch.full((8,), 7)]))
    del dls.c
    with pytest.raises(EKDError, match='label 7, expected 0 to 3'):
        compare(dls, networks[1], networks[0], **small(tmp_path, methods=('ekd',)))


def test_nothing_to_show_is_shown(tmp_path):
    assert 'nothing to compare' in repr(Comparison([])) and Comparison([]).methods==[]


def test_a_spread_of_rounding_has_no_width(recwarn):
    d = mean_ci([.9-.8, .8-.7, .3-.2])
    assert d.half==0 and d.mean==pytest.approx(.1) and d.side==1
    assert mean_ci([.1+.2-.3, 0., .3-.1-.2]).side==0 and not recwarn.list
    assert math.isnan(mean_ci([.9, float('nan')]).half)


# ---- students of several networks, finished ones, and callbacks that save

ARCHS = [['resnet8-w4']*2, branched_student('resnet8-w4', 2, 10, in_channels=1)]
@pytest.mark.parametrize('arch', ARCHS, ids=['list', 'student'])
def test_every_method_takes_a_student_of_several_branches(case, tmp_path, arch):
    dls, teachers = case
    c = compare(dls, arch, teachers, **small(tmp_path))
    one, plain = [COMPARED['kd'].make(dls, a, teachers, None, judge=False).model for a in (arch, 'resnet8-w4')]
    assert one.n_branches == 1 and one.param_counts() == plain.param_counts()
    assert [r['params'] for r in c.records][1] == plain.param_counts()[0]


def test_a_learner_as_student_is_its_network(case, tmp_path):
    from ekd_nb.learner import ekd_learner
    dls, teachers = case
    l = ekd_learner(dls, 'resnet8-w4', teachers[:1], n_branches=3, judge=False)   # more branches than teachers below
    a = compare(dls, l, teachers, **small(tmp_path))
    b = compare(dls, l.model, teachers, **small(tmp_path))
    assert a.records == b.records and len(list(tmp_path.glob('*.json'))) == 3


def test_different_networks_have_no_kd(case, tmp_path):
    dls, teachers = case
    arch = ['resnet8-w4', 'resnet14-w4']
    with pytest.raises(EKDError) as e: compare(dls, arch, teachers, **small(tmp_path))
    assert str(e.value) == ("methods: got 'kd', expected other methods for a student of different networks, such as "
                            "('labels', 'ekd'): KD trains one network")
    assert not list(tmp_path.glob('*.json'))
    compare(dls, arch, teachers, **small(tmp_path, methods=('labels', 'ekd')))


def test_checkpoints_are_refused_before_training(case, tmp_path):
    from ekd_nb.checkpoint import Checkpoint
    dls, teachers = case
    for cbs in (Checkpoint(tmp_path/'c'), [MixUp(), Checkpoint(tmp_path/'c')]):
        with pytest.raises(EKDError) as e: compare(dls, 'resnet8-w4', teachers, cbs=cbs, **small(tmp_path))
        assert str(e.value) == "cbs: got 'a Checkpoint', expected none: compare makes one for each run, in `folder`"
    assert not list(tmp_path.iterdir())


# ---- the same engine as the command

def test_compare_and_the_command_agree_for_the_same_data_seed_and_recipe(tmp_path):
    "Labels, KD into one network and EKD of `ekd_reproduce`, on held-out images, made again by `compare`"
    from ekd_nb.study.protocols import protocol, training_rows
    from ekd_nb.study.reproduce import reproduce
    from ekd_nb.study.training import get_teachers, learner_kwargs, run_dls
    changes = dict(epochs=4, teacher_epochs=2, n_curve=200)
    rs, failed = reproduce('digits', 'demo', ['branched', 'kd', 'ekd'], [0], changes=changes, on='valid', out=tmp_path,
                           device='cpu', n_jobs=1, log=len)
    p, data = protocol('digits', 'demo', **changes), load_images('digits')
    teachers, _ = get_teachers(p, data, 0, tmp_path/'teachers', 1., 'full', 'cpu', len)
    dls = run_dls(p, data, *training_rows(p, data.y_train, 0), 0, 'cpu')
    c = compare(dls, p.student, teachers, split=p.split, lr=p.lr, memo=True,
                **small(tmp_path/'compared', epochs=p.epochs), **learner_kwargs(p))
    theirs = {r['method']: r for r in rs}
    assert not failed and len(theirs) == 3 and c.methods == ['labels', 'kd', 'ekd']
    for mine, name in zip(c.records, ('branched', 'kd', 'ekd')):
        r = theirs[name]
        assert mine['test_accuracy'] == r['test_accuracy'] and mine['n_images'] == r['n_images'] == 200
        assert mine['nll'] == pytest.approx(r['nll'], rel=1e-3), name
        assert mine['params'] == r['params']


def test_table_and_sentence_are_those_of_the_command():
    from ekd_nb.study.summary import result_sentence, result_table
    def runs(name, *accs):
        return [dict(method=name, seed=s, test_accuracy=a, n_images=100, params=9, wall_s=2., preset='demo')
                for s, a in enumerate(accs)]
    theirs = runs('branched', .70, .71) + runs('ekd', .80, .82)
    mine = Comparison([dict(r, method=dict(branched='labels').get(r['method'], r['method'])) for r in theirs])
    def cells(table): return [line.split('|')[2:] for line in table.splitlines() if line.startswith('|')][1:]
    assert cells(mine.table()) == cells(result_table(theirs, ['branched', 'ekd'], 'ekd'))
    assert mine.sentence() == result_sentence(theirs)


def test_a_long_comparison_says_how_long_it_will_take():
    from ekd_nb.compare import _left_text
    records = [dict(method='labels', wall_s=100.), dict(method='kd', wall_s=140.)]
    assert _left_text(records, ['ekd', 'labels', 'kd', 'ekd']) == '; roughly 8 min left'   # 120, 100, 140, 120 s
    assert _left_text(records, []) == _left_text([dict(method='kd', wall_s=2.)], ['ekd']*20) == ''
