"Whatever is cut, grouped, folded, cached, saved, exported or read again gives the same answers, or is refused"
import copy, importlib, inspect, json, pkgutil, re, sys, warnings
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from torch import nn
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import SMALL, Net, data, dls, learner, teachers
from compat import fit_quietly as fit
from fastai.learner import Learner, load_learner
import ekd_nb
from ekd_nb import deploy as deploy_room
from ekd_nb.branches import Branch
from ekd_nb.browser import load_graph, network_graph, save_graph
from ekd_nb.checkpoint import Checkpoint
from ekd_nb.core import EKDError, add_digest, check_probe, output_distance, probe_answers, probe_images
from ekd_nb.deploy import (deploy, export_student, load_exported, load_onnx, load_student, save_exported, save_onnx,
                           save_student)
from ekd_nb.fold import FusedStudent, fold_batchnorm
from ekd_nb.hub import from_hub, push_student_hub, push_teacher_hub
from ekd_nb.learner import ekd_learner, export_learner
from ekd_nb.losses import EKDLoss
from ekd_nb.memo import TeacherMemo, load_memo, save_memo
from ekd_nb.models import get_model
from ekd_nb.speed import optimize_teachers
from ekd_nb.student import branched_student
from ekd_nb.teachers import TeacherEnsemble, load_teacher, save_teacher

warnings.filterwarnings('ignore')
WRONG = 1.02   # logits that are off by two percent
X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def student(n=2, **kw):
    torch.manual_seed(0)
    return branched_student(SMALL, n, 10, in_channels=1, size=8, **kw).eval()

def teacher():
    torch.manual_seed(0)
    return get_model(SMALL, 10, 1).eval()

def enlarge(net, by=WRONG):
    "The same network with a last linear layer that is slightly off, changed in place"
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.Linear): m.weight.mul_(by); m.bias.add_(.1)
    return net

def enlarged(f): return lambda *a, **kw: enlarge(f(*a, **kw))

def change_code(monkeypatch):
    "The package's code computes something else from now on, with the same weights"
    right = Branch.forward
    def wrong(self, h):
        z, f = right(self, h)
        return z*WRONG + .1, f
    monkeypatch.setattr(Branch, 'forward', wrong)

def change_networks(monkeypatch):
    "So do the networks that are built by name"
    from ekd_nb.models import StagedNet
    right = StagedNet.forward
    monkeypatch.setattr(StagedNet, 'forward', lambda self, x: right(self, x)*WRONG + .1)

def refused(f, *args, says='computes something else|answers differently', **kw):
    with pytest.raises(EKDError, match=says) as e: f(*args, **kw)
    text = str(e.value).removeprefix('Exception occured in ').split('\n\t')[-1]   # fastai puts a line before it
    assert '\n' not in text and re.search(r'by (inf|\S*\d)', text), text


# ---- the audit: one test for each function, whose result is made slightly wrong

def cut(m, folder):
    from ekd_nb import cut as room
    right = room._part
    m.setattr(room, '_part', lambda *a: nn.Sequential(right(*a), nn.Hardswish()))
    with pytest.raises(EKDError, match='cannot be cut into stages .*computes something else'):
        branched_student(Net(10, 1), 2, 10, in_channels=1, size=16)

def keep(m, folder):
    s, right = student(3), copy.deepcopy
    def wrong(o, *a): return enlarge(right(o, *a)) if type(o) is type(s) else right(o, *a)
    m.setattr(copy, 'deepcopy', wrong)
    refused(s.keep, [2, 0], says='keep: the student of branches .2, 0. computes something else')

def learner_keep(m, folder):
    l, right = learner(), copy.deepcopy
    def wrong(o, *a): return enlarge(right(o, *a)) if type(o) is type(l.model) else right(o, *a)
    m.setattr(copy, 'deepcopy', wrong)
    refused(l.keep, 1)

def group(m, folder):
    from ekd_nb import grouped
    right = grouped._GroupedBranches.forward
    def wrong(self, h):
        z, f = right(self, h)
        return z*WRONG + .1, f
    m.setattr(grouped._GroupedBranches, 'forward', wrong)
    with pytest.raises(EKDError, match='grouped: these branches'): student(grouped=True)

def wrong_fold(m):
    from ekd_nb import fold
    right = fold.fuse_conv_bn_eval
    def wrong(*a):
        conv = right(*a)
        conv.bias.data += .3
        return conv
    m.setattr(fold, 'fuse_conv_bn_eval', wrong)

def fold(m, folder):
    wrong_fold(m)
    refused(fold_batchnorm, student())
    refused(fold_batchnorm, teacher())

def fold_for_predictions(m, folder):
    wrong_fold(m)
    refused(deploy, student())

def fuse(m, folder):
    from ekd_nb import fold
    right = fold._joined
    def wrong(layer):
        new = right(layer)
        if isinstance(new, nn.Conv2d): new.weight.data *= 1.2
        return new
    m.setattr(fold, '_joined', wrong)
    refused(FusedStudent, student())
    refused(deploy, student(), fused=True)

def fast_teachers(m, folder):
    from ekd_nb import speed
    ts = teachers()
    m.setattr(speed, 'fold_batchnorm', enlarged(fold_batchnorm))
    refused(optimize_teachers, [Net(10, 1)])
    m.setattr(speed, 'fold_batchnorm', fold_batchnorm)
    m.setattr(speed, '_in_bf16', lambda net: enlarge(net, 2.))
    refused(optimize_teachers, ts, 'bfloat16')

def fast_teachers_features(m, folder):
    "Hints learn from features, so these are compared too"
    from ekd_nb import speed
    right = fold_batchnorm
    def wrong(net):
        net = right(net)
        if hasattr(net, 'body'):   # features 10 % larger, logits as before
            net.body.add_module('more', nn.Identity())
            net.fc.weight.data /= 1.1
            for k in ('weight', 'bias'): getattr(net.body, '3')._parameters[k].data.mul_(1.1)
        return net
    m.setattr(speed, 'fold_batchnorm', wrong)
    refused(optimize_teachers, [Net(10, 1)], says='its features by 10%')

def graph(m, folder):
    from ekd_nb import browser
    right = browser._add_linear
    m.setattr(browser, '_add_linear', lambda w, l, x: right(w, enlarge(nn.Sequential(copy.deepcopy(l)), 1.1)[0], x))
    refused(network_graph, student())

def graph_read(m, folder):
    from ekd_nb import browser
    path, right = save_graph(network_graph(student()), folder/'s.json'), browser._compute
    assert load_graph(path).ops
    def wrong(op, *a):
        linear = op['op']=='linear'
        return right(op, *a)*(WRONG if linear else 1) + linear*.1
    m.setattr(browser, '_compute', wrong)
    refused(load_graph, path)

def student_saved(m, folder):
    m.setattr(deploy_room, '_rebuild', lambda man: silu(student()))
    refused(save_student, student(), folder)
    assert list(folder.iterdir())==[]

def silu(net):
    "The same weights in another network"
    for o in list(net.modules()):
        for k, c in o.named_children():
            if isinstance(c, nn.ReLU): setattr(o, k, nn.SiLU())
    return net

def student_read(m, folder):
    path = save_student(student(), folder)
    assert torch.equal(load_student(path)(X), student()(X))
    refused(load_student, path, silu(student()))
    change_code(m)
    refused(load_student, path)

def teacher_saved(m, folder):
    from ekd_nb import teacher_files
    right = teacher_files.build_network
    m.setattr(teacher_files, 'build_network', lambda info: silu(right(info)))
    refused(save_teacher, teacher(), folder/'t.safetensors')
    assert list(folder.iterdir())==[]

def teacher_saved_half(m, folder):
    net = teacher()
    with torch.no_grad(): net.head.weight.mul_(1e6)
    refused(save_teacher, net, folder/'t.safetensors', half=True)
    save_teacher(net, folder/'t.safetensors')

def teacher_read(m, folder):
    path = save_teacher(teacher(), folder/'t.safetensors', half=True)
    load_teacher(path)
    change_networks(m)
    refused(load_teacher, path)
    refused(TeacherEnsemble, [path])

def onnx_saved(m, folder):
    pytest.importorskip('onnxruntime')
    right = torch.onnx.export
    m.setattr(torch.onnx, 'export', lambda s, *a, **kw: right(enlarge(copy.deepcopy(s)), *a, **kw))
    refused(save_onnx, student(), folder/'s.onnx', X)
    refused(export_student, student(), folder/'s.onnx', X)
    assert list(folder.iterdir())==[]

def onnx_read(m, folder):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    path = save_onnx(student(), folder/'s.onnx', X)
    assert torch.allclose(load_onnx(path)(X), student()(X), atol=1e-5)
    new, arrays = onnx.load(path), onnx.numpy_helper
    for t in new.graph.initializer:   # another file with the probe of this one
        if t.name.endswith('head.bias'): t.CopyFrom(arrays.from_array(arrays.to_array(t)+1, t.name))
    onnx.save(new, path)
    refused(load_onnx, path)

def exported_saved(m, folder):
    right = torch.export.export
    m.setattr(torch.export, 'export', lambda s, *a, **kw: right(enlarge(copy.deepcopy(s)), *a, **kw))
    refused(save_exported, student(), folder/'s.pt2', X)
    assert list(folder.iterdir())==[]

def exported_read(m, folder):
    path = save_exported(student(), folder/'s.pt2', X)
    assert torch.allclose(load_exported(path)(X), student()(X), atol=1e-5)
    extra = {'probe.json': ''}
    torch.export.load(path, extra_files=extra)
    wrong = torch.export.export(enlarge(student()), (X,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(wrong, path, extra_files=extra)
    refused(load_exported, path)

def any_format(m, folder):
    m.setattr(deploy_room, 'load_student', enlarged(load_student))
    m.setitem(deploy_room.EXPORTERS, 'safetensors', deploy_room.EXPORTERS['safetensors'])
    refused(export_student, student(), folder/'s.safetensors', X)

def learner_exported(m, folder):
    from ekd_nb import saved_learner
    def wrong(*a, **kw):
        l = load_learner(*a, **kw)
        enlarge(l.model)
        return l
    m.setattr(saved_learner, 'load_learner', wrong)
    refused(export_learner, learner(), folder/'l.pkl')
    refused(export_student, learner(), folder/'l.pkl')
    assert list(folder.iterdir())==[]

def learner_read(m, folder):
    l, x = fit(learner()), data().x_test[0]
    path = export_learner(l, folder/'l.pkl')
    with load_learner(path).no_bar() as again:
        assert torch.allclose(again.predict(x)[2], torch.as_tensor(l.predict(x)[2]), atol=1e-5)
    change_code(m)
    with load_learner(path).no_bar() as again: refused(again.predict, x)

def hub_student(m, folder):
    save_student(student(), folder)
    assert torch.equal(from_hub(folder)(X), student()(X))
    change_code(m)
    refused(from_hub, folder)

def hub_teacher(m, folder):
    save_teacher(teacher(), folder/'teacher.safetensors')
    assert torch.equal(from_hub(folder)(X), teacher()(X))
    change_networks(m)
    refused(from_hub, folder)

def checkpoint(m, folder):
    def run(n): return fit(learner(dls(), cbs=Checkpoint(folder)), n)
    class Killed(Exception): pass
    from fastai.callback.core import Callback
    class Kill(Callback):
        def before_epoch(self):
            if self.epoch==1: raise Killed('power cut')
    with pytest.raises(Killed): fit(learner(dls(), cbs=[Checkpoint(folder), Kill()]), 2)
    from ekd_nb.checkpoint import unlock_folder
    unlock_folder(folder)
    change_code(m)
    refused(run, 2)
    unlock_folder(folder)
    m.undo()
    assert len(run(2).recorder.values)==2

def memo_read(m, folder):
    from ekd_nb.arrays import ViewSet
    from ekd_nb.data import ViewKey
    ts, views = TeacherEnsemble([teacher()]), ViewSet(0, False)
    key = ViewKey(torch.arange(4), torch.full((4,), views.identity))
    def memo(): return TeacherMemo(ts, torch.arange(4), views)
    full = memo()
    full(key, X)
    path = save_memo(full, folder/'m.safetensors')
    assert output_distance(load_memo(memo(), path)(key, X).logits, ts(X).logits)<.01
    again = load_memo(memo(), path)
    again.table[:, :10] += .2
    refused(again, key, X)
    change_networks(m)
    refused(load_memo(memo(), path), key, X)

#: function -> what makes its result slightly wrong and sees it refused
AUDIT = {
    'cut.split_stages': cut, 'student.branched_student': cut,
    'student.BranchedStudent.keep': keep, 'learner.Learner.keep': learner_keep,
    'grouped.group_branches': group, 'fold.fold_batchnorm': fold, 'fold.FusedStudent': fuse,
    'deploy.deploy': fold_for_predictions,
    'speed.optimize_teachers': fast_teachers, 'speed.optimize_teachers, features': fast_teachers_features,
    'browser.network_graph': graph, 'browser.save_graph': graph_read, 'browser.load_graph': graph_read,
    'deploy.save_student': student_saved, 'deploy.load_student': student_read,
    'teacher_files.save_teacher': teacher_saved, 'teacher_files.save_teacher, half': teacher_saved_half,
    'teacher_files.load_teacher': teacher_read,
    'deploy.save_onnx': onnx_saved, 'deploy.load_onnx': onnx_read,
    'deploy.save_exported': exported_saved, 'deploy.load_exported': exported_read, 'deploy.export_student': any_format,
    'saved_learner.export_learner': learner_exported, 'saved_learner.SavedAnswers': learner_read,
    'hub.push_student_hub': hub_student, 'hub.push_teacher_hub': hub_teacher, 'hub.from_hub': hub_student,
    'checkpoint.Checkpoint': checkpoint, 'memo.save_memo': memo_read, 'memo.load_memo': memo_read}

@pytest.mark.parametrize('name', AUDIT)
def test_a_result_that_is_slightly_wrong_is_refused(name, monkeypatch, tmp_path): AUDIT[name](monkeypatch, tmp_path)

@pytest.mark.parametrize('part', ['logits', 'feature maps', 'order of the feature maps'])
def test_grouped_branches_are_refused_with_their_distance(part, monkeypatch):
    "The sentence holds what was measured on the two images of the probe"
    from ekd_nb import grouped
    s,right,seen = student(),grouped._GroupedBranches.forward,[]
    def wrong(self, h):
        z, fs = right(self, h)
        if part == 'logits': bad = z+.1*z.abs().max(), fs
        elif part == 'feature maps': bad = z, (fs[0], 1.2*fs[1])
        else: bad = z, fs[::-1]
        seen.append((output_distance((z, fs), bad), len(h)))
        return bad
    monkeypatch.setattr(grouped._GroupedBranches, 'forward', wrong)
    with pytest.raises(EKDError, match='grouped: these branches') as e: s.grouped = True
    (far, n), *_ = seen
    assert f'outputs differ by {far:.2g} of their size on {n} images, expected at most 0.001' in str(e.value)
    assert far > .01 and n == 2 and not s.grouped

def test_grouped_branches_that_differ_by_rounding_are_taken(monkeypatch):
    from ekd_nb import grouped
    s,right = student(),grouped._GroupedBranches.forward
    def rounded(self, h): return right(self, h)[0]+1e-5,right(self, h)[1]
    monkeypatch.setattr(grouped._GroupedBranches, 'forward', rounded)
    s.grouped = True
    assert s.grouped


#: names that look like it, and why nothing is compared
EXEMPT = dict.fromkeys(['arrays.load_digits_arrays', 'arrays.load_npz_arrays', 'arrays.load_cifar_arrays',
                        'arrays.load_imagenette_arrays', 'arrays.load_images', 'data.load_images'],
                       'images, compared by a fingerprint')
EXEMPT |= dict.fromkeys(['arrays.split_rows', 'data.split_rows', 'hint_layers.split_hints', 'split.split_index',
                         'uncertainty.keep_metrics'], 'rows, names or numbers, no network')
EXEMPT |= {'learner.export_learner': 'of saved_learner', 'teachers.load_teacher': 'of teacher_files',
           'teachers.save_teacher': 'of teacher_files'}
KINDS = re.compile(r'^(save|load|export|push|from_hub|fold|fuse|group|split|cut|deploy|optimize|keep|compress|prune|'
                   r'merge)(_|$)')

def public_names():
    for info in pkgutil.iter_modules(ekd_nb.__path__):
        if info.ispkg or info.name.startswith('_') or info.name=='all': continue
        room = importlib.import_module(f'ekd_nb.{info.name}')
        for n in getattr(room, '__all__', ()):
            if KINDS.match(n) and callable(getattr(room, n, None)): yield f'{info.name}.{n}'

def test_no_function_is_missing_from_the_audit():
    assert [n for n in public_names() if n not in AUDIT and n not in EXEMPT]==[]


# ---- probes

def test_probe_images_are_the_same_everywhere():
    "Written down, since files compare with them: another version that draws other numbers is noticed here"
    assert torch.allclose(probe_images(3, 2, 2).flatten()[:3], torch.tensor([1.7640524, .4001572, .9787380]))
    s, state = student(), torch.get_rng_state()
    probe_answers(s, (1, 8, 8))
    assert torch.equal(state, torch.get_rng_state())

@pytest.mark.parametrize('write, read', [
    (lambda f: save_student(student(), f), load_student),
    (lambda f: save_teacher(teacher(), f/'t.safetensors'), load_teacher)])
def test_files_without_a_probe_are_read(write, read, tmp_path):
    path = write(tmp_path)
    man = json.loads(path.with_suffix('.json').read_text())
    assert len(man['probe']['outputs'][0].split())==20 and man['probe']['size']==[1, *man['probe']['size'][1:]]
    def seal(**kw): path.with_suffix('.json').write_text(json.dumps(add_digest(man | kw)))
    del man['probe']
    seal()
    read(path)
    for probe in ('x', [1], {}, dict(size=[1, 8, 8], n=2, outputs=['a b']), dict(size=['a'], n=2, outputs=[])):
        seal(probe=probe)
        with pytest.raises(EKDError, match='probe in its file is damaged|cannot process the images'): read(path)

def test_other_formats_without_a_probe_are_read(tmp_path):
    program = torch.export.export(student(), (X,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path/'s.pt2')
    assert torch.allclose(load_exported(tmp_path/'s.pt2')(X), student()(X), atol=1e-5)
    pytest.importorskip('onnxruntime')
    torch.onnx.export(student(), (X,), tmp_path/'s.onnx', dynamo=False, input_names=['images'])
    assert torch.allclose(load_onnx(tmp_path/'s.onnx')(X), student()(X), atol=1e-5)

def test_a_probe_counts_its_images_and_names_the_distance():
    net, s = nn.Flatten(), probe_answers(nn.Flatten(), (1, 2, 2), n=3)
    check_probe(s, net)
    refused(check_probe, s, nn.Sequential(net, nn.ReLU()), 'the copy',
            says='the copy, compared .* on 3 images, expected at most 0.001')

def test_a_trained_copy_of_an_exported_learner_predicts(tmp_path):
    "The file's answers are those of the weights that were saved"
    l = learner()
    again = load_learner(export_learner(l, tmp_path/'l.pkl'))
    enlarge(again.model, 3.)
    with again.no_bar(): again.predict(data().x_test[0])

def test_an_exported_learner_is_exported_again(tmp_path):
    again = load_learner(export_learner(learner(), tmp_path/'l.pkl'))
    path = export_learner(again, tmp_path/'m.pkl')
    n = [type(c).__name__ for c in load_learner(path).cbs].count('SavedAnswers')
    assert n==1 and [type(c).__name__ for c in again.cbs].count('SavedAnswers')==1

@pytest.mark.parametrize('make', [lambda: student().half(), lambda: student().double(), lambda: student().bfloat16()])
def test_a_student_of_another_precision_is_read_in_float32(make, tmp_path):
    s = make()
    again = load_student(save_student(s, tmp_path))
    assert next(again.parameters()).dtype==torch.float32 and output_distance(again(X), copy.deepcopy(s).float()(X))<1e-5

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_a_student_of_another_precision_is_exported(dtype, tmp_path):
    "The probe is asked in the precision of the network"
    s, x = student().to(dtype), X.to(dtype)
    again = load_exported(export_student(s, tmp_path/'s.pt2', x))(x)
    assert again.dtype==dtype and output_distance(s(x), again)<.05
    change = torch.export.export(enlarge(copy.deepcopy(s), 3.), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    extra = {'probe.json': ''}
    torch.export.load(tmp_path/'s.pt2', extra_files=extra)
    torch.export.save(change, tmp_path/'wrong.pt2', extra_files=extra)
    refused(load_exported, tmp_path/'wrong.pt2')

def test_a_file_is_read_into_another_precision_and_under_autocast(tmp_path):
    path = save_student(student(), tmp_path)
    load_student(path, student().bfloat16())
    load_student(path, student().double())
    with torch.autocast('cpu', torch.bfloat16): load_student(save_student(student(), tmp_path))

class Drop(nn.Module):
    "Monte Carlo dropout: it draws random numbers in evaluation mode too"
    def forward(self, x): return F.dropout(x, .2, True)

def random_student():
    from ekd_nb.student import BranchedStudent
    torch.manual_seed(0)
    branches = [Branch(nn.Sequential(nn.Conv2d(8, 8, 3), Drop()), nn.Linear(8, 10)) for _ in range(2)]
    s = BranchedStudent(nn.Sequential(nn.Conv2d(1, 8, 3), Drop()), branches)
    s.config = dict(size=(1, 8, 8))
    return s

def test_a_network_that_draws_random_numbers_is_not_compared(tmp_path):
    s = random_student()
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match='is not compared: it draws random numbers') as caught: s.keep(1)
    path = save_student(s, tmp_path)
    assert len(caught)==1 and json.loads(path.with_suffix('.json').read_text())['probe'] is None
    assert torch.equal(state, torch.get_rng_state())
    load_student(path, random_student())

def test_a_run_of_a_random_network_goes_on(tmp_path):
    for _ in range(2): l = fit(ekd_learner(dls(), random_student(), teachers(), cbs=Checkpoint(tmp_path)), 2)
    assert len(l.recorder.values)==2

def test_a_checkpoint_is_silent(tmp_path):
    "fastai warns of attributes that the network has too"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        fit(learner(cbs=Checkpoint(tmp_path)))
    assert not [str(w.message) for w in caught if 'shadowing' in str(w.message)]

@pytest.mark.parametrize('without', [False, True])
def test_a_plain_network_is_exported_again(without, tmp_path):
    "Its Learner has no images then; `without`: files of before hold no probe"
    from ekd_nb.learner import teacher_learner
    from ekd_nb.saved_learner import SavedAnswers
    l = fit(teacher_learner(dls(), Net(10, 1)))
    again = load_learner(export_learner(l, tmp_path/'l.pkl'))
    if without: again.remove_cbs(again._grab_cbs(SavedAnswers))
    last = load_learner(export_learner(again, tmp_path/'m.pkl'))
    with last.no_bar(): assert torch.allclose(last.predict(data().x_test[0])[2], again.predict(data().x_test[0])[2])
    with pytest.raises(EKDError, match=r'x: got \[4, 8, 8\], expected images'):
        export_learner(again, tmp_path/'m.pkl', X[:, 0])

def test_a_hook_on_a_loaded_learner_is_named_once(tmp_path):
    "As one that divides logits by a temperature"
    again = load_learner(export_learner(learner(), tmp_path/'l.pkl'))
    again.model.register_forward_hook(lambda m, i, o: o/2)
    with pytest.warns(UserWarning, match='hooks that the saved network had not') as caught, again.no_bar():
        for _ in range(2): again.predict(data().x_test[0])
    assert sum('hooks' in str(w.message) for w in caught)==1

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_onnx_of_a_precision_that_its_runtime_lacks(dtype, tmp_path):
    pytest.importorskip('onnxruntime')
    with pytest.raises(EKDError, match=r'use student.float\(\)') as e:
        save_onnx(student().to(dtype), tmp_path/'s.onnx', X.to(dtype))
    assert '\n' not in str(e.value) and not list(tmp_path.iterdir())

def test_a_loaded_program_has_its_graph_and_the_names_of_its_weights(tmp_path):
    s = student()
    again = load_exported(save_exported(s, tmp_path/'s.pt2', X))
    copied = copy.deepcopy(again).double()
    assert again.graph.nodes and set(again.state_dict())<=set(s.state_dict())
    assert copied(X.double()).dtype==torch.float64 and torch.equal(again(X), load_exported(tmp_path/'s.pt2')(X))
    again.load_state_dict({k: v*2 for k, v in again.state_dict().items()})
    assert not torch.equal(again(X), s(X))

@pytest.mark.parametrize('size', ['8x8', 8, (8, 0), [8], [8., 8.], None])
def test_a_size_that_is_none_is_one_sentence(size, tmp_path):
    with pytest.raises(EKDError, match='size: got'): save_student(student(), tmp_path, size=size)

def test_arguments_that_change_nothing_are_accepted(tmp_path):
    pytest.importorskip('onnxruntime')
    net, path = get_model(SMALL, 10, 1), tmp_path/'teacher.safetensors'
    save_teacher(net, path, n_out=10, in_channels=1, builder_args={})
    with pytest.raises(EKDError, match='n_out: got 9'): save_teacher(net, path, n_out=9)
    from_hub(tmp_path, token='t')
    from_hub(tmp_path, revision='main')
    for arch in (SMALL, [SMALL, SMALL]): export_student(student(), tmp_path/'s.onnx', X, arch=arch)
    with pytest.raises(EKDError, match='arch: got'): export_student(student(), tmp_path/'s.onnx', X, arch='resnet14-w4')

def test_a_builder_that_makes_the_same_network_is_accepted(tmp_path):
    path = save_teacher(teacher(), tmp_path/'t.safetensors')
    assert torch.equal(load_teacher(path, builder=get_model)(X), teacher()(X))
    from ekd_nb.models import resnet8
    for builder in (resnet8, nn.Linear):
        with pytest.raises(EKDError, match='the file is built by'): load_teacher(path, builder=builder)


# ---- a saved student that would come back as another network

def reseal(path, change=None, **entries):
    "Edit a manifest, or its weights, and put the right digests on it"
    from ekd_nb.core import sha256_file
    from safetensors.torch import load_file, save_file
    if change:
        sd = load_file(str(path))
        change(sd)
        save_file(sd, str(path))
    man = json.loads(path.with_suffix('.json').read_text()) | entries | dict(sha256=sha256_file(path))
    path.with_suffix('.json').write_text(json.dumps(add_digest(man)))

def louder(sd):
    k = next(k for k in sd if k.endswith('head.weight'))
    sd[k] = sd[k]*1.1

def swapped(sd):
    a, b = 'branches.0.head.bias', 'branches.1.head.bias'
    sd[a],sd[b] = sd[b]+1,sd[a]

@pytest.mark.parametrize('entries, change, says', [
    (dict(fusion='prob'), None, 'computes something else'),
    (dict(n_branches=3, arch=[SMALL]*3), None, 'are not those of this student'),
    (dict(n_branches=1, arch=[SMALL]), None, 'are not those of this student'),
    (dict(split=2), None, 'are not those of this student'),
    (dict(arch=['resnet14-w4']*2), None, 'are not those of this student'),
    ({}, louder, 'computes something else'),
    ({}, swapped, 'computes something else'),
    (dict(arch=['resnet99']*2), None, 'resnet99'),
    (dict(n_out=12), None, 'are not those')])
def test_an_edited_student_is_refused(entries, change, says, tmp_path):
    "Even with the right digests: someone meant it well"
    path = save_student(student(), tmp_path)
    reseal(path, change, **entries)
    with pytest.raises(EKDError, match=says) as e: load_student(path)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('entries, change', [
    ({}, louder), (dict(arch='resnet8-w4-x'), None), (dict(n_out=12), None), (dict(in_channels=3), None)])
def test_an_edited_teacher_is_refused(entries, change, tmp_path):
    path = save_teacher(teacher(), tmp_path/'t.safetensors')
    reseal(path, change, **entries)
    with pytest.raises(EKDError) as e: load_teacher(path)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('what', ['student', 'teacher'])
def test_another_version_of_timm(what, tmp_path, monkeypatch):
    "The same names and shapes, another activation"
    timm = pytest.importorskip('timm')
    make = timm.create_model
    if what=='student':
        s = branched_student('test_resnet', 2, 10, size=32).eval()
        path, read = save_student(s, tmp_path), load_student
    else: path, read = save_teacher(make('test_resnet', num_classes=10).eval(), tmp_path/'t.safetensors'), load_teacher
    read(path)
    monkeypatch.setattr(timm, 'create_model', lambda *a, **kw: silu(make(*a, **kw)))
    refused(read, path)

def test_a_torchvision_network_whose_code_changed(tmp_path, monkeypatch):
    import torchvision.models as tv
    from torchvision.models.resnet import BasicBlock
    net = tv.resnet18(num_classes=4).eval()
    path = save_teacher(net, tmp_path/'t.safetensors', x=torch.randn(2, 3, 32, 32))
    load_teacher(path)
    right = BasicBlock.forward
    monkeypatch.setattr(BasicBlock, 'forward', lambda self, x: F.silu(right(self, x)))
    refused(load_teacher, path)


# ---- validation images that would be trained on

def warned(f, *a, **kw):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        f(*a, **kw)
    return [str(w.message) for w in caught if 'validation images' in str(w.message)]

def loaders(kind, folder=None):
    from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset
    from fastai.data.core import DataLoaders
    ds = TensorDataset(torch.randn(40, 1, 8, 8), torch.arange(40)%10)
    def subset(*rows): return DataLoader(Subset(ds, range(*rows)), 8, shuffle=True)
    def sampled(*rows): return DataLoader(ds, 8, sampler=SubsetRandomSampler(range(*rows)))
    return DataLoaders(*dict(
        same=lambda: (DataLoader(ds, 8, shuffle=True), DataLoader(ds, 8)), subsets=lambda: (subset(32), subset(28, 40)),
        nested=lambda: (DataLoader(Subset(Subset(ds, range(10, 40)), range(20)), 8), subset(25, 40)),
        samplers=lambda: (sampled(32), sampled(28, 40)), apart=lambda: (subset(32), subset(32, 40)),
        apart_samplers=lambda: (sampled(32), sampled(32, 40)))[kind]())

@pytest.mark.parametrize('kind, n', [
    ('same', '40 of 40'), ('subsets', '4 of 12'), ('nested', '5 of 15'), ('samplers', '4 of 12'),
    ('apart', None), ('apart_samplers', None)])
def test_loaders_that_share_images(kind, n):
    said = warned(learner, loaders(kind))
    assert (f'dls: {n} validation images are training images' in said[0]) if n else not said

def test_oversampled_rows_stay_apart():
    from ekd_nb.data import image_dls, stratified_subset
    rows = stratified_subset(data().y_train, n_per_class=6).repeat(4)
    d = image_dls(data(), rows, valid=20, bs=16)
    assert not set(d.train.rows.tolist()) & set(d.valid.rows.tolist()) and not warned(learner, d)

def test_unlabelled_images_of_the_validation_data(tmp_path):
    from ekd_nb.data import image_dls, stratified_subset
    from ekd_nb.unlabeled import UnlabeledImages
    rows = stratified_subset(data().y_train, n_per_class=6)
    d, more = image_dls(data(), rows, valid=20, bs=16), image_dls(data(), rows, bs=16)
    l = learner(d, cbs=UnlabeledImages(more))
    assert '20 of 20 validation images are among those without labels' in warned(fit, l)[0]
    assert not warned(fit, learner(d, cbs=UnlabeledImages(image_dls(data(), d.train.rows.numpy(), bs=16))))

@pytest.mark.parametrize('split', ['rows', 'samplers'])
def test_a_run_does_not_go_on_with_another_split(split, tmp_path):
    "Its training images would be validation images"
    from fastai.callback.core import Callback
    from ekd_nb.checkpoint import unlock_folder
    from ekd_nb.data import image_dls, stratified_subset
    rows = stratified_subset(data().y_train, n_per_class=6)
    def loader(i):
        if split=='samplers': return loaders('apart_samplers')
        held = rows[i*10:i*10+10]
        return image_dls(data(), [r for r in rows if r not in held], valid=held, bs=16)
    class Kill(Callback):
        def before_epoch(self):
            if self.epoch==1: raise KeyboardInterrupt('power cut')
    with pytest.raises(KeyboardInterrupt): fit(learner(loader(0), cbs=[Checkpoint(tmp_path), Kill()]), 2)
    unlock_folder(tmp_path)
    if split=='samplers':
        from torch.utils.data import DataLoader, SubsetRandomSampler
        d = loader(0)
        d.loaders[0] = DataLoader(d.train.dataset, 8, sampler=SubsetRandomSampler(range(8, 40)))
    else: d = loader(1)
    with pytest.raises(EKDError, match='other training images of these data'):
        fit(learner(d, cbs=Checkpoint(tmp_path)), 2)
    unlock_folder(tmp_path)
