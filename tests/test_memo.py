"What a memo does when disk or memory run out, and that nothing half-written is ever believed"
import re, subprocess, sys, textwrap, warnings
from pathlib import Path
import pytest, torch
from torch import nn
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from fastai.callback.core import Callback
from ekd_nb.checkpoint import Checkpoint
from ekd_nb.core import EKDError
from ekd_nb.data import ViewKey, ViewSet, image_dls, load_images
from ekd_nb.learner import ekd_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.memo import TeacherMemo, ViewIndex, free_memory, load_memo, save_memo
from ekd_nb.teachers import TeacherEnsemble
from ekd_nb.unlabeled import UnlabeledImages

VIEWS = ViewSet(1, False)


def net(n_in=64, n_out=10): return nn.Sequential(nn.Flatten(), nn.Linear(n_in, n_out))


@pytest.fixture
def teachers():
    torch.manual_seed(0)
    return TeacherEnsemble([net(), net()], feature_grid=0)


def memo_of(teachers, **kw): return TeacherMemo(teachers, torch.arange(50), VIEWS, **kw)


def ask(memo, idx, view=0):
    idx = torch.as_tensor(idx)
    torch.manual_seed(1)
    return memo(ViewKey(idx, torch.full_like(idx, view)), torch.randn(50, 1, 8, 8)[idx])


@pytest.mark.parametrize('error', [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError('no')])
def test_allocation_fails(teachers, monkeypatch, error):
    memo, zeros = memo_of(teachers, dtype=torch.float32), torch.zeros

    def broke(*a, **k):
        if k.get('dtype') is torch.float32: raise error
        return zeros(*a, **k)
    monkeypatch.setattr('ekd_nb.memo.torch.zeros', broke)
    with pytest.warns(UserWarning, match='could not be taken.*teachers run live'): first = ask(memo, range(10))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(ask(memo, range(10)).logits, first.logits)
    assert memo.table is None and memo.hits == 0


def test_machine_has_too_little(teachers, monkeypatch):
    monkeypatch.setattr('ekd_nb.memo.free_memory', lambda device: 1000)
    memo = memo_of(teachers)
    with pytest.warns(UserWarning, match='MiB are free; teachers run live'): ask(memo, range(3))
    assert memo.disabled


def scaled_teacher(scale, part):
    "A network whose feature map, or whose logits, are `scale` times what is usual"
    conv, fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)
    for p in conv.parameters(): p.data.mul_(scale)
    for p in fc.parameters(): p.data.mul_(1 if part=='logits' else 1/scale)
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc)


@pytest.mark.parametrize('scale', [1e6, 1e-7])
@pytest.mark.parametrize('part', ['logits', 'features'])
def test_outputs_that_half_precision_cannot_hold_are_not_kept(scale, part):
    torch.manual_seed(0)
    odd = TeacherEnsemble([scaled_teacher(1., part), scaled_teacher(scale, part)], feature_grid=4)
    memo, whole = memo_of(odd, features=True), memo_of(odd, features=True, dtype=torch.float32)
    with pytest.warns(UserWarning, match='largest output is .* holds .*; teachers run live'):
        first = ask(memo, range(10))
    torch.manual_seed(1)
    live = odd(torch.randn(50, 1, 8, 8)[:10])
    for got in (first, ask(memo, range(10)), ask(whole, range(10)), ask(whole, range(10))):
        for a, b in zip((got.logits, *got.features), (live.logits, *live.features)):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-5*b.abs().max())
    assert memo.disabled and not memo.hits and not whole.disabled and whole.hits==10


def test_small_differences_of_large_logits_are_not_kept():
    class Offset(nn.Module):
        def __init__(self, by): super().__init__(); self.net, self.by = net(), by
        def forward(self, x): return self.net(x)+self.by
    for by, off in ((0, False), (10, False), (1000, True)):
        teachers = TeacherEnsemble([Offset(by)], feature_grid=0)
        memo = memo_of(teachers)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            got = ask(memo, range(20)).logits
        torch.manual_seed(1)
        live = teachers(torch.randn(50, 1, 8, 8)[:20]).logits
        assert memo.disabled==off and torch.allclose(got.softmax(-1), live.softmax(-1), atol=2e-3)
        assert any('would change differences' in str(w.message) for w in said)==off


def test_one_image_does_not_tell_how_logits_differ():
    class Close(nn.Module):
        "Two classes; the more alike, the darker the image"
        def forward(self, x): return torch.stack([3+0*x.mean((1, 2, 3)), 3+10*x.mean((1, 2, 3))], 1)
    memo = memo_of(TeacherEnsemble([Close()], feature_grid=0))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        ask(memo, range(10)); ask(memo, [12])
        memo(ViewKey(torch.tensor([20]), torch.tensor([0])), torch.full((1, 1, 8, 8), .003))
    assert not memo.disabled and memo.misses==12


def test_a_memo_that_is_off_stays_off_after_a_resume(tmp_path):
    "the image that half precision cannot hold comes in epoch 0; epoch 1 runs in another process"
    data = load_images('digits')
    class Loud(nn.Module):
        def __init__(self): super().__init__(); self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        def forward(self, x): return self.net(x)*1e6
    torch.manual_seed(0)
    loud = Loud()
    class End(Callback):
        def before_epoch(self):
            if self.learn.epoch==1: raise KeyboardInterrupt
    def train(folder, *cbs):
        dls = image_dls(data, range(64), bs=32, n_views=1, seed=0, device='cpu')
        torch.manual_seed(0)
        learn = ekd_learner(dls, 'resnet8-w4', [loud], loss_func=EKDLoss(gamma=0), memo=True, judge=False,
                            cbs=[Checkpoint(tmp_path/folder), *cbs])
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
        return learn
    with pytest.warns(UserWarning, match='teachers run live'): whole = train('whole')
    with pytest.warns(UserWarning), pytest.raises(KeyboardInterrupt): train('two', End())
    resumed = train('two')
    assert resumed.distill.memo.disabled and not resumed.distill.memo.hits
    for a, b in zip(whole.model.parameters(), resumed.model.parameters()): assert torch.equal(a, b)


class Flat(nn.Module):
    "A teacher without a feature map"
    def __init__(self, scale=1.): super().__init__(); self.w = nn.Parameter(scale*torch.randn(64, 10))
    def forward(self, x): return x.flatten(1)@self.w


def test_unlabelled_images_beside_a_memo_that_is_off():
    data = load_images('digits')
    dls = image_dls(data, range(64), bs=32, n_views=1, seed=0, device='cpu')
    more = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(30, 1, 8, 8)), 10)
    torch.manual_seed(0)
    learn = ekd_learner(dls, 'resnet8-w4', [Flat(1e6)], loss_func=EKDLoss(gamma=0), memo=True, judge=False,
                        cbs=UnlabeledImages(more, .5))
    with pytest.warns(UserWarning, match='teachers run live'), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert learn.distill.memo.disabled and len(learn.recorder.losses)==2


def test_features_of_a_teacher_that_has_none():
    memo = memo_of(TeacherEnsemble([net(), Flat()], feature_grid=4), features=True)
    with pytest.raises(EKDError, match='memo: features=True, but a teacher has no feature map'): ask(memo, range(3))


def test_announced_before_taken(teachers, capsys, monkeypatch):
    said = []
    monkeypatch.setattr('builtins.print', lambda *a, **kw: said.append((memo.table is None, *a)))
    memo = memo_of(teachers)
    ask(memo, range(3)); ask(memo, range(6))
    assert said == [(True, 'memo of teacher outputs: 0.0 MiB for 50 images × 9 views × 20 numbers')]


def test_free_memory_of_a_container(monkeypatch):
    monkeypatch.setattr('ekd_nb.memo._read_int', lambda p: 5000 if p.endswith('max') else 4000)
    assert free_memory() == 1000


def test_full_disk(tmp_path, teachers):
    "A file may not grow beyond 4 kB in the child process, which is what a full disk looks like"
    code = f'''
        import resource, sys, torch
        sys.path.insert(0, {str(__file__.rsplit('/', 1)[0])!r})
        from test_memo import *
        torch.manual_seed(0)
        memo = memo_of(TeacherEnsemble([net(), net()], feature_grid=0))
        before = ask(memo, range(50)).logits
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try: save_memo(memo, {str(tmp_path/'m.safetensors')!r})
        except EKDError as e: print(e)
        assert torch.equal(ask(memo, range(50)).logits, before)
        print('usable')
    '''
    r = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True)
    assert 'could not be written' in r.stdout and 'usable' in r.stdout, r.stdout+r.stderr
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_the_older_file(tmp_path, teachers, monkeypatch):
    memo = memo_of(teachers)
    ask(memo, range(10))
    path = save_memo(memo, tmp_path/'m.safetensors')
    ask(memo, range(20))
    monkeypatch.setattr('ekd_nb.memo.save_file',
                        lambda *a, **k: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(EKDError, match='No space left'): save_memo(memo, path)
    assert load_memo(memo_of(teachers), path).n_filled.sum() == 10
    assert [p.name for p in tmp_path.iterdir()] == ['m.safetensors']


def test_file_larger_than_the_budget(tmp_path, teachers):
    memo = memo_of(teachers)
    ask(memo, range(10))
    path = save_memo(memo, tmp_path/'m.safetensors')
    with pytest.raises(EKDError, match='expected at most .*; without it teachers run live'):
        load_memo(memo_of(teachers, budget=100), path)


def test_every_cut_is_refused(tmp_path, teachers):
    memo = memo_of(teachers)
    ask(memo, range(50))
    path = save_memo(memo, tmp_path/'m.safetensors')
    whole = path.read_bytes()
    for n in [0, 1, 7, 8, 100, *range(200, len(whole), 997), len(whole)-1]:
        path.write_bytes(whole[:n])
        fresh = memo_of(teachers)
        with pytest.raises(EKDError): load_memo(fresh, path)
        assert fresh.table is None and not fresh.n_filled.any()


def test_teachers_that_look_at_the_batch_are_refused(teachers):
    unsteady = TeacherEnsemble([nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False),
                                              nn.Linear(64, 10)), net()], feature_grid=0)
    with pytest.raises(EKDError, match='teacher 0 .* depend on the rest of the batch'): ask(memo_of(unsteady), range(8))
    x = torch.randn(8, 1, 8, 8)
    with pytest.raises(EKDError, match='depend on the rest of the batch'):
        memo_of(unsteady).check_compatible(unsteady, [0], VIEWS, x=x)
    memo_of(teachers).check_compatible(teachers, [0], VIEWS, x=x)


class Noisy(nn.Module):
    def forward(self, x): return torch.nn.functional.dropout(x.flatten(1)[:, :10], .3)


def test_teachers_that_draw_random_numbers_are_refused():
    with pytest.raises(EKDError, match='from call to call'):
        ask(memo_of(TeacherEnsemble([Noisy()], feature_grid=0)), range(8))


@pytest.mark.parametrize('kind', ['bfloat16', 'quantised'])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_memo_of_teachers_of_other_types_is_saved(kind, tmp_path):
    torch.manual_seed(0)
    model = net().bfloat16() if kind == 'bfloat16' else torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})
    memo = memo_of(TeacherEnsemble([model], feature_grid=0))
    first = ask(memo, range(20))
    again = load_memo(memo_of(TeacherEnsemble([model], feature_grid=0)), save_memo(memo, tmp_path/'m.safetensors'))
    assert torch.equal(ask(again, range(20)).logits, first.logits) and again.misses == 0


def test_checkpoints_of_a_run_with_bf16_teachers(tmp_path):
    from compat import SMALL, dls
    from ekd_nb.checkpoint import Checkpoint
    from ekd_nb.learner import ekd_learner
    from ekd_nb.models import get_model
    from ekd_nb.speed import optimize_teachers
    l = ekd_learner(dls(n_views=1), SMALL, optimize_teachers([get_model(SMALL, 10, 1)], 'bfloat16'), memo=True,
                    cbs=Checkpoint(tmp_path))
    with l.no_bar(), l.no_logging(): l.fit(2, 1e-3)
    assert (tmp_path/'memo.safetensors').is_file() and l.distill.memo.hits == 40


# ---- a table that was filled before, in this process

def filled(kind, **kw):
    "Digits, two teachers as one ensemble, and the memo that a fit has filled"
    from compat import dls, learner, fit_quietly, teachers
    d,ts = dls(n_views=1),TeacherEnsemble(teachers())
    memo = TeacherMemo(ts, d.train.rows, d.train.views, 1, d.data_fingerprint, features=True)
    l = fit_quietly(learner(d, ts=ts, memo=memo, judge=False, **kw))
    assert memo.fill_ratio == 1
    return ts, memo, l if kind == 'the same Learner' else learner(d, ts=ts, memo=memo, judge=False, **kw)

def change(teacher, part):
    "Another network in the same object"
    name = 'head.weight' if part == 'logits' else 'stages.layer2.0.convs.0.weight'
    weight = dict(teacher.named_parameters())[name]
    weight.data.mul_(-1.)

@pytest.mark.parametrize('kind', ['the same Learner', 'another Learner'])
@pytest.mark.parametrize('part', ['logits', 'features'])
def test_a_table_of_teachers_that_have_changed_since_is_refused(kind, part):
    from compat import fit_quietly
    from ekd_nb.core import output_distance
    ts, memo, l = filled(kind)
    shown = []
    class Seen(Callback):
        order = -10
        def before_batch(self): shown.append(self.learn.xb[0][:8])
    before = [p.clone() for p in l.model.parameters()]
    l.add_cb(Seen())
    change(ts.models[0], part)
    with pytest.raises(EKDError) as e: fit_quietly(l)
    x = shown[0].as_subclass(torch.Tensor)
    now = ts(x)
    change(ts.models[0], part)
    was = ts(x)
    far = output_distance([now.logits, *now.features], [was.logits, *was.features])
    assert far > .05 and (part == 'features' or output_distance(now.features, was.features) == 0)
    says = str(e.value)
    assert says.startswith('memo: the table that was filled before (learn.distill.memo = True makes a new one) '
                           'computes something else')
    measured = float(re.search(r'outputs differ by (\S+) of their size on 8 images, expected at most 0.05$', says)[1])
    assert measured == pytest.approx(far, rel=.05), 'measured on the table in 16 bits'
    assert all(torch.equal(a, b) for a, b in zip(before, l.model.parameters())), 'refused before the first step'

def test_what_helps_where_a_table_holds_something_else():
    from compat import fit_quietly
    ts, memo, l = filled('the same Learner')
    ts.models[1].train()
    with pytest.raises(EKDError,
                       match=r'before \(teacher 1 is in training mode: call eval\(\)\) computes something else'):
        fit_quietly(l)
    ts.models[1].eval()
    change(ts.models[0], 'logits')
    l.distill.memo = True   # as the other sentence says
    fit_quietly(l)
    assert l.distill.memo is not memo and l.distill.memo.fill_ratio == 1

@pytest.mark.parametrize('kind', ['the same Learner', 'another Learner'])
def test_a_table_of_the_same_teachers_costs_eight_images_a_fit(kind):
    from compat import fit_quietly
    ts, memo, l = filled(kind)
    seen = [[] for _ in ts.models]
    for i, m in enumerate(ts.models): m.register_forward_pre_hook(lambda m, x, i=i: seen[i].append(len(x[0])))
    hits, misses = memo.hits, memo.misses
    fit_quietly(l, 2)
    assert seen == [[8], [8]] and memo.misses == misses and memo.hits == hits+2*len(memo.images)
    fit_quietly(l)
    assert seen == [[8, 8], [8, 8]]

def test_the_comparison_changes_no_weight():
    "A teacher that draws random numbers is refused anyway; ours leave the global ones alone"
    from compat import fit_quietly
    def run(known):
        torch.manual_seed(0)
        _, memo, l = filled('another Learner')
        if known: l.distill._allocate_memo = lambda device: memo   # nothing is compared
        torch.manual_seed(3)
        return [p.detach().clone() for p in fit_quietly(l).model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True)))


def test_index_gives_each_view_a_slot_of_its_own():
    index = ViewIndex([3, 7], VIEWS, n_views=2)
    rows = index.rows(torch.tensor([7, 7, 3, 7]))
    views = torch.tensor([1, 2, 1, 1])
    which, _ = index.add(rows, views)
    assert len(which) == 2 and index.n_filled.tolist() == [1, 1]
    index.add(rows[:1], torch.tensor([5])); index.add(rows[:1], torch.tensor([6]))
    assert index.n_filled.tolist() == [1, 2] and (index.view_to_slot>=0).sum() == 3
    with pytest.raises(EKDError, match='image 4 is not among'): index.rows([4])
