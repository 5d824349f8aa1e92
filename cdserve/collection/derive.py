"""The files of the formats, out of the answers: the same answers make the same files."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from cdserve.collection.answered import Answered
from cdserve.collection.card import DataSet, write_card
from cdserve.collection.features import features
from cdserve.collection.formats import FORMATS, TRL, candidates
from cdserve.collection.job import Job
from cdserve.collection.shards import Shards, remove_shards
from cdserve.prompts import Prompt

_FORMS = ("text", "chat")
_ALL = tuple(f"{kind}{form}" for kind in FORMATS for form in ("", *(f"-{one}" for one in _FORMS)))


@dataclass(slots=True)
class _Writing:
    """One format's rows of prompts of one form, while they are written."""

    kind: str
    form: str
    data: DataSet
    shards: Shards

    def take(self, answered: Answered, job: Job, about: Mapping[str, Any]) -> None:
        if self.kind in TRL:
            made = TRL[self.kind](answered, job.filters)
        else:
            made = candidates(answered, about)
        if made.rows and not self.data.rows:
            prompts = [prompt for prompt in job.prompts if _form(prompt) == self.form]
            self.data.features = features(made.rows[0], prompts)
        for row in made.rows:
            self.shards.add(row)
        self.data.rows += len(made.rows)
        self.data.left_out.update(made.left_out)


def derive(job: Job, answers: Iterable[Answered], settings: Mapping[str, Any]) -> list[DataSet]:
    """Writes the job's formats, in place of all that were there, and the README.

    A data set has prompts of one form, since a column of texts and of messages cannot be loaded.
    Where there are both, its name ends in ``-text`` or ``-chat``.

    Args:
        answers: in the order of the rows.
        settings: how they were drawn.
    """
    found = {_form(prompt) for prompt in job.prompts}
    forms = [form for form in _FORMS if form in found]
    about = {
        "model": settings["model"],
        "policy": settings["alignment"],
        **{name: settings[name] for name in ("max_tokens", "temperature", "top_p")},
    }
    with ExitStack() as stack:
        writing = []
        for kind in job.formats:
            for form in forms:
                name = f"{kind}-{form}" if job.mixed else kind
                shards = stack.enter_context(Shards(job.out, name, job.shard_size))
                writing.append(_Writing(kind, form, DataSet(name=name, files=shards.files), shards))
        for answered in answers:
            for one in writing:
                if one.form == _form(answered.prompt):
                    one.take(answered, job, about)
    made = [one.data for one in writing]
    remove_shards(job.out, set(_ALL) - {data.name for data in made})
    write_card(job.out, settings, asdict(job.filters), made)
    return made


def _form(prompt: Prompt) -> str:
    return "text" if isinstance(prompt, str) else "chat"
