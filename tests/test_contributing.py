"What CONTRIBUTING.md says must work: its Python is run from top to bottom, and the files it names exist"
import re
from pathlib import Path
import pytest, torch
from ekd_nb.arrays import DATASETS
from ekd_nb.deploy import EXPORTERS
from ekd_nb.study.methods import METHODS
from ekd_nb.study.protocols import PROTOCOLS, protocol

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT/'CONTRIBUTING.md').read_text()
BLOCKS = re.findall(r'^```python\n(.*?)^```', TEXT, re.M | re.S)


REGISTRIES = DATASETS, PROTOCOLS, METHODS, EXPORTERS

@pytest.fixture
def registries():
    "What the examples add to the registries is taken out again"
    before = [dict(r) for r in REGISTRIES]
    yield
    for now, then in zip(REGISTRIES, before):
        now.clear()
        now.update(then)


def test_the_examples_run(tmp_path, monkeypatch, registries):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    for block in BLOCKS: exec(compile(block, 'CONTRIBUTING.md', 'exec'), names)
    row = dict(zip(names['learn'].recorder.metric_names[1:], names['learn'].recorder.values[-1]))
    assert all(row[n]>0 for n in names['LogitMSELoss'].term_names)
    assert names['student'].n_branches==2 and '×2' in names['name'] and METHODS['ekd_two'].label=='EKD, two branches'
    assert len(names['shapes'].x_train)==80 and protocol('shapes').per_class==20
    assert Path(names['path']).exists()


def test_the_files_it_names_exist():
    named = set(re.findall(r'`((?:tools|tests|nbs|ekd_nb)/[\w/.]*)`', TEXT))
    assert named and not [f for f in named if not (ROOT/f).exists()]


def test_every_room_of_the_library_is_named():
    rooms = {p.stem for p in (ROOT/'nbs').glob('[0-9]*.ipynb')}
    assert not [r for r in rooms if f'`{r}`' not in TEXT]
    study = TEXT.partition('### `nbs/study/`')[2].partition('## To add')[0]
    assert not [p.stem for p in (ROOT/'ekd_nb/study').glob('[a-z]*.py') if p.stem not in study]


def test_every_folder_of_results_is_in_its_table():
    table = TEXT.split('| folder | written by |')[1].split('\n\n')[0]
    named = set(re.findall(r'^\| `(\w+)`', table, re.M))
    here = {p.name for p in (ROOT/'results').iterdir() if p.is_dir()}
    assert here-named==set() and named-here<={'logits'}   # logits are written with the first runs of `full`
