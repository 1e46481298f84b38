from __future__ import annotations

import re
from pathlib import Path

import pytest

from pandaflow.grid.places import Provision, Queue
from pandaflow.harvester.settings import (
    EXAMPLE,
    ConfigError,
    label_of,
    parse_config,
    read_config,
)
from pandaflow.harvester.submitter import Shape
from pandaflow.harvester.toml import place

HEAD = '[harvester]\nserver = "http://127.0.0.1:8790"\n'


def test_the_example_is_one() -> None:
    settings = parse_config(EXAMPLE)
    assert settings.harvester.every == 10 and settings.harvester.ghost == 300
    cern = settings.queues["CERN"]
    assert cern.kind == "slurm" and settings.queues["here"].kind == "local"
    queue = Queue(name="CERN", provision=Provision(idle=77.0))
    small, large = settings.shapes(queue)
    assert small == Shape(cores=8, memory=16 * 10**9, walltime=43_200.0)
    order = settings.order(queue, large)
    words = order.command("the-name")
    assert words[0] == "/opt/pandaflow/bin/pandaflow-pilot" and words[-2:] == ["--looping", "4h"]
    told = dict(zip(words[1:-2:2], words[2:-2:2], strict=True))
    assert told["--name"] == "the-name" and told["--queue"] == "CERN" and told["--gpus"] == "2"
    assert told["--idle"] == "77s" and told["--tags"] == "ssd" and told["--cores"] == "64"
    assert "--token-file" not in told
    script = cern.submitter.preview(order, "the-name")
    assert "#SBATCH --partition=main" in script and "module load python" in script
    assert "exec /opt/pandaflow/bin/pandaflow-pilot --server https://" in script


def test_shapes_are_as_the_server_s_site_by_default() -> None:
    settings = parse_config(HEAD + "[queues.q.local]\n")
    site = {"cores": 8, "memory": "2 GB", "walltime": "2h"}
    (shape,) = settings.shapes(Queue(name="q", site=site))
    assert shape == Shape(cores=8, memory=2 * 10**9, walltime=7200.0)
    assert settings.shapes(Queue(name="q")) == (Shape(),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[harvester\n", r"t\.toml, line 1: "),
        (HEAD, "queues: Field required"),
        ("[queues.q.local]\n", "harvester: Field required"),
        ('[harvester]\nserver = "http://far.example"\n[queues.q.local]\n', "line 2, .*server: "),
        (HEAD + "[queues.q]\n", "line 3, queues.q: name one submitter of local, slurm"),
        (HEAD + "[queues.q.local]\n[queues.q.slurm]\n", "queues.q: .* it has local and slurm"),
        (HEAD + "[queues.q.cloud]\n", "line 3, queues.q.cloud: unknown setting"),
        (HEAD + "[queues.q.local]\nnise = 3\n", "line 4, queues.q.local.nise: unknown setting"),
        (HEAD + "[queues.q.local]\nnice = 99\n", "line 4, queues.q.local.nice: .*equal to 19"),
        (HEAD + 'every = "soon"\n[queues.q.local]\n', "line 3, harvester.every: .*soon"),
        (HEAD + "every = 0\n[queues.q.local]\n", "line 3, harvester.every: .*above 0"),
        (HEAD + 'name = "a/b"\n[queues.q.local]\n', "line 3, harvester.name"),
        (HEAD + '[queues.q]\nkind = "local"\n[queues.q.local]\n', "line 4, queues.q.kind: unkn"),
        (
            HEAD + '[queues.q.local]\n[[queues.q.shapes]]\n[[queues.q.shapes]]\nmemory = "1 X"\n',
            r"line 6, queues.q.shapes\[2\].memory: .*1 X",
        ),
        (
            HEAD + '[queues.q.slurm]\nextra = ["--a\\n#SBATCH --b"]\n',
            r"line 4, queues.q.slurm.extra\[1\]",
        ),
        (HEAD + "[queues.q]\nprogram = []\n[queues.q.local]\n", "line 4, queues.q.program"),
        (HEAD + '[queues.q]\nenv = {"A B" = "x"}\n[queues.q.local]\n', "line 4, queues.q.env"),
    ],
)
def test_mistakes_are_told_with_their_places(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "t.toml")
    assert re.search(said, str(caught.value)), caught.value
    assert str(caught.value).startswith("t.toml")


def test_every_mistake_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(HEAD + "[queues.a]\n[queues.b.local]\nx = 1\n[queues.c.pbs]\ny = 2\n")
    assert str(caught.value).count("harvester.toml, line") == 3


def test_reading_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.toml")
    file = tmp_path / "harvester.toml"
    file.write_text("[queues.q.local]\n")
    settings = read_config(file, "http://localhost:1/")
    assert settings.harvester.server == "http://localhost:1"


@pytest.mark.parametrize("queue", ["CERN", "a b/c", "ä", "-", "x" * 200])
def test_labels(queue: str) -> None:
    label = label_of("http://s", "main", queue)
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,39}", label) and not label.endswith("-")
    others = {
        label_of("http://s", "main", queue + "x"),
        label_of("http://t", "main", queue),
        label_of("http://s", "other", queue),
    }
    assert label not in others and len(others) == 3


def test_places_in_odd_files() -> None:
    text = '# [x]\n["a b"]\n  "c.d" = 1 # y = 2\nx.y = 3\n[[l]]\n[[l]] # two\nk = """\n[no]\n"""\n'
    assert place(text, ("a b", "c.d")) == ", line 3, a b.c.d"
    assert place(text, ("a b", "x", "y", "z")) == ", line 4, a b.x.y.z"
    assert place(text, ("l", 1, "k")) == ", line 7, l[2].k"
    assert place(text, ("l", 0, "k")) == ", line 5, l[1].k"
    assert place(text, ("none",)) == ", none" and place(text, ()) == ""
