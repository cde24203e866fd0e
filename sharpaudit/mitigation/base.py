"""One contract for every method that suppresses a copy while a picture is made, without a touch of the weights.

A method is given a case: prompts, the noise that their pictures begin with, guidance, solver. It says what is to be
done instead: another noise, another conditioning, a hand on every step; and what that took. Pictures are then drawn as
all pictures are. So an unmitigated picture and a mitigated one differ by the method alone.

Evaluations are those of the network for one picture. A gradient counts as two beside the forward pass that it goes
back through. What suppresses does not remove: the weights stay what they are.

Shapes: B pictures of a batch, C H W latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import torch

from sharpaudit.batching import in_batches
from sharpaudit.denoisers.base import Conditioning, Denoiser
from sharpaudit.denoisers.decoding import decoded
from sharpaudit.denoisers.sampling import DDIM, Guided, Solver, Step, follow, times
from sharpaudit.errors import Status, UserError
from sharpaudit.images import Pixels

MOST_STRENGTHS = 4
"""Of a method. Whoever takes the first that shows no copy has so many chances to be lucky, which bounds allow for."""
BACKWARD = 2
"""Evaluations that a gradient counts for, beside those of its forward pass."""


@dataclass(frozen=True)
class Case:
    """What is to be drawn. prompts: one a picture. x_T: float32, with shape (B, C, H, W). seed: of random choices,
    which are named by prompt and `names`, one a picture. embedded: what stands for the prompts, a row each, where that
    is not what they are encoded as (attack.py)."""

    denoiser: Denoiser
    prompts: Sequence[str]
    x_T: torch.Tensor
    names: Sequence[int]
    guidance: float = 5.0
    steps: int = 25
    solver: Solver = DDIM
    seed: int = 0
    embedded: Conditioning | None = None

    def part(self, rows: Sequence[int]) -> Case:
        """The case of some rows."""
        own, names = [self.prompts[i] for i in rows], [self.names[i] for i in rows]
        embedded = None if self.embedded is None else self.embedded.select(rows)
        return replace(self, prompts=own, x_T=self.x_T[list(rows)], names=names, embedded=embedded)


@dataclass
class Steered:
    """What a method makes of a case. watch: sees every step before it is taken, and may change it. evaluations: of each
    picture, beside those of the drawing; () for none. reached: whether the method came to where it stops; None where it
    has no such place. told: numbers of each picture, by name. A watch may write into both while a picture is drawn."""

    conditioning: Conditioning
    unconditional: Conditioning
    x_T: torch.Tensor
    watch: Callable[[Step], object] | None = None
    evaluations: Sequence[float] = ()
    reached: list[bool] | None = None
    told: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Mitigated:
    """A picture (H_px, W_px, 3), uint8, and what it took; see Steered."""

    picture: Pixels
    evaluations: float
    reached: bool | None
    told: Mapping[str, float]


class Method(ABC):
    """source: where it was published."""

    source: str

    def refusal(self, denoiser: Denoiser) -> str | None:
        """Why this model cannot be steered so; None where it can."""
        return None

    @abstractmethod
    def steer(self, case: Case) -> Steered:
        """What is to be done instead. Rows are independent of each other. Of a model that it does not refuse."""


@dataclass(frozen=True)
class Aimed(Method):
    """A method that brings a value down until it is at most `aim`, or takes all of its steps where that is None.

    target: what harmless prompts have, say. of_target: the share of it that is aimed at; less is stronger.
    """

    target: float | None = None
    of_target: float = field(default=1.0, kw_only=True)

    @property
    def aim(self) -> float | None:
        """Where it stops."""
        return None if self.target is None else self.target * self.of_target

    @abstractmethod
    def values(self, case: Case) -> list[float]:
        """The value of each row as it is: of harmless prompts, what a target is taken from."""


@dataclass(frozen=True)
class Unmitigated(Method):
    """Nothing: the control of every comparison."""

    source = "the control"

    def steer(self, case: Case) -> Steered:
        """The case as it is."""
        return plain(case)


@dataclass(frozen=True)
class Mitigation:
    """A method as it is offered: a plug (plugs.py).

    method: at a middle strength. varied: its field that tells strengths apart, whose values `strengths` are, from weak
    to strong; "" where it has one strength.
    """

    name: str
    method: Method
    varied: str = ""
    strengths: tuple[float, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        fields = getattr(type(self.method), "__dataclass_fields__", {})
        fits = (
            self.varied in fields and 0 < len(self.strengths) <= MOST_STRENGTHS if self.varied else not self.strengths
        )
        if not fits:
            raise ValueError(
                f"mitigation {self.name!r}: `varied` must be a field of its method, a frozen dataclass, with one to "
                f"{MOST_STRENGTHS} strengths, or both must be left out"
            )

    def aimed(self, target: float | None) -> Mitigation:
        """The same with a target, where the method has such a thing."""
        return replace(self, method=replace(self.method, target=target)) if isinstance(self.method, Aimed) else self

    def rungs(self) -> list[tuple[str, Method]]:
        """The method at each strength, from weak to strong, and what is set there: "share = 0.5"."""
        if not self.varied:
            return [("", self.method)]
        return [
            (f"{self.varied} = {value:g}", replace(self.method, **{self.varied: value}))  # type: ignore[type-var]
            for value in self.strengths
        ]


def plain(case: Case) -> Steered:
    """The case as it is, for a method to change."""
    denoiser, n = case.denoiser, len(case.prompts)
    with torch.no_grad():
        conditioning = denoiser.encode(case.prompts) if case.embedded is None else case.embedded
        return Steered(conditioning, denoiser.unconditional(n), case.x_T.clone(), evaluations=[0.0] * n)


def mitigate(method: Method, case: Case, batch_size: int) -> list[Mitigated | Status]:
    """A picture for each row of the case, or why there is none. batch_size: pictures at a time; halved by itself where
    they do not fit the memory. Raises UserError where the method refuses the model."""

    def some(rows: list[int]) -> list[Mitigated | Status]:
        return _drawn(method, case.part(rows))

    return in_batches(some, range(len(case.prompts)), batch_size)


def _drawn(method: Method, case: Case) -> list[Mitigated | Status]:
    refused = method.refusal(case.denoiser)
    if refused is not None:
        raise UserError(refused)
    steered = method.steer(case)
    with torch.no_grad():
        model = Guided(case.denoiser, steered.conditioning, steered.unconditional, case.guidance)
        x_T = steered.x_T.detach().to(case.denoiser.device)
        steps = case.solver.steps(model, x_T, times(case.denoiser, case.steps))
        pictures = decoded(case.denoiser, follow(steps, steered.watch))
    drawing = case.solver.evaluations(case.steps)
    return [
        picture
        if isinstance(picture, Status)
        else Mitigated(
            picture,
            (steered.evaluations[i] if steered.evaluations else 0.0) + drawing,
            None if steered.reached is None else steered.reached[i],
            {name: values[i] for name, values in steered.told.items()},
        )
        for i, picture in enumerate(pictures)
    ]


class Difference:
    """delta_x0 of a case where the screen looks, as a function of x: two evaluations a row.

    That is one time of the model (981 of 1,000 for Stable Diffusion), whatever the steps of a picture, so that values
    are those of the screen. x: standard normal noise, as a picture begins with; `level.scale` times it is evaluated.
    """

    def __init__(self, case: Case, conditioning: Conditioning, unconditional: Conditioning) -> None:
        self._denoiser, self._parts = case.denoiser, (conditioning, unconditional)
        self.t = case.denoiser.first_timestep()
        self.level = case.denoiser.level(self.t)

    def noisy(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """What is evaluated for noise."""
        return self.level.scale * x_BCHW

    def part(self, rows: Sequence[int]) -> Difference:
        """That of some rows."""
        made = copy(self)
        with_prompt, without = self._parts
        made._parts = with_prompt.select(rows), without.select(rows)
        return made

    def __call__(self, noisy_BCHW: torch.Tensor) -> torch.Tensor:
        """x0_hat with the prompt less that without, (B, C, H, W)."""
        both = Conditioning.stack(self._parts)
        found = self._denoiser.predict(torch.cat([noisy_BCHW, noisy_BCHW]), self.t, both).x0_hat
        with_prompt, without = found.chunk(2)
        return with_prompt - without

    def eps(self, noisy_BCHW: torch.Tensor) -> torch.Tensor:
        """The same of the noise predictions."""
        return -(self.level.a / self.level.sigma) * self(noisy_BCHW)


def norms(values_BCHW: torch.Tensor) -> torch.Tensor:
    """Of each row, (B,)."""
    found: torch.Tensor = torch.linalg.vector_norm(values_BCHW.flatten(1), dim=1)
    return found


def along(values_BCHW: torch.Tensor) -> torch.Tensor:
    """Each row by its own length, which may be zero."""
    sizes_B = norms(values_BCHW).clamp_min(torch.finfo(torch.float32).tiny)
    return values_BCHW / sizes_B[:, None, None, None]


NONE = Mitigation("none", Unmitigated())
