"The scripts of examples/ do what their first lines say"
import os, re, subprocess, sys
from pathlib import Path
import pytest
import torch
from ekd_nb.deploy import load_student
from ekd_nb.models import get_model
from ekd_nb.teachers import save_teacher

pytest.importorskip('accelerate')
ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT/'examples'/'several_processes.py'
LAUNCH = ('-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 '
          '--mixed_precision no --dynamo_backend no')


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "A folder with two teachers"
    tmp = tmp_path_factory.mktemp('examples')
    torch.manual_seed(0)
    for i, a in enumerate(('resnet8-w6', 'wrn_10_1')): save_teacher(get_model(a, 10, 1), tmp/f't{i}.safetensors')
    return tmp


def run(here, launch, *args, teachers=('t0.safetensors', 't1.safetensors')):
    command = [sys.executable, '-W', 'ignore', *launch, SCRIPT, *teachers, '--cpu', '--epochs', '2', *args]
    env = {k: v for k, v in os.environ.items() if k not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')}
    env |= dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', HF_HOME=str(here/'hf'), PYTHONWARNINGS='ignore')
    return subprocess.run(command, cwd=here, capture_output=True, text=True, env=env, timeout=600)


def said(r):
    assert r.returncode == 0, r.stderr[-3000:]
    lines = [l for l in r.stdout.splitlines() if 'process(es)' in l]
    assert len(lines) == 1, r.stdout   # one process reports
    return lines[0], [int(n) for n in re.findall(r'\b\d+\b(?!\.)', re.sub(r'accuracy [\d.]+', '', lines[0]))]


def test_two_processes_and_one(here):
    text, (world, bs, steps, ran, images) = said(run(here, LAUNCH.split(), '--out', 'two'))
    assert (world, bs) == (2, 32), text
    alone, (one, bs1, steps1, ran1, images1) = said(run(here, (), '--out', 'one'))
    assert (one, bs1) == (1, 64) and steps == steps1 and images == images1
    # each process ran the teachers for its half
    assert ran1 == images and abs(2*ran-images) <= steps, (text, alone)
    files = ['run', 'student.json', 'student.md', 'student.safetensors']
    assert sorted(p.name for p in (here/'two').iterdir()) == files
    students = [load_student(here/f/'student.safetensors') for f in ('two', 'one')]
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert all(s(x).isfinite().all() for s in students) and students[0].n_branches == 2


def test_bad_input_is_one_sentence(here):
    r = run(here, (), teachers=('none.safetensors',))
    assert r.returncode and 'none.safetensors does not exist' in r.stderr.splitlines()[-1]
