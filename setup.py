"Hands version, requirements and console scripts from settings.ini to setuptools; everything else is in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

_ini = ConfigParser(delimiters=['='])
_ini.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
_cfg = _ini['DEFAULT']

setup(version=_cfg['version'],
      install_requires=_cfg['requirements'].split(),
      extras_require={k: _cfg[f'{k}_requirements'].split() for k in ('dev', 'bench', 'cluster')},
      entry_points={'console_scripts': _cfg['console_scripts'].split(), 'nbdev': ['ekd_nb=ekd_nb._modidx:d']})
