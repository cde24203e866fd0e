"""Plugs: what a run is put together from, by name. Ours, and those of other distributions.

A plug is one declaration (a metric, an embedder, a model family, a stage, a solver, a format of prompts, a mitigation)
and one line that names it. Ours stand in the table of their kind as `module:name` and are imported when they are asked
for, so that the configuration can know every name without importing a network library. A stranger's come by the same
door, from an entry point of the kind's group:

    [project.entry-points."sharpaudit.metrics"]
    edge_gap = "my_package.edges:EDGE_GAP"

Only what is named is imported. A foreign plug says its `digest` by itself, a text that changes whenever its results may
change; that, the distribution and its version enter the identity of every stage that the plug works for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sharpaudit.errors import UserError, nearest, printable

if TYPE_CHECKING:
    from pipelines.stages.base import Stage
    from sharpaudit.corpus.formats.base import Format
    from sharpaudit.denoisers.families.base import Family
    from sharpaudit.denoisers.sampling import Solver
    from sharpaudit.embedders.base import Embedder
    from sharpaudit.mitigation.base import Mitigation
    from sharpaudit.scores.base import Metric

HERE = "this program"
"""Stands for the distribution of a plug that a running program has added by itself."""


class Plug(Protocol):
    """name: as a configuration names it. digest: of a foreign plug; "" for ours, whose changes table versions tell."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...


@dataclass(frozen=True)
class Origin:
    """Whose a foreign plug is. distribution: as pip knows it, or HERE."""

    distribution: str
    version: str
    digest: str


P = TypeVar("P", bound=Plug)


class Plugs(Generic[P]):
    """The plugs of one kind.

    kind: in words. group: of entry points. contract: what every plug of the kind is an instance of, `module:name`. own:
    ours by name, in the order in which they are listed, each `module:name`.
    """

    def __init__(self, kind: str, group: str, contract: str, own: Mapping[str, str]) -> None:
        self.kind, self.group = kind, group
        self._contract, self._own = contract, dict(own)
        self._added: dict[str, P] = {}
        self._loaded: dict[str, P] = {}

    def add(self, plug: P) -> P:
        """Make a plug known in this process, and give it back. Raises UserError for a name that is taken or no plug."""
        if plug.name.casefold() in map(str.casefold, self.names()):
            raise UserError(f'{self.kind} "{printable(plug.name)}": there is one of that name; give yours another')
        self._added[plug.name] = self._checked(plug.name, plug, HERE)
        return plug

    def remove(self, name: str) -> None:
        """Forget a plug that `add` made known."""
        del self._added[name]

    def names(self) -> list[str]:
        """Every name that can be asked for, ours first."""
        return list(dict.fromkeys([*self._own, *self._added, *_offered(self.group)]))

    def ours(self) -> list[str]:
        """The names of those that ship."""
        return list(self._own)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __getitem__(self, name: str) -> P:
        """The plug of that name. Raises UserError for one that is unknown, offered twice or cannot be loaded."""
        alike = [other for other in self.names() if other.casefold() == name.casefold() and other != name]
        if alike and name in self.names():
            raise UserError(
                f'{self.kind} "{printable(name)}" and "{printable(alike[0])}" differ by case alone: remove one'
            )
        offered = _offered(self.group).get(name, [])
        sources = [*(["sharpaudit"] if name in self._own else []), *([HERE] if name in self._added else [])]
        sources += [_distribution(entry)[0] for entry in offered]
        if len(sources) > 1:
            raise UserError(
                f'{self.kind} "{printable(name)}" is offered by {" and by ".join(map(printable, sources))}: remove all '
                "but one of these"
            )
        if not sources:
            hint, known = nearest(name, self.names()), ", ".join(map(printable, self.names()))
            raise UserError(f'no {self.kind} is called "{printable(name)}"{hint}; known are {known}')
        if name in self._added:
            return self._added[name]
        if name not in self._loaded:
            self._loaded[name] = _object(self._own[name]) if name in self._own else self._foreign(name, offered[0])
        return self._loaded[name]

    def of(self, names: Iterable[str]) -> tuple[P, ...]:
        """The plugs of these names, in their order. Raises UserError as for one."""
        return tuple(self[name] for name in names)

    def origin(self, name: str) -> Origin | None:
        """Whose a plug is; None for ours."""
        if name in self._own:
            return None
        plug = self[name]
        if name in self._added:
            return Origin(HERE, "", plug.digest)
        return Origin(*_distribution(_offered(self.group)[name][0]), plug.digest)

    def _foreign(self, name: str, entry: EntryPoint) -> P:
        source = _distribution(entry)[0]
        try:
            found = entry.load()
        except Exception as error:
            # A stranger's module may raise anything as it is imported.
            told = printable(" ".join(str(error).split()) or type(error).__name__)
            raise UserError(f'{self.kind} "{printable(name)}" of {source}: cannot be imported: {told}') from error
        return self._checked(name, found, source)

    def _checked(self, name: str, plug: Any, source: str) -> P:
        contract = _object(self._contract)
        what = f'{self.kind} "{printable(name)}" of {printable(source)}'
        if not isinstance(plug, contract):
            raise UserError(f"{what}: a {type(plug).__name__}, where a {contract.__name__} is expected")
        if plug.name != name:
            raise UserError(f'{what}: calls itself "{printable(plug.name)}"; give both one name')
        if not plug.digest:
            raise UserError(f"{what}: declares no digest, a text that changes whenever its results may change")
        return plug  # type: ignore[no-any-return]  # by the contract


@cache
def _offered(group: str) -> dict[str, list[EntryPoint]]:
    """What installed distributions offer, by name."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        same = found.setdefault(entry.name, [])
        # A distribution may be found twice: where it was installed, and in the folder that it was installed from.
        if _distribution(entry) not in map(_distribution, same):
            same.append(entry)
    return found


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that offers an entry point."""
    return (entry.dist.name, entry.dist.version) if entry.dist else (entry.module, "")


def _object(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


METRICS: Plugs[Metric] = Plugs(
    "metric",
    "sharpaudit.metrics",
    "sharpaudit.scores.base:Metric",
    {
        "residual_gap": "sharpaudit.scores.residual_gap:RESIDUAL_GAP",
        "noise_gap": "sharpaudit.scores.noise_gap:NOISE_GAP",
        "sharpness": "sharpaudit.scores.sharpness:SHARPNESS",
        "sharpness_jvp": "sharpaudit.scores.sharpness:SHARPNESS_JVP",
        "mean_free_gap": "sharpaudit.scores.mean_free_gap:MEAN_FREE_GAP",
        "attention_entropy": "sharpaudit.scores.attention_entropy:ATTENTION_ENTROPY",
        "norm_cosine": "sharpaudit.scores.norm_cosine:NORM_COSINE",
        "one_step": "sharpaudit.scores.one_step:ONE_STEP",
        "score_norm": "sharpaudit.scores.score_norm:SCORE_NORM",
        "hessian_trace": "sharpaudit.scores.hessian_trace:HESSIAN_TRACE",
    },
)
SOLVERS: Plugs[Solver] = Plugs(
    "solver",
    "sharpaudit.solvers",
    "sharpaudit.denoisers.sampling:Solver",
    {
        "ddim": "sharpaudit.denoisers.sampling:DDIM",
        "dpm-solver++": "sharpaudit.denoisers.sampling:DPM_SOLVER",
    },
)
FAMILIES: Plugs[Family] = Plugs(
    "model family",
    "sharpaudit.families",
    "sharpaudit.denoisers.families.base:Family",
    {
        "StableDiffusionPipeline": "sharpaudit.denoisers.families.stable_diffusion.family:STABLE_DIFFUSION",
        "gaussian": "sharpaudit.denoisers.families.gaussian.family:GAUSSIAN",
    },
)
"""By the name that a model's own index file has for it (denoisers/load.py)."""
FORMATS: Plugs[Format] = Plugs(
    "format of prompts",
    "sharpaudit.formats",
    "sharpaudit.corpus.formats.base:Format",
    {
        ".csv": "sharpaudit.corpus.formats.csv:CSV",
        ".tsv": "sharpaudit.corpus.formats.csv:TSV",
        ".jsonl": "sharpaudit.corpus.formats.lines:JSONL",
        ".ndjson": "sharpaudit.corpus.formats.lines:NDJSON",
        ".json": "sharpaudit.corpus.formats.lines:JSON",
        ".parquet": "sharpaudit.corpus.formats.parquet:PARQUET",
        ".txt": "sharpaudit.corpus.formats.lines:TXT",
    },
)
"""By the end of a file's name (corpus/files.py)."""
EMBEDDERS: Plugs[Embedder] = Plugs(
    "embedder",
    "sharpaudit.embedders",
    "sharpaudit.embedders.base:Embedder",
    {
        "pixels-16": "sharpaudit.embedders.pixels:PIXELS_16",
        "sscd-disc-mixup-320": "sharpaudit.embedders.sscd:MIXUP_320",
        "sscd-disc-mixup-288": "sharpaudit.embedders.sscd:MIXUP_288",
        "sscd-disc-large-224-05": "sharpaudit.embedders.sscd:LARGE_224",
        "open_clip": "sharpaudit.embedders.open_clip:OPEN_CLIP",
    },
)
"""By the name that `matches.profile` and the manifest of an index have for it, up to a colon where there are forms."""
MITIGATIONS: Plugs[Mitigation] = Plugs(
    "method of mitigation",
    "sharpaudit.mitigations",
    "sharpaudit.mitigation.base:Mitigation",
    {
        "none": "sharpaudit.mitigation.base:NONE",
        "sail": "sharpaudit.mitigation.sail:SAIL",
        "sail-paper": "sharpaudit.mitigation.sail:SAIL_PAPER",
        "sail-release": "sharpaudit.mitigation.sail:SAIL_RELEASE",
        "embedding": "sharpaudit.mitigation.embedding:EMBEDDING",
        "attention": "sharpaudit.mitigation.attention:ATTENTION",
        "noise": "sharpaudit.mitigation.noise:NOISE",
        "delay": "sharpaudit.mitigation.delay:DELAY",
        "delay-dynamic": "sharpaudit.mitigation.delay:DELAY_DYNAMIC",
        "numbers": "sharpaudit.mitigation.insertion:NUMBERS",
        "repeats": "sharpaudit.mitigation.insertion:REPEATS",
        "tokens": "sharpaudit.mitigation.insertion:TOKENS",
    },
)
STAGES: Plugs[Stage] = Plugs(
    "stage",
    "sharpaudit.stages",
    "pipelines.stages.base:Stage",
    {
        "fit_unconditional": "pipelines.stages.fit:UNCONDITIONAL_STAGE",
        "fit_differences": "pipelines.stages.fit:DIFFERENCES_STAGE",
        "fit_subspace": "pipelines.stages.fit:SUBSPACE_STAGE",
        "fit_thresholds": "pipelines.stages.thresholds:STAGE",
        "score": "pipelines.stages.score:STAGE",
        "triage": "pipelines.stages.triage:STAGE",
        "selection": "pipelines.stages.selection:STAGE",
        "sample": "pipelines.stages.sample:STAGE",
        "bands": "pipelines.stages.bands:STAGE",
        "match": "pipelines.stages.match:STAGE",
        "corroborate": "pipelines.stages.corroborate:STAGE",
        "mitigate": "pipelines.stages.mitigate:STAGE",
    },
)
"""In the order of the flow."""
KINDS: Mapping[str, Plugs[Any]] = {
    plugs.kind: plugs for plugs in (METRICS, SOLVERS, FAMILIES, EMBEDDERS, FORMATS, MITIGATIONS, STAGES)
}


def foreign(named: Iterable[tuple[Plugs[Any], str]]) -> list[dict[str, str]]:
    """What a run records of the plugs among those named that are not ours: kind, name, and the fields of Origin."""
    found = [(plugs.kind, name, plugs.origin(name)) for plugs, name in dict.fromkeys(named)]
    return [{"kind": kind, "name": name} | asdict(origin) for kind, name, origin in found if origin is not None]


def require(recorded: Iterable[Mapping[str, str]], *, same: bool = False) -> None:
    """Raise UserError, naming the distribution, where a foreign plug that a run was made with is not here.

    recorded: as `foreign` gives it. same: refuse one of another version or digest as well.
    """
    for told in recorded:
        plugs, name, source = KINDS.get(told["kind"]), told["name"], told["distribution"]
        what = f'{told["kind"]} "{printable(name)}"'
        if plugs is None or name not in plugs:
            if source == HERE:
                raise UserError(f"{what}: was added by the program that made this run, and is not known here")
            package = f"{printable(source)}=={printable(told['version'])}"
            raise UserError(f'{what}: comes from {package}, which is not installed here: pip install "{package}"')
        here = plugs.origin(name)
        if same and here != Origin(source, told["version"], told["digest"]):
            found = "ours" if here is None else f"version {printable(here.version)}, digest {printable(here.digest)}"
            raise UserError(
                f"{what}: the run was made with {printable(source)} {printable(told['version'])}, digest "
                f"{printable(told['digest'])}; here is {found}: install the same on every machine"
            )
