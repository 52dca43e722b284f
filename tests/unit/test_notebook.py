"""Notebooks: the table that changes in place, a real notebook executed, and an interrupted kernel."""

import os
import sys
import time
from pathlib import Path

import pytest

from potstill.library.notebook import Table, in_notebook

ROOT = Path(__file__).parents[2]


def test_nobody_takes_a_script_for_a_notebook():
    assert not in_notebook()


def test_the_table_has_a_line_a_stage_and_escapes_what_others_wrote():
    table = Table()
    head = {"stage": None, "time": "", "level": "info"}
    facts = {"produces": "chats", "facts": {"rows": 3, "note": "<b>&"}}
    for event in (
        {**head, "event": "planned", "recipe": "r", "folder": "out", "stages": 2, "to_run": ["a", "b"]},
        {**head, "event": "found", "stage": "a", **facts},
        {**head, "event": "started", "stage": "b", "kind": "x", "why": "new"},
        {**head, "event": "doing", "stage": "b", "what": "loading the model"},
    ):
        table._note(event)
    html = table.html()
    assert "r in out: 2 of 2 to run" in html
    assert html.count("<tr>") == 2
    assert "loading the model" in html
    assert "&lt;b&gt;&amp;" in html
    table._note({**head, "event": "warned", "stage": "b", "text": "<script>"})
    table._note({**head, "event": "sealed", "stage": "b", "seconds": 65.0, **facts})
    html = table.html()
    assert "1 min 05 s" in html
    assert "<script>" not in html


def kernel_environment(monkeypatch, tmp_path):
    paths = [str(ROOT / "src"), str(ROOT / "tests" / "unit"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_of_the_documentation_runs(monkeypatch, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    kernel_environment(monkeypatch, tmp_path)
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, startup_timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()
    shown = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert all(out.output_type != "error" for out in shown)
    html = [out["data"]["text/html"] for out in shown if "text/html" in out.get("data", {})]
    tables = [text for text in html if "<table>" in text]
    assert len(tables) == 1, "progress is one table, which changed in place"
    assert "all of it is sealed" in tables[0]
    assert "✓" in tables[0]
    assert any("articles" in text and text.startswith("<pre") for text in html), "a plan and a status are drawn"
    assert not any("\x1b" in str(out) for out in shown)


def answer(client, asked):
    """What the kernel says to one request; others may still be answered before it."""
    while True:
        reply = client.get_shell_msg(timeout=600)
        if reply["parent_header"]["msg_id"] == asked:
            return reply["content"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_interrupting_the_kernel_keeps_what_is_sealed(monkeypatch, tmp_path):
    import fakes

    jupyter_client = pytest.importorskip("jupyter_client")
    kernel_environment(monkeypatch, tmp_path)
    (tmp_path / "tiny.yaml").write_text(fakes.RECIPE)
    manager = jupyter_client.KernelManager()
    manager.kernel_spec.argv[0] = sys.executable
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=600)
        code = (
            "import fakes, potstill\nfrom potstill import stages\nstages.MODULES.update(fakes.MODULES)\n"
            "run = potstill.run('tiny.yaml', {'made.seconds': 120}, out='out')"
        )
        asked = client.execute(code)
        deadline = time.monotonic() + 600
        while not (tmp_path / "out" / "heartbeat").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        manager.interrupt_kernel()
        assert answer(client, asked)["ename"] == "KeyboardInterrupt"
        looked = (
            "from pathlib import Path\nfrom potstill.runs.workspace import Workspace\n"
            "sealed = [name for name, made in potstill.open_run('out').stages.items() if made]\n"
            "assert 'loud' in sealed and 'made' not in sealed, sealed\n"
            "assert Workspace(Path('out')).holder() == 0"
        )
        assert answer(client, client.execute(looked))["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
