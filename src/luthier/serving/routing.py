"""Which version answers: experiments, sticky for each subject, and the table of all that is served.

A subject falls into one of 10,000 buckets by `sha256(id:subject)`, the experiment's id being the salt: another experiment deals
anew. Each variant holds one contiguous range of buckets. The first variant, the control, takes the middle; the others stand at
the ends and grow inwards, away from their end:

    control .9 | second .1                [0 ........ control ........ 9000)[9000 second 10000)
    control .7 | second .2 | third .1     [0 third 1000)[1000 ... control ... 8000)[8000 second 10000)

So of up to two variants beside the control, raising one takes subjects from its neighbour only and moves nobody out of it, and
lowering one gives them back. The ranges are a function of the weights alone: every process, and every restart, deals the same.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from luthier.errors import did_you_mean
from luthier.serving.api.errors import unknown_model

BUCKETS = 10_000
Range = tuple[int, int]
"""First bucket and the one after the last."""


@dataclass(frozen=True)
class Variant:
    """One arm of an experiment."""

    name: str
    version: int
    weight: float
    """Share of the subjects, in steps of 1/10,000."""


def widths(weights: Mapping[str, float]) -> dict[str, int]:
    """Return how many buckets each weight is.

    Raises:
        ValueError: if a weight is no multiple of 1/10,000, or they do not add up to 1.
    """
    found = {name: round(weight * BUCKETS) for name, weight in weights.items()}
    for name, weight in weights.items():
        if weight < 0 or abs(weight * BUCKETS - found[name]) > 1e-6:
            raise ValueError(f"the weight of {name} must be a share from 0 to 1 in steps of {1 / BUCKETS}, not {weight}")
    if sum(found.values()) != BUCKETS:
        raise ValueError(f"the weights must add up to 1; they add up to {sum(found.values()) / BUCKETS:g}")
    return found


def ranges(weights: Mapping[str, float]) -> dict[str, Range]:
    """Return the range of each variant, in the order given; the first is the control.

    Raises:
        ValueError: as `widths`.
    """
    found: dict[str, Range] = {}
    left, right = 0, BUCKETS
    control, *others = widths(weights).items()
    for number, (name, width) in enumerate(others):
        if number % 2 == 0:
            found[name] = (right - width, right)
            right -= width
        else:
            found[name] = (left, left + width)
            left += width
    return {control[0]: (left, right), **found}


def bucket(salt: str, subject: str) -> int:
    """Return the bucket of a subject, from 0 to 9,999; of 2^64 values, no bucket has one more than another in 10^15."""
    said = f"{salt}:{subject}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(said).digest()[:8]) % BUCKETS


@dataclass(frozen=True)
class Experiment:
    """Variants side by side, each for a share of the subjects.

    >>> experiment = Experiment("short-answers", (Variant("champion", 3, 0.9), Variant("challenger", 4, 0.1)))
    >>> experiment.assign("user-17").name
    'champion'
    """

    id: str
    """Name and salt: a new experiment needs a new one."""
    variants: tuple[Variant, ...]
    """The control first."""
    shadow: int | None = None
    """Version that also answers, in the background; what it says is logged and never shown."""

    def __post_init__(self) -> None:
        """Refuse weights that cannot be dealt.

        Raises:
            ValueError: as `widths`, or if two variants share a name.
        """
        if not self.variants or len({variant.name for variant in self.variants}) < len(self.variants):
            raise ValueError("an experiment needs variants of different names")
        _ = self.ranges

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """The buckets of each variant."""
        return ranges({variant.name: variant.weight for variant in self.variants})

    @property
    def control(self) -> Variant:
        """The first variant, which answers where another cannot."""
        return self.variants[0]

    def assign(self, subject: str) -> Variant:
        """Return the variant of a subject: always the same one, as long as its weight does not shrink."""
        place = bucket(self.id, subject)
        return next(v for v in self.variants if self.ranges[v.name][0] <= place < self.ranges[v.name][1])


@dataclass(frozen=True)
class Route:
    """Where one request goes."""

    version: int
    """The version that is to answer."""
    manifest: str
    """Root sha256 of its package."""
    assigned: str | None = None
    """The variant that the subject has; none if the client chose the version."""
    served: str | None = None
    """The variant that answers; another one where the assigned one cannot."""
    experiment: str | None = None
    """Id of the experiment, if one decided."""
    shadow: int | None = None
    """Version to ask as well, in the background."""


@dataclass(frozen=True)
class RouteTable:
    """All that is served at one moment. Never changed: a new one takes its place, and requests under way keep theirs."""

    versions: Mapping[int, str]
    """Version -> root sha256 of its package, for all that have an engine."""
    aliases: Mapping[str, int]
    """Alias -> version."""
    experiment: Experiment
    """Only its control must have an engine: where another variant has none yet, the control answers."""
    sequence: int = 0
    """Number of the deployment log's line that it stands for."""
    name: str = "luthier"
    """The registered model."""
    _names: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a table that leads nowhere.

        Raises:
            ValueError: if the control or an alias is of a version that has no engine, or one name means two versions.
        """
        named = {variant.name: variant.version for variant in self.experiment.variants}
        clash = sorted(name for name in named.keys() & self.aliases.keys() if named[name] != self.aliases[name])
        if clash:
            meant = f"version {named[clash[0]]}, and version {self.aliases[clash[0]]} by the alias of that name"
            raise ValueError(f"the variant {clash[0]} is {meant}: give the variant another name")
        control = self.experiment.control
        for name, version in {**self.aliases, control.name: control.version}.items():
            if version not in self.versions:
                raise ValueError(f"{name} is version {version}, which has no engine")
        answering = {name: version for name, version in named.items() if version in self.versions}
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))
        object.__setattr__(self, "aliases", MappingProxyType(dict(self.aliases)))
        object.__setattr__(self, "_names", MappingProxyType({**self.aliases, **answering}))

    @property
    def models(self) -> list[str]:
        """Return every name that a client may ask for."""
        return [self.name, *sorted(self._names), *(self.model_of(version) for version in sorted(self.versions))]

    def model_of(self, version: int) -> str:
        """Return the name of a version, as answers give it: `luthier@3`."""
        return f"{self.name}@{version}"

    def route(self, asked: str, subject: str, ready: Callable[[int], bool] = lambda version: True) -> Route:
        """Return where a request goes.

        Args:
            asked: the name that the client gave.
            subject: who asks; a request without a subject is one of its own, and its id will do.
            ready: tells whether a version's engine can answer. Where the assigned one cannot, or is not there, the control
                answers, and the assignment stays: what users of a failing variant get must not change which one they are
                counted in.

        Raises:
            ApiError: 404 with the known names, if there is no such model.
        """
        if asked != self.name:
            return self._chosen(asked)
        assigned = self.experiment.assign(subject)
        control = self.experiment.control
        is_there = assigned.version in self.versions
        served = assigned if is_there and (ready(assigned.version) or not ready(control.version)) else control
        # a subject whose variant is the shadow's version has its answer already
        shadow = self.experiment.shadow if self.experiment.shadow in self.versions.keys() - {served.version} else None
        return Route(served.version, self.versions[served.version], assigned.name, served.name, self.experiment.id, shadow)

    def fallback(self, route: Route) -> Route | None:
        """Return where a request goes that its engine could not begin to answer; none if there is nobody else.

        Only what the experiment decided may go elsewhere: who asks for a version wants that version.
        """
        control = self.experiment.control
        if route.assigned is None or route.version == control.version:
            return None
        return replace(route, version=control.version, manifest=self.versions[control.version], served=control.name)

    def _chosen(self, asked: str) -> Route:
        version = self._names.get(asked)
        if version is None and asked.startswith(f"{self.name}@"):
            number = asked.removeprefix(f"{self.name}@")
            version = next((known for known in self.versions if str(known) == number), None)
        if version is None:
            raise unknown_model(asked, self.models)
        return Route(version, self.versions[version])


def resolve_experiment(
    salt: str,
    variants: Mapping[str, tuple[int | str, float]],
    shadow: int | str | None,
    aliases: Mapping[str, int],
) -> Experiment:
    """Return an experiment whose aliases are resolved, once, to versions.

    Args:
        salt: id of the experiment.
        variants: name -> version or alias, and weight; the control first.
        shadow: version or alias.
        aliases: alias -> version, at this moment.

    Raises:
        ValueError: if there is no such alias, or as `Experiment`.
    """

    def resolve(which: int | str) -> int:
        if isinstance(which, int) or which.isdecimal():
            return int(which)
        if which not in aliases:
            known = ", ".join(sorted(aliases)) or "none"
            raise ValueError(f"there is no alias {which}{did_you_mean(which, aliases)}; there are {known}")
        return aliases[which]

    resolved = tuple(Variant(name, resolve(version), weight) for name, (version, weight) in variants.items())
    return Experiment(salt, resolved, None if shadow is None else resolve(shadow))


def hash_subject(subject: str, key: str) -> str:
    """Return what the log keeps of a subject: the same for the same subject, and with a secret key nobody can guess it back."""
    return hmac.digest(key.encode(), b"subject:" + subject.encode(errors="surrogatepass"), "sha256").hex()[:32]
