"Students and teachers on the Hub: a folder takes its place, or its functions are replaced where the package calls them"
import json, shutil, sys
from pathlib import Path
import pytest
import torch
from torch import nn
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import Net, learner
from ekd_nb.core import EKDError
from ekd_nb.hub import from_hub, push_student_hub, push_teacher_hub
from ekd_nb.models import get_model
from ekd_nb.teachers import save_teacher

huggingface_hub = pytest.importorskip('huggingface_hub')
X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A folder in place of the Hub; what was asked of it"
    asked = []
    class FolderHub:
        def __init__(self, token): self.token = token
        def create_repo(self, repo, private, exist_ok):
            asked.append((repo, private, self.token))
            return huggingface_hub.RepoUrl(f'https://huggingface.co/{repo}')
        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path/repo_id, dirs_exist_ok=True)
    def download(repo, revision, token, allow_patterns):
        asked.append((repo, revision, token))
        to = tmp_path/'cache'/repo
        to.mkdir(parents=True, exist_ok=True)
        for f in (tmp_path/repo).iterdir():
            if f.name in allow_patterns: shutil.copy(f, to)
        return str(to)
    monkeypatch.setattr('huggingface_hub.HfApi', FolderHub)
    monkeypatch.setattr('huggingface_hub.snapshot_download', download)
    monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
    return tmp_path, asked


def refused(f, *args, **kw):
    with pytest.raises(EKDError) as e: f(*args, **kw)
    assert '\n' not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize('split', [None, 'heads'])
def test_a_student_there_and_back(hub, split):
    folder, asked = hub
    l = learner(split=split)
    l.fit(1)
    url = push_student_hub(l, 'me/s-1', token='t', private=True)
    assert url == 'https://huggingface.co/me/s-1' and asked == [('me/s-1', True, 't')]
    assert sorted(p.name for p in (folder/'me/s-1').iterdir()) == ['README.md', 'student.json', 'student.safetensors']
    got = from_hub('me/s-1', revision='abc', token='r')
    assert torch.equal(got(X), l.model.eval()(X)) and asked[-1] == ('me/s-1', 'abc', 'r') and not got.training
    assert got.manifest['teachers'] == list(l.distill.teachers.names)


def test_the_card_is_the_page(hub):
    folder, _ = hub
    l = learner()
    l.fit(1)
    push_student_hub(l, 'me/s', token='t')
    card = (folder/'me/s/README.md').read_text()
    head = card.split('---\n')[1]
    assert 'library_name: ekd_nb' in head and 'pipeline_tag: image-classification' in head and 'tags:' in head
    assert "from_hub('me/s')" in card and f'{l.recorder.values[-1][2]:.4f}' in card and '# s\n' in card


def test_a_teacher_there_and_back(hub):
    folder, _ = hub
    t = get_model('resnet8-w6', 10, 1).eval()
    push_teacher_hub(t, 'me/t', token='t', accuracy=.5, classes=list('0123456789'))
    assert torch.equal(from_hub('me/t')(X), t(X))
    card = (folder/'me/t/README.md').read_text()
    assert 'Accuracy 0.5000' in card and 'resnet8-w6' in card and '0, 1, 2' in card
    learner(ts=[from_hub('me/t')]).fit(1)


def test_a_saved_teacher_is_uploaded_as_it_is(hub):
    folder, _ = hub
    t = get_model('resnet8-w6', 10, 1).eval()
    path = save_teacher(t, folder/'mine.safetensors')
    push_teacher_hub(path, 'me/t', token='t')
    assert (folder/'me/t/teacher.safetensors').read_bytes() == path.read_bytes()
    assert 'Not measured' in (folder/'me/t/README.md').read_text()
    assert torch.equal(from_hub(folder/'me/t')(X), t(X))


def test_no_other_file_is_taken(hub):
    folder, _ = hub
    push_teacher_hub(get_model('resnet8-w6', 10, 1), 'me/t', token='t')
    (folder/'me/t/teacher.pkl').write_bytes(b'x')
    from_hub('me/t')
    assert not list((folder/'cache').rglob('*.pkl'))


def test_damage_is_noticed(hub):
    folder, _ = hub
    push_teacher_hub(get_model('resnet8-w6', 10, 1), 'me/t', token='t')
    man = folder/'me/t/teacher.json'
    man.write_text(json.dumps(json.loads(man.read_text()) | dict(accuracy=1.)))
    assert 'changed by hand' in refused(from_hub, 'me/t')


@pytest.mark.parametrize('repo', ['digits', 'a/b/c', '', 3, None, 'me/', 'https://huggingface.co/me/a'])
def test_names_of_repositories(hub, repo):
    for f, *args in ((push_student_hub, learner().model), (push_teacher_hub, Net()), (from_hub,)):
        assert "expected the name of a repository, 'owner/name'" in refused(f, *args, repo)


def test_without_a_token(hub):
    _, asked = hub
    for f in (push_student_hub, push_teacher_hub): assert 'hf auth login' in refused(f, Net(), 'me/a')
    assert not asked   # nothing was sent


def test_without_the_package(monkeypatch):
    monkeypatch.setattr('ekd_nb.hub.find_spec', lambda name: None)
    for f, *args in ((push_student_hub, Net()), (push_teacher_hub, Net()), (from_hub,)):
        assert "pip install 'ekd_nb[hub]'" in refused(f, *args, 'me/a')


def test_what_cannot_be_pushed(hub):
    _, asked = hub
    assert 'expected a BranchedStudent' in refused(push_student_hub, nn.Linear(2, 2), 'me/a', token='t')
    assert 'expected an nn.Module' in refused(push_teacher_hub, 3, 'me/a', token='t')
    assert 'does not exist' in refused(push_teacher_hub, 'no.safetensors', 'me/a', token='t')
    assert not asked


def test_nothing_there(hub):
    folder, _ = hub
    (folder/'empty').mkdir()
    assert 'holds neither' in refused(from_hub, folder/'empty')


def test_a_network_that_fails(monkeypatch):
    def broken(*args, **kw): raise ConnectionError('no route\nto host')
    monkeypatch.setattr('huggingface_hub.snapshot_download', broken)
    monkeypatch.setattr('huggingface_hub.HfApi.create_repo', broken)
    said = refused(from_hub, 'me/a')
    assert said.startswith('repo: cannot read me/a from the Hub (no route); expected an existing one')
    assert 'cannot write to me/a' in refused(push_teacher_hub, get_model('resnet8-w6', 10, 1), 'me/a', token='t')


def test_the_real_functions_take_these_arguments():
    "What is replaced above exists in the installed package, with these arguments"
    from inspect import signature
    api = huggingface_hub.HfApi
    wanted = [(api.create_repo, ('repo_id', 'private', 'exist_ok')),
              (api.upload_folder, ('repo_id', 'folder_path', 'commit_message')),
              (huggingface_hub.snapshot_download, ('repo_id', 'revision', 'token', 'allow_patterns')),
              (api, ('token',))]
    for f, names in wanted: assert set(names) <= set(signature(f).parameters)
