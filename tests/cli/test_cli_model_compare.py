"""`understudy model compare` and `ladder` as a person uses them."""

from __future__ import annotations

import io
import json
import sys

import pytest
from support.small_policy import write_small_policy

from understudy import cli
from understudy.platform.registry import Registry


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("work")
    policy = write_small_policy(workdir / "policy")
    registry = Registry(f"sqlite:///{workdir}/mlflow.db", workdir)
    for number in ("1", "2"):
        tags = {"weights_sha256": number, "report_sha256": number, "stage": "aligned", "metrics": "{}"}
        registry.register("tiny", "challenger", policy, tags, "understudy", None)
    return workdir


@pytest.fixture
def call(registered, tmp_path, monkeypatch, capsys):
    for name in ("MLFLOW_TRACKING_URI", "UNDERSTUDY_STORAGE_URI"):
        monkeypatch.delenv(name, raising=False)

    def called(*arguments, typed=""):
        monkeypatch.setattr(sys, "argv", ["understudy", "model", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        code = cli.call(["model", *arguments, "--workdir", str(registered)])
        return code, capsys.readouterr()

    yield called
    for path in (registered / "ladder").glob("*.json"):
        path.unlink()


COMPARE = ("compare", "tiny/1", "tiny/2", "--max-new-tokens", "5")


def test_answers_stand_below_each_other_and_are_those_of_generate(call):
    code, said = call(*COMPARE, typed="install nginx\nstart\n")
    assert code == 0
    assert [line for line in said.out.splitlines() if line.startswith("---")] == ["--- tiny/1", "--- tiny/2"] * 2
    code, alone = call("generate", "tiny/1", "--prompt", "install nginx", "--max-new-tokens", "5")
    assert said.out.startswith(f"--- tiny/1\n{alone.out}--- tiny/2\n{alone.out}")
    assert "Loading" not in said.err + alone.err


def test_blind_reveals_nothing_before_the_answer_and_feeds_elo(call):
    code, said = call(*COMPARE, "--blind", "--prompt", "a", "--prompt", "b", "--prompt", "c", typed="x\nl\ntie\ns\n")
    assert code == 0
    asked = said.out.split("Which is better?")
    assert "tiny/" not in asked[0] and "tiny/" not in asked[1] and "'x' is none of left, right, tie" in asked[1]
    assert asked[2].splitlines()[1].startswith("left was tiny/")
    winner = asked[2].splitlines()[1].split()[2].rstrip(",")
    code, said = call("ladder", "--json")
    first, second = json.loads(said.out)
    assert (first["version"], first["wins"], first["ties"], first["losses"]) == (winner, 1, 1, 0)
    assert first["rating"] > 1500 and first["rating"] + second["rating"] == pytest.approx(3000)


def test_quitting_and_the_end_of_the_input_enter_nothing(call):
    for typed in ("q\n", ""):
        code, said = call(*COMPARE, "--blind", "--prompt", "a", typed=typed)
        assert code == 0 and "tiny/" not in said.out
    code, said = call("ladder", "--json")
    assert [row["matches"] for row in json.loads(said.out)] == [0, 0]


def test_as_json_there_is_one_object_and_a_person_is_asked_on_stderr(call):
    code, alone = call("generate", "tiny/1", "--prompt", "install nginx", "--max-new-tokens", "5", "--json")
    code, said = call(*COMPARE, "--json", "--prompt", "install nginx")
    found = json.loads(said.out)
    assert (
        code == 0 and found["models"] == ["tiny/1", "tiny/2"] and found["tally"] == {"tiny/1": 0, "tiny/2": 0, "tie": 0}
    )
    ((first, second),) = [row["answers"] for row in found["compared"]]
    assert first == {key: value for key, value in json.loads(alone.out).items() if key != "prompt"}
    assert second == first | {"model": "tiny/2"}  # the same weights
    assert (found["compared"][0]["prompt"], found["compared"][0]["verdict"]) == ("install nginx", None)
    prompts = ("--prompt", "a", "--prompt", "b", "--prompt", "c")
    code, said = call(*COMPARE, "--json", "--blind", *prompts, typed="l\ntie\nq\n")
    found = json.loads(said.out)
    left = said.err.partition("left was ")[2].partition(",")[0]
    assert [row["verdict"] for row in found["compared"]] == [left, "tie", None]
    assert found["tally"][left] == found["tally"]["tie"] == 1 and said.err.count("Which is better?") == 3
    assert found["compared"][0]["answers"][0]["model"] == left and "--- left" in said.err


def test_sides_are_shuffled(call):
    prompts = [part for number in range(12) for part in ("--prompt", str(number))]
    code, said = call(*COMPARE, "--blind", *prompts, typed="s\n" * 12)
    lefts = [line.split()[2] for line in said.out.splitlines() if line.startswith("left was")]
    # All twelve alike once in 2,048 runs.
    assert len(lefts) == 12 and set(lefts) == {"tiny/1,", "tiny/2,"}


def test_on_a_terminal_both_are_written_at_once_side_by_side(call, monkeypatch):
    from understudy.cli.model_compare import _columns, _pieces

    class Side:
        def __init__(self, texts):
            self.texts = texts

        def answer(self, prompt, seed, write):
            for text in self.texts:
                if isinstance(text, Exception):
                    raise text
                write(text)

    found = list(_pieces([Side(["a", "b"]), Side(["[red]", "d"])], "p", 0))
    assert "".join(text for side, text in found if side == 0) == "ab"
    assert "".join(text for side, text in found if side == 1) == "[red]d"
    with pytest.raises(ValueError, match="broken"):
        list(_pieces([Side(["a"]), Side([ValueError("broken")])], "p", 0))
    from rich.console import Console

    console = Console(file=io.StringIO(), width=60)
    console.print(_columns(["left", "right"], ["ab", "[red]d"]))
    row = next(line for line in console.file.getvalue().splitlines() if "ab" in line)
    assert "[red]d" in row and row.index("ab") < 30 < row.index("[red]d")


def test_the_plot_and_mistakes(call, tmp_path):
    code, said = call("ladder", "--plot", str(tmp_path / "ladder.svg"))
    assert code == 0 and said.out.splitlines()[1].split() == ["tiny/1", "1500", "0", "0", "0"]
    import xml.etree.ElementTree as tree

    text = (tmp_path / "ladder.svg").read_text()
    assert tree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "tiny/2" in text and "var(" not in text
    code, said = call("compare", "tiny/1", "tony/2")
    assert code == 2 and "Did you mean tiny?" in said.err
    code, said = call("compare", "tiny/1", "tiny/9")
    assert code == 2 and "It has @challenger, /2, /1." in said.err
    code, said = call("compare", "tiny/2", "tiny@challenger")
    assert code == 2 and "are both tiny/2" in said.err
