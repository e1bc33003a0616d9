"""Studies in a notebook: cells that a real kernel of Jupyter's runs."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S, wait_until

pytest.importorskip("ipykernel")
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from jupyter_core.utils import ensure_event_loop

pytestmark = pytest.mark.process  # starts a kernel

CALL = "run_study(own, n_trials=1, study_name='s', sampler='random', pruner='none'"
CELLS = {
    "first": f"""
from sweep import load_study, run_study
own = ["data.n=96", "trainer.epochs=200", "trainer.batch_size=16", "tracking=off", "model.widths=[8]"]
study = {CALL})""",
    "again": f"study = {CALL})",
    "shown": "study",
    "aside": f"running = {CALL}, show=False, wait=False)\nrunning",
    "result": "[trial.state for trial in running.result().results]",
    "hydra": """
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
GlobalHydra.instance().is_initialized(), HydraConfig.initialized()""",
}


class Notebook:
    """A kernel, and what its cells have shown."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self._client = manager, client

    def run(self, cell: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The kernel's reply to a cell, and each thing that the cell showed or replaced, by type of content."""
        shown: list[dict[str, Any]] = []

        def show(message: dict[str, Any]) -> None:
            if "data" in message["content"]:
                shown.append({"kind": message["msg_type"], **message["content"]["data"]})

        reply = self._client.execute_interactive(CELLS[cell], output_hook=show, timeout=PATIENCE_S)
        return reply["content"], shown


def close_event_loop() -> None:
    """Close the loop that Jupyter keeps for each thread; one that runs belongs to somebody else (a browser's tests)."""
    loop = ensure_event_loop()
    if not loop.is_running():
        loop.close()
        asyncio.set_event_loop(None)


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    manager, client = start_new_kernel(startup_timeout=PATIENCE_S, cwd=str(tmp_path))
    try:
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        close_event_loop()


def test_a_study_is_shown_interrupted_and_resumed(notebook: Notebook, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "studies" / "s"
    begun = folder / "trials" / "0" / "journal.jsonl"

    def interrupt() -> None:
        wait_until(lambda: begun.exists() and '"metrics"' in begun.read_text())
        notebook.manager.interrupt_kernel()
        close_event_loop()

    thread = threading.Thread(target=interrupt)
    thread.start()
    reply, shown = notebook.run("first")
    thread.join()
    assert (reply["status"], reply["ename"]) == ("error", "Interrupted")
    assert (folder / "trials" / "0" / "checkpoint.pt").exists()
    assert "study s, running: " in shown[0]["text/html"]

    reply, shown = notebook.run("again")
    assert reply["status"] == "ok"
    assert [one["kind"] for one in shown] == ["display_data", *["update_display_data"] * (len(shown) - 1)], "one place"
    assert "1 of 1 trials: 1 complete" in shown[-1]["text/html"]
    (table,) = notebook.run("shown")[1]
    assert "<table" in table["text/html"]

    reply, shown = notebook.run("aside")
    assert reply["status"] == "ok"
    assert [one["kind"] for one in shown] == ["execute_result"], "show=False shows no progress"
    assert "study s" in shown[0]["text/html"]
    assert notebook.run("result")[1][0]["text/plain"] == "['complete']"
    assert notebook.run("hydra")[1][0]["text/plain"] == "(False, False)"
