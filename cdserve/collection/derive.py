"""Writes the files of the formats; the same answers give the same files."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from cdserve.collection.card import DataSet, write_card
from cdserve.collection.features import features
from cdserve.collection.formats import FORMATS, TRL, candidates
from cdserve.collection.job import CollectionJob
from cdserve.collection.prompt_result import PromptResult
from cdserve.collection.shards import Shards, remove_shards
from cdserve.prompts import Prompt

_FORMS = ("text", "chat")
_ALL = tuple(f"{kind}{form}" for kind in FORMATS for form in ("", "-text", "-chat"))


@dataclass(slots=True)
class _Writer:
    """Writes one format for prompts of one form."""

    kind: str
    form: str
    data: DataSet
    shards: Shards

    def write(self, result: PromptResult, job: CollectionJob, about: Mapping[str, Any]) -> None:
        if self.kind in TRL:
            formatted = TRL[self.kind](result, job.filters)
        else:
            formatted = candidates(result, about)
        if formatted.rows and not self.data.rows:
            prompts = [prompt for prompt in job.prompts if _form(prompt) == self.form]
            self.data.features = features(formatted.rows[0], prompts)
        for row in formatted.rows:
            self.shards.add(row)
        self.data.rows += len(formatted.rows)
        self.data.left_out.update(formatted.left_out)


def derive(
    job: CollectionJob, results: Iterable[PromptResult], settings: Mapping[str, Any]
) -> list[DataSet]:
    """Replaces all data sets in the folder by the job's formats, and writes the README.

    A data set has prompts of one form, since ``datasets`` cannot load a column of both texts and
    messages. If the prompts' file has both, the name ends in ``-text`` or ``-chat``.

    Args:
        results: in the order of the rows.
        settings: how the answers were drawn.
    """
    used = {_form(prompt) for prompt in job.prompts}
    forms = [form for form in _FORMS if form in used]
    about = {
        "model": settings["model"],
        "policy": settings["alignment"],
        **{name: settings[name] for name in ("max_tokens", "temperature", "top_p")},
    }
    with ExitStack() as stack:
        writers = []
        for kind in job.formats:
            for form in forms:
                name = f"{kind}-{form}" if job.mixed else kind
                shards = stack.enter_context(Shards(job.out, name, job.shard_size))
                writers.append(_Writer(kind, form, DataSet(name=name, files=shards.files), shards))
        for result in results:
            for writer in writers:
                if writer.form == _form(result.prompt):
                    writer.write(result, job, about)
    data_sets = [writer.data for writer in writers]
    remove_shards(job.out, set(_ALL) - {data.name for data in data_sets})
    write_card(job.out, settings, asdict(job.filters), data_sets)
    return data_sets


def _form(prompt: Prompt) -> str:
    return "text" if isinstance(prompt, str) else "chat"
