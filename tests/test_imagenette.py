"Imagenette: its real loading code on a tiny folder of the same shape, and a run of its protocol on that"
import json
import numpy as np
import pytest
from PIL import Image
from ekd_nb.arrays import DATASETS, DataNotFound, ImageArrays, load_images
from ekd_nb.core import EKDError
from ekd_nb.folders import read_folders, read_square
from ekd_nb.models import count_params
from ekd_nb.study.methods import METHODS, ImageShape
from ekd_nb.study.protocols import PROTOCOLS, protocol, training_rows

WORDNET = ('n01440764 n02102040 n02979186 n03000684 n03028079 '
           'n03394916 n03417042 n03425413 n03445777 n03888257').split()


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A folder like `imagenette2-160`: JPEGs whose shorter side is 160, some grey, a class to each folder"
    root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for part, n in (('train', 6), ('val', 2)):
        for c, name in enumerate(WORDNET):
            (root/'imagenette2-160'/part/name).mkdir(parents=True)
            for i in range(n):
                shape = (160, 200+i, 3) if i % 2 else (213, 160, 3)
                pixels = (rng.integers(0, 120, shape) + 13*c).clip(0, 255).astype(np.uint8)
                im = Image.fromarray(pixels).convert('L' if i == 2 else 'RGB')
                im.save(root/'imagenette2-160'/part/name/f'{name}_{i}.JPEG')
    return root


@pytest.fixture(scope='module')
def data(tiny): return load_images('imagenette', tiny)


def test_images(data):
    assert data.x_train.shape == (60, 128, 128, 3) and data.x_test.shape == (20, 128, 128, 3)
    assert data.classes[0] == 'tench' and data.classes[-1] == 'parachute' and data.n_classes == 10
    assert np.bincount(data.y_train).tolist() == [6]*10 and data.views == DATASETS['imagenette'].views
    means = [data.x_train[data.y_train == c].mean() for c in range(10)]
    assert means == sorted(means)   # labels belong to their folders


def test_places(tiny, monkeypatch, data):
    same = data.fingerprint
    assert load_images('imagenette', tiny/'imagenette2-160').fingerprint == same
    monkeypatch.setenv('EKD_DATA', str(tiny))
    assert load_images('imagenette').fingerprint == same


def test_fastai_downloads_it(tiny, monkeypatch, data):
    import fastai.data.external as external
    asked = []
    monkeypatch.delenv('EKD_DATA', raising=False)
    monkeypatch.setattr(external, 'untar_data', lambda url: asked.append(url) or tiny/'imagenette2-160')
    assert load_images('imagenette').fingerprint == data.fingerprint and asked == [external.URLs.IMAGENETTE_160]
    def broken(url): raise OSError('no route to host')
    monkeypatch.setattr(external, 'untar_data', broken)
    with pytest.raises(DataNotFound, match='download of imagenette2-160 failed .*no route to host.*set EKD_DATA'):
        load_images('imagenette')


def test_bad_folders(tmp_path):
    with pytest.raises(DataNotFound, match='has no imagenette2-160'): load_images('imagenette', tmp_path)
    (tmp_path/'train').mkdir()
    with pytest.raises(EKDError, match='is no folder of classes'): load_images('imagenette', tmp_path)
    (tmp_path/'a.png').write_text('x')
    with pytest.raises(EKDError, match='is not a picture'): read_square(tmp_path/'a.png', 8)
    for side in (0, -1, 2.5, '8'):
        with pytest.raises(EKDError, match='side: got'): read_folders(tmp_path, side)


def test_a_square_is_the_middle(tmp_path):
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, 20:60] = 255
    Image.fromarray(pixels).save(tmp_path/'a.png')
    assert (read_square(tmp_path/'a.png', 40) == 255).all()
    assert read_square(tmp_path/'a.png', 10).shape == (10, 10, 3)


def test_folders_of_ones_own(tmp_path):
    for part in ('train', 'valid'):
        for c in 'ab':
            (tmp_path/part/c).mkdir(parents=True)
            for i in range(3):
                pixels = np.random.default_rng([i, ord(c), ord(part[0])]).integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path/part/c/f'{i}.png')
    arrays = ImageArrays.from_arrays('mine', **read_folders(tmp_path, 16, test='valid'))
    assert arrays.size == (16, 16) and arrays.classes == ['a', 'b'] and len(arrays.x_test) == 6


def test_protocols():
    assert {p for d, p in PROTOCOLS if d == 'imagenette'} == {'quick', 'full'}
    p = protocol('imagenette', 'full')
    pytest.importorskip('timm')
    from ekd_nb.networks import create_network
    assert type(create_network(p.student)).__module__.startswith('timm.')
    teachers = [create_network(a) for a in p.teachers]
    assert all(type(t).__module__.startswith('torchvision.') for t in teachers)
    assert min(map(count_params, teachers)) > count_params(create_network(p.student))


@pytest.mark.parametrize('name', ['plain', 'ekd', 'kd_wide', 'kd_flops', 'ekd_light'])
def test_students_of_the_protocol(name):
    "A wide opponent is as large as the branched student, also where it comes from timm"
    pytest.importorskip('timm')
    p, shape = protocol('imagenette', 'full'), ImageShape(10, 3, 128)
    s, what = METHODS[name].student(p, shape)
    if name in ('kd_wide', 'ekd_light'):
        most = count_params(METHODS['ekd'].student(p, shape)[0])
        assert .8*most < count_params(s) <= most and what.startswith('resnet10t-w')


def test_a_run(tiny, tmp_path):
    "Teachers, their cache, a student, a record; the command line reads the folder"
    pytest.importorskip('timm')
    from ekd_nb.study.reproduce import main
    args = ('--data imagenette --preset quick --methods ekd --seeds 0 --teacher-data same '
            '--no-figure --device cpu').split()
    small = 'per_class=3', 'n_valid=10', 'epochs=1', 'teacher_epochs=1', 'bs=10', 'n_curve=10'
    changes = [f'--set={c}' for c in small]
    out = ['--data-path', str(tiny), '--out', str(tmp_path/'out'), '--work', str(tmp_path/'work')]
    assert main(args+changes+out) == 0
    record, = [json.loads(f.read_text()) for f in (tmp_path/'out').rglob('*.json') if 'runs' in f.parts]
    assert record['data'] == 'imagenette' and record['n_train'] == 30 and len(record['teachers']) == 3
    assert 0 <= record['test_accuracy'] <= 1 and record['student'] == 'resnet10t×3 after layer1'


def test_bad_input_of_the_command(tmp_path, capsys):
    from ekd_nb.study.reproduce import main
    assert main(['--data', 'imagenette', '--data-path', str(tmp_path)]) == 2
    assert 'has no imagenette2-160, expected a folder that holds it' in capsys.readouterr().err.strip().splitlines()[-1]


def test_held_out_images(data):
    p = protocol('imagenette', 'quick', per_class=3, n_valid=10)
    rows, valid = training_rows(p, data.y_train, 0)
    assert len(rows) == 30 and len(valid) == 10 and not set(rows) & set(valid)
