"Grids: on processes, on a real local Dask cluster, killed in the middle"
import signal, subprocess, sys, time
from importlib.util import find_spec
import pytest
from ekd_nb.core import EKDError
from ekd_nb.study.grid import make_job, GridConfig, run_grid, pending_jobs
from ekd_nb.study.protocols import protocol
from ekd_nb.study.records import load_records

TINY = protocol('digits', per_class=3, epochs=2, teacher_epochs=1)
JOBS = [make_job(TINY, m, s) for s in (0,1) for m in ('plain','ekd')]


def where(folder): return GridConfig(folder/'out', folder/'work', threads=1)
def results(folder):
    return {(r['method'], r['seed']): (r['test_accuracy'], r['nll']) for r in load_records(folder/'out'/'runs')}


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp('alone')
    assert run_grid(JOBS, where(folder))[1]==[]
    return results(folder)


needs_dask = pytest.mark.skipif(not find_spec('distributed'), reason="Dask is not installed: pip install '.[cluster]'")

@pytest.mark.parametrize('backend', ['loky', pytest.param('dask', marks=needs_dask)])
def test_two_workers_find_what_one_does(alone, backend, tmp_path):
    made,failed = run_grid(JOBS, where(tmp_path), 2, backend)
    assert failed==[] and len(made)==4
    assert all(results(tmp_path)[k]==pytest.approx(v, rel=1e-3) for k,v in alone.items())
    assert pending_jobs(JOBS, where(tmp_path))==[]


def test_only_what_is_missing_is_run(tmp_path):
    run_grid(JOBS[:1], where(tmp_path))
    made,_ = run_grid(JOBS[:2], where(tmp_path))
    assert [r['method'] for r in made]==['ekd']
    hotter = make_job(protocol('digits', per_class=3, epochs=2, teacher_epochs=1, tau=2.), 'ekd')
    assert len(run_grid([hotter], where(tmp_path))[0])==1        # another temperature is another run
    colder = make_job(hotter.protocol, 'plain')
    assert run_grid([colder], where(tmp_path))[0]==[]            # but not for a student that learns from labels


def test_nothing_starts_when_one_job_cannot(tmp_path):
    with pytest.raises(EKDError, match='leaves no image of class'):
        run_grid([*JOBS, make_job(TINY, 'plain', fraction=.01)], where(tmp_path))
    with pytest.raises(EKDError, match="method: got 'magic'"): make_job(TINY, 'magic')
    assert not (tmp_path/'out').exists()


LONG = """
from pathlib import Path
from ekd_nb.study.grid import make_job, GridConfig, run_grid
from ekd_nb.study.protocols import protocol
job = make_job(protocol('digits', per_class=3, epochs=60, teacher_epochs=1), 'plain')
run_grid([job], GridConfig(Path(r'{0}')/'out', Path(r'{0}')/'work', threads=1))
"""

def test_a_killed_run_goes_on(tmp_path):
    killed,whole = tmp_path/'killed',tmp_path/'whole'
    run = lambda folder: subprocess.Popen([sys.executable, '-W', 'ignore', '-c', LONG.format(folder)])
    p = run(killed)
    while not list(killed.rglob('fit0-epoch00*[1-9]-*.pth')):
        assert p.poll() is None, 'it was over before it could be killed'
        time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert results(killed)=={}
    assert run(killed).wait()==0 and run(whole).wait()==0
    assert results(killed)==results(whole)!={}
    assert not list(killed.rglob('*.pth'))                       # a finished run leaves no checkpoint
