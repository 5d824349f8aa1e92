"""`cdserve collect` from the command line, with the real server."""

import asyncio
import json
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdserve.cli import main
from cdserve.client.answers import Answer, Client
from cdserve.client.journal import Journal
from cdserve.demo.tiny import PROMPTS_PATH

from .served import Served

POLICY = "best_of_n n=4"
TOKENS = ("--max-tokens", "96")
NOBODY = "http://127.0.0.1:9"
FORMATS = ("preference", "sft", "unpaired", "candidates")


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def rows_of(folder: Path, name: str) -> list[Any]:
    """The rows of a data set; checks that all of its files exist."""
    files = sorted(folder.glob(f"{name}-?????-of-?????.jsonl"))
    assert [path.name[-20:-15] for path in files] == [f"{i:05d}" for i in range(len(files))]
    assert all(path.name.endswith(f"-of-{len(files):05d}.jsonl") for path in files)
    return [row for path in files for row in lines_of(path)]


def collect(url: str, prompts: Path, out: Path, *arguments: str, policy: str = POLICY) -> None:
    main(
        [
            *("collect", "--url", url, "--prompts", str(prompts), "--out", str(out)),
            *("--policy", policy, *arguments),
        ]
    )


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four texts and three chats, mixed."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = lines_of(PROMPTS_PATH)[:4]
    chats = [
        {"messages": [{"role": "user", "content": f"Please write a review of the {thing}."}]}
        for thing in ("compact kettle", "travel lawn mower", "silver blender")
    ]
    mixed = [texts[0], chats[0], texts[1], texts[2], chats[1], chats[2], texts[3]]
    path.write_text("".join(json.dumps(line) + "\n" for line in mixed))
    return path


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Makes SIGINT interrupt, which shells disable in background processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def collected(server: Served, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all formats; read-only."""
    out = tmp_path_factory.mktemp("collected") / "data"
    collect(server.base_url, prompts, out, *TOKENS, "--format", *FORMATS, "--shard-size", "3")
    return out


@pytest.fixture(scope="module")
def traces(collected: Path) -> dict[int, list[dict[str, Any]]]:
    """The candidates of each prompt in the server's report."""
    kept = lines_of(collected / "answers.jsonl")
    return {record["index"]: record["report"]["trace"][0]["candidates"] for record in kept}


@pytest.fixture
def copied(collected: Path, tmp_path: Path) -> Path:
    """A copy of ``collected`` to modify."""
    return Path(shutil.copytree(collected, tmp_path / "data"))


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The prompts of all requests from now on."""
    prompts: list[Any] = []
    answer = Client.answer

    async def noting(self: Client, prompt: Any, *arguments: Any) -> Answer:
        prompts.append(prompt)
        return await answer(self, prompt, *arguments)

    monkeypatch.setattr(Client, "answer", noting)
    return prompts


class TestAnswers:
    def test_each_prompt_has_one_answer_with_its_own_seed(
        self, collected: Path, prompts: Path
    ) -> None:
        kept = lines_of(collected / "answers.jsonl")
        assert sorted(record["index"] for record in kept) == list(range(7))
        sent = [line.get("prompt") or line["messages"] for line in lines_of(prompts)]
        assert all(record["prompt"] == sent[record["index"]] for record in kept)
        assert len({record["seed"] for record in kept}) == 7

    def test_settings_file_has_policy_model_and_rewards(self, collected: Path) -> None:
        settings = json.loads((collected / "settings.json").read_text())
        assert settings["alignment"] == {"method": "best_of_n", "n": 4}
        assert (settings["model"], settings["max_tokens"], settings["seed"]) == ("demo", 96, 0)
        assert settings["rewards"]["sentiment"]["kind"] == "value_head"

    def test_answer_text_is_the_chosen_candidate(self, collected: Path) -> None:
        for record in lines_of(collected / "answers.jsonl"):
            ((chosen,),) = (
                [one for one in step["candidates"] if one["chosen"]]
                for step in record["report"]["trace"]
            )
            assert record["text"] == chosen["text"]
            assert record["tokens"] == chosen["tokens"]


class TestFormats:
    @pytest.mark.parametrize(("form", "indices"), [("text", [0, 2, 3, 6]), ("chat", [1, 4, 5])])
    def test_rows_are_ordered_by_prompt(
        self, collected: Path, form: str, indices: Sequence[int]
    ) -> None:
        for kind in ("sft", "candidates"):
            assert [row["index"] for row in rows_of(collected, f"{kind}-{form}")] == indices
        assert not list(collected.glob("sft-?????-of-*"))  # every name has a suffix

    @pytest.mark.parametrize("form", ["text", "chat"])
    def test_preference_pairs_best_with_worst(
        self, collected: Path, form: str, traces: dict[int, list[dict[str, Any]]]
    ) -> None:
        rows = rows_of(collected, f"preference-{form}")
        assert rows
        for row in rows:
            texts = {one["text"]: one["score"] for one in traces[row["index"]]}
            chosen, rejected = row["chosen"], row["rejected"]
            if form == "chat":
                assert all(one["role"] == "user" for one in row["prompt"])
                assert (chosen[0]["role"], rejected[0]["role"]) == ("assistant", "assistant")
                chosen, rejected = chosen[0]["content"], rejected[0]["content"]
            assert row["score_chosen"] == texts[chosen] == max(texts.values())
            assert row["score_rejected"] == texts[rejected] == min(texts.values())

    def test_unpaired_labels_every_response(
        self, collected: Path, traces: dict[int, list[dict[str, Any]]]
    ) -> None:
        rows = rows_of(collected, "unpaired-text") + rows_of(collected, "unpaired-chat")
        assert len(rows) == 7 * 4
        for row in rows:
            scores = [one["score"] for one in traces[row["index"]]]
            assert row["label"] == (row["score"] > sum(scores) / 4)

    def test_candidates_equal_those_of_the_trace(
        self, collected: Path, traces: dict[int, list[dict[str, Any]]]
    ) -> None:
        for row in rows_of(collected, "candidates-text"):
            assert row["candidates"] == [dict(one) for one in traces[row["index"]]]
            assert all(one["logprob"] < 0 for one in row["candidates"])
            assert row["policy"] == {"method": "best_of_n", "n": 4}
            assert row["kl"]["estimator"] == "epsilon_n"
            assert (row["model"], row["temperature"], row["max_tokens"]) == ("demo", 1.0, 96)

    def test_readme_metadata_names_every_file(self, collected: Path) -> None:
        head = (collected / "README.md").read_text().split("---\n")[1]
        listed = [
            file
            for config in yaml.safe_load(head)["configs"]
            for file in config["data_files"][0]["path"]
        ]
        assert sorted(listed) == sorted(path.name for path in collected.glob("*-of-*.jsonl"))


class TestResuming:
    def test_interrupted_run_requests_only_missing_answers(
        self,
        server: Served,
        prompts: Path,
        copied: Path,
        requested: list[Any],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        answers = copied / "answers.jsonl"
        content = answers.read_bytes()
        kept = b"".join(content.splitlines(keepends=True)[:4])
        answers.write_bytes(content[: len(kept) + 50])  # in the middle of the fifth
        collect(server.base_url, prompts, copied, *TOKENS, "--format", "sft")
        assert len(requested) == 3
        assert answers.read_bytes().startswith(kept)
        assert sorted(record["index"] for record in lines_of(answers)) == list(range(7))
        output = capsys.readouterr().out
        assert "answered 7 of 7 prompts with 28 responses" in output
        assert "sft-text: 4 rows in 1 file; left out: none" in output

    @pytest.mark.usefixtures("interruptible")
    def test_interrupt_keeps_received_answers(
        self,
        server: Served,
        prompts: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        requested: list[Any],
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        answer = Client.answer

        async def interrupted(self: Client, *arguments: Any) -> Answer:
            if len(requested) == 2:
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(3600)
            return await answer(self, *arguments)

        monkeypatch.setattr(Client, "answer", interrupted)
        out, few = tmp_path / "data", (*TOKENS, "--format", "sft", "--concurrency", "1")
        with pytest.raises(SystemExit) as stopped:
            collect(server.base_url, prompts, out, *few, "--limit", "4")
        assert stopped.value.code == 130
        assert "run the same command again to resume" in capfd.readouterr().err
        assert [record["index"] for record in lines_of(out / "answers.jsonl")] == [0, 1]
        assert not list(out.glob("sft-*"))
        requested.clear()
        monkeypatch.setattr(Client, "answer", answer)
        collect(server.base_url, prompts, out, *few, "--limit", "4")
        assert len(requested) == 2
        assert len(rows_of(out, "sft-text")) == 3

    def test_concurrent_run_in_the_same_folder_is_refused(
        self, prompts: Path, copied: Path
    ) -> None:
        with (
            Journal(copied / "answers.jsonl", key="index"),
            pytest.raises(SystemExit, match=r"answers\.jsonl: another run is writing to it"),
        ):
            collect(NOBODY, prompts, copied, *TOKENS, "--format", "sft")

    def test_larger_limit_adds_prompts(
        self, server: Served, prompts: Path, tmp_path: Path, requested: list[Any]
    ) -> None:
        out = tmp_path / "data"
        for limit, now in ((1, 1), (2, 2)):
            few = (*TOKENS, "--format", "candidates", "--limit", str(limit))
            collect(server.base_url, prompts, out, *few)
            assert len(requested) == now
        assert [row["index"] for row in rows_of(out, "candidates-text")] == [0]

    def test_other_formats_reuse_answers_without_a_server(
        self, prompts: Path, copied: Path, collected: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """No server runs at the URL."""
        collect(NOBODY, prompts, copied, *TOKENS, "--format", *FORMATS, "--shard-size", "3")
        for path in collected.iterdir():
            assert (copied / path.name).read_bytes() == path.read_bytes()
        pairs = rows_of(collected, "preference-text")
        apart = sorted(row["score_chosen"] - row["score_rejected"] for row in pairs)
        margin = ("--format", "preference", "--margin", str(apart[0]))
        collect(NOBODY, prompts, copied, *TOKENS, *margin)
        assert len(rows_of(copied, "preference-text")) == len(pairs) - 1
        assert not list(copied.glob("sft-*"))
        assert "1 within the margin" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "refusal"),
        [
            (("--max-tokens", "32"), "was made with max_tokens 96, not 32"),
            ((*TOKENS, "--temperature", "0.7"), r"was made with temperature 1.0, not 0.7"),
            ((*TOKENS, "--seed", "1"), "was made with seed 0, not 1"),
            ((*TOKENS, "--model", "demo:safe"), "was made with model 'demo', not 'demo:safe'"),
        ],
    )
    def test_changed_settings_are_refused(
        self, prompts: Path, collected: Path, arguments: tuple[str, ...], refusal: str
    ) -> None:
        with pytest.raises(SystemExit, match=refusal):
            collect(NOBODY, prompts, collected, *arguments, "--format", "sft")

    def test_changed_policy_or_prompts_are_refused(
        self, prompts: Path, collected: Path, tmp_path: Path
    ) -> None:
        arguments = (*TOKENS, "--format", "sft")
        with pytest.raises(SystemExit, match=r"policy \{.*'n': 4\}, not \{.*'n': 8\}"):
            collect(NOBODY, prompts, collected, *arguments, policy="best_of_n n=8")
        other = tmp_path / "other.jsonl"
        other.write_text("\n".join(prompts.read_text().splitlines()[1:]))
        with pytest.raises(SystemExit, match=r"has an answer to .* as prompt 1, but --prompts has"):
            collect(NOBODY, other, collected, *arguments)


class TestPolicies:
    def test_blockwise_preset_gives_one_whole_response(
        self, server: Served, prompts: Path, tmp_path: Path, requested: list[Any]
    ) -> None:
        """The policy is a preset; the folder's settings have it as an object."""
        out, few = tmp_path / "data", (*TOKENS, "--format", "sft", "candidates", "--limit", "2")
        collect(server.base_url, prompts, out, *few, policy="safe")
        for form, place in (("text", 0), ("chat", 1)):
            (record,) = [r for r in lines_of(out / "answers.jsonl") if r["index"] == place]
            (row,) = rows_of(out, f"candidates-{form}")
            assert row["policy"].items() >= {"method": "blockwise_cd", "k": 4, "m": 16}.items()
            (one,) = row["candidates"]
            assert (one["text"], one["tokens"]) == (record["text"], record["tokens"])
            assert one["finish_reason"] == record["finish_reason"]
            assert one["score"] == record["report"]["score"]
            (row,) = rows_of(out, f"sft-{form}")
            completion = row["completion"] if form == "text" else row["completion"][0]["content"]
            assert completion == record["text"]
        with pytest.raises(SystemExit, match="blockwise_cd gives only one; use best_of_n"):
            collect(NOBODY, prompts, out, *TOKENS, "--format", "preference", policy="safe")

    @pytest.mark.parametrize(
        ("policy", "count"),
        [
            ("best_of_poisson mu=1.5", None),
            ("rejection eta=1 r_max=5 max_draws=4", None),
            ("speculative_rejection n=4 m=16", 1),
            ("cards m=32 r_star=1 max_draws=8", 1),
            ("tokenwise_cd beta=0.5", 1),
            ('{"method": "logit_mixing", "weights": {"tuned": 1.0}}', 1),
        ],
    )
    def test_every_method_gives_whole_responses(
        self, server: Served, prompts: Path, tmp_path: Path, policy: str, count: int | None
    ) -> None:
        out = tmp_path / "data"
        few = ("--max-tokens", "48", "--format", "candidates", "--limit", "1")
        collect(server.base_url, prompts, out, *few, policy=policy)
        (record,) = lines_of(out / "answers.jsonl")
        (row,) = rows_of(out, "candidates-text")
        (chosen,) = (one for one in row["candidates"] if one["chosen"])
        assert len(row["candidates"]) == (count or record["report"]["candidates"])
        assert (chosen["text"], chosen["tokens"]) == (record["text"], record["tokens"])
        assert chosen["score"] == record["report"]["score"]
        assert all(one["finish_reason"] in ("stop", "length") for one in row["candidates"])

    def test_summary_names_prompts_refused_by_the_server(
        self, server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, out = tmp_path / "prompts.jsonl", tmp_path / "data"
        long = "A review of it. " * 1000
        chat = [{"role": "user", "content": long}]
        sent = [{"prompt": long}, {"prompt": "Film review:"}, {"prompt": chat}]
        path.write_text("".join(json.dumps(line) + "\n" for line in sent))
        collect(server.base_url, path, out, *TOKENS, "--format", "sft")
        assert [record["index"] for record in lines_of(out / "answers.jsonl")] == [1]
        output = capsys.readouterr().out
        assert "answered 1 of 3 prompts with 4 responses" in output
        assert "refused by the server: 2 prompts, first prompt 1: the server answers: " in output
        path.write_text(json.dumps({"prompt": long}))
        with pytest.raises(
            SystemExit, match="the server refused every prompt; the first: the server"
        ):
            collect(server.base_url, path, tmp_path / "none", *TOKENS, "--format", "sft")

    @pytest.mark.parametrize(
        ("policy", "refusal"),
        [
            ("best_of_n n=99", r"prompt \d: .*alignment.n is 99; this server accepts 1 to 16"),
            ("best-of-9", "'best-of-9' is not a preset; this server has .*best-of-4"),
            ("best_of_n n=2 rewards=sentiment", "prompt .*alignment.rewards"),
        ],
    )
    def test_policy_refused_by_the_server_is_an_error(
        self, server: Served, prompts: Path, tmp_path: Path, policy: str, refusal: str
    ) -> None:
        with pytest.raises(SystemExit, match=refusal):
            collect(server.base_url, prompts, tmp_path / "x", "--format", "sft", policy=policy)

    @pytest.mark.parametrize(
        ("policy", "arguments", "refusal"),
        [
            ("none", ("--format", "sft"), "none has no scores"),
            ("best_of_n n=2,4", ("--format", "sft"), "is a sweep of 2 policies"),
            ("cards m=4 r_star=1", ("--format", "unpaired"), "unpaired without --label-threshold"),
            ("tokenwise_cd beta=1", ("--format", "preference"), "tokenwise_cd gives only one"),
            (POLICY, ("--format", "sft", "--margin", "1"), "--margin is 1.0; it requires"),
            (POLICY, ("--format", "preference", "--margin", "-1"), "must be 0 or more"),
            (POLICY, ("--format", "sft", "--label-threshold", "0"), "it requires --format unp"),
            (POLICY, ("--format", "preference", "--min-score", "0"), "it requires --format sft"),
            (
                POLICY,
                ("--format", "candidates", "--ended-only"),
                "candidates includes all responses",
            ),
            (POLICY, ("--format", "sft", "--concurrency", "0"), "--concurrency is 0; it must"),
            (POLICY, ("--format", "sft", "--dtype", "float32"), "vLLM's flags are not accepted"),
            (POLICY, ("--format", "sft"), f"--url {NOBODY}: no healthy server answers there"),
        ],
    )
    def test_invalid_arguments_are_refused_before_any_request(
        self, prompts: Path, tmp_path: Path, policy: str, arguments: tuple[str, ...], refusal: str
    ) -> None:
        with pytest.raises(SystemExit, match=refusal):
            collect(NOBODY, prompts, tmp_path / "x", *arguments, policy=policy)
        assert not list(tmp_path.rglob("*.json"))
