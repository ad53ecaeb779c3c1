"Every argument of the rooms that fold, save, export and share either changes something, or is refused where it cannot"
import importlib, inspect, json, shutil, sys, warnings
from pathlib import Path
import pytest, torch
from torch import nn
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, learner
from ekd_nb.browser import load_graph, network_graph, run_graph, save_graph
from ekd_nb.card import checked_info, model_card
from ekd_nb.checkpoint import Checkpoint
from ekd_nb.core import EKDError
from ekd_nb.deploy import (deploy, export_student, load_exported, load_onnx, load_student, save_exported, save_onnx,
                           save_student, student_manifest)
from ekd_nb.fold import FusedStudent, fold_batchnorm
from ekd_nb.hub import from_hub, push_student_hub, push_teacher_hub
from ekd_nb.learner import export_learner
from ekd_nb.models import get_model, resnet8
from ekd_nb.speed import BF16Callback, CompileCallback, FusedSGD, optimize_teachers
from ekd_nb.student import branched_student
from ekd_nb.teacher_files import (build_network, load_teacher, names_fault, read_manifest, save_teacher, stats_fault)

warnings.filterwarnings('ignore')
ROOMS = 'fold speed browser card deploy hub teacher_files saved_learner checkpoint'.split()
X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

def student(**kw): return branched_student(SMALL, 2, 10, in_channels=1, size=8, **kw).eval()
def refused(f, *a, says='', **kw):
    with pytest.raises(EKDError, match=says) as e: f(*a, **kw)
    assert '\n' not in str(e.value)
    return True


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "What reaches the Hub's own functions; a folder takes its place"
    huggingface_hub = pytest.importorskip('huggingface_hub')
    seen = {}
    class Api:
        def __init__(self, token): seen['token'] = token
        def create_repo(self, repo, private, exist_ok):
            seen['private'] = private
            return f'https://huggingface.co/{repo}'
        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path/repo_id, dirs_exist_ok=True)
    def download(repo, revision, token, allow_patterns):
        seen.update(revision=revision, read_token=token)
        return str(tmp_path/repo)
    monkeypatch.setattr('huggingface_hub.HfApi', Api)
    monkeypatch.setattr('huggingface_hub.snapshot_download', download)
    return tmp_path, seen


# ---- what each optional argument changes

def pushed(hub, **kw):
    push_student_hub(student(), 'me/s', token=kw.pop('token', 't'), **kw)
    return json.loads((hub[0]/'me/s/student.json').read_text())

def pushed_teacher(hub, **kw):
    push_teacher_hub(get_model(SMALL, 10, 1), 'me/t', token=kw.pop('token', 't'), **kw)
    return json.loads((hub[0]/'me/t/teacher.json').read_text())

def man(path): return json.loads(Path(path).with_suffix('.json').read_text())
def saved(f, **kw): return man(save_student(student(), f, **kw))
def teacher(f, **kw): return man(save_teacher(get_model(SMALL, 10, 1), f/'t.safetensors', **kw))
def kept_branch(s):
    new = deploy(s, [1])
    return new.n_branches==1 and torch.allclose(new(X), s.branch_logits(X)[1], atol=1e-4)
def unnamed(): return branched_student(Net(10, 1), 2, 10, in_channels=1, size=8).eval()

def compiled(**kw):
    seen = {}
    class Model(nn.Linear):
        def compile(self, **k): seen.update(k); self._compiled_call_impl = None
    cb = CompileCallback(**kw)
    cb.learn = type('L', (), dict(model=Model(1, 1)))()
    cb.before_fit()
    return seen

def sgd(**kw): return FusedSGD([[nn.Parameter(torch.ones(2))]], **dict(dict(lr=.1), **kw)).hypers[0]

CHANGES = {   # (function, argument) -> (folder, hub) -> True
    ('fold_batchnorm', 'x'): lambda f, h: refused(fold_batchnorm, student(), X[:, :, :0], says='x: '),
    ('FusedSGD', 'mom'): lambda f, h: sgd(mom=.5)['mom']==.5,
    ('FusedSGD', 'wd'): lambda f, h: sgd(wd=.1)['wd']==.1,
    ('CompileCallback', 'mode'): lambda f, h: compiled(mode='reduce-overhead')['mode']=='reduce-overhead',
    ('CompileCallback', 'backend'): lambda f, h: compiled(backend='eager')['backend']=='eager',
    ('optimize_teachers', 'precision'): lambda f, h: next(
        optimize_teachers([Net(10, 1)], 'bfloat16').parameters()).dtype==torch.bfloat16,
    ('optimize_teachers', 'x'): lambda f, h: refused(
        optimize_teachers, [Net(10, 1)], x=X[:, :, :0], says='x: |teachers: '),
    ('network_graph', 'x'): lambda f, h: refused(network_graph, student(), X[:, :, :0], says='x: '),
    ('save_graph', 'about'): lambda f, h: man(save_graph(network_graph(student()), f/'s.json', note='a'))['note']=='a',
    ('model_card', 'name'): lambda f, h: 'abc.safetensors' in model_card(saved(f), 'abc'),
    ('model_card', 'use'): lambda f, h: 'one line' in model_card(saved(f), use='one line'),
    ('deploy', 'keep'): lambda f, h: kept_branch(student()),
    ('deploy', 'fused'): lambda f, h: isinstance(deploy(student(), fused=True), FusedStudent),
    ('student_manifest', 'x'): lambda f, h: student_manifest(learner(), torch.zeros(1, 1, 16, 16))['size']==[16, 16],
    ('save_student', 'name'): lambda f, h: save_student(student(), f, 'abc').name=='abc.safetensors',
    ('save_student', 'arch'): lambda f, h: refused(
        save_student, student(), f, arch='resnet14-w4', says='is not this student'),
    ('save_student', 'split'): lambda f, h: refused(
        save_student, student(), f, split='heads', says='is not this student'),
    ('save_student', 'x'): lambda f, h: saved(f, x=torch.zeros(2, 1, 16, 16))['size']==[16, 16],
    ('save_student', 'info'): lambda f, h: saved(f, note='a')['note']=='a',
    ('load_student', 'student'): lambda f, h: load_student(save_student(unnamed(), f), s := unnamed()) is s,
    ('save_onnx', 'x'): lambda f, h: refused(save_onnx, student(), f/'s.onnx', X[:0], says='x: got'),
    ('save_exported', 'x'): lambda f, h: refused(save_exported, student(), f/'s.pt2', X[:1], says='x: got .1 image'),
    ('export_student', 'x'): lambda f, h: refused(
        export_student, learner(), f/'s.pkl', torch.zeros(2, 3, 8, 8), says='x: |path: ')
        and refused(export_student, learner(), f/'s.onnx', X[:0], says='x: got'),
    ('export_student', 'names'): lambda f, h: man(
        export_student(student(), f/'s.safetensors', X, note='a'))['note']=='a'
        and all(refused(export_student, learner(), f/f's.{k}', arch='resnet14-w4', says='arch: got')
                for k in ('pkl', 'onnx', 'pt2'))
        and refused(export_student, student(), f/'s.safetensors', X, name='abc', says='name: got'),
    ('export_learner', 'x'): lambda f, h: refused(export_learner, learner(), f/'s.pkl', [1], says='x: got'),
    ('push_student_hub', 'token'): lambda f, h: pushed(h, token='abc') and h[1]['token']=='abc',
    ('push_student_hub', 'private'): lambda f, h: pushed(h, private=True) and h[1]['private'] is True,
    ('push_student_hub', 'kwargs'): lambda f, h: pushed(h, note='a')['note']=='a'
        and refused(push_student_hub, student(), 'me/s', token='t', name='abc', says='name: got')
        and refused(push_student_hub, student(), 'me/s', token='t', folder=f, says='folder: got'),
    ('push_teacher_hub', 'token'): lambda f, h: pushed_teacher(h, token='abc') and h[1]['token']=='abc',
    ('push_teacher_hub', 'private'): lambda f, h: pushed_teacher(h, private=False) and h[1]['private'] is False,
    ('push_teacher_hub', 'kwargs'): lambda f, h: pushed_teacher(h, note='a')['note']=='a'
        and refused(push_teacher_hub, save_teacher(get_model(SMALL, 10, 1), f/'t.safetensors'), 'me/t', token='t',
                    accuracy=.9, says='accuracy: got 0.9, expected none'),
    ('from_hub', 'revision'): lambda f, h: pushed(h) and from_hub('me/s', revision='v1') and h[1]['revision']=='v1'
        and refused(from_hub, h[0]/'me/s', revision='v1', says='revision: got'),
    ('from_hub', 'token'): lambda f, h: pushed(h) and from_hub('me/s', token='abc') and h[1]['read_token']=='abc'
        and from_hub(h[0]/'me/s', token='abc'),
    ('from_hub', 'student'): lambda f, h: pushed(h) and from_hub('me/s', student=(s := student())) is s
        and pushed_teacher(h) and refused(from_hub, 'me/t', student=s, says='student: got'),
    ('from_hub', 'builder'): lambda f, h: pushed(h) and refused(from_hub, 'me/s', builder=resnet8, says='builder: got')
        and pushed_teacher(h) and refused(from_hub, 'me/t', builder=resnet8, says='builder: got'),
    ('names_fault', 'n_out'): lambda f, h: '2 names for 3' in names_fault(['a', 'b'], 3),
    ('stats_fault', 'channels'): lambda f, h: '2 numbers for 3' in stats_fault(([0, 0], [1, 1]), 3),
    ('refuse_own_entries', 'own'): lambda f, h: True,
    ('save_teacher', 'accuracy'): lambda f, h: teacher(f, accuracy=.5)['accuracy']==.5,
    ('save_teacher', 'fingerprint'): lambda f, h: teacher(f, fingerprint='ab')['fingerprint']=='ab',
    ('save_teacher', 'arch'): lambda f, h: refused(teacher, f, arch='resnet14', says='not the weights of a resnet14')
        and refused(teacher, f, arch=SMALL, builder=resnet8, says='arch: got'),
    ('save_teacher', 'half'): lambda f, h: teacher(f, half=True)['sha256']!=teacher(f)['sha256'],
    ('save_teacher', 'builder'): lambda f, h: man(save_teacher(resnet8(10, 1), f/'t.safetensors', builder=resnet8,
        builder_args=dict(n_out=10, in_channels=1)))['build']['builder']=='ekd_nb.models.resnet8',
    ('save_teacher', 'builder_args'): lambda f, h: refused(
        teacher, f, builder_args=dict(a=1), says='builder_args: got'),
    ('save_teacher', 'x'): lambda f, h: teacher(f, x=torch.randn(2, 1, 16, 16))['probe']['size']==[1, 16, 16],
    ('save_teacher', 'info'): lambda f, h: teacher(f, note='a')['note']=='a',
    ('read_manifest', 'name'): lambda f, h: refused(read_manifest, f/'t.safetensors', 'abc', says='abc: '),
    ('read_manifest', 'saver'): lambda f, h: refused(
        read_manifest, f/'t.safetensors', saver='save_student', says='saved with save_student'),
    ('load_teacher', 'builder'): lambda f, h: refused(
        load_teacher, save_teacher(get_model(SMALL, 10, 1), f/'t.safetensors'),
        builder=resnet8, says='the file is built by resnet8-w4; expected none'),
    ('Checkpoint', 'keep'): lambda f, h: Checkpoint(f, keep=5).keep==5
        and refused(Checkpoint, f, keep=0, says='keep: '),
    ('Checkpoint', 'memo_bytes'): lambda f, h: Checkpoint(f, memo_bytes=0).memo_bytes==0,
}

@pytest.mark.parametrize('name, arg', CHANGES)
def test_an_argument_changes_something_or_is_refused(name, arg, tmp_path, hub): assert CHANGES[name, arg](tmp_path, hub)


def optional_arguments():
    for r in ROOMS:
        room = importlib.import_module(f'ekd_nb.{r}')
        for name,f in vars(room).items():
            if name.startswith('_') or getattr(f, '__module__', '')!=room.__name__ or not callable(f): continue
            if isinstance(f, type) and '__init__' not in vars(f): continue
            if name in ('Exporter', 'NetworkGraph', 'Part'): continue
            for p in inspect.signature(f.__init__ if isinstance(f, type) else f).parameters.values():
                if p.default is not p.empty or p.kind==p.VAR_KEYWORD: yield name,p.name

#: arguments of `BF16Callback` and the rng helpers have tests of their own
ELSEWHERE = {('rng_state', 'dl'), ('set_rng_state', 'dl')}

def test_no_argument_is_missing_from_the_table():
    assert [o for o in optional_arguments() if o not in CHANGES and o not in ELSEWHERE]==[]


# ---- entries of a manifest that only the network decides

@pytest.mark.parametrize('k, v', [
    ('fusion', 'prob'), ('n_branches', 1), ('n_out', 3), ('in_channels', 3), ('image_size', 9), ('cut', -1),
    ('params', 1), ('sha256', 'a'), ('probe', None), ('digest', ''), ('schema', 2), ('versions', {})])
def test_a_manifest_cannot_contradict_the_student(k, v, tmp_path):
    "A fusion of another name would come back as another network"
    refused(save_student, student(), tmp_path, says=f'{k}: got', **{k: v})
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('k, v', [('n_out', 3), ('in_channels', 3), ('build', {}), ('sha256', 'a'), ('probe', None),
                                  ('n_branches', 1), ('versions', {})])
def test_a_manifest_cannot_contradict_the_teacher(k, v, tmp_path):
    refused(save_teacher, get_model(SMALL, 10, 1), tmp_path/'t.safetensors', says=f'{k}: got', **{k: v})

@pytest.mark.parametrize('k, v', [
    ('ops', []), ('branches', []), ('n_weights', 1), ('weights_digest', ''), ('probe', None)])
def test_a_graph_s_json_cannot_contradict_it(k, v, tmp_path):
    refused(save_graph, network_graph(student()), tmp_path/'s.json', says=f'{k}: got', **{k: v})

def test_names_for_a_student_of_networks_without_names(tmp_path):
    refused(save_student, unnamed(), tmp_path, split=1 if unnamed().config['split']!=1 else 2, says='split: got')
    refused(save_student, student(), tmp_path, arch=[SMALL]*3, says='one for each of 2 branches')
    refused(save_student, student(), tmp_path, arch=[], says='arch: got')
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    cut = branched_student(net, 2, 10, in_channels=1, size=8, cut=lambda m: m[:2])
    refused(save_student, cut, tmp_path, arch='resnet8', says='arch: ')


# ---- images to export with

BAD = {'channels': torch.zeros(2, 3, 8, 8), 'numpy': X.numpy(), 'int': 3, 'none': None, 'empty': X[:0],
       'one picture': X[0], 'list': [1.], 'whole numbers': X.long(), 'double': X.double(), 'no pixels': X[:, :, :0],
       'nan': X*float('nan'), 'text': 'x.png'}

@pytest.mark.parametrize('f', [
    save_onnx, save_exported, lambda s, p, x: export_student(s, p.with_suffix('.safetensors'), x)])
@pytest.mark.parametrize('x', BAD)
def test_images_that_cannot_be_exported_with(f, x, tmp_path):
    refused(f, student(), tmp_path/'s.onnx', BAD[x], says='^x: ')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('f', [save_onnx, save_exported])
def test_a_network_for_another_size(f, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    refused(f, net, tmp_path/'s.onnx', torch.zeros(2, 1, 16, 16), says='cannot process images of shape .2, 1, 16, 16')

@pytest.mark.parametrize('f', [save_onnx, save_exported])
def test_a_learner_has_images(f, tmp_path): assert f(learner(), tmp_path/'s.pt2').is_file()


# ---- unusual calls

S,T = student,lambda: get_model(SMALL, 10, 1).eval()
UNUSUAL = {   # each is refused with one sentence that begins as said
    'fold nothing': (lambda f: fold_batchnorm(None), 'model: '),
    'fold a list': (lambda f: fold_batchnorm([T()]), 'model: '),
    'fold with an array': (lambda f: fold_batchnorm(T(), X.numpy()), 'x: '),
    'fold with a number': (lambda f: fold_batchnorm(T(), 3), 'x: '),
    'fold an LSTM': (lambda f: fold_batchnorm(nn.LSTM(3, 4)), 'x: |model: '),
    'fuse a plain network': (lambda f: FusedStudent(T()), 'student: '),
    'fuse nothing': (lambda f: FusedStudent(None), 'student: '),
    'keep none': (lambda f: deploy(S(), 0), 'keep: '),
    'keep all by name': (lambda f: deploy(S(), 'all'), 'keep: '),
    'save a folded student': (lambda f: save_student(deploy(S()), f), 'source: .* folded'),
    'a name with a folder': (lambda f: save_student(S(), f, name='../s'), 'name: '),
    'a name that is a number': (lambda f: save_student(S(), f, name=3), 'name: '),
    'a tensor in the manifest': (lambda f: save_student(S(), f, note=torch.ones(2)), 'folder: '),
    'no folder': (lambda f: save_student(S(), None), 'folder: '),
    'load a folder': (lambda f: load_student(f), 'path: '),
    'load a number': (lambda f: load_student(3), 'path: '),
    'load into another network': (lambda f: load_student(save_student(S(), f), T()), 'path: '),
    'export to a folder': (lambda f: save_onnx(S(), f, X), 'path: '),
    'export a name': (lambda f: save_onnx('resnet8', f/'s.onnx', X), 'student: '),
    'export a number': (lambda f: save_exported(3, f/'s.pt2', X), 'student: '),
    'an ending in capitals': (lambda f: export_student(S(), f/'s.ONNX', X), 'path: '),
    'no ending': (lambda f: export_student(S(), f/'s', X), 'path: '),
    'a network as a Learner': (lambda f: export_student(S(), f/'s.pkl', X), 'student: '),
    'no teachers': (lambda f: optimize_teachers([]), 'teachers: '),
    'a number as teachers': (lambda f: optimize_teachers(3), 'teachers: '),
    'teachers with a text': (lambda f: optimize_teachers([T()], x='a'), 'x: '),
    'teachers with one picture': (lambda f: optimize_teachers([T()], x=X[0]), 'x: '),
    'teachers of two kinds of images': (
        lambda f: optimize_teachers([T(), get_model(SMALL, 10, 3)]), 'x: found no images'),
    'a rate of None': (lambda f: sgd(lr=None), 'lr: '),
    'a negative momentum': (lambda f: sgd(mom=-1), 'mom: '),
    'two precisions': (lambda f: quiet_fit(learner(cbs=BF16Callback()).to_fp16()), '2 callbacks of mixed precision'),
    'no such compiler': (lambda f: quiet_fit(learner(cbs=CompileCallback(backend='nope'))), 'backend or mode: '),
    'a graph of a gate': (lambda f: network_graph(S(fusion='gate')), 'student: '),
    'run with an array': (lambda f: run_graph(network_graph(S()), X.numpy()), 'x: '),
    'run with other channels': (lambda f: run_graph(network_graph(S()), X.repeat(1, 3, 1, 1)), 'x: '),
    'run a list': (lambda f: run_graph([1], X), 'graph: '),
    'a tensor in the JSON': (lambda f: save_graph(network_graph(S()), f/'s.json', a=torch.ones(1)), 'path: '),
    'load no graph': (lambda f: load_graph(None), 'path: '),
    'a repository that is a file': (lambda f: from_hub(save_student(S(), f)), 'repo: '),
    'a repository that is a number': (lambda f: from_hub(3), 'repo: '),
    'push what is not there': (lambda f: push_teacher_hub('no.safetensors', 'a/b', token='t'), 'teachers: '),
    'checkpoints nowhere': (lambda f: Checkpoint(None), 'folder: '),
    'keep a text': (lambda f: Checkpoint(f, keep='2'), 'keep: '),
    'keep one and a half': (lambda f: Checkpoint(f, keep=1.5), 'keep: '),
    'no bytes': (lambda f: Checkpoint(f, memo_bytes=None), 'memo_bytes: '),
    'save a class': (lambda f: save_teacher(type(T()), f/'t.safetensors'), 'model: '),
    'save nowhere': (lambda f: save_teacher(T(), None), 'path: '),
    'save with a text': (lambda f: save_teacher(T(), f/'t.safetensors', x='a'), 'x: '),
    'save with other channels': (lambda f: save_teacher(T(), f/'t.safetensors', x=torch.zeros(2, 3, 8, 8)), 'x: '),
    'a fingerprint that is a number': (lambda f: save_teacher(T(), f/'t.safetensors', fingerprint=3), 'fingerprint: '),
    'half by word': (lambda f: save_teacher(T(), f/'t.safetensors', half='yes'), 'half: '),
    'accuracy NaN': (lambda f: save_teacher(T(), f/'t.safetensors', accuracy=float('nan')), 'accuracy: '),
    'a number as builder': (lambda f: save_teacher(T(), f/'t.safetensors', builder=3), 'builder: '),
    'build from nothing': (lambda f: build_network({}), 'info: '),
}

def quiet_fit(l):
    with l.no_bar(), l.no_logging(): l.fit(1)

@pytest.mark.parametrize('name', UNUSUAL)
def test_an_unusual_call_is_one_sentence(name, tmp_path):
    call, says = UNUSUAL[name]
    refused(call, tmp_path, says=says)

def test_unusual_calls_that_are_right(tmp_path):
    s = S()
    assert deploy(deploy(s))(X).allclose(s(X), atol=1e-4)                                      # folded twice
    assert load_student(save_student(s, tmp_path/'a', name='v1.0')).manifest['n_branches']==2   # a name with a point
    assert save_graph(network_graph(s), tmp_path/'new'/'s.json').is_file()                      # a new folder
    train = S().train()
    save_onnx(train, tmp_path/'s.onnx', X)
    assert train.training                                                                       # the mode it had
    loaded = load_exported(save_exported(s, tmp_path/'s.pt2', X))
    assert loaded(X[:1]).allclose(s(X[:1]), atol=1e-5) and loaded.eval()(X).shape==(4, 10)
    refused(loaded, torch.zeros(2, 1, 16, 16), says='x: the exported file raises')
    refused(load_onnx(tmp_path/'s.onnx'), torch.zeros(2, 3, 8, 8), says='x: the ONNX file raises')
    t = load_teacher(save_teacher(T().half(), tmp_path/'t.safetensors'))
    assert next(t.parameters()).dtype==torch.float32
