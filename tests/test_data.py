"Sources, refusals, and fastai on top of `image_dls`: what the notebooks `arrays` and `data` do not show"
import random
import os, pickle, types, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, SubsetRandomSampler, TensorDataset
from torch.utils.data import WeightedRandomSampler
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.core import Pipeline, TfmdDL, Transform
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.torch_core import TensorImage, to_device
from fastai.vision.augment import Brightness, FlipItem, RandomErasing, Rotate
from ekd_nb import arrays as room
from ekd_nb.data import *
from ekd_nb.loaders import last_batch_size, n_items


def random_arrays(n=40, m=12, size=32, channels=3, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    x = lambda k: rng.integers(0, 256, (k,size,size,channels), dtype=np.uint8)
    return dict(x_train=x(n), y_train=np.arange(n)%n_classes, x_test=x(m), y_test=np.arange(m)%n_classes,
                classes=[f'class {i}' for i in range(n_classes)])

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
    def fake(o): return fake_torchvision(shuffled(tiny_cifar,2), calls) if o=='torchvision.datasets' else real(o)
    monkeypatch.setattr(room, 'import_module', fake)
    downloaded = load_images('cifar10')
    assert calls==[True,False] and [f.name for f in (tmp_path/'cache').iterdir()]==['cifar10.npz']
    cached = load_images('cifar10')
    assert len(calls)==2, 'the second time comes from the cache'
    (tmp_path/'mine').mkdir()
    np.savez(tmp_path/'mine'/'cifar10.npz', **shuffled(tiny_cifar,3))
    given_folder = load_images('cifar10', tmp_path/'mine')
    given_file = load_images('cifar10', tmp_path/'mine'/'cifar10.npz')
    monkeypatch.setenv('EKD_DATA', str(tmp_path/'mine'))
    (tmp_path/'cache'/'cifar10.npz').unlink()
    for o in (downloaded, cached, given_folder, given_file, load_images('cifar10')): same(o, by_hand)

def test_no_file_and_no_network(tiny_cifar, monkeypatch, tmp_path):
    def offline(*args, **kwargs): raise OSError('no network')
    monkeypatch.setattr(room, 'import_module', lambda o: types.SimpleNamespace(CIFAR10=offline))
    wanted = 'no network.*set EKD_DATA to a folder that holds cifar10.npz'
    with pytest.raises(DataNotFound, match=wanted): load_images('cifar10')
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
    def images(b): return (dls.train.decode(b)[0]*255).round().byte().permute(0,2,3,1).contiguous().numpy()
    seen = {im.tobytes() for b in [*dls.train, *dls[1]] for im in images(b)}
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
    assert [len(o.dataset) for o in dls]==[32,8,12]
    assert not set(dls.train.dataset.rows.tolist()) & set(dls[1].dataset.rows.tolist())
    assert torch.equal(dls[1].dataset.rows, image_dls(data, valid=8, seed=4)[1].dataset.rows)
    x,y = dls[1].one_batch()
    assert (x.key.view==data.views.identity).all()
    assert torch.equal(torch.tensor(data.y_train)[x.key.idx], y.as_subclass(torch.Tensor))
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
    net = nn.Sequential(nn.Conv2d(c,4,3,stride=2,padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                        nn.Flatten(), nn.Linear(16,data.n_classes))
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


# own data sets

def test_a_data_set_is_one_row(monkeypatch, tmp_path):
    arrays = random_arrays()
    np.savez(tmp_path/'mine.npz', **arrays)
    row = room.DataSource(room.load_npz_arrays, ViewSet(2,True), 4)
    monkeypatch.setitem(room.DATASETS, 'mine', row)
    data = load_images('mine', tmp_path)
    same(data, ImageArrays.from_arrays('mine', **arrays))
    assert data.views==ViewSet(2,True)
    monkeypatch.setitem(room.DATASETS, 'mine', replace(row, fingerprint='0'*64))
    with pytest.raises(EKDError, match='is not the known mine'): load_images('mine', tmp_path)
    monkeypatch.setenv('EKD_CACHE', str(tmp_path/'empty'))
    monkeypatch.delenv('EKD_DATA', raising=False)
    wanted = 'mine is not in .*set EKD_DATA to a folder that holds mine.npz'
    with pytest.raises(DataNotFound, match=wanted): load_images('mine')

def test_predictions_find_back_to_the_arrays():
    "a learner that is right about every image is right in the user's own order too"
    arrays = random_arrays(n=60, m=30)
    data = ImageArrays.from_arrays('mine', **arrays)
    np.testing.assert_array_equal(data.x_train, arrays['x_train'][data.order_train])
    truth = {im.tobytes(): y for im,y in zip(arrays['x_test'], arrays['y_test'])}
    class Knows(nn.Linear):
        def forward(self, x):
            pixels = (dls.valid.decode((x,))[0]*255).round().byte().permute(0,2,3,1).contiguous().numpy()
            return torch.eye(4)[torch.tensor([truth[im.tobytes()] for im in pixels])]
    dls = image_dls(data, bs=16, device='cpu')
    learn = Learner(dls, Knows(1,1))
    with learn.no_mbar(): preds,y = learn.get_preds()
    assert (preds.argmax(1).numpy()==arrays['y_test'][data.order_test]).all()
    assert (preds.argmax(1)==y).all() and (preds.argmax(1).numpy()!=arrays['y_test']).any()


def test_rows_chosen_in_ones_own_order_are_found():
    "idx counts rows of the sorted arrays: `order_train` turned round finds the user's own"
    arrays = random_arrays(n=60, m=30)
    data = ImageArrays.from_arrays('mine', **arrays)
    mine = np.array([7, 3, 41, 12])
    dls = image_dls(data, idx=np.argsort(data.order_train)[mine], bs=4, n_views=1, device='cpu')
    rows = dls.train.dataset.rows.numpy()
    seen = {im.tobytes() for im in data.x_train[rows]}
    assert seen=={im.tobytes() for im in arrays['x_train'][mine]}
    assert sorted(data.y_train[rows])==sorted(arrays['y_train'][mine])
    wrong = {im.tobytes() for im in data.x_train[mine]}
    assert seen!=wrong


# the same picture twice

def test_repeated_rows_stay_on_one_side():
    data = small(n=96)
    idx = np.r_[np.arange(96), np.repeat(np.flatnonzero(data.y_train==0), 5)]
    dls = image_dls(data, idx=idx, valid=40, bs=32, device='cpu')
    a,b = (o.dataset.rows.numpy() for o in (dls.train, dls.valid))
    assert len(b)==40==len(np.unique(b)) and not np.isin(b, a).any()
    assert sorted([*a, *b]) == sorted(idx[np.isin(idx, a)].tolist()+b.tolist()) and set(a)|set(b)==set(range(96))
    assert np.bincount(a).max()==6, 'oversampling goes on in the training part'

def test_split_without_copies_is_the_old_one():
    data = small(n=60)
    idx = np.random.default_rng(0).permutation(60)[:50]
    train,valid = stratified_split(data.y_train[idx], 10)
    dls = image_dls(data, idx=idx, valid=10, device='cpu')
    np.testing.assert_array_equal(dls.train.dataset.rows, idx[train])
    np.testing.assert_array_equal(dls[1].dataset.rows, idx[valid])

def test_copied_images_stay_on_one_side():
    "images that were copied before they became arrays"
    a = random_arrays(n=40)
    i = np.r_[np.arange(40), np.arange(20), np.arange(10)]
    data = ImageArrays.from_arrays('copies', **dict(a, x_train=a['x_train'][i], y_train=a['y_train'][i]))
    def pixels(rows): return {data.x_train[r].tobytes() for r in rows.tolist()}
    for valid in (12, np.arange(0,70,7)):
        dls = image_dls(data, valid=valid, device='cpu')
        assert not pixels(dls.train.dataset.rows) & pixels(dls[1].dataset.rows)
    copied = int(np.flatnonzero(np.bincount(data.picture)>1)[0])
    first,*rest = np.flatnonzero(data.picture==copied)
    with pytest.warns(UserWarning, match=f'{len(rest)} training images are copies of held-out images'):
        image_dls(data, idx=np.setdiff1d(np.arange(70), [first]), valid=[first], device='cpu')

def test_test_images_that_were_trained_on_are_reported():
    a = random_arrays()
    a['x_test'][3],a['x_test'][7] = a['x_train'][5],a['x_train'][5]
    with pytest.warns(UserWarning, match='mine: 2 of 12 test images are training images too'):
        data = ImageArrays.from_arrays('mine', **a)
    assert {im.tobytes() for im in data.x_test[data.shared_pictures()]}=={a['x_train'][5].tobytes()}


# transforms of fastai

def test_validation_is_not_augmented():
    data = small(n=48)
    dls = image_dls(data, bs=48, device='cpu')
    dls.add_tfms([Rotate(max_deg=90,p=1.), Brightness(p=1.), RandomErasing(p=1.)], 'after_batch')
    plain = image_dls(data, bs=48, device='cpu').valid.one_batch()[0]
    for _ in range(2): torch.testing.assert_close(dls.valid.one_batch()[0], plain, atol=1e-3, rtol=1e-3)
    x = [dls.train.one_batch()[0] for _ in range(2)]
    assert not torch.equal(*x) and x[0].isfinite().all() and x[0].abs().max()<20

def test_transforms_see_pixels_from_0_to_1():
    seen = []
    def look(x:TensorImage): seen.append((x.dtype, float(x.min()), float(x.max()))); return x
    data = small()
    dls = image_dls(data, augment=False, bs=8, device='cpu')
    plain = dls.valid.one_batch()[0]
    dls.add_tfms([Transform(look)], 'after_batch')
    torch.testing.assert_close(dls.valid.one_batch()[0], plain, atol=1e-5, rtol=1e-5)
    (dtype,lo,hi), = seen
    assert dtype==torch.float32 and 0<=lo<.01 and .99<hi<=1

def test_random_erasing_runs_in_training_only():
    torch.manual_seed(0); random.seed(0)
    data = small()
    dls = image_dls(data, bs=48, device='cpu', augment=False)
    i = torch.arange(9)
    train,valid = dls.train.make_batch(i)[0],dls.valid.make_batch(i)[0]
    dls.add_tfms([RandomErasing(p=1., sl=.2, sh=.5)], 'after_batch')
    changed = (dls.train.make_batch(i)[0]!=train).float().mean()
    assert .1<changed<.7 and torch.allclose(dls.valid.make_batch(i)[0], valid, atol=1e-5)

def test_item_transforms_are_refused():
    dls = image_dls(small(), device='cpu')
    dls.add_tfms([FlipItem(p=1.)], 'after_item', loaders='train')
    with pytest.raises(EKDError, match="after_item: got 'FlipItem', expected none.*'after_batch'"): dls.one_batch()
    dls.valid.one_batch()

def test_tta_is_the_mean_over_views():
    learn = learner(small(n=48))
    dl = learn.dls.valid
    ds,first = dl.dataset,dl.epoch
    order = view_order(len(ds), ds.views)[:, first:first+3].long()
    def preds(view):
        x = ds.normalize(TensorImage(crop_flip(ds.store.x, view, ds.views)))
        return learn.model.eval()(x).softmax(1)
    with torch.no_grad(): each = [preds(v) for v in order.T]
    assert not torch.allclose(each[0], each[1], atol=1e-3)
    with learn.no_mbar(): mine,y = learn.tta(n=3, beta=0.)
    assert torch.equal(y, ds.store.y) and dl.epoch==first and ds.split_idx==1 and ds.passes is None
    torch.testing.assert_close(mine, torch.stack(each).mean(0).as_subclass(torch.Tensor), atol=1e-4, rtol=1e-4)
    with learn.no_mbar(): torch.testing.assert_close(learn.tta(n=1, beta=1.)[0], learn.get_preds()[0])

def test_tta_with_transforms_keeps_the_normalisation():
    learn = learner(small(n=48))
    with learn.no_mbar():
        preds,_ = learn.get_preds()
        mine,_ = learn.tta(n=2, batch_tfms=[Brightness(max_lighting=1e-6, p=1.)], beta=1.)
    torch.testing.assert_close(mine, preds, atol=1e-3, rtol=1e-3)

def test_split_idx_comes_back_after_an_error():
    ds = image_dls(small(), device='cpu').valid.dataset
    with pytest.raises(KeyError):
        with ds.set_split_idx(0): raise KeyError
    assert ds.split_idx==1


# keys that describe the pixels

def test_views_are_named_only_without_other_transforms():
    dls = image_dls(small(), bs=8, device='cpu')
    assert no_key_reason(dls.train)=='' and dls.one_batch()[0].key.view is not None
    dls.add_tfms([Rotate(p=1.)], 'after_batch', loaders='train')
    key = dls.one_batch()[0].key
    assert key.view is None and len(key.idx)==8 and 'Rotate' in no_key_reason(dls.train)

def test_another_normalisation_is_another_transform():
    data = small()
    dls = image_dls(data, bs=8, device='cpu')
    dls.train.after_batch = Pipeline([PixelNormalize([.5]*3, [.5]*3)])
    assert dls.one_batch()[0].key.view is None and 'PixelNormalize' in no_key_reason(dls.train)
    for dl in (TfmdDL(data.x_train), DataLoader(data.x_train), dls.valid): assert 'does not name' in no_key_reason(dl)

def test_loader_notes_the_version_of_its_pixels(tmp_path):
    x,y = image_dls(small(), bs=8, device='cpu').one_batch()
    made = x.made
    assert pixels_unchanged(x, made) and pixels_unchanged(x.as_subclass(torch.Tensor), made)
    assert not pixels_unchanged(x.flip(3), made) and not pixels_unchanged(x[:4], made)
    x.mul_(2)
    assert not pixels_unchanged(x, made) and not pixels_unchanged(x, None)

class Changes(Callback):
    "Changes images before everything else looks at them"
    order = -20
    def __init__(self, change): self.change = change
    def before_batch(self):
        if self.training: self.learn.xb = (self.change(self.xb[0]),)

class Errors(Callback):
    "Largest distance of the teachers' outputs in `pred` from those of the teacher itself"
    order,worst = 50,0.
    def __init__(self, teacher): self.teacher = teacher
    def after_pred(self):
        if not self.training: return
        with torch.no_grad(): right = self.teacher(self.xb[0].as_subclass(torch.Tensor))
        self.worst = max(self.worst, float((self.learn.pred.teacher.logits[0]-right).abs().max()))

CHANGES = dict(nothing=None, rotated=None, erased=None, mixed=None, flipped=lambda x: x.flip(3),
               in_place=lambda x: x.mul_(.5), copied=lambda x: x[:len(x)//2].repeat(2,1,1,1))
@pytest.mark.parametrize('how', CHANGES)
def test_memo_with_changed_pixels_is_the_live_teacher(how):
    from ekd_nb.learner import ekd_learner
    from ekd_nb.models import get_model
    dls,change = image_dls(small(n=48, size=16), bs=16, n_views=1, device='cpu'),CHANGES[how]
    if how=='rotated': dls.add_tfms([Rotate(max_deg=40,p=1.)], 'after_batch', loaders='train')
    if how=='erased': dls.add_tfms([RandomErasing(p=1.)], 'after_batch', loaders='train')
    torch.manual_seed(0)
    teacher = get_model('resnet8', 4).eval()
    errors,cbs = Errors(teacher),[]
    if callable(change): cbs = [Changes(change)]
    if how=='mixed': cbs = [MixUp(1.)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        learn = ekd_learner(dls, 'resnet8-w4', [teacher], memo=True, cbs=[*cbs, errors])   # says so, or the first batch
        with learn.no_mbar(), learn.no_logging(): learn.fit(3, 1e-3)
    told = [str(w.message) for w in caught if str(w.message).startswith('memo:')]
    assert errors.worst<.01, 'what the memo rounds, and no more'
    assert (learn.distill.memo.hits==96)==(how=='nothing') and len(told)==(how!='nothing')


# how many images a pass has

DS = TensorDataset(torch.randn(65,3,4,4), torch.arange(65))
@pytest.mark.parametrize('make', [
    lambda: DataLoader(DS, batch_size=16),
    lambda: DataLoader(DS, batch_size=16, drop_last=True),
    lambda: DataLoader(DS, batch_size=1),
    lambda: DataLoader(DS, batch_size=16, sampler=SubsetRandomSampler(range(64))),
    lambda: DataLoader(DS, batch_size=16, sampler=SubsetRandomSampler(range(33))),
    lambda: DataLoader(DS, batch_size=16, sampler=WeightedRandomSampler([1.]*65, 97), drop_last=True),
    lambda: DataLoader(DS, batch_sampler=BatchSampler(SequentialSampler(range(20)), 6, False)),
    lambda: TfmdDL(DS, bs=16, num_workers=0), lambda: TfmdDL(DS, bs=16, n=33, num_workers=0),
    lambda: TfmdDL(DS, bs=16, drop_last=True, num_workers=0), lambda: TfmdDL(DS, bs=70, num_workers=0),
    lambda: image_dls(small(n=33), bs=16, device='cpu').train,
])
def test_images_of_a_pass(make):
    sizes = [len(b[0]) for b in make()]
    assert (n_items(make()), last_batch_size(make()))==(sum(sizes), sizes[-1])

def test_images_of_a_pass_that_nobody_knows():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(range(5))
    stream = DataLoader(Stream(), batch_size=2)
    assert n_items(stream) is None and last_batch_size(stream) is None
    assert last_batch_size(DataLoader(DS, batch_sampler=[[0,1],[2]])) is None


def test_a_function_in_place_of_after_batch():
    "It gets the whole batch, as in fastai, and no view is named any more"
    d = image_dls(load_images('digits'), idx=range(20), bs=10, augment=False, n_views=1, device='cpu')
    d.train.after_batch = lambda b: (b[0].float().sub(.5), b[1])
    x,y = d.one_batch()
    pixels = torch.tensor(load_images('digits').x_train[x.key.idx]).permute(0,3,1,2)
    assert torch.equal(x.as_subclass(torch.Tensor), pixels/255-.5)
    assert x.key.view is None and 'after_batch holds' in no_key_reason(d.train)
    assert len(d.train.new().after_batch.fs)==1 and len(d.valid.after_batch.fs)==1
