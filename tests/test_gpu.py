"The script for a short time on a GPU: rehearsed on the CPU with digits"
import importlib.util, json, subprocess, sys, tarfile
from pathlib import Path
import pytest, torch
from ekd_nb.arrays import load_images
from ekd_nb.models import get_model
from ekd_nb.teachers import load_teacher, read_manifest

SCRIPT = Path(__file__).resolve().parents[1]/'tools/gpu.py'
spec = importlib.util.spec_from_file_location('gpu', SCRIPT)
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


def images(): return gpu.DeviceImages(load_images('digits'), torch.device('cpu'))


def test_rehearsal_writes_teachers_and_goes_on_where_it_stopped(tmp_path):
    def rehearse():
        command = [sys.executable, SCRIPT, '--tiny', '--graph', '--out', tmp_path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    out = rehearse()
    assert 'no CUDA graph: there is no GPU' in out and 'together' in out
    done = json.loads((tmp_path/'digits-teachers.json').read_text())
    assert [t['arch'] for t in done['teachers']] == gpu.TINY_ARCHS.split(',')
    for t in done['teachers']:
        path = tmp_path/f'digits-{t["arch"]}.safetensors'
        info = read_manifest(path)
        assert info['accuracy'] == t['accuracy'] and info['epochs'] == 1 and not load_teacher(path).training
    before = (tmp_path/'digits-wrn_10_1.json').read_bytes()
    (tmp_path/'digits-resnet8-w4.json').unlink()
    out = rehearse()
    assert 'digits wrn_10_1: epoch' not in out and 'digits resnet8-w4: epoch 1/1' in out
    assert (tmp_path/'digits-wrn_10_1.json').read_bytes() == before


def test_students_write_records_and_go_on_where_they_stopped(tmp_path):
    "The plan of protocol `full`, on digits: two runs, then two others; everything is packed"
    def rehearse():
        folders = [f'--{k}={tmp_path/v}' for k, v in (('out', 'out'), ('work-dir', 'work'), ('pack-dir', 'pack'))]
        few = ['--tiny', '--most=2', '--workers=1', '--profile-s=.2']
        command = [sys.executable, '-W', 'ignore', SCRIPT, 'students', *few, *folders]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first, second = rehearse(), rehearse()
    assert '2 test runs, 0 choices, 0 failed' in first and '4 test runs, 0 choices, 0 failed' in second
    assert 'images/s' in first and 'no CUDA graph' not in first
    records = [json.loads(f.read_text()) for f in (tmp_path/'out/runs').glob('*.json')]
    assert {r['engine'] for r in records} == {'fixed'} and len({(r['method'], r['seed']) for r in records}) == 4
    with tarfile.open(tmp_path/'pack/records.tgz') as tar: assert len(tar.getnames()) == 4
    assert {p.name for p in (tmp_path/'pack').iterdir()} == {'records.tgz', 'logits-digits.tar', 'profile.json'}


def test_an_epoch_draws_each_row_once_and_whole_batches():
    im = images()
    drawn = im.draw_epoch(100)
    assert drawn.shape == (len(im.y)//100, 2, 100) and drawn[:, 0].unique().numel() == drawn[:, 0].numel()
    assert 0 <= drawn[:, 1].min() and drawn[:, 1].max() < im.views.n


def test_the_identity_view_is_the_image():
    im = images()
    rows = torch.arange(5)
    x, y = im.batch(torch.stack([rows, torch.full_like(rows, im.views.identity)]))
    assert torch.equal(x, im.normalise(im.x[:5].permute(0, 3, 1, 2))) and torch.equal(y, im.y[:5])


def test_measuring_the_speed_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    step = gpu.TrainStep(get_model('resnet8-w4', 10, 1), images(), 64)
    before = {k: v.clone() for k, v in step.model.state_dict().items()}
    assert gpu.seconds_per_epoch(step, 64, .05) > 0
    assert all(torch.equal(v, before[k]) for k, v in step.model.state_dict().items())


def test_the_learning_rate_rises_and_comes_down_to_zero():
    lrs = [gpu.one_cycle(i/100) for i in range(101)]
    assert max(lrs) == pytest.approx(1) == lrs[20] and lrs[0] < .05 and lrs[100] < 1e-6
    assert lrs[:21] == sorted(lrs[:21]) and lrs[20:] == sorted(lrs[20:], reverse=True)
