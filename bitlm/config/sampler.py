"""Which samplers there are, which options go with which, and how one is called in tables. Loads no torch.

The functions take a ``SamplerConfig`` or a ``bitlm.generation.Sampling``: the fields have the same names in both.
"""

from typing import Any, Literal

from pydantic import Field

from bitlm.config.frozen import Frozen

SamplerName = Literal["descent", "commit"]
Solver = Literal["euler", "dpmpp_2m"]
GuidanceForm = Literal["prediction", "logit", "token"]
TimeGrid = Literal["uniform", "shifted"]
VoidRule = Literal["clamp", "nearest"]
Order = Literal["left", "surest"]

OPTIONS: dict[SamplerName, tuple[str, ...]] = {
    "descent": (
        "num_steps",
        "solver",
        "guidance_low",
        "guidance_high",
        "time_grid",
        "time_shift",
        "stagger",
        "void",
    ),
    "commit": ("order", "slots_per_call", "threshold"),
}
"""Options of one sampler alone."""

GUIDANCE: dict[SamplerName, dict[str, Any]] = {
    "descent": {"guidance_scale": 9.0, "guidance_form": "prediction"},
    "commit": {"guidance_scale": 1.0, "guidance_form": "token"},
}


class SamplerConfig(Frozen):
    """How a diffusion head's block is realized; the defaults are the article's. An LM head uses ``temperature``."""

    sampler: SamplerName = Field(
        "descent", description="descent: K steps from noise to the signs of the code; commit: slots land on tokens"
    )
    guidance_scale: float | None = Field(
        None, ge=0, description="ω; 1 is no guidance; by default 9 for descent, 1 for commit"
    )
    guidance_form: GuidanceForm | None = Field(
        None,
        description="what is guided: the estimate of the code, the bits' log-odds or the tokens' log-probabilities; "
        "by default prediction for descent, token for commit, which has no other",
    )
    num_steps: int = Field(15, ge=1, description="descent: K")
    solver: Solver = Field("euler", description="descent: first order, or DPM-Solver++(2M), second order")
    guidance_low: float = Field(0.0, ge=0, le=1, description="descent: guide from this noise level t …")
    guidance_high: float = Field(1.0, ge=0, le=1, description="descent: … to this one")
    time_grid: TimeGrid = Field("uniform", description="descent: noise levels")
    time_shift: float = Field(3.0, gt=0, description="descent: of the shifted grid; 1 is the uniform one")
    stagger: float = Field(0.0, ge=0, le=1, description="descent: how much later each slot starts; 1: one by one")
    void: VoidRule = Field("clamp", description="descent: what a code of no token becomes")
    order: Order = Field("left", description="commit: which slots land next, the leftmost or the surest")
    slots_per_call: int = Field(1, ge=1, description="commit: slots that land in a call; divides model.block_size")
    threshold: float | None = Field(
        None, ge=0, le=1, description="commit: slots whose best token is more probable land too; by default none"
    )
    temperature: float = Field(0.0, ge=0, description="LM head, and commit; 0 takes the most probable token")

    def sampler_identity(self) -> dict[str, Any]:
        """The settings that decide what a diffusion head samples; those left open are resolved."""
        return identity(self)

    @property
    def sampler_name(self) -> str:
        return describe(self)


SAMPLER_KEYS = frozenset(SamplerConfig.model_fields)


def guidance(options: Any) -> tuple[float, GuidanceForm]:
    """ω and what it is applied to: those asked for, or the sampler's own."""
    own = GUIDANCE[options.sampler]
    scale, form = options.guidance_scale, options.guidance_form
    return (own["guidance_scale"] if scale is None else scale), form or own["guidance_form"]


def check(options: Any, prefix: str = "") -> None:
    """Raises ValueError where an option is given that the sampler does not have. One at its default never is.

    ``prefix`` (such as ``evaluate.``) stands before the names in the message.
    """
    other: SamplerName = "commit" if options.sampler == "descent" else "descent"
    for name in OPTIONS[other]:
        value = getattr(options, name)
        if value != SamplerConfig.model_fields[name].default:
            raise ValueError(
                f"{prefix}{name} = {value} goes with {prefix}sampler = {other}, not with {options.sampler}"
            )
    scale, form = guidance(options)
    if options.sampler == "commit" and form != "token":
        raise ValueError(
            f"{prefix}guidance_form = {form} goes with {prefix}sampler = descent; commit guides tokens: choose token"
        )
    if options.guidance_low > options.guidance_high:
        raise ValueError(
            f"{prefix}guidance_low = {options.guidance_low} is above {prefix}guidance_high = {options.guidance_high}"
        )
    if scale == 1 and (options.guidance_low, options.guidance_high) != (0, 1):
        raise ValueError(
            f"{prefix}guidance_low and {prefix}guidance_high go with guidance; {prefix}guidance_scale = 1 is none"
        )


def identity(options: Any) -> dict[str, Any]:
    """The options that decide what the sampler does, resolved. Two with the same values sample the same."""
    scale, form = guidance(options)
    found = {"sampler": options.sampler, "guidance_scale": scale}
    if scale != 1:
        found["guidance_form"] = form
    skipped = {"guidance_low", "guidance_high"} if scale == 1 else set()
    if options.time_grid == "uniform":
        skipped.add("time_shift")
    if options.sampler == "commit":
        found["temperature"] = options.temperature
    return found | {name: getattr(options, name) for name in OPTIONS[options.sampler] if name not in skipped}


def describe(options: Any) -> str:
    """A few words for tables: ``descent K=15 ω=9``, or ``commit left, 1 slot per call, greedy``."""
    return _descent(options) if options.sampler == "descent" else _commit(options)


def _descent(options: Any) -> str:
    words = [f"descent K={options.num_steps}"]
    if options.solver == "dpmpp_2m":
        words.append("2M")
    scale, form = guidance(options)
    if scale != 1:
        of = {"prediction": "", "logit": " of log-odds", "token": " of tokens"}[form]
        low, high = options.guidance_low, options.guidance_high
        where = "" if (low, high) == (0, 1) else f" for t in [{low:g}, {high:g}]"
        words.append(f"ω={scale:g}{of}{where}")
    if options.stagger:
        words.append(f"stagger {options.stagger:g}")
    if options.time_grid == "shifted":
        words.append(f"shift {options.time_shift:g}")
    if options.void != "clamp":
        words.append(f"void {options.void}")
    return " ".join(words)


def _commit(options: Any) -> str:
    s = options.slots_per_call
    words = [f"commit {options.order}", f"{s} slot{'s' if s > 1 else ''} per call"]
    if options.threshold is not None:
        words.append(f"sure above {options.threshold:g}")
    scale, _ = guidance(options)
    if scale != 1:
        words.append(f"ω={scale:g}")
    words.append(f"temperature {options.temperature:g}" if options.temperature else "greedy")
    return ", ".join(words)
