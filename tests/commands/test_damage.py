"""The short form of campaigns/damage.py; and a study's trial is continued by its study alone."""

import sys
from pathlib import Path

import pytest
from processes import error_line, quick

sys.path.insert(0, str(Path(__file__).parents[1] / "campaigns"))
from damage import ALLOWED, STUDY, Campaign

pytestmark = pytest.mark.process

KNOWN = {  # damage that once went unseen, by kind: file, damage, command
    "run": [
        ("runs/done/journal.jsonl", "cut at 0.8", "unsent"),
        ("runs/stopped/checkpoint.pt", "a bit flipped", "resume"),
    ],
    "study": [
        ("studies/s/optuna.log", "cut at 0.5", "study"),
        ("studies/s/journal.jsonl", "removed", "report"),
        ("studies/s/best.yaml", "removed", "from_study"),
        ("studies/s/best.yaml", "removed", "report"),
        ("studies/s/trials/1/journal.jsonl", "a line of garbage", "study"),
        ("studies/s/trials/1/journal.jsonl", "removed", "report"),
    ],
    "stopped": [
        ("studies/s/optuna.log", "cut at 0.8", "study"),
        ("studies/s/trials/1/checkpoint.pt", "removed", "study"),
    ],
    "sqlite": [("study.db", "cut at 0.5", "report")],
    "comparison": [
        ("studies/c--sgd--defaults-2/journal.jsonl", "its first line damaged", "compare"),
        ("studies/c--sgd--tuning/optuna.log", "removed", "report of c--sgd--tuning"),
    ],
}


@pytest.mark.parametrize("kind", KNOWN)
def test_a_damaged_file_is_named_or_without_effect(kind: str, tmp_path: Path) -> None:
    campaign = Campaign(kind, tmp_path)
    outcomes = {case: campaign.outcome(case[0], campaign.damages(case[0])[case[1]], case[2]) for case in KNOWN[kind]}
    assert {case: outcome for case, outcome in outcomes.items() if outcome not in ALLOWED} == {}
    assert "refused" in outcomes.values()


def test_a_trial_whose_parameters_are_lost_is_not_resumed_under_others(tmp_path: Path) -> None:
    campaign = Campaign("stopped", tmp_path)
    lines = campaign.content(log := "studies/s/optuna.log").splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if b'"param_name"' in line)
    assert campaign.outcome(log, b"".join(lines[:last]), "study") == "refused"


def test_a_trial_is_continued_by_its_study_alone(tmp_path: Path) -> None:
    assert quick(tmp_path, *STUDY, "tracking=off").returncode == 0
    done = quick(tmp_path, "resume=outputs/studies/s/trials/0")
    line = error_line(done)
    assert line.startswith("error: resume: ")
    assert "belongs to a study; resume that with:  python -m sweep.run -m " in line
    assert STUDY[-2] in line
    assert done.returncode == 2
