"""`cdserve heads train` from the command line, with the real engine on the demo's model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from cdserve.cli import main
from cdserve.demo.tiny import MODEL_DIR, PROMPTS_PATH
from cdserve.demo.tiny.reward import sentiment_gold
from value_heads import (
    CachedRollouts,
    QHead,
    ValueHead,
    check_base,
    confidence_head,
    load_head,
    mean_confidence,
)
from value_heads import training as fitting

FLAGS = (
    *("--dtype", "float32", "--max-model-len", "512", "--enforce-eager"),
    *("--kv-cache-memory-bytes", str(256 << 20), "--block-size", "32"),
)
GOLD = "cdserve.demo.tiny.reward:sentiment_gold"
TWO = ("--rewards", f"sentiment={GOLD}", "brevity=tests.commands.rewards:brevity")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = PROMPTS_PATH.read_text().splitlines()[:40]
    chat = {"messages": [{"role": "user", "content": "Write a review of the film."}]}
    path.write_text("\n".join([*lines, json.dumps(chat)]) + "\n")
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def train(prompts: Path, cache: Path, out: Path, *arguments: str) -> None:
    main(
        [
            *("heads", "train", "--model", str(MODEL_DIR), "--prompts", str(prompts)),
            *("--cache", str(cache), "--out", str(out), "--max-tokens", "160"),
            *("--per-prompt", "3", "--rewards", f"sentiment={GOLD}", "--max-epochs", "3"),
            *arguments,
            *FLAGS,
        ]
    )


@pytest.fixture(scope="module")
def head(prompts: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A value head, made by the one run of these tests that needs the engine."""
    out = tmp_path_factory.mktemp("heads") / "fudge"
    train(prompts, cache, out, "--head", "mlp", "--method", "fudge")
    return out


class TestOutcome:
    def test_training_writes_a_head_with_report_and_card(self, head: Path) -> None:
        trained = ValueHead.from_pretrained(head)
        check_base(trained.config, MODEL_DIR)
        assert trained.config.rewards == ("sentiment",)
        report = json.loads((head / "report.json").read_text())
        measured = report["held_out"]
        assert measured["pairs"] == "same prompt"
        assert measured["responses"] + measured["cut"] == 4 * 3
        figures = measured["rewards"]["sentiment"]
        assert figures["half_squared_error"] < figures["baseline"]
        assert report["fit"]["epochs"] == 3
        assert (head / "report.png").read_bytes().startswith(b"\x89PNG")
        assert "## Held-out responses" in (head / "README.md").read_text()
        assert not (head / "checkpoint.pt").exists()

    def test_cached_states_equal_a_forward_pass_over_the_response(
        self, head: Path, cache: Path
    ) -> None:
        """Compares with a forward pass over each response alone."""
        from safetensors.torch import load_file
        from transformers import AutoModel

        from cdserve.training.rollouts import read

        model = AutoModel.from_pretrained(MODEL_DIR)
        shard = load_file(cache / "test-states-00000.safetensors")
        ends = (shard["lengths"] + 1).cumsum(0) - 1
        for rollout, end in zip(read(cache, "test"), ends.tolist(), strict=True):
            ids = torch.tensor([rollout.prompt_ids + rollout.tokens])
            with torch.no_grad():
                states = model(ids).last_hidden_state[0]
            start = end - len(rollout.tokens)
            torch.testing.assert_close(
                shard["states"][start : end + 1],
                states[len(rollout.prompt_ids) - 1 :],
                atol=1e-3,
                rtol=1e-3,
            )

    def test_every_prompt_is_in_exactly_one_set(self, head: Path, cache: Path) -> None:
        from cdserve.training.rollouts import read

        sets = [{r.prompt for r in read(cache, name)} for name in ("train", "validation", "test")]
        assert [len(numbers) for numbers in sets] == [33, 4, 4]
        assert set.union(*sets) == set(range(41))

    def test_existing_head_is_not_overwritten(self, head: Path, prompts: Path, cache: Path) -> None:
        with pytest.raises(SystemExit, match=rf"--out {head} already has a head"):
            train(prompts, cache, head, "--head", "mlp", "--method", "fudge")


@pytest.mark.usefixtures("head")
class TestOnTheSameResponses:
    """The cache is used; no engine starts."""

    @pytest.fixture(autouse=True)
    def no_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from cdserve.training import rollouts

        def refuse(*_: object) -> None:
            raise AssertionError("the engine was started")

        monkeypatch.setattr(rollouts, "_start", refuse)

    @pytest.mark.parametrize(
        ("arguments", "kind"),
        [
            (
                ("--head", "linear", "--method", "td", "--lam", "0.9", "--clip", "0.2", *TWO),
                ValueHead,
            ),
            (("--head", "linear", "--method", "soft", "--beta", "0.5"), ValueHead),
            (("--head", "mlp", "--method", "fudge", "--bounds", "-1", "1"), ValueHead),
            (("--head", "tied", "--method", "fudge"), QHead),
            (("--head", "lowrank", "--rank", "8", "--method", "cdq", "--beta", "0.5"), QHead),
        ],
    )
    def test_every_method_trains_its_kind_of_head(
        self,
        prompts: Path,
        cache: Path,
        tmp_path: Path,
        arguments: tuple[str, ...],
        kind: type[ValueHead | QHead],
    ) -> None:
        train(prompts, cache, tmp_path / "head", *arguments)
        trained = kind.from_pretrained(tmp_path / "head")
        assert trained.config.kind == ("soft" if "--beta" in arguments else "mean")
        assert trained.config.output == ("sigmoid" if "--bounds" in arguments else "identity")
        self.check_frontier(tmp_path / "head", TWO[-1] in arguments)

    @staticmethod
    def check_frontier(folder: Path, two: bool) -> None:
        """The report of a head with two rewards has a frontier; with one reward it has none."""
        held_out = json.loads((folder / "report.json").read_text())["held_out"]
        card = (folder / "README.md").read_text()
        assert ("| shares | weight of sentiment | weight of brevity |" in card) == two
        if not two:
            assert held_out["frontier"] is None
            return
        points = held_out["frontier"]["points"]
        alone = [held_out["rewards"][name] for name in ("sentiment", "brevity")]
        for point, figures in zip((points[0], points[-1]), alone, strict=True):
            (name,) = (name for name, share in point["shares"].items() if share)
            assert point["weights"][name] == pytest.approx(1 / figures["reward_sd"])
            assert point["earned"][name] == pytest.approx(figures["selected"]["chosen"])
        assert len(points) == 5

    def test_cdq_value_head_learns_from_a_q_head_teacher(
        self, prompts: Path, cache: Path, tmp_path: Path, head: Path
    ) -> None:
        q, v = tmp_path / "q", tmp_path / "v"
        train(prompts, cache, q, "--head", "lowrank", "--method", "cdq")
        train(prompts, cache, v, "--head", "mlp", "--method", "cdq", "--teacher", str(q))
        assert json.loads((v / "report.json").read_text())["how"]["teacher"] == "q"
        command = ("--head", "mlp", "--method", "cdq", "--teacher", str(head))
        with pytest.raises(
            SystemExit, match=rf"--teacher {head} has architecture mlp; it must be a Q-head"
        ):
            train(prompts, cache, tmp_path / "other", *command)

    def test_confidence_head_is_made_from_the_training_cache(
        self, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "confidence"
        main(["heads", "confidence", "--cache", str(cache), "--out", str(out)])
        trained = ValueHead.from_pretrained(out)
        check_base(trained.config, MODEL_DIR)
        assert (trained.config.base_model, trained.config.hidden_size) == (str(MODEL_DIR), 256)
        train, validation = (CachedRollouts(cache, name) for name in ("train", "validation"))
        expected = confidence_head(train, base_model="").state_dict()
        assert all(
            torch.equal(weight, expected[name]) for name, weight in trained.state_dict().items()
        )
        assert capsys.readouterr().out == (
            f"{out}: confidence from {int(train.ended.sum())} finished responses; validation: mean "
            f"{mean_confidence(trained, validation):.4g} (n = {int(validation.ended.sum())})\n"
        )

    def test_interrupted_run_resumes_to_identical_weights(
        self, prompts: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ("--head", "linear", "--method", "fudge")
        train(prompts, cache, tmp_path / "whole", *arguments)
        epochs = []

        def dies_in_the_third(*arguments: object) -> float:
            epochs.append(arguments)
            if len(epochs) == 3:
                raise KeyboardInterrupt
            return one_epoch(*arguments)  # type: ignore[arg-type]

        one_epoch = fitting._epoch
        monkeypatch.setattr(fitting, "_epoch", dies_in_the_third)
        with pytest.raises(SystemExit, match="130"):
            train(prompts, cache, tmp_path / "parts", *arguments)
        train(prompts, cache, tmp_path / "parts", *arguments)
        assert len(epochs) == 4, "the third epoch alone is fitted again"
        whole, parts = (
            (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")
        )
        assert whole == parts

    def test_start_uses_the_weights_of_a_matching_head(
        self, prompts: Path, cache: Path, tmp_path: Path, head: Path
    ) -> None:
        again = ("--head", "mlp", "--method", "td", "--start", str(head))
        train(prompts, cache, tmp_path / "again", *again)
        losses = [
            json.loads((folder / "report.json").read_text())["fit"]["held_out_loss"][0]
            for folder in (head, tmp_path / "again")
        ]
        assert losses[1] < losses[0]
        main(["heads", "confidence", "--cache", str(cache), "--out", str(tmp_path / "distance")])
        for start, architecture in ((head, "mlp"), (tmp_path / "distance", "mahalanobis")):
            other = ("--head", "linear", "--method", "fudge", "--start", str(start))
            with pytest.raises(SystemExit, match=f"has architecture {architecture}, not linear"):
                train(prompts, cache, tmp_path / "other", *other)

    def test_head_with_positions_has_the_longest_response_as_its_limit(
        self, prompts: Path, cache: Path, tmp_path: Path, head: Path
    ) -> None:
        out = tmp_path / "paced"
        train(prompts, cache, out, "--head", "linear", "--method", "td", "--position")
        longest = CachedRollouts(cache, "train").longest
        assert ValueHead.from_pretrained(out).config.position_limit == longest <= 160
        assert f"response tokens in the prefix, up to {longest}" in (out / "README.md").read_text()
        again = ("--head", "linear", "--method", "fudge", "--start", str(out))
        train(prompts, cache, tmp_path / "again", *again, "--position")
        q_head = ("--head", "lowrank", "--method", "cdq", "--position")
        train(prompts, cache, tmp_path / "q", *q_head)
        assert QHead.from_pretrained(tmp_path / "q").config.position_limit == longest
        with pytest.raises(SystemExit, match=f"position_limit {longest}; it must have none"):
            train(prompts, cache, tmp_path / "other", *again)

    @pytest.mark.parametrize(
        ("arguments", "refusal"),
        [
            (("--max-tokens", "32"), "was made with max_tokens 160, not 32"),
            (("--per-prompt", "4"), "was made with per_prompt 3, not 4"),
            (("--rewards", "x=operator:truediv"), r"--rewards x failed on .*: TypeError"),
            (("--rewards", "x=cdserve.demo.tiny.reward:nothing"), "cannot be imported"),
            (("--bounds", "0", "1"), r"--bounds requires 0 to 1"),
        ],
    )
    def test_error_names_the_unusable_flag(
        self,
        prompts: Path,
        cache: Path,
        tmp_path: Path,
        arguments: tuple[str, ...],
        refusal: str,
    ) -> None:
        with pytest.raises(SystemExit, match=refusal):
            train(prompts, cache, tmp_path / "x", "--head", "mlp", "--method", "fudge", *arguments)
        assert not (tmp_path / "x" / "model.safetensors").exists()


class TestRefusals:
    """Errors before anything starts, with the flag, the value and the requirement."""

    @pytest.mark.parametrize(
        ("arguments", "refusal"),
        [
            (("--head", "mlp", "--method", "cdq"), "--head mlp requires --teacher, a Q-head"),
            (("--head", "mlp", "--method", "soft"), "--method soft requires --beta"),
            (("--head", "mlp", "--method", "fudge", "--beta", "1"), "--beta is 1.0; it requires"),
            (("--head", "mlp", "--method", "fudge", "--lam", "1"), "it requires --method td"),
            (("--head", "mlp", "--method", "td", "--lam", "2"), "--lam is 2.0; .* from 0 to 1"),
            (("--head", "mlp", "--method", "soft", "--beta", "0"), "--beta is 0.0; .* positive"),
            (("--head", "mlp", "--method", "fudge", "--rank", "4"), "requires --head lowrank"),
            (("--head", "tied", "--method", "fudge", "--mlp-width", "4"), "requires --head mlp"),
            (
                ("--head", "tied", "--method", "fudge", "--bounds", "0", "1"),
                "requires --head linear",
            ),
            (("--head", "mlp", "--method", "fudge", "--bounds", "1", "0"), "must be ascending"),
            (("--head", "mlp", "--method", "bt"), "--method bt requires --data with pairs"),
            (("--head", "mlp", "--method", "fudge", "--held-out", "0.6"), "below 0.5"),
            (("--head", "mlp", "--method", "fudge", "--temperature", "0"), "must be positive"),
            (("--head", "mlp", "--method", "fudge", "--batch", "0"), "--batch is 0; .* positive"),
            (("--head", "mlp", "--method", "fudge", "--rewards", "a"), "NAME=MODULE:FUNCTION, or"),
            (
                ("--head", "mlp", "--method", "fudge", "--rewards", f"a={GOLD}", f"a={GOLD}"),
                "names a twice",
            ),
        ],
    )
    def test_error_names_flag_value_and_requirement(
        self, prompts: Path, tmp_path: Path, arguments: tuple[str, ...], refusal: str
    ) -> None:
        with pytest.raises(SystemExit, match=refusal):
            train(prompts, tmp_path / "cache", tmp_path / "x", *arguments)
        assert not (tmp_path / "cache").exists()

    def test_mahalanobis_head_cannot_be_trained(
        self, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ("--head", "mahalanobis", "--method", "fudge")
        with pytest.raises(SystemExit):
            train(prompts, tmp_path / "cache", tmp_path / "x", *arguments)
        assert "argument --head: invalid choice: 'mahalanobis'" in capsys.readouterr().err

    def test_reward_module_is_found_in_the_working_folder(
        self, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The module is found, so the error names the next problem."""
        (tmp_path / "my_own_rewards.py").write_text("def good(prompt, response): return 1.0\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
        arguments = ("--head", "mlp", "--method", "soft", "--rewards", "good=my_own_rewards:good")
        with pytest.raises(SystemExit, match="--method soft requires --beta"):
            train(prompts, tmp_path / "cache", tmp_path / "x", *arguments)

    def test_too_few_prompts_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "prompts.jsonl"
        path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
        with pytest.raises(SystemExit, match=r"has 2 prompts; at least 3 are required"):
            train(path, tmp_path / "cache", tmp_path / "x", "--head", "mlp", "--method", "fudge")


REVIEWS = ("It is good.", "I love the bright plot.", "It broke.", "The cast was dull and slow.")


def rows(finish_reason: str = "stop", chat: bool = False) -> list[dict[str, Any]]:
    """Two rated responses to each of 12 prompts."""
    prompts: list[Any] = [f"Review of the film number {i}:" for i in range(12)]
    if chat:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [
        {
            "prompt": prompt,
            "response": REVIEWS[(i + j) % 4],
            "reward": sentiment_gold("", REVIEWS[(i + j) % 4]) + 0.01 * i,
            "finish_reason": finish_reason,
        }
        for i, prompt in enumerate(prompts)
        for j in (0, 1)
    ]


def pairs() -> list[dict[str, Any]]:
    """Two pairs for each of 12 prompts."""
    return [
        {"prompt": row["prompt"], "chosen": REVIEWS[i % 2], "rejected": REVIEWS[2 + i % 2]}
        for i, row in enumerate(rows())
    ]


class TestOnData:
    """Responses come from a file; no engine starts."""

    @pytest.fixture(autouse=True)
    def no_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from cdserve.training import rollouts

        def refuse(*_: object) -> None:
            raise AssertionError("the engine was started")

        monkeypatch.setattr(rollouts, "_start", refuse)

    @staticmethod
    def train(folder: Path, rows: list[dict[str, Any]], *arguments: str) -> Path:
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = folder / "head"
        main(
            [
                *("heads", "train", "--model", str(MODEL_DIR), "--data", str(data)),
                *("--out", str(out), "--max-epochs", "2", *arguments),
            ]
        )
        return out

    def test_responses_are_tokenized_after_their_prompts(self, tmp_path: Path) -> None:
        from cdserve.training.rollouts import read

        out = self.train(tmp_path, rows(chat=True), "--head", "linear", "--method", "fudge")
        tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
        sets = {
            name: list(read(tmp_path / "head-cache", name))
            for name in ("train", "validation", "test")
        }
        assert {name: len(rollouts) for name, rollouts in sets.items()} == {
            "train": 20,
            "validation": 2,
            "test": 2,
        }
        groups = [{tuple(one.prompt_ids) for one in rollouts} for rollouts in sets.values()]
        assert len(set.union(*groups)) == sum(map(len, groups)) == 12
        for one in sets["train"]:
            assert one.text in REVIEWS
            assert tokenizer.decode(one.prompt_ids).endswith("<|assistant|>")
            assert one.tokens[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(one.tokens[:-1]) == one.text
        report = json.loads((out / "report.json").read_text())
        assert report["how"]["data"] == "data.jsonl"
        assert report["held_out"]["responses"] == 2

    def test_cut_responses_have_a_reward_only_with_score_cut(self, tmp_path: Path) -> None:
        arguments = ("--head", "linear", "--method", "td")
        cut = rows("length")
        with pytest.raises(
            SystemExit, match=r"0 of 2 responses of the test set ended, .*; --score-cut gives"
        ):
            self.train(tmp_path, cut, *arguments)
        out = self.train(tmp_path, cut, *arguments, "--score-cut")
        report = json.loads((out / "report.json").read_text())
        assert (report["held_out"]["responses"], report["held_out"]["cut"]) == (2, 0)
        summary = "scored as they stand (2 of 2 in the test set)"
        assert report["how"]["cut responses"] == summary
        assert summary in (out / "README.md").read_text()

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            (("--head", "lowrank", "--method", "cdq", "--temperature", "0.7"), "reward"),
            (("--head", "mlp", "--method", "soft", "--beta", "2"), "reward"),
            (("--head", "mlp", "--method", "fudge", "--rewards", f"gold={GOLD}"), "gold"),
        ],
    )
    def test_methods_train_on_rewards_of_the_file_or_of_the_command(
        self, tmp_path: Path, arguments: tuple[str, ...], name: str
    ) -> None:
        out = self.train(tmp_path, rows(), *arguments)
        assert load_head(out).config.rewards == (name,)

    def test_labels_train_a_bounded_head(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        labelled = [
            {"prompt": row["prompt"], "completion": row["response"], "label": row["reward"] > 0}
            for row in rows()
        ]
        bounds = ("--bounds", "0", "1")
        out = self.train(tmp_path, labelled, "--head", "linear", "--method", "fudge", *bounds)
        config = ValueHead.from_pretrained(out).config
        assert (config.rewards, config.shift, config.scale) == (("label",), (0.0,), (1.0,))
        printed = capsys.readouterr().out
        assert f"Head, model card and report: {out}\n" in printed
        assert printed.endswith(f" MB, for other heads: {out}-cache\n")

    @pytest.mark.parametrize("architecture", ["linear", "lowrank"])
    def test_pairs_train_a_head_of_preferences(
        self, tmp_path: Path, architecture: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = self.train(tmp_path, pairs(), "--head", architecture, "--method", "bt")
        config = load_head(out).config
        assert (config.rewards, config.shift, config.scale) == (("preference",), (0.0,), (1.0,))
        report = json.loads((out / "report.json").read_text())["held_out"]
        assert report["pairs"] == 2
        assert report["by_number"][0]["number"] == 1
        assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
        card = (out / "README.md").read_text()
        assert "Bradley-Terry value" in card
        assert "Values have no unit. For two responses" in card
        assert "units of the raw reward" not in card
        printed = f"pair accuracy of whole responses: {report['at_end']:.3f}"
        assert printed in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "refusal"),
        [
            (("--method", "fudge"), r"data\.jsonl has pairs, which require --method bt"),
            (("--method", "bt", "--bounds", "0", "1"), r"--bounds is \(0.0, 1.0\); it requires"),
            (("--method", "bt", "--end-weight", "9"), "--end-weight is 9; it requires --method"),
            (("--method", "bt", "--clip", "1"), "--clip is 1.0; it requires a squared error"),
            (("--method", "bt", "--score-cut"), "--score-cut is True; it requires --method fudge"),
            (("--method", "bt", "--rewards", f"a={GOLD}"), "--rewards is a; it requires --method"),
        ],
    )
    def test_option_unsuitable_for_pairs_is_refused(
        self, tmp_path: Path, arguments: tuple[str, ...], refusal: str
    ) -> None:
        with pytest.raises(SystemExit, match=refusal):
            self.train(tmp_path, pairs(), "--head", "linear", *arguments)

    def test_pairs_are_required_by_their_method(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="has no pairs, which are required by --method bt"):
            self.train(tmp_path, rows(), "--head", "linear", "--method", "bt")

    @pytest.mark.parametrize(
        ("arguments", "refusal"),
        [
            (("--per-prompt", "2"), "--per-prompt is 2; it requires --prompts"),
            (("--max-tokens", "9"), "--max-tokens is 9; it requires --prompts"),
            (("--test-prompts", "x"), "--test-prompts is x; it requires --prompts"),
            (("--dtype", "float32"), "--dtype is passed to vLLM, which does not run with --data"),
            (("--bounds", "0", "0.1"), r"reward reward is .* for a response; --bounds requires"),
        ],
    )
    def test_unusable_flag_is_refused(
        self, tmp_path: Path, arguments: tuple[str, ...], refusal: str
    ) -> None:
        with pytest.raises(SystemExit, match=refusal):
            self.train(tmp_path, rows(), "--head", "linear", "--method", "fudge", *arguments)

    @pytest.mark.parametrize(
        ("changed", "refusal"),
        [
            (
                {"response": "bad " * 3000},
                r"line 25: 'bad bad.* tokens with its prompt; .* at most",
            ),
            ({"response": "", "finish_reason": "length"}, "line 25 has an empty response that did"),
            ({"prompt": [{"role": "narrator", "content": "x"}]}, "line 25, .*template rejects it"),
        ],
    )
    def test_unusable_response_is_refused(
        self, tmp_path: Path, changed: dict[str, Any], refusal: str
    ) -> None:
        extra = {**rows()[0], "prompt": "p", **changed}
        with pytest.raises(SystemExit, match=refusal):
            self.train(tmp_path, [*rows(), extra], "--head", "linear", "--method", "fudge")

    def test_cache_of_other_data_is_refused(self, tmp_path: Path) -> None:
        arguments = ("--head", "linear", "--method", "fudge")
        self.train(tmp_path, rows(), *arguments)
        cache = ("--cache", str(tmp_path / "head-cache"))
        (tmp_path / "other").mkdir()
        with pytest.raises(SystemExit, match=r"was made with data_sha256 \w+, not \w+; choose"):
            self.train(tmp_path / "other", rows(chat=True), *arguments, *cache)

    def test_rewards_are_required(self, tmp_path: Path) -> None:
        unrated = [{"prompt": row["prompt"], "response": row["response"]} for row in rows()]
        with pytest.raises(SystemExit, match=r"data\.jsonl has no rewards; --rewards is required"):
            self.train(tmp_path, unrated, "--head", "linear", "--method", "fudge")
