"""The short form of campaigns/damage.py; and a study's trial is continued by its study alone."""

import sys
from pathlib import Path

import pytest
from processes import error_line, quick

sys.path.insert(0, str(Path(__file__).parent / "campaigns"))
from damage import STUDY, damages, make_study, problem, result


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("damage")
    make_study(cwd)
    return cwd


CASES = {
    "half a storage": ("optuna.log", "cut at 0.5", "study"),
    "flipped bits in it": ("optuna.log", "ten bits flipped", "report"),
    "a line of it doubled": ("optuna.log", "a line doubled", "study"),
    "half a best configuration": ("best.yaml", "cut at 0.5", "from_study"),
    "flipped bits in that": ("best.yaml", "ten bits flipped", "from_study"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_refused_or_without_effect(case, original):
    file, what, command = CASES[case]
    content = dict(damages((original / "outputs" / "studies" / "s" / file).read_bytes()))[what]
    assert problem(original, file, content, command, result(original, command)[1]) is None


def test_a_trial_is_continued_by_its_study_alone(original):
    done = quick(original, "resume=outputs/studies/s/trials/0", torch=False)
    line = error_line(done)
    assert line.startswith("error: resume: ")
    assert "belongs to a study, which goes on with:  python -m sweep.run -m " in line
    assert STUDY[-2] in line
    assert done.returncode == 2
