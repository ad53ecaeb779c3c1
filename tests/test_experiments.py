"What a stranger types: `ekd_reproduce`, its answers to wrong calls, and one run on genuine CIFAR-10"
import json, os, re, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
import ekd_nb.study.reproduce as rep
import wrong_calls
from ekd_nb.core import EKDError
from ekd_nb.data import load_images
from ekd_nb.losses import EKDLoss
from ekd_nb.study import grid
from ekd_nb.study.methods import METHODS, make_loss
from ekd_nb.study.protocols import PRESETS, PROTOCOLS, protocol, training_rows
from ekd_nb.study.records import load_records, read_record, save_record
from ekd_nb.study.summary import figure_name

def command(*args, **env):
    "`ekd_reproduce` as a process: (status, standard output, standard error)"
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c',
                        'import sys; from ekd_nb.study.reproduce import main; sys.exit(main())', *map(str, args)],
                       capture_output=True, text=True, env={**os.environ, **env})
    return r.returncode, r.stdout, r.stderr

WRONG = [*wrong_calls.COMMANDS,
         (('--methods', ','), 'methods: got none'),
         (('--seeds', '-1'), "seeds: got '-1'"),
         (('--fraction', '0'), 'fraction: got 0'),
         (('--fraction', '0.01'), 'leaves no image of class'),
         (('--teacher-data', 'some'), "teacher_data: got 'some'"),
         (('--on', 'train'), "on: got 'train', expected 'test' or 'valid'"),
         (('--set', 'epochs=many'), "set: epochs got 'many', expected int"),
         (('--set', 'epochs=0'), 'epochs: got 0, expected a number of at least 1'),
         (('--set', 'lr=-1'), 'lr: got -1.0, expected a number above 0'),
         (('--set', 'schedule=cosine'), "schedule: got 'cosine', expected one of one_cycle, steps"),
         (('--set', 'preset=small'), "set: got 'preset=small', expected FIELD=VALUE")]

@pytest.mark.parametrize('args,words', WRONG, ids=[' '.join(a) for a,_ in WRONG])
def test_wrong_calls_cost_one_sentence(args, words, tmp_path, capsys):
    status = rep.main([*args, *([] if '--out' in args else ['--out', str(tmp_path)])])
    err = capsys.readouterr().err
    assert status==2 and words in err and err.count('\n')==1 and 'Traceback' not in err

def test_a_wrong_call_as_a_process(tmp_path):
    status,out,err = command('--data', 'mnist', '--out', tmp_path)
    assert (status, out)==(2, '') and err.startswith('ekd_reproduce: data: got') and 'Traceback' not in err
    assert 'Traceback' in command('--data', 'mnist', '--out', tmp_path, '--debug')[2]

def test_cifar_that_is_not_there(tmp_path):
    status,_,err = command('--data', 'cifar10', '--data-path', tmp_path, '--out', tmp_path/'o',
                           EKD_CACHE=str(tmp_path/'c'))
    assert status==2 and 'cifar10.npz' in err and 'Traceback' not in err

def test_a_failed_run_leaves_a_record_and_the_others_go_on(tmp_path, monkeypatch):
    whole = grid.run
    def run(p, name, *args, **kw):
        if name=='branched': raise RuntimeError('out of memory')
        return whole(p, name, *args, **kw)
    monkeypatch.setattr(grid, 'run', run)
    monkeypatch.setitem(PROTOCOLS, ('digits', 'quick'), protocol('digits', per_class=3, epochs=1, teacher_epochs=1))
    status = rep.main(['--preset', 'quick', '--methods', 'branched,plain', '--seeds', '0', '--out', str(tmp_path)])
    assert status==1
    assert [r['method'] for r in load_records(tmp_path/'runs')]==['plain']
    assert read_record(tmp_path/'failed'/'digits-quick-branched-1-s0.json')['error']=='RuntimeError: out of memory'

def test_records_are_not_made_twice_and_a_changed_one_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PROTOCOLS, ('digits', 'quick'), protocol('digits', per_class=3, epochs=1, teacher_epochs=1))
    args = ['--preset', 'quick', '--methods', 'plain', '--seeds', '0,1', '--out', str(tmp_path)]
    assert rep.main(args)==0
    first = {p.name: p.read_bytes() for p in (tmp_path/'runs').iterdir()}
    assert len(first)==2 and rep.main(args)==0
    assert {p.name: p.read_bytes() for p in (tmp_path/'runs').iterdir()}==first
    p = tmp_path/'runs'/'digits-quick-plain-1-s1.json'
    p.write_text(p.read_text().replace('"seed": 1', '"seed": 1 '))
    p.write_bytes(p.read_bytes()[:200])
    with pytest.warns(UserWarning, match='left out'): assert rep.main(args)==0
    again = read_record(p)
    assert again['test_accuracy']==json.loads(first[p.name])['test_accuracy']

def test_every_preset_and_method_is_in_the_help():
    text = rep.parser().format_help()
    assert all(p in text for p in PRESETS) and all(m.what in text for m in METHODS.values())
    assert 'smoke test, not a result' in text and text.count('\n  ekd_reproduce')==2

def test_the_version(capsys):
    with pytest.raises(SystemExit) as e: rep.main(['--version'])
    assert e.value.code==0 and re.fullmatch(r'ekd_nb \d+\.\d+\S*\n', capsys.readouterr().out)

def test_each_setting_has_a_picture_of_its_own():
    r = dict(data='digits', preset='quick', method='ekd', teacher_data='same', fraction=1., evaluated_on='test',
             variant='')
    others = dict(teacher_data='full', preset='demo', fraction=.5, evaluated_on='valid', variant='lam=.2',
                  data='cifar10')
    assert len({figure_name([r | {k: v}]) for k,v in others.items()} | {figure_name([r])})==len(others)+1

def test_runs_in_other_processes_say_how_far_they_are(tmp_path):
    code = f"""
from pathlib import Path
import ekd_nb.study.grid as grid
from ekd_nb.study.protocols import protocol
grid.EveryMinute.__init__.__defaults__ = (0.,)
p = protocol('digits', per_class=3, epochs=2, teacher_epochs=1)
jobs = [grid.make_job(p, 'plain', s) for s in (0, 1)]
grid.run_grid(jobs, grid.GridConfig(Path(r'{tmp_path}')/'out', Path(r'{tmp_path}')/'work', threads=1), n_jobs=2)
"""
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    assert all(f'plain, seed {s}: epoch 2/2' in r.stderr for s in (0, 1))

@pytest.mark.parametrize('data', ['digits'] + (['cifar10'] if os.environ.get('EKD_DATA') else []))
def test_held_out_images_are_in_no_training_set(data):
    arrays = load_images(data)
    p = protocol(data, 'small')
    rows = [training_rows(p, arrays.y_train, s) for s in range(3)]
    valid_idxs = set(rows[0][1])
    assert all(set(h)==valid_idxs and not valid_idxs&set(r) for r,h in rows)
    assert set(rows[0][0])!=set(rows[1][0])
    assert set(np.bincount(arrays.y_train[rows[0][0]]))=={p.per_class}

@pytest.mark.skipif(not os.environ.get('EKD_DATA'), reason='genuine CIFAR-10 wanted: EKD_DATA is not set')
def test_the_whole_path_on_genuine_cifar10(tmp_path):
    status,out,err = command('--data', 'cifar10', '--preset', 'quick', '--methods', 'plain,ekd', '--seeds', '0',
                             '--out', tmp_path)
    assert status==0, err
    assert 'roughly' in out.split('\n')[3] and '| EKD |' in out and 'A smoke test, not a result' in out
    r = {r['method']: r for r in load_records(tmp_path/'runs')}
    assert set(r)=={'plain', 'ekd'} and r['ekd']['fingerprint']==load_images('cifar10').fingerprint
    assert .1<r['ekd']['test_accuracy']<1 and len(r['ekd']['branch_accuracy'])==3 and len(r['ekd']['teachers'])==3
    assert (tmp_path/'cifar10-quick-full.png').stat().st_size>5000


def test_the_demonstration_is_the_default_loss_and_small_enough_for_two_minutes():
    "Four methods, five seeds, two runs at a time; what a caller names is kept"
    p, usual, cpu = protocol('digits', 'demo'), EKDLoss(), torch.device('cpu')
    theirs = make_loss(p, METHODS['ekd'])
    for k in ('alpha', 'beta', 'gamma', 'tau', 'lam', 'hint_error', 'hint_schedule', 'normalize_hints',
              'branch_reduction'):
        assert getattr(theirs, k) == getattr(usual, k), k
    methods, seeds, n_jobs = rep._settle(p, None, None, None, cpu)
    assert {'branched', 'kd_wide', 'ekd'} <= set(methods) and len(seeds) == 5 and n_jobs == min(2, os.cpu_count())
    assert rep._settle(p, ['ekd'], [7], 1, cpu) == [['ekd'], [7], 1]
    assert rep._settle(protocol('digits', 'small'), None, None, None, cpu)[1:] == [(0, 1, 2), 1]


def test_a_run_of_kd_in_the_demonstration_is_current_and_no_variant():
    "It has weights of its own, which its record holds"
    from dataclasses import asdict
    from ekd_nb.study.claims import describe_variant
    from ekd_nb.study.grid import make_job
    from ekd_nb.study.tables import is_current
    p = protocol('digits', 'demo')
    for name in ('kd_wide', 'kd', 'ekd', 'branched'):
        r = dict(method=name, data='digits', preset='demo', protocol=asdict(make_job(p, name).protocol))
        assert is_current(r) and describe_variant(r) == 'default', name
    assert make_job(p, 'kd_wide').protocol != p == make_job(p, 'ekd').protocol


@pytest.fixture
def by_processor_time(monkeypatch):
    "A function: seconds that a command takes over those it estimated, both of the processor, not of the clock"
    from ekd_nb.study import estimate as est
    monkeypatch.setattr(est, 'time', SimpleNamespace(perf_counter=time.process_time))
    told, seconds = [], rep._seconds
    monkeypatch.setattr(rep, '_seconds', lambda *a: told.append((seconds(*a), time.process_time())) or told[-1][0])
    def ratio(methods, seed, **kw):
        rep.reproduce('digits', 'demo', methods, [seed], n_jobs=1, log=len, **kw)
        estimated, begun = told[-1]
        return (time.process_time()-begun)/estimated
    return ratio


def test_an_estimate_is_near_what_a_run_takes(tmp_path, by_processor_time):
    "Within a factor of 1.5, for students alone, and with the training of their teachers and the cache"
    few = dict(changes=dict(epochs=30, teacher_epochs=3))
    by_processor_time(['branched'], 0, out=tmp_path, **few)   # warms up
    of_three = sorted(by_processor_time(['branched'], seed, out=tmp_path, **few) for seed in (1, 2, 3))
    assert 1/1.5 < of_three[1] < 1.5, of_three   # other processes slow single ones down
    assert 1/1.5 < by_processor_time(['kd_wide', 'ekd'], 0, out=tmp_path, **few) < 1.5


def test_an_estimate_counts_rounds_of_runs_and_how_runs_slow_each_other_down():
    from ekd_nb.study.estimate import crowding, side_by_side
    assert side_by_side(4., 2., 3, 20, 1) == 52 and side_by_side(4., 2., 3, 20, 2) == 28
    assert side_by_side(4., 2., 3, 21, 2, begin=3., slower=1.5) == 3+1.5*(8+22)
    assert crowding(1) == 1 and 1 <= crowding(2, .02) <= 2*max(1, 2/os.cpu_count())
    assert crowding(8, .05) > 4/os.cpu_count()   # eight at a time on two cores take four times as long, not twice


def test_the_minutes_of_the_help_are_near_those_of_the_records():
    "Training alone, one process; evaluation and the cache come on top"
    from ekd_nb.study.methods import MAIN_METHODS
    from ekd_nb.study.tables import page_records
    for data in ('cifar10', 'cifar100'):
        rs = [r for r in page_records(data, 'small') if r['wall_s'] and r['device'].startswith('CPU')]
        of = {m: [r['wall_s'] for r in rs if r['method']==m] for m in MAIN_METHODS}
        minutes = 3*sum(sum(v)/len(v) for v in of.values())/60
        assert 1/1.5 < minutes/float(rep._minutes_of(protocol(data, 'small'))) < 1.5


def test_the_preset_of_a_call_without_one_can_show_something():
    from ekd_nb.study.summary import SMOKE_TESTS, result_sentence
    assert rep.DEFAULT_PRESET['cifar10'] == rep.DEFAULT_PRESET['cifar100'] == 'small'
    assert set(rep.DEFAULT_PRESET) == {d for d, _ in PROTOCOLS}
    assert not set(rep.DEFAULT_PRESET.values()) & set(SMOKE_TESTS)
    smoke = [dict(method=m, preset='quick', seed=0, test_accuracy=.5, n_images=9) for m in ('branched', 'ekd')]
    assert result_sentence(smoke).startswith('A smoke test, not a result')
    assert all('smoke test, not a result' in PRESETS[p] for p in SMOKE_TESTS)


def test_every_preset_in_the_help_has_images_epochs_and_minutes():
    rows = [re.split(r' {2,}', l.strip()) for l in rep.presets_text().splitlines()[1:]]
    assert [tuple(r[:2]) for r in rows] == list(PROTOCOLS)
    for data, preset, images, epochs, minutes, what in rows:
        assert re.fullmatch(r'all|[\d,]+', images) and int(epochs) == PROTOCOLS[data, preset].epochs
        assert re.fullmatch(r'a GPU|\d+(-\d+)?', minutes) and what == PRESETS[preset]


def test_the_demonstration_ends_with_table_picture_and_sentence(tmp_path):
    "Two runs at a time, shorter than it is, its output in a file: lines on the way, and what they lead to"
    status, out, err = command('--set', 'epochs=2', '--set', 'teacher_epochs=1', '--methods', 'branched,ekd',
                               '--seeds', '0,1', '--jobs', '2', '--out', tmp_path)
    assert status == 0, err
    lines = out.splitlines()
    assert 'roughly' in lines[3] and sum(l.startswith('teachers: ') for l in lines) == 3
    assert sum(bool(re.fullmatch(r'digits-demo-.*%.* \(\d of 4\)', l)) for l in lines) == 4
    head = next(i for i, l in enumerate(lines) if l.startswith('| student |'))
    assert lines[head].count('|') == 6 and [l.split('|')[1].strip() for l in lines[head+2:head+4]] == [
        METHODS['branched'].label, METHODS['ekd'].label]
    assert re.search(r'\n2 seeds, 539 images: EKD is .* the same network on labels.*may be chance\.\n', out)
    picture = lines[-1].removeprefix('picture: ')
    assert Path(picture).parent == tmp_path and Path(picture).stat().st_size > 5000
