"""The operator's settings: precedence, validation and error messages."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from cdserve import config
from cdserve.config import BUILT_IN_REWARDS, Settings, load
from cdserve.errors import ConfigError
from tests.schemas import pydantics_words, wrong_fields, wrong_values

Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.upper().startswith("CDSERVE_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Function that writes a settings file."""

    def write_file(text: str) -> Path:
        path = tmp_path / "cdserve.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def load_error(path: Path, *flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, flags)
    return str(caught.value)


class TestFile:
    def test_load_reads_every_section_of_a_file(self, write: Write) -> None:
        settings = load(
            write(
                """
                model: some/model
                served_model_name: demo
                rewards:
                  sentiment: {kind: value_head, path: some/head, output: sentiment}
                  brevity: {kind: length, target: 64, tolerance: 8}
                  gold: {kind: python, callable: "cdserve.demo.tiny.reward:sentiment_gold"}
                default_reward: sentiment
                presets: {safe: {method: blockwise_cd, k: 8, m: 32}}
                limits: {max_n: 16}
                decoders: [greedy]
                keep_alive: 1.5
                engine: {max_model_len: 512}
                """
            )
        )
        assert settings.model_name == "demo"
        assert [reward.kind for reward in settings.rewards.values()] == [
            "value_head",
            "length",
            "python",
        ]
        assert settings.presets == {"safe": {"method": "blockwise_cd", "k": 8, "m": 32}}
        assert (settings.limits.max_n, settings.limits.max_k) == (16, 32)
        assert settings.limits.max_candidate_tokens == 65536
        assert settings.engine == {"max_model_len": 512}

    def test_model_name_defaults_to_the_model(self, write: Write) -> None:
        assert load(write("model: some/model")).model_name == "some/model"


class TestBuiltInRewards:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("model: m", {"self_certainty", "deepconf"}),
            ("model: m\nrewards: {}", set()),
            ("model: m\nrewards: {a: {kind: json_valid}}", {"a"}),
        ],
    )
    def test_settings_with_rewards_have_no_built_in_ones(
        self, write: Write, text: str, names: set[str]
    ) -> None:
        settings = load(write(text))
        assert settings.rewards.keys() == names
        assert settings.has_built_in_rewards == ("rewards" not in text)

    def test_model_of_a_flag_needs_no_file(self) -> None:
        settings = load(None, ["model=m", "default_reward=deepconf"])
        assert settings.rewards == BUILT_IN_REWARDS
        assert settings.model == "m"

    def test_error_without_a_file_names_the_setting(self) -> None:
        with pytest.raises(ConfigError, match=r"^settings: limits\.max_n is 0; it must"):
            load(None, ["model=m", "limits.max_n=0"])


class TestPrecedence:
    FILE = "model: of-file\nlimits: {max_n: 1, max_k: 1}"

    def test_environment_overrides_the_file(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CDSERVE_MODEL", "of-environment")
        monkeypatch.setenv("CDSERVE_LIMITS__MAX_N", "2")
        settings = load(write(self.FILE))
        assert settings.model == "of-environment"
        assert (settings.limits.max_n, settings.limits.max_k) == (2, 1)

    def test_flag_overrides_the_file(self, write: Write) -> None:
        settings = load(write(self.FILE), ["limits.max_n=3", "model=of-flag"])
        assert settings.model == "of-flag"
        assert (settings.limits.max_n, settings.limits.max_k) == (3, 1)

    def test_flag_overrides_the_environment(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CDSERVE_MODEL", "of-environment")
        monkeypatch.setenv("CDSERVE_LIMITS__MAX_N", "2")
        monkeypatch.setenv("CDSERVE_LIMITS__MAX_K", "2")
        settings = load(write(self.FILE), ["limits.max_n=3", "model=of-flag"])
        assert settings.model == "of-flag"
        assert (settings.limits.max_n, settings.limits.max_k) == (3, 2)

    def test_last_flag_for_a_key_wins(self, write: Write) -> None:
        assert load(write(self.FILE), ["model=a", "model=b"]).model == "b"

    def test_model_may_come_from_the_environment_alone(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CDSERVE_MODEL", "of-environment")
        assert load(write("")).model == "of-environment"

    def test_model_may_come_from_a_flag_alone(self, write: Write) -> None:
        assert load(write(""), ["model=of-flag"]).model == "of-flag"


class TestFlags:
    def test_flag_values_are_parsed_as_yaml(self, write: Write) -> None:
        flags = ["engine.enforce_eager=true", "decoders=[a, b]", "engine.name='1'"]
        settings = load(write("model: m"), flags)
        assert settings.engine == {"enforce_eager": True, "name": "1"}
        assert settings.decoders == ["a", "b"]

    def test_flags_create_missing_sections(self, write: Write) -> None:
        flags = ["rewards.short.kind=length", "rewards.short.target=8"]
        assert load(write("model: m"), flags).rewards["short"].kind == "length"

    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            ("limits.max_n", "key=value"),
            ("model.x=1", "--set model.x: model is 'm', not a section"),
            ("modell=m", "modell is not known"),
            ("limits.max=1", "limits.max is not known"),
            ("limits.max_n=0", "limits.max_n is 0"),
            ("limits.max_n=x", "limits.max_n is 'x'"),
            ("limits.max_n=[", "limits.max_n"),
        ],
    )
    def test_invalid_flag_is_named_in_the_error(
        self, write: Write, flag: str, message: str
    ) -> None:
        assert message in load_error(write("model: m"), flag)


class TestEnvironment:
    @pytest.mark.parametrize(
        "variable", ["CDSERVE_MODELL", "CDSERVE_LIMIT__MAX_N", "CDSERVE_", "cdserve_port"]
    )
    def test_unknown_environment_variable_is_rejected(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv(variable, "1")
        message = load_error(write("model: m"))
        assert variable in message
        assert "CDSERVE_LIMITS" in message

    def test_unknown_key_in_the_environment_is_rejected(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CDSERVE_LIMITS__MAX", "1")
        assert "limits.max is " in load_error(write("model: m"))

    def test_environment_key_below_a_plain_value_is_rejected(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CDSERVE_MODEL__NAME", "x")
        assert "CDSERVE_MODEL__NAME" in load_error(write("model: m"))

    @pytest.mark.parametrize(
        ("variable", "value", "message"),
        [
            ("CDSERVE_LIMITS__MAX_N", "x", "limits.max_n is 'x'"),
            ("CDSERVE_KEEP_ALIVE", "-1", "keep_alive is "),
            ("CDSERVE_LIMITS", "not json", "limits"),
            ("CDSERVE_DECODERS", "greedy", "decoders"),
        ],
    )
    def test_invalid_environment_value_is_named_in_the_error(
        self,
        write: Write,
        monkeypatch: pytest.MonkeyPatch,
        variable: str,
        value: str,
        message: str,
    ) -> None:
        monkeypatch.setenv(variable, value)
        assert message in load_error(write("model: m"))

    def test_variables_without_the_prefix_are_ignored(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("_CDSERVE_ARCHITECTURE", "LlamaForCausalLM")
        monkeypatch.setenv("CDSERVER_MODEL", "x")
        assert load(write("model: m")).model == "m"


class TestInvalid:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "model: m\nlimit: {max_n: 1}",
                "limit is not known; did you mean limits; accepted here: admission, ",
            ),
            (
                "model: m\nlimits: {max: 1}",
                "limits.max is not known; did you mean max_n; accepted ",
            ),
            (
                "model: m\nplayground: {exampels: [a]}",
                "playground.exampels is not known; did you mean examples",
            ),
            (
                "model: m\nplayground: {examples: a}",
                "playground.examples is 'a'; it must be ",
            ),
            ("model: m\nplayground: {examples: ['']}", "playground.examples.0 is ''"),
            ("model: m\nplayground: maybe", "playground is 'maybe'; it takes"),
            ("model: m\nlimits: {max_n: 0}", "limits.max_n is 0"),
            ("model: m\nlimits: {max_k: many}", "limits.max_k is 'many'"),
            ("model: m\nkeep_alive: 0", "keep_alive is 0; it must be above 0"),
            ("model: 3", "model is 3"),
            ("limits: {max_n: 1}", "model is "),
            ("", "model is "),
            (
                "model: m\nrewards: {a: {kind: lenght}}",
                "rewards.a.kind is 'lenght'; did you mean length; it takes 'confidence', ",
            ),
            (
                "model: m\nrewards: {a: {kind: length, target: 0}}",
                "rewards.a.target is 0; it must be above 0",
            ),
            (
                "model: m\nrewards: {a: {kind: length, target: 9, tolerance: -1}}",
                "rewards.a.tolerance is -1",
            ),
            (
                "model: m\nrewards: {a: {kind: length}}",
                "rewards.a.target is missing; it takes an integer",
            ),
            (
                "model: m\nrewards: {a: {kind: length, target: 9, goal: 1}}",
                "rewards.a.goal is not known; accepted here: kind, ",
            ),
            ("model: m\nrewards: {a: {kind: python, callable: os.system}}", "'os.system'"),
            (
                "model: m\nrewards: {a: {kind: confidence, of: certainty}}",
                "rewards.a.of is 'certainty'; it must be 'self_certainty', 'logprob', 'entropy' or "
                "'top_k_logprob'",
            ),
            (
                "model: m\nrewards: {a: {kind: confidence, window: 0}}",
                "rewards.a.window is 0; it must be at least 1",
            ),
            (
                "model: m\nrewards: {a: {kind: confidence, of: top_k_logprob, top_k: 0}}",
                "rewards.a.top_k is 0; it must be at least 1",
            ),
            (
                "model: m\nrewards: {a: {kind: confidence, of: entropy, top_k: 5}}",
                "rewards.a.top_k is 5; of entropy does not have it",
            ),
            (
                "model: m\nrewards: {a: {kind: confidence, aggregate: min}}",
                "rewards.a.aggregate is 'min'; it requires window",
            ),
            (
                "model: m\nrewards: {a: {kind: confidence, window: 4, aggregate: max}}",
                "rewards.a.aggregate is 'max'; it must be 'mean', 'min', 'tail' or 'bottom_10'",
            ),
            ("model: m\nrewards: {a: {kind: loglik, member: b}}", "rewards.a names the member 'b'"),
            (
                "model: m\nmembers: {t: x}\n"
                "rewards: {a: {kind: log_ratio, tuned: t, reference: r}}",
                "names the member 'r'; members: base, t",
            ),
            ("model: m\nmembers: {base: x}", "'base' is the served model itself"),
            ("model: m\nextractors: {boxed: 'a:b'}", "'boxed' is built in"),
            ("model: m\nextractors: {own: a.b}", "extractors.own is 'a.b'; it must match"),
            ("model: m\nextractors: {own-1: 'a:b'}", "extractors.own-1 is not a name"),
            ("model: m\nmembers: {'0': x}", "members.0"),
            ("- model: m", "expected a mapping"),
            ("model: [", "cdserve.yaml"),
        ],
    )
    def test_error_names_the_invalid_key(self, write: Write, text: str, message: str) -> None:
        assert message in load_error(write(text))

    def test_non_string_key_is_rejected(self, write: Write) -> None:
        assert "1" in load_error(write("model: m\n1: x"))

    @pytest.mark.parametrize("key", ["_env_file", "_env_prefix", "_case_sensitive", "_secrets_dir"])
    def test_pydantic_settings_option_is_rejected_as_a_key(self, write: Write, key: str) -> None:
        assert key in load_error(write(f"model: m\n{key}: x"))

    @pytest.mark.parametrize("objects", [wrong_values, wrong_fields])
    def test_errors_of_all_fields_have_none_of_pydantics_words(
        self,
        tmp_path: Path,
        objects: Callable[..., Iterator[Any]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(config.yaml, "safe_load", json.loads)  # of JSON the same, and faster
        path = tmp_path / "cdserve.yaml"
        for content in objects(Settings):
            path.write_text(json.dumps(content), encoding="utf-8")
            try:
                load(path)
            except ConfigError as error:
                message = str(error)
            else:
                continue
            assert pydantics_words(message) == [], message

    def test_missing_file_is_named_in_the_error(self, tmp_path: Path) -> None:
        assert "absent.yaml" in load_error(tmp_path / "absent.yaml")

    def test_binary_file_is_named_in_the_error(self, tmp_path: Path) -> None:
        path = tmp_path / "cdserve.yaml"
        path.write_bytes(b"model: \xff\xfe")
        assert "cdserve.yaml" in load_error(path)

    def test_error_for_a_long_value_is_short(self, write: Write) -> None:
        assert len(load_error(write(f"model: m\nkeep_alive: {'x' * 100_000}"))) < 1000

    def test_settings_are_frozen(self, write: Write) -> None:
        settings = load(write("model: m"))
        with pytest.raises(ValueError, match="frozen"):
            settings.model = "other"


class TestPaths:
    FILE = """
        model: ./model
        rewards:
          here: {kind: value_head, path: heads/here}
          hub: {kind: value_head, path: someone/head}
        """

    @pytest.fixture
    def settings(self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
        (tmp_path / "model").mkdir()
        (tmp_path / "heads" / "here").mkdir(parents=True)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        return load(write(self.FILE))

    def test_paths_are_relative_to_the_folder_of_the_file(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        assert settings.model == str(tmp_path / "model")
        assert settings.rewards["here"].model_dump()["path"] == str(tmp_path / "heads" / "here")

    def test_hub_names_stay_unchanged(self, settings: Settings) -> None:
        assert settings.rewards["hub"].model_dump()["path"] == "someone/head"

    def test_path_of_a_reward_model_is_resolved(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "rm").mkdir()
        text = "model: m\nrewards: {a: {kind: reward_model, model: ./rm}}"
        assert load(write(text)).rewards["a"].model_dump()["model"] == str(tmp_path / "rm")

    def test_paths_are_absolute_for_a_relative_settings_file(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "model").mkdir()
        write("model: model")
        monkeypatch.chdir(tmp_path)
        assert load(Path("cdserve.yaml")).model == str(tmp_path / "model")

    def test_absolute_paths_stay_unchanged(self, write: Write, tmp_path: Path) -> None:
        assert load(write(f"model: {tmp_path}")).model == str(tmp_path)


class TestPublicSettings:
    """Settings of rewards that ``GET /v1/alignment`` may show."""

    PRIVATE = frozenset(
        {"path", "q_head", "force", "callable", "url", "api_key_env", "model", "rubric", "engine"}
        | {"template", "tokenizer"}
    )

    @pytest.mark.parametrize("kind", get_args(get_args(config.Reward)[0]))
    def test_every_setting_of_a_kind_is_public_or_listed_as_private(self, kind: type) -> None:
        assert issubclass(kind, config._Kind)
        assert kind.public == kind.model_fields.keys() - self.PRIVATE

    def test_settings_of_a_new_kind_are_private_unless_it_lists_them(self) -> None:
        class NewReward(config.Fallible):
            kind: Literal["new"]
            folder: str

        assert "folder" not in NewReward.public
