"What a newcomer passes: a Learner for its network, DataLoaders for one of them, a folder for a file"
import inspect, json, re, sys, warnings
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import pytest, torch
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))
from compat import dls, fit_quietly, learner, teachers
import ekd_nb.all
from ekd_nb.all import *
from ekd_nb.browser import network_graph, run_graph
from ekd_nb.evaluate import branch_costs, latency, pooled_features, teacher_similarity
from ekd_nb.fold import FusedStudent, fold_batchnorm
from ekd_nb.votes import get_votes

warnings.filterwarnings('ignore')


@lru_cache
def made():
    "A trained Learner; whoever changes one makes another"
    return fit_quietly(learner(dls()))

def refused(says, f, *args, **kwargs):
    "Refused with this sentence, and nothing more"
    with pytest.raises(EKDError) as e: f(*args, **kwargs)
    assert str(e.value)==says


# ---- every public function

NETWORKS = 'model student source arch teachers models trunk branch_logits learn'.split()   # arguments that are networks
NOT_A_NETWORK = {'branch_logits'}

def public():
    "(function, argument, what is wrong with it) of all that `ekd_nb.all` offers"
    for name in ekd_nb.all.__all__:
        try: names = inspect.signature(getattr(ekd_nb.all, name)).parameters
        except ValueError: continue
        for k in names:
            if k in NETWORKS and 'hub' not in name: yield name,k,'learner'
            if k=='dl': yield name,k,'dataloaders'

def right(name, k, folder):
    "A right value for the argument `k`"
    l = made()
    if (name, k)==('load_student', 'path'): return save_student(l, folder)
    return dict(model=l.model, student=l.model, source=l.model, arch='resnet8-w4',
                teachers=teachers(), models=teachers(),
                trunk=l.model.trunk, branches=l.model.branches, learn=l, dl=l.dls.valid, dls=l.dls, size=(1, 8, 8),
                branch_logits=torch.zeros(2, 3, 10), y=torch.zeros(3).long(), losses=torch.zeros(len(l.dls.valid_ds)),
                x=X(), folder=folder, path=folder/'file.safetensors', images=range(8), views=ViewSet(1, False))[k]

def required(name, but, folder):
    "Right values for the arguments that must be given"
    ps = inspect.signature(getattr(ekd_nb.all, name)).parameters.values()
    names = [p.name for p in ps if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return {k: right(name, k, folder) for k in names if k!=but}

@pytest.mark.parametrize('name, k, what', public())
def test_no_public_function_has_a_raw_error(name, k, what, tmp_path):
    "A Learner is taken for its network, or refused with one sentence; DataLoaders are refused"
    if name=='save_onnx': pytest.importorskip('onnx')
    kw = required(name, k, tmp_path)
    if name=='compare': kw.update(epochs=1, seeds=1, methods=('labels',), folder=tmp_path, log=None)
    kw[k] = made() if what=='learner' else made().dls
    try: getattr(ekd_nb.all, name)(**kw)
    except EKDError as e: assert '\n' not in str(e)
    else: assert what=='learner' and k not in NOT_A_NETWORK


# ---- the right values

@pytest.mark.parametrize('f', [
    count_params, lambda m: count_flops(m, (1, 8, 8)), lambda m: evaluate_student(m, made().dls.valid),
    lambda m: get_logits(m, made().dls.valid)[2].tolist(), lambda m: branch_costs(m, (1, 8, 8)),
    lambda m: deploy(m)(X()).tolist(), lambda m: fold_batchnorm(m)(X()).tolist(),
    lambda m: FusedStudent(m)(X()).tolist(),
    lambda m: run_graph(network_graph(m), X()).tolist(), lambda m: MeanEnsemble([m])(X()).tolist(),
    lambda m: pooled_features(m, X())[0].tolist(), lambda m: teacher_similarity(m, m, made().dls.valid, 20).tolist(),
    lambda m: TeacherEnsemble([m])(X()).logits.tolist(), lambda m: list(latency(m, X(), 1, 0))])
def test_a_learner_counts_as_its_network(f):
    l = made()
    l.model.eval()
    assert f(l)==f(l.model)

def X(): return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

def test_a_plain_network_of_a_learner():
    l = teacher_learner(dls(), 'resnet8-w4')
    copied = create_network(l)
    assert copied is not l.model and torch.equal(copied.eval()(X()), l.model.eval()(X()))
    assert torch.equal(fold_batchnorm(l)(X()), fold_batchnorm(l.model)(X()))
    assert len(get_logits(l, l.dls.valid)[0])==len(l.dls.valid_ds)
    student = branched_student(l, 2, 10, in_channels=1, size=8)
    again = branched_student(l.model, 2, 10, in_channels=1, size=8)
    assert torch.equal(student.eval()(X())[:, :0], again.eval()(X())[:, :0]) and student.config['kept']==[True, True]
    same = zip(student.trunk.parameters(), l.model.parameters())
    assert all(torch.equal(p, q) for p,q in same)
    refused("student: got 'CifarResNet', expected a BranchedStudent, or the Learner of one; "
            'fold_batchnorm takes any network',
            deploy, l)

def test_a_saved_student_is_loaded_into_a_learner(tmp_path):
    "The projections of its hints, which no file has, stay"
    l,new = made(),learner(dls())
    before = [p.clone() for p in new.model.projections.parameters()]
    load_student(save_student(l, tmp_path), new)
    assert torch.equal(new.model.eval()(X()), l.model.eval()(X()))
    assert all(torch.equal(p, q) for p,q in zip(before, new.model.projections.parameters()))

def test_votes_of_teachers_that_are_not_in_an_ensemble():
    l,ts = made(),teachers()
    a,b = (get_votes(l, teachers=t).teachers for t in (ts, TeacherEnsemble(ts)))
    assert torch.equal(a, b)

def test_a_cache_and_a_callback_of_plain_teachers():
    for made_of in (lambda ts: TeacherMemo(ts, range(8), ViewSet(1, False)), DistillCallback):
        assert isinstance(made_of(teachers()).teachers, TeacherEnsemble)


# ---- what is refused

@pytest.mark.parametrize('f, says', [
    (lambda l: evaluate_student(l.model, l.dls),
     "dl: got 'DataLoaders', expected one of its loaders, such as dls.valid"),
    (lambda l: get_logits(l.model, l),
     "dl: got 'CheckedLearner', expected one of its loaders, such as learn.dls.valid"),
    (lambda l: get_logits(l.model, None), "dl: got 'NoneType', expected a DataLoader, such as dls.valid"),
    (lambda l: get_logits(l.model, [X()]), "dl: got 'Tensor', expected batches of images and labels"),
    (lambda l: get_logits(l.model, [(X(), 1)]), "dl: got ['Tensor', 'int'], expected batches of images and labels"),
    (lambda l: get_logits(l.dls.valid, l.model), "model: got 'ViewLoader', expected a network or the Learner of one"),
    (lambda l: evaluate_student('a', l.dls.valid), "model: got 'str', expected a network or the Learner of one"),
    (lambda l: show_disagreement(l, l.dls), "dl: got 'DataLoaders', expected one of its loaders, such as dls.valid"),
    (lambda l: branch_curve(l, l.dls.valid),
     "branch_logits: got 'CheckedLearner', expected logits of branches [N,B,C], such as get_logits(learn, "
     "dls.valid)[2]"),
    (lambda l: accuracy_score(l, X()),
     "logits: got 'CheckedLearner', expected logits [B,C], such as get_logits(learn, dls.valid)[0]"),
    (lambda l: nll(torch.zeros(2, 3), l.dls.valid),
     "y: got 'ViewLoader', expected labels, int [B], such as get_logits(learn, dls.valid)[1]"),
    (lambda l: count_flops(l, (1, 1, 8, 8)), 'size: got (1, 1, 8, 8), expected (channels, height, width) of one image'),
    (lambda l: count_flops(l, 32), 'size: got 32, expected (channels, height, width) of one image'),
    (lambda l: split_stages(l), "model: got 'CheckedLearner', expected a network, such as a copy of learn.model"),
    (lambda l: BranchedStudent(8, []), "trunk: got 'int', expected a network or the Learner of one")])
def test_what_is_no_network_or_no_loader_is_one_sentence(f, says): refused(says, f, made())

def test_images_of_other_channels_are_one_sentence():
    says = r'size: BranchedStudent raises RuntimeError for an image of \[3, 32, 32\] \('
    with pytest.raises(EKDError, match=says): count_flops(made())


# ---- names of the tutorials

HIDES_FASTAI = {'get_model'}

def pages(): return [*sorted((ROOT/'nbs'/'tutorials').glob('*.ipynb')), ROOT/'nbs'/'index.ipynb', ROOT/'README.md']

def imported(path):
    "(room, name) of all functions and classes of the library that a page imports"
    text = path.read_text()
    if path.suffix!='.md': text = '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'])
    for room,names in re.findall(r'^from (ekd_nb\.\w+) import ([\w, ]+)$', text, re.M):
        found = import_module(room)
        yield from ((room, n) for n in re.findall(r'\w+', names) if callable(getattr(found, n)))

@pytest.mark.parametrize('path', pages(), ids=lambda p: p.stem)
def test_a_name_that_a_tutorial_imports_is_among_all(path):
    lack = {n for _,n in imported(path)}-set(ekd_nb.all.__all__)-HIDES_FASTAI
    assert not lack

def test_some_names_are_imported():
    assert ('ekd_nb.learner', 'export_learner') in {o for p in pages() for o in imported(p)}
    assert ekd_nb.all.export_learner is import_module('ekd_nb.saved_learner').export_learner is ekd_nb.export_learner


# ---- weights of another student

def load_error(l, file, **kw):
    "The refusal of `load`, after which the weights are as they were"
    before = [p.clone() for p in l.model.parameters()]
    with pytest.raises(EKDError) as e: l.load(file, **kw)
    assert all(torch.equal(p, q) for p,q in zip(before, l.model.parameters()))
    return str(e.value)

def test_weights_of_another_student_are_one_sentence(tmp_path):
    one,wide,three = (learner(dls(), a, teachers()[:1]*n, path=tmp_path, loss_func=EKDLoss(gamma=0.))
                      for a,n in (('resnet8-w4', 2), ('resnet8-w6', 2), ('resnet8-w4', 3)))
    for n,l in dict(one=one, wide=wide, three=three).items(): l.save(n)
    assert one.load('one') is one
    asks = 'expected a file of the same arch, split and number of branches'
    of_three = 'load: the weights in three are not of this network: it has 2 branches, the file 3'
    assert load_error(one, 'three')==f'{of_three}; {asks}'
    ours,theirs = one.model.state_dict(),wide.model.state_dict()
    n,total = (len(o) for o in ([k for k,v in ours.items() if v.shape!=theirs[k].shape],
                                one.model.state_dict()))
    first = next(k for k,v in one.model.state_dict().items() if v.shape!=wide.model.state_dict()[k].shape)
    assert load_error(one, 'wide')==('load: the weights in wide are not of this network: '
                                     f'{n} of {total} names or shapes differ, '
                                     f'first {first}; {asks}')

def test_weights_without_the_projections_of_hints(tmp_path):
    bare,hints = (learner(dls(), path=tmp_path, loss_func=EKDLoss(gamma=g)) for g in (0., 1.))
    bare.save('bare')
    assert load_error(hints, 'bare').endswith('expected strict=False: only projections of hints differ')
    hints.load('bare', strict=False)
    assert torch.equal(hints.model.eval()(X()), bare.model.eval()(X()))


# ---- folders and files

def test_a_folder_of_one_student_or_teacher_is_read(tmp_path):
    l = made()
    save_student(l, tmp_path/'out')
    assert torch.equal(load_student(tmp_path/'out')(X()), l.model.eval()(X()))
    t = teachers()[0].eval()
    save_teacher(t, tmp_path/'t'/'a.safetensors')
    assert torch.equal(load_teacher(tmp_path/'t')(X()), t(X())) and read_manifest(tmp_path/'t')['n_out']==10
    assert torch.equal(TeacherEnsemble([tmp_path/'t'])(X()).logits[0], t(X()))
    save_student(l, tmp_path/'out', 'second')
    refused(f"path: got {tmp_path/'out'}, expected the weights of save_student, '….safetensors'",
            load_student, tmp_path/'out')

def test_a_path_of_weights_is_the_file_that_is_written(tmp_path):
    path = save_student(made(), tmp_path/'mine.safetensors')
    assert path==tmp_path/'mine.safetensors' and path.is_file()
    assert {p.name for p in tmp_path.iterdir()}=={'mine.safetensors', 'mine.json', 'mine.md'}
    assert torch.equal(load_student(path)(X()), made().model.eval()(X()))
    refused("name: got 'other', expected no such argument: mine.safetensors says it",
            save_student, made(), path, 'other')
