"""The files that configure Rucio's server and its clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: Password of the account ``root`` of every test server.
ROOT_PASSWORD = "secret-of-root"

# A [database] section is what makes Rucio's library take itself for a server.
_SERVER = """\
[common]
logdir = {home}/log
loglevel = WARNING
[database]
default = {database}
[bootstrap]
userpass_identity = root
userpass_pwd = {password}
[alembic]
cfg = {home}/etc/alembic.ini
[policy]
permission = generic
schema = generic
lfn2pfn_algorithm_default = hash
[conveyor]
transfertool = mock
scheme = file
[cache]
url = {cache}
"""
_ALEMBIC = """\
[alembic]
script_location = {scripts}
sqlalchemy.url = {database}
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = generic
[logger_root]
level = WARN
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = generic
[formatter_generic]
format = %(message)s
"""
_CLIENT = """\
[client]
rucio_host = {url}
auth_host = {url}
auth_type = userpass
username = {account}
password = {password}
account = {account}
auth_token_file_path = {folder}/token
request_retries = 1
"""


def write_server(
    home: Path,
    database: str,
    environment: Path,
    *,
    cache: str = "127.0.0.1:9",
    sections: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write what a server reads; ``RUCIO_HOME`` must name the folder.

    Parameters
    ----------
    home : Path
    database : str
        SQLAlchemy URL.
    environment : Path
        That Rucio is installed in.
    cache : str
        Where memcached listens; where nobody does, there is no cache.
    sections : mapping, optional
        More of ``rucio.cfg``, such as ``{"oidc": {...}}``.
    """
    (home / "etc").mkdir(parents=True, exist_ok=True)
    (home / "log").mkdir(exist_ok=True)
    text = _SERVER.format(home=home, database=database, password=ROOT_PASSWORD, cache=cache)
    for name, options in (sections or {}).items():
        text += f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in options.items())
    (home / "etc" / "rucio.cfg").write_text(text)
    (scripts,) = environment.glob("lib/python*/site-packages/rucio/db/sqla/migrate_repo")
    ini = _ALEMBIC.format(scripts=scripts, database=database)
    (home / "etc" / "alembic.ini").write_text(ini)


def write_client(folder: Path, url: str, account: str, password: str) -> Path:
    """Write what clients of an account read; return what ``RUCIO_CONFIG`` must name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rucio.cfg"
    path.write_text(_CLIENT.format(url=url, account=account, password=password, folder=folder))
    path.chmod(0o600)
    return path
