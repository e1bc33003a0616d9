"""sweep/utils/late_compiler.py: torch trains without its compiler, and has it as soon as somebody needs it."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import RUN, run

pytestmark = pytest.mark.process  # a process that has torch already is left as it is

_TRAINING = """
import sys
from sweep.utils import late_compiler
late_compiler.postpone()
import torch
from torch.utils.flop_counter import FlopCounterMode

def is_loaded():
    return "sympy" in sys.modules  # the compiler imports it

model = torch.nn.Linear(2, 1)
optimizer = torch.optim.Adam(model.parameters())
with FlopCounterMode(display=False):
    model(torch.ones(1, 2))
for _ in range(2):
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert not is_loaded(), f"torch {torch.__version__} asks for more of its compiler; see late_compiler._StandIn"
"""


def python(text: str) -> None:
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_compiled_later_is_compiled_as_ever() -> None:
    python(
        f"""{_TRAINING}
disabled = torch.compiler.disable(lambda x: torch.compiler.is_compiling())
assert disabled(torch.ones(1)) is False and not is_loaded()
graphs = []
def compiler(graph, inputs):
    graphs.append(graph)
    return graph.forward
def step(x):
    x = x * 2
    assert not disabled(x)  # it is left out of the graphs before and after it
    return model(x).sum()
x = torch.ones(1, 2)
assert torch.compile(step, backend=compiler)(x) == step(x)
assert is_loaded() and len(graphs) == 2, len(graphs)
optimizer.zero_grad()
optimizer.step()
"""
    )


@pytest.mark.parametrize(
    "statement", ["import torch._dynamo.config as part", "from torch._dynamo import config as part"]
)
def test_a_part_of_the_compiler_is_there_once(statement: str) -> None:
    python(
        f"""{_TRAINING}
{statement}
assert is_loaded() and part is torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert part is torch._dynamo.convert_frame.config  # what the compiler itself looks at
assert part.__spec__.name == "torch._dynamo.config" and part.__spec__.origin.endswith("config.py")
import torch._dynamo.testing  # one that does not come with the package
"""
    )


def test_a_program_that_has_torch_keeps_it_as_it_is() -> None:
    python(
        """
import sys, torch
from sweep.utils import late_compiler
late_compiler.postpone()
assert "torch._dynamo" not in sys.modules
"""
    )


def test_neither_a_run_nor_a_worker_loads_it(tmp_path: Path) -> None:
    (tmp_path / "telling.py").write_text(
        """
import atexit, os, sys
from pathlib import Path
from torch import nn

class Telling(nn.Linear):
    pass

atexit.register(lambda: Path(f"modules-{os.getpid()}").write_text(str("sympy" in sys.modules)))
"""
    )
    model = ("model._target_=telling.Telling", "~model.widths", "~model.activation", "~model.dropout")
    for command in ((), ("-m", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")):
        done = run(
            tmp_path,
            *("experiment=debug", "tracking=off", *model, *command),
            command=RUN,
            PYTHONPATH=str(tmp_path),
            SWEEP_TARGETS="telling.*",
        )
        assert done.returncode == 0, done.stderr
    found = [path.read_text() for path in tmp_path.rglob("modules-*")]
    assert len(found) >= 3
    assert set(found) == {"False"}
