"Two processes are one run (tools/two_processes.py): batches, views, record, memo, checkpoints"
import json, os, subprocess, sys
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from ekd_nb.distributed import rank_indices

pytest.importorskip('accelerate')
if not hasattr(os, 'fork'): pytest.skip('needs fork', allow_module_level=True)
TOOL = Path(__file__).resolve().parents[1]/'tools'/'two_processes.py'


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    out = tmp_path_factory.mktemp('distributed')/'out.json'
    r = subprocess.run([sys.executable, '-W', 'ignore', TOOL, '--json', out, 'curves', 'resume', 'nan', 'from_files',
                        'fastais_own'], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-3000:]
    return json.loads(out.read_text())


def far(a, b): return max(abs(x-y) for x, y in zip(a, b, strict=True))


def test_loss_curve_is_that_of_one_process(seen):
    one, two = seen['curves']['one'], seen['curves']['two']
    assert len(one['losses']) == 40 and one['losses'][-1] < .99*one['losses'][0]
    for rank in two:
        for k in ('losses', 'weights', 'preds'): assert far(one[k], rank[k]) < 1e-4, k
        assert rank['targs'] == one['targs']


def test_one_record(seen):
    one, two = seen['curves']['one'], seen['curves']['two']
    assert two[0]['record'] == two[1]['record'] and len(one['record']) == 4
    for a, b in zip(one['record'], two[0]['record']): assert len(a) == len(one['columns']) and far(a, b) < 1e-4


def test_no_teacher_is_asked_twice(seen):
    one, two = seen['curves']['one'], seen['curves']['two']
    assert sum(r['misses'] for r in two) == one['misses'] == one['entries']
    assert [r['known'] for r in two] == [one['entries']]*2 and all(r['hits'] for r in two)


def test_killed_and_resumed(seen):
    d = seen['resume']
    assert d['killed'][1] == -9 and d['killed'][0] not in (0, 'hung')
    assert len({r['weights'] for r in d['whole']+d['again']}) == 1
    assert d['whole'][0]['record'] == d['again'][0]['record'] == d['again'][1]['record']


def test_one_set_of_files(seen):
    d = seen['resume']
    assert d['files'] == d['files_whole'] == [['log.csv'], ['run/.lock'], ['run/fit0', 'epoch0002'],
                                              ['run/fit0', 'epoch0003'], ['run/memo.safetensors']]
    assert [l.split(',')[0] for l in d['log']] == ['epoch', '0', '1', '2',
                                                   '3'] == [l.split(',')[0] for l in d['log_again']]
    assert [l.rsplit(',', 1)[0] for l in d['log']] == [l.rsplit(',', 1)[0] for l in d['log_again']]   # all but the time
    assert 'belongs to a run of 2 processes, this one has 1' in d['alone']


def test_all_stop_at_a_nan(seen):
    assert all('not finite' in said for said in seen['nan']['said']) and len(seen['nan']['said']) == 2


def test_images_from_files(seen):
    a, b = seen['from_files']['two']
    assert (a['weights'] == b['weights'] and a['record'] == b['record'] and a['targs'] == a['want'] and
            a['n'] == len(a['want']))


def test_our_loader_in_fastais(seen):
    a, b = seen['fastais_own']['two']
    for x, y in zip(a['keys'], b['keys']):
        assert not {tuple(k) for k in x} & {tuple(k) for k in y} and len(x) == len(y) == 80
    assert a['epoch'] == 2 and a['keys'][0] != a['keys'][1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_parts_are_the_steps_of_one_process(n, bs, world, drop_last):
    order = list(range(100, 100+n))
    parts = [rank_indices(order, bs, r, world, drop_last) for r in range(world)]
    assert len({len(p) for p in parts}) == 1
    steps = [[i for p in parts for i in p[s:s+bs]] for s in range(0, len(parts[0]), bs)]
    want = [order[s:s+bs*world] for s in range(0, n, bs*world)]
    if drop_last and n % (bs*world): want.pop()
    assert len(steps) == len(want) and all(a[:len(b)] == b and len(a)-len(b) < world for a, b in zip(steps, want))


@pytest.mark.parametrize('sampler, allowed', [
    ('SubsetRandomSampler(range(32))', range(32)), ('WeightedRandomSampler([1.]*8+[0.]*56, 64)', range(8)),
    ('RandomSampler(range(64), num_samples=24)', range(64)), ('SequentialSampler(range(64))', range(64)),
    ('MySampler()', range(60, 64))])
def test_ranks_draw_from_the_sampler(sampler, allowed):
    import torch, torch.utils.data as data
    from ekd_nb.distributed import StepShardedLoader
    class MySampler(data.Sampler):
        "Four images, each four times"
        def __iter__(self): return iter([60, 61, 62, 63]*4)
        def __len__(self): return 16
    s = eval(sampler, dict(vars(data), MySampler=MySampler))
    dl = data.DataLoader(data.TensorDataset(torch.arange(64)), batch_size=8, sampler=s)
    ranks = [torch.cat([b[0] for b in StepShardedLoader(dl, r, 2)]) for r in range(2)]
    assert sum(map(len, ranks)) == len(s) and set(torch.cat(ranks).tolist()) <= set(allowed)
    assert len(StepShardedLoader(dl, 0, 2)) == -(-len(s)//16)


def test_batches_that_cannot_be_shared_are_refused():
    import torch.utils.data as data
    from ekd_nb.core import EKDError
    from ekd_nb.distributed import StepShardedLoader
    class Stream(data.IterableDataset):
        def __iter__(self): return iter(range(4))
    for dl in (data.DataLoader(list(range(8)), batch_sampler=[[0, 1], [2]]), data.DataLoader(Stream(), batch_size=2)):
        with pytest.raises(EKDError, match='cannot share'): StepShardedLoader(dl, 0, 2)
