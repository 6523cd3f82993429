"""What must hold before a model may go out, as `evaluation.gate.rules` writes it. docs/gate.md shows every kind."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from luthier.configuration import Parameters
from luthier.errors import did_you_mean

CHAMPION = "champion"
LOSS = "nll"


class Statement(Parameters, ABC):
    """A rule: what must hold."""

    model_config = ConfigDict(allow_inf_nan=False)

    @abstractmethod
    def words(self) -> str:
        """Say the rule."""


class AtLeast(Statement):
    """`{metric: exact_match, at_least: 0.6}`."""

    metric: str
    at_least: float

    def words(self) -> str:
        """Say the rule."""
        return f"{self.metric} is at least {self.at_least:g}"


class AtMost(Statement):
    """`{metric: nll, at_most: 0.8}`, in nats per token."""

    metric: str
    at_most: float

    def words(self) -> str:
        """Say the rule."""
        return f"{self.metric} per token is at most {self.at_most:g}"


class BetterThan(Statement):
    """`{metric: field_accuracy, better_than: base}`."""

    metric: str
    better_than: str
    effect: float = Field(default=0.05, gt=0)
    """The gain that would matter to you. It does not decide: it says how many examples an undecided rule needs."""

    def words(self) -> str:
        """Say the rule."""
        return f"{self.metric} is better than that of {self.better_than}"


class NotWorseThan(Statement):
    """`{metric: valid, not_worse_than: champion, margin: 0.02}`."""

    metric: str
    not_worse_than: str
    margin: float = Field(gt=0)
    """The loss that you would accept, in the metric's own unit."""

    def words(self) -> str:
        """Say the rule."""
        return f"{self.metric} is not worse than that of {self.not_worse_than} by {self.margin:g} or more"


class NoSliceBelow(Statement):
    """`{metric: exact_match, no_slice_below: 0.4, slice: label}`."""

    metric: str
    no_slice_below: float
    slice: str
    at_least_examples: int = Field(default=20, ge=1)
    """Smaller slices are not looked at."""

    def words(self) -> str:
        """Say the rule."""
        return f"{self.metric} is at least {self.no_slice_below:g} in every slice by {self.slice}"


class NoSliceWorseThan(Statement):
    """`{metric: exact_match, no_slice_worse_than: champion, margin: 0.1, slice: label}`."""

    metric: str
    no_slice_worse_than: str
    margin: float = Field(gt=0)
    """The loss that you would accept in a slice, in the metric's own unit."""
    slice: str
    at_least_examples: int = Field(default=20, ge=1)
    """Smaller slices are not looked at."""

    def words(self) -> str:
        """Say the rule."""
        other = self.no_slice_worse_than
        return f"{self.metric} is not worse than that of {other} by {self.margin:g} or more in any slice by {self.slice}"


class Retention(Statement):
    """`{retention: nll, margin: 0.05}`: the loss on general text has not grown by more."""

    retention: Literal["nll"]
    margin: float = Field(gt=0)
    """The growth that you would accept, in nats per token."""
    not_worse_than: str = "base"

    def words(self) -> str:
        """Say the rule."""
        return f"nll per token of general text is not worse than that of {self.not_worse_than} by {self.margin:g} or more"


class Safety(Statement):
    """`{safety: all}`, or `{safety: [NAME, NAME]}` for some of the checks."""

    safety: Literal["all"] | tuple[str, ...]

    def words(self) -> str:
        """Say the rule."""
        return "every safety check is passed" if self.safety == "all" else f"safety checks passed: {', '.join(self.safety)}"


class AnyOf(Statement):
    """`{any_of: [{metric: exact_match, better_than: base}, {metric: field_accuracy, better_than: base}]}`."""

    any_of: tuple["Alternative", ...] = Field(min_length=2)

    def words(self) -> str:
        """Say the rule."""
        return ", or ".join(rule.words() for rule in self.any_of)


KINDS: dict[str, type[Statement]] = {
    "retention": Retention,
    "at_least": AtLeast,
    "at_most": AtMost,
    "better_than": BetterThan,
    "not_worse_than": NotWorseThan,
    "no_slice_below": NoSliceBelow,
    "no_slice_worse_than": NoSliceWorseThan,
    "safety": Safety,
    "any_of": AnyOf,
}


def as_rule(value: Any) -> Any:
    """Return the rule that a mapping of the parameters stands for; a rule is returned as it is.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    if isinstance(value, Statement):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("a rule is written as {metric: exact_match, at_least: 0.6}")
    said = [kind for kind in KINDS if kind in value]
    if "retention" in said and "not_worse_than" in said:
        said.remove("not_worse_than")
    if len(said) > 1:
        raise ValueError(f"says {' and '.join(said)}: write one rule for each")
    known = [*KINDS, *dict.fromkeys(name for kind in KINDS.values() for name in kind.model_fields)]
    if not said:
        hints = [f"{key!r}{did_you_mean(str(key), known)}" for key in value if key not in known]
        raise ValueError(
            f"says nothing to hold{': unknown ' + ', '.join(hints) if hints else ''}; a rule has one of {', '.join(KINDS)}"
        )
    try:
        return KINDS[said[0]].model_validate(dict(value))
    except ValidationError as error:
        fields = list(KINDS[said[0]].model_fields)
        raise ValueError("; ".join(_in_words(detail, fields) for detail in error.errors())) from None


def _in_words(detail: Any, fields: list[str]) -> str:
    name = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"unknown key {name!r}{did_you_mean(name, fields)}; known: {', '.join(fields)}"
    if detail["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {detail['msg'][0].lower() + detail['msg'][1:]}, not {detail['input']!r}"


def _as_alternative(value: Any) -> Any:
    rule = as_rule(value)
    if not isinstance(rule, AtLeast | AtMost | BetterThan | NotWorseThan):
        raise ValueError("any_of takes rules with at_least, at_most, better_than or not_worse_than")
    return rule


Alternative = Annotated[AtLeast | AtMost | BetterThan | NotWorseThan, BeforeValidator(_as_alternative)]
AnyOf.model_rebuild()
Rule = Annotated[
    AtLeast | AtMost | BetterThan | NotWorseThan | NoSliceBelow | NoSliceWorseThan | Retention | Safety | AnyOf,
    BeforeValidator(as_rule),
]


# Of free text, hardly any answer is exactly right: the loss says whether the right one has become likelier, and chrF that what
# is written has not become worse for it.
OF_TASK: dict[str, list[dict[str, Any]]] = {
    "structured": [
        {"metric": "field_accuracy", "better_than": "base"},
        {"metric": "exact_match", "better_than": "base"},
        {"metric": "field_accuracy", "not_worse_than": CHAMPION, "margin": 0.03},
    ],
    "classification": [
        {"metric": "label_right", "better_than": "base"},
        {"metric": "label_right", "not_worse_than": CHAMPION, "margin": 0.03},
    ],
    "free_text": [
        {"metric": LOSS, "better_than": "base"},
        {"metric": "chrf", "not_worse_than": "base", "margin": 0.05},
        {"metric": LOSS, "not_worse_than": CHAMPION, "margin": 0.03},
    ],
}
"""What a model must do of which nobody wrote what it must do."""


class GateParameters(Parameters):
    """When a model may go out."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)] | None = None
    """All must hold. docs/gate.md shows every kind; null takes those of the task."""
    alpha: float = Field(default=0.05, gt=0, le=0.2)
    """Chance of letting a model pass that breaks a rule, and of failing one that breaks none."""

    def rules_of(self, tasks: Collection[str]) -> tuple[Rule, ...]:
        """Return the rules that are written, or else those that fit the tasks that answers are judged by.

        Args:
            tasks: from `tasks.choose_tasks`.
        """
        if self.rules is not None:
            return self.rules
        return tuple(as_rule(rule) for task, rules in OF_TASK.items() if task in tasks for rule in rules)
