"The package as an index shows it and as pip installs it: metadata, files of the wheel, quiet imports; no network"
import email, os, re, shutil, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
setuptools = pytest.importorskip('setuptools')
if Version(setuptools.__version__) < Version('77'):
    pytest.skip(f'building needs setuptools 77, here is {setuptools.__version__}', allow_module_level=True)


def build(kind, at):
    "Build an sdist or a wheel in a folder; the file"
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('out'))"
    r = subprocess.run([sys.executable, '-c', code], cwd=at, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    return at/'out'/r.stdout.splitlines()[-1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built from the sdist of a copy: what is left out there would be missed"
    at = tmp_path_factory.mktemp('wheel')
    files = 'pyproject.toml', 'settings.ini', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'
    for f in files: shutil.copy(ROOT/f, at)
    shutil.copytree(ROOT/'ekd_nb', at/'ekd_nb', ignore=shutil.ignore_patterns('__pycache__'))
    sdist = build('sdist', at)
    with tarfile.open(sdist) as t: t.extractall(at, filter='data')
    return zipfile.ZipFile(build('wheel', at/sdist.name.removesuffix('.tar.gz')))


@pytest.fixture(scope='module')
def metadata(wheel):
    name = next(n for n in wheel.namelist() if n.endswith('.dist-info/METADATA'))
    return email.message_from_bytes(wheel.read(name))


def test_links_of_the_readme_are_addresses(metadata):
    assert metadata['Description-Content-Type'] == 'text/markdown'
    text = metadata.get_payload(decode=True).decode()
    links = re.findall(r'\]\(([^)\s]+)', re.sub(r'(?s)```.*?```', '', text))
    assert len(links) > 5 and all(re.match(r'https://|#', l) for l in links), [l for l in links if ':' not in l]
    pictures = re.findall(r'!\[[^\]]*\]\(([^)\s]+)', text)
    assert pictures and all('/raw/main/nbs/images/' in l for l in pictures)


def test_links_lead_to_files_of_the_repository(metadata):
    text = metadata.get_payload(decode=True).decode()
    for f in re.findall(r'https://github.com/ekd-nb/ekd_nb/(?:blob|raw)/main/([^)#\s]+)', text):
        assert (ROOT/f).is_file(), f


def test_extras(metadata):
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    extras = set(metadata.get_all('Provides-Extra'))
    assert {'timm', 'onnx', 'hub', 'dev'} <= extras
    assert extras == {k.removesuffix('_requirements') for k in ini['DEFAULT'] if k.endswith('_requirements')}
    needs = [Requirement(r) for r in metadata.get_all('Requires-Dist')]
    def of(extra): return {r.name for r in needs if r.marker and r.marker.evaluate({'extra': extra})}
    assert of('hub') == {'huggingface_hub'} and of('timm') == {'timm'} and of('onnx') == {'onnx', 'onnxruntime'}
    plain = {r.name for r in needs if not r.marker}
    assert 'torch' in plain and not plain & (of('hub') | of('timm') | of('onnx'))


def test_optional_parts_are_tested(metadata):
    "What an extra brings is installed where tests run"
    needs = [Requirement(r) for r in metadata.get_all('Requires-Dist')]
    def of(extra): return {r.name for r in needs if r.marker and r.marker.evaluate({'extra': extra})}
    assert of('hub') | of('timm') | of('onnx') <= of('dev')


def test_files_of_the_wheel(wheel):
    names = set(wheel.namelist())
    assert {'ekd_nb/py.typed', 'ekd_nb/__main__.py', 'ekd_nb/learner.py', 'ekd_nb/study/runs.py'} <= names
    assert any(n.startswith('ekd_nb/weights/') and n.endswith('.safetensors') for n in names)
    assert not any(n.startswith(('tests', 'tools', 'nbs', 'results')) for n in names)
    entry = next(n for n in names if n.endswith('entry_points.txt'))
    assert 'ekd_reproduce = ekd_nb.study.reproduce:main' in wheel.read(entry).decode()


def python(*args):
    env = os.environ | dict(PYTHONPATH=str(ROOT), PYTHONWARNINGS='default')
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env)


@pytest.mark.parametrize('args', [('-c', 'import ekd_nb.learner'), ('-m', 'ekd_nb', '--help')], ids=' '.join)
def test_no_warnings_at_start(args):
    r = python(*args)
    assert r.returncode == 0 and r.stderr == ''


def test_version(metadata):
    assert python('-m', 'ekd_nb', '--version').stdout.strip() == f"ekd_nb {metadata['Version']}"
