"""`python -m trainer.generate` on real ranks: from runs, checkpoints and folders, in any layout."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.hf_models import folder
from tests.support.launch import Result
from tests.support.pools import Pools
from tests.support.runs import Trained

pytestmark = pytest.mark.parallel

HERE = ["threads=1", "device=cpu"]
PROMPTS = ["The old river", "A", "Here and there, a garden", "To", "stone"]
WRITES = ["generate.tokens=10", "generate.batch=2", "generate.in_flight=2"]


def generate(pools: Pools, ranks: int, place: Path, *overrides: str) -> Result:
    """Run the command in a folder that has the prompts."""
    place.mkdir(exist_ok=True)
    (place / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    words = ["generate.prompts=prompts.txt", *HERE, *overrides]
    return pools.run(ranks, words, place, module="trainer.generate")


def records(result: Result) -> list[dict[str, Any]]:
    """Return what a command printed."""
    return [json.loads(line) for line in result.check().out.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def run(trained: Trained) -> Path:
    """Return the folder of a run."""
    return trained(2, "layout.stages=2").folder.absolute()


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small model with sliding windows."""
    pytest.importorskip("transformers")
    return folder("qwen2", tmp_path_factory.mktemp("models"))


def test_a_run_writes_the_same_in_every_layout(pools: Pools, run: Path, tmp_path: Path) -> None:
    """Its checkpoint on more and on fewer ranks than trained it, sampled."""
    words = [f"run.dir={run}", *WRITES, "generate.temperature=1.0", "generate.top_p=0.95"]
    one = records(generate(pools, 1, tmp_path / "one", *words))
    assert [record["prompt"] for record in one] == PROMPTS
    assert [len(record["tokens"]) for record in one] == [10] * 5
    assert {record["finish_reason"] for record in one} == {"length"}
    assert bytes(one[0]["tokens"]).decode(errors="replace") == one[0]["text"]
    for ranks, stages in ((2, 2), (4, 4)):
        place = tmp_path / f"{ranks} {stages}"
        assert records(generate(pools, ranks, place, *words, f"layout.stages={stages}")) == one


def test_the_text_at_the_end_of_a_run_is_what_the_command_writes(
    pools: Pools, trained: Trained, run: Path, tmp_path: Path
) -> None:
    written = trained(2, "layout.stages=2").written
    words = [f"checkpoint.resume={run}/checkpoints/step-00000006", "generate.prompts=null"]
    (record,) = records(generate(pools, 1, tmp_path, *words))
    assert written.startswith(record["prompt"] + record["text"])
    (earlier,) = records(generate(pools, 2, tmp_path, words[0].replace("00000006", "00000003"), words[1]))
    assert earlier["text"] != record["text"]


def test_a_folder_is_continued_as_transformers_does(pools: Pools, sliding: Path, tmp_path: Path) -> None:
    """By two replicas of two stages. Bytes are tokens; groups of three have padding; the windows slide."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(sliding)
    words = ["generate.tokenizer=bytes", "generate.temperature=0", "generate.tokens=8", "generate.batch=3"]
    words += ["model=hf", f"model.path={sliding}", "layout.stages=2", "generate.ignore_eos=true"]
    found = generate(pools, 4, tmp_path, *words, "generate.output=texts.jsonl")
    assert f"{len(PROMPTS)} texts, 40 tokens in " in found.check().err
    lines = (tmp_path / "texts.jsonl").read_text().splitlines()
    assert not records(found)
    for prompt, line in zip(PROMPTS, lines, strict=True):
        tokens = torch.tensor([list(prompt.encode())])
        wanted = model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
        assert json.loads(line)["tokens"] == wanted[0, tokens.shape[1] :].tolist()


def test_stop_strings_and_further_fields(pools: Pools, run: Path, tmp_path: Path) -> None:
    lines = [{"prompt": prompt, "id": i} for i, prompt in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    words = [f"run.dir={run}", *WRITES, "generate.prompts=prompts.jsonl", "generate.tokens=40"]
    plain = records(generate(pools, 2, tmp_path, *words))
    stop = plain[0]["text"][3:5]
    stopped = records(generate(pools, 2, tmp_path, *words, f"generate.stop=['{stop}']"))
    assert [record["id"] for record in stopped] == [0, 1, 2, 3, 4]
    for before, after in zip(plain, stopped, strict=True):
        if stop in before["text"]:
            assert (after["text"], after["finish_reason"]) == (before["text"].partition(stop)[0], "stop")
        else:
            assert after == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["nothing names trained weights: give run.dir=RUN"]),
        (["run.dir=nowhere"], ["run.dir=nowhere has no config.yaml"]),
        (["RUN", "generate.prompts=broken.jsonl"], ["line 2 of generate.prompts=broken.jsonl is not JSON"]),
        (["RUN", "generate.prompts=long.txt"], ["line 2 of", "has 500 tokens", "at most: shorten it"]),
        (["RUN", "generate.prompts=null", "generate.prompt=''"], ["has no tokens"]),
        (["RUN", "data.objective=masked", "data.tokenizer=bytes"], ["trained to fill gaps"]),
    ],
)
def test_refusals(pools: Pools, run: Path, tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    (tmp_path / "long.txt").write_text("a\n" + "b" * 500)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": ')
    given = [f"run.dir={run}" if override == "RUN" else override for override in overrides]
    result = generate(pools, 2, tmp_path, *given)
    assert result.code == 2
    (message,) = result.messages
    assert all(word in message for word in words), message
