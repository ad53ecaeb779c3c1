"Compare: what is no lesson in nbs/14_compare.ipynb"
import copy, json

import pytest, torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.core import DataLoaders
from torch.utils.data import DataLoader, TensorDataset

from ekd_nb.compare import compare
from ekd_nb.core import EKDError
from ekd_nb.data import image_dls, load_images, stratified_subset
from ekd_nb.intervals import difference_sentence, mean_ci, paired_difference
from ekd_nb.losses import EKDLoss
from ekd_nb.models import get_model
from ekd_nb.student import branched_student


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


def test_no_log_is_silent(case, tmp_path, capsys):
    dls, teachers = case
    compare(dls, 'resnet8-w4', teachers, **small(tmp_path, methods=('ekd',), log=None))
    assert 'seed 0' not in capsys.readouterr().out
