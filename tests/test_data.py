"Sources, refusals, and fastai on top of `image_dls`: what the notebooks `arrays` and `data` do not show"
import os, pickle, types
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.torch_core import to_device
from ekd_nb import arrays as room
from ekd_nb.data import *


def random_arrays(n=40, m=12, size=32, channels=3, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    x = lambda k: rng.integers(0, 256, (k,size,size,channels), dtype=np.uint8)
    return dict(x_train=x(n), y_train=np.arange(n)%n_classes, x_test=x(m), y_test=np.arange(m)%n_classes, classes=[f'class {i}' for i in range(n_classes)])

def small(**kw): return ImageArrays.from_arrays('small', **random_arrays(**kw))

def same(a, b):
    assert a.fingerprint==b.fingerprint
    for k in ('x_train','y_train','x_test','y_test'): np.testing.assert_array_equal(getattr(a,k), getattr(b,k))

@pytest.fixture
def tiny_cifar(monkeypatch, tmp_path):
    "A stand-in for CIFAR-10 of 40 images, with nothing in EKD_DATA and an empty cache"
    arrays = random_arrays()
    fingerprint = ImageArrays.from_arrays('cifar10', **arrays).fingerprint
    monkeypatch.setitem(room.DATASETS, 'cifar10', replace(room.DATASETS['cifar10'], fingerprint=fingerprint))
    monkeypatch.delenv('EKD_DATA', raising=False)
    monkeypatch.setenv('EKD_CACHE', str(tmp_path/'cache'))
    return arrays

def shuffled(arrays, seed=1):
    rng,out = np.random.default_rng(seed),dict(arrays)
    for part in ('train','test'):
        i = rng.permutation(len(arrays[f'y_{part}']))
        out[f'x_{part}'],out[f'y_{part}'] = arrays[f'x_{part}'][i],arrays[f'y_{part}'][i].astype(np.uint8)
    return out

def fake_torchvision(arrays, calls):
    class CIFAR10:
        classes = arrays['classes']
        def __init__(self, root, train, download):
            assert download and Path(root).is_dir()
            calls.append(train)
            part = 'train' if train else 'test'
            self.data,self.targets = arrays[f'x_{part}'],arrays[f'y_{part}'].tolist()
    return types.SimpleNamespace(CIFAR10=CIFAR10)


# sources

def test_every_source_gives_the_same_rows(tiny_cifar, monkeypatch, tmp_path):
    by_hand = ImageArrays.from_arrays('cifar10', **tiny_cifar)
    calls,real = [],room.import_module
    monkeypatch.setattr(room, 'import_module', lambda o: fake_torchvision(shuffled(tiny_cifar,2), calls) if o=='torchvision.datasets' else real(o))
    downloaded = load_images('cifar10')
    assert calls==[True,False] and [f.name for f in (tmp_path/'cache').iterdir()]==['cifar10.npz']
    cached = load_images('cifar10')
    assert len(calls)==2, 'the second time comes from the cache'
    (tmp_path/'mine').mkdir()
    np.savez(tmp_path/'mine'/'cifar10.npz', **shuffled(tiny_cifar,3))
    given_folder,given_file = load_images('cifar10', tmp_path/'mine'),load_images('cifar10', tmp_path/'mine'/'cifar10.npz')
    monkeypatch.setenv('EKD_DATA', str(tmp_path/'mine'))
    (tmp_path/'cache'/'cifar10.npz').unlink()
    for o in (downloaded, cached, given_folder, given_file, load_images('cifar10')): same(o, by_hand)

def test_no_file_and_no_network(tiny_cifar, monkeypatch, tmp_path):
    def offline(*args, **kwargs): raise OSError('no network')
    monkeypatch.setattr(room, 'import_module', lambda o: types.SimpleNamespace(CIFAR10=offline))
    with pytest.raises(DataNotFound, match='no network.*set EKD_DATA to a folder that holds cifar10.npz'): load_images('cifar10')
    assert not list((tmp_path/'cache').iterdir()), 'a failed download leaves nothing'

def test_path_without_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='has no cifar100.npz'): load_images('cifar100', tmp_path)

@pytest.mark.parametrize('change, says', [
    (dict(x_train=lambda a: a/255),            'x_train is float64'),
    (dict(x_test=lambda a: a[...,0]),          r'x_test is uint8 \[12, 32, 32\]'),
    (dict(y_train=lambda a: a[:-1]),           r'y_train is int64 \[39\], expected integers \[40\]'),
    (dict(y_test=lambda a: a+.5),              'y_test is float64'),
    (dict(y_train=lambda a: a+1),              'labels 1 to 4, expected 0 to 3'),
    (dict(x_test=lambda a: a[:,:16]),          'x_test holds images'),
    (dict(x_train=lambda a: a[::-1]),          'is not the known cifar10'),
    (dict(y_train=lambda a: np.roll(a,1)),     'is not the known cifar10'),
    (dict(classes=lambda a: np.array([{}])),   'cannot be read as an .npz file of plain arrays'),
    (dict(classes=None),                       'lacks classes'),
])
def test_bad_npz(tiny_cifar, tmp_path, change, says):
    (key,f), = change.items()
    if f is None: del tiny_cifar[key]
    else: tiny_cifar[key] = f(tiny_cifar[key])
    np.savez(tmp_path/'cifar10.npz', **tiny_cifar)
    with pytest.raises(EKDError, match=says): load_images('cifar10', tmp_path)

def test_truncated_npz(tiny_cifar, tmp_path):
    np.savez(tmp_path/'cifar10.npz', **tiny_cifar)
    (tmp_path/'cifar10.npz').write_bytes((tmp_path/'cifar10.npz').read_bytes()[:5000])
    with pytest.raises(EKDError, match='cannot be read'): load_images('cifar10', tmp_path)

@pytest.mark.skipif(not os.environ.get('EKD_DATA'), reason='needs the real CIFAR: EKD_DATA is not set')
@pytest.mark.parametrize('name,n', [('cifar10',10),('cifar100',100)])
def test_real_cifar(name, n):
    data = load_images(name)
    assert data.x_train.shape==(50000,32,32,3) and (np.bincount(data.y_train)==50000//n).all() and data.views.n==162
    assert (np.bincount(data.y_train[stratified_subset(data.y_train, fraction=.02, seed=1)])==1000//n).all()


# subsets and splits

@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0,4), min_size=10, max_size=80), st.integers(1,60), st.integers(0,3))
def test_split_is_stratified_and_disjoint(y, n_valid, seed):
    y = np.array(y)
    try: train,valid = stratified_split(y, n_valid, seed)
    except EKDError: return
    assert len(valid)==n_valid and sorted([*train,*valid])==list(range(len(y)))
    for c in np.unique(y): assert abs((y[valid]==c).sum() - n_valid*(y==c).mean()) < 1 and (y[train]==c).any()

@settings(max_examples=50, deadline=None)
@given(st.integers(0,5), st.integers(1,9), st.integers(1,9))
def test_subsets_are_nested(seed, a, b):
    y = np.repeat(np.arange(3),10)
    a,b = sorted((a,b))
    small,large = stratified_subset(y, n_per_class=a, seed=seed),stratified_subset(y, fraction=b/10, seed=seed)
    assert set(small)<=set(large) and (np.bincount(y[small])==a).all() and (np.bincount(y[large])==b).all()

def test_empty_class_is_named():
    with pytest.raises(EKDError, match="leaves no image of class 'cat', which has 2 images"):
        stratified_subset(np.array([0]*100+[1]*2), fraction=.1, classes=['dog','cat'])


# loaders

def test_no_test_image_in_training():
    data = small()
    dls = image_dls(data, valid=8, bs=8, augment=False)
    seen = {im.tobytes() for x,y in list(dls.train)+list(dls[1]) for im in (dls.train.decode((x,y))[0]*255).round().byte().permute(0,2,3,1).contiguous().numpy()}
    assert seen=={im.tobytes() for im in data.x_train} and not seen & {im.tobytes() for im in data.x_test}

def test_views_and_order_do_not_depend_on_batches():
    data = small()
    def seen(**kw):
        dl,out = image_dls(data, **kw).train,[]
        for _ in range(3): out.append({int(i):int(v) for x,y in dl for i,v in zip(*x.key)})
        return out
    whole = seen(bs=7, seed=5)
    assert whole==seen(bs=40, seed=5) and whole!=seen(bs=7, seed=6)
    part = seen(idx=np.arange(5,25), bs=3, seed=5)
    assert all(w[i]==p[i] for w,p in zip(whole,part) for i in range(5,25))

def test_same_seed_same_bits_and_resuming():
    data = small()
    run = lambda dl,n: [x.clone() for _ in range(n) for x,y in dl]
    a,b = run(image_dls(data, bs=16, seed=1).train, 4),image_dls(data, bs=16, seed=1).train
    b.set_epoch(2)
    later = run(b, 2)
    assert len(a)==12 and all(torch.equal(p,q) for p,q in zip(a[6:],later)) and b.epoch==4
    b.one_batch()
    assert b.epoch==4

def test_valid_and_rows():
    data = small()
    dls = image_dls(data, valid=8, seed=3)
    assert [len(o.dataset) for o in dls]==[32,8,12] and not set(dls.train.dataset.rows.tolist()) & set(dls[1].dataset.rows.tolist())
    assert torch.equal(dls[1].dataset.rows, image_dls(data, valid=8, seed=4)[1].dataset.rows)
    x,y = dls[1].one_batch()
    assert (x.key.view==data.views.identity).all() and torch.equal(torch.tensor(data.y_train)[x.key.idx], y.as_subclass(torch.Tensor))
    assert dls[2].one_batch()[0].key is None
    dls = image_dls(data, valid=np.arange(10))
    assert [len(o.dataset) for o in dls]==[30,10,12]
    assert dls.train.dataset.store is dls[1].dataset.store

@pytest.mark.parametrize('kw, says', [
    (dict(valid='train'), "valid: got 'train', expected 'test'"),
    (dict(valid=np.arange(10), idx=np.arange(5,20)), 'valid shares 5 images with idx'),
    (dict(valid=np.arange(40)), 'expected at least one row'),
    (dict(idx=[]), 'expected at least one row'),
    (dict(idx=[40]), 'idx holds rows 40 to 40, expected 0 to 39'),
    (dict(idx=np.ones(40,bool)), 'idx is bool'),
    (dict(valid=40), 'n_valid: got 40, expected 1 to 39'),
    (dict(n_views=0), 'n_views: got 0, expected 1 to 162'),
    (dict(n_views=163), 'n_views: got 163'),
])
def test_refused(kw, says):
    with pytest.raises(EKDError, match=says): image_dls(small(), **kw)

def test_batches():
    data = small(n=33)
    dls = image_dls(data, bs=16, n_views=2, channels_last=True)
    assert [len(x) for x,y in dls.train]==[16,16,1] and len(dls.train)==3
    x,y = dls.one_batch()
    assert x.dtype==torch.float32 and y.dtype==torch.int64 and x.is_contiguous(memory_format=torch.channels_last)
    assert image_dls(data).one_batch()[0].is_contiguous()
    plain = image_dls(data, augment=False).one_batch()[0].key
    assert (plain.view==data.views.identity).all()
    views = {(int(i),int(v)) for _ in range(5) for x,y in dls.train for i,v in zip(*x.key)}
    assert len(views)==2*33

def test_key_survives():
    x,y = image_dls(small(), bs=8).one_batch()
    assert to_device((x,y), 'cpu')[0].key is x.key and torch.equal((x*2).key.idx, x.key.idx)
    assert torch.equal(pickle.loads(pickle.dumps(x.key)).view, x.key.view)

def test_memory_is_shared():
    data = small()
    dls = image_dls(data, valid=8)
    for dl in dls[:2]: assert dl.dataset.store.x.data_ptr()==data.x_train.ctypes.data
    assert dls[2].dataset.store.x.data_ptr()==data.x_test.ctypes.data


# fastai on top

def learner(data, **kw):
    torch.manual_seed(0)
    c = data.channels
    net = nn.Sequential(nn.Conv2d(c,4,3,stride=2,padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16,data.n_classes))
    learn = Learner(image_dls(data, bs=16), net, **kw)
    with learn.no_logging(), learn.no_mbar(): learn.fit(1)
    return learn

@pytest.mark.parametrize('channels,size', [(3,32),(1,8)])
def test_new_images_in_every_form(tmp_path, channels, size):
    data = small(n=33, channels=channels, size=size)
    learn = learner(data)
    pil = [Image.fromarray(o.squeeze()) for o in data.x_test]
    files = [tmp_path/f'{i}.png' for i in range(len(pil))]
    for im,f in zip(pil,files): im.save(f)
    preds = learn.get_preds()[0]
    for items in (data.x_test, list(data.x_test), pil, files, [str(f) for f in files], torch.tensor(data.x_test)):
        torch.testing.assert_close(learn.get_preds(dl=learn.dls.test_dl(items))[0], preds)
    for item in (pil[0], data.x_test[0], files[0]):
        label,i,p = learn.predict(item)
        assert label==data.classes[i]; torch.testing.assert_close(p, preds[0])
    preds_,y = learn.get_preds(dl=learn.dls.test_dl(list(zip(data.x_test,data.y_test))))
    assert torch.equal(preds_,preds) and y.tolist()==data.y_test.tolist()

@pytest.mark.parametrize('items, says', [
    ([np.zeros((40,32,3),np.uint8)], r'an image is uint8 \[40, 32, 3\], expected uint8 \[32, 32, 3\]'),
    (np.zeros((2,32,32,3)), 'an image is float64'),
    ([Image.new('L',(31,32))], r'uint8 \[32, 31, 3\]'),
])
def test_wrong_images(items, says):
    with pytest.raises(EKDError, match=says): image_dls(small()).test_dl(items)

def test_export_holds_no_image(tmp_path):
    data = small(n=400)
    learn = learner(data, path=tmp_path)
    preds = learn.get_preds()[0]
    learn.export('student.pkl')
    file = (tmp_path/'student.pkl').read_bytes()
    assert len(file)<data.x_train.nbytes/10 and not any(im.tobytes() in file for im in data.x_train[:5])
    again = load_learner(tmp_path/'student.pkl')
    assert [len(o.dataset) for o in again.dls]==[0,0] and again.dls.data_fingerprint==data.fingerprint
    assert torch.equal(again.get_preds(dl=again.dls.test_dl(data.x_test))[0], preds)
    assert again.predict(data.x_test[0])[0]==learn.predict(data.x_test[0])[0]

@pytest.mark.parametrize('channels', [1,3])
def test_interpretation_and_pictures(channels):
    import matplotlib; matplotlib.use('Agg')
    data = small(channels=channels)
    learn = learner(data)
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum()==len(data.x_test)
    interp.plot_top_losses(3)
    learn.show_results(max_n=3)
    for dl in learn.dls: dl.show_batch(max_n=3)
    learn.dls.show_batch(unique=True, max_n=3)
    shown = learn.dls.valid.decode_batch(learn.dls.valid.one_batch(), max_n=2)
    np.testing.assert_allclose(shown[0][0].permute(1,2,0).numpy()*255, data.x_test[0], atol=1e-3)
    assert shown[0][1]==data.classes[data.y_test[0]]
