"""The escalation policy: a versioned TOML file, checked as it is read, and hashed into every answer.

| section | what it says |
|---|---|
| `format`, `name`, `version` | 1; what the file is called; counted up when it changes |
| `[hard]` | lanes and token count that always escalate; never shed, and decided before any score |
| `[confidence]`, `[margin]` | soft rules: a threshold each, and the method of its score |
| `[gain]` | what the calibrated gain of a fallback must exceed |
| `[budget]` | share of the requests that may escalate, over which window, observed or enforced |
| `[answer]` | which answer is final after a fallback: `last` or `blend` |
| `[chain]` | the tiers that are asked, in order |

A rule whose section is missing does not exist. Unknown keys are errors: a misspelt threshold must
not be a silent default. The shipped files are in `amn/policies/`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from amn.checked import Checked, check, checked, one_of
from amn.errors import ConfigError

FORMAT = 1
PRESETS_FOLDER = Path(__file__).parent / "policies"
DEFAULT = "calibrated"

TOP1, MEAN_TOP_K, DISTINCT, RAW = "top1", "mean_top_k", "distinct", "raw"
OBSERVE, ENFORCE, LAST, BLEND = "observe", "enforce", "last", "blend"
ACCURACY, SECONDARY = "accuracy", "secondary"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HardRules(Checked):
    """The rules that always escalate.

    Attributes:
        lanes: Rule `high_stakes_lane`.
        tokens_max: Rule `long_context`: more tokens than this. A request's `tokens` is what its
            producer counted: word pieces of the encoder's own tokenizer over the five texts together,
            without special tokens, before any truncation. 0 is unknown, and never fires.
    """

    section: ClassVar[str] = "hard."
    lanes: tuple[str, ...] = ()
    tokens_max: int = checked(lambda v: v > 0, "use a positive count of tokens", 384)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceRule(Checked):
    """Rule `low_confidence`.

    Attributes:
        below: Fires below this cosine.
        method: `top1`, the best cosine to the bank; or `mean_top_k`, the mean of the `k` best in a
            seeded sample of `sample_count` references.
    """

    section: ClassVar[str] = "confidence."
    below: float = checked(lambda v: -1 <= v <= 1, "use a cosine, -1 to 1")
    method: str = one_of(TOP1, MEAN_TOP_K)
    k: int = 50
    sample_count: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        check(0 < self.k <= self.sample_count, "confidence.k", self.k, "use 1 to sample_count")


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginRule(Checked):
    """Rule `thin_margin`.

    Attributes:
        below: Fires below this difference of the two best cosines.
        method: `distinct` compares two different texts: near-duplicates were merged when the bank
            was built. `raw` counts every source vector: the margin is 0 where the best reference
            stands for more than one.
    """

    section: ClassVar[str] = "margin."
    below: float = checked(lambda v: 0 <= v <= 2, "use a difference of cosines, 0 to 2")
    method: str = one_of(DISTINCT, RAW)


@dataclass(frozen=True, slots=True, kw_only=True)
class GainRule(Checked):
    """The use of the calibrated score.

    Attributes:
        min: A soft rule escalates only where the predicted gain is above this cosine.
        rule: True if a gain above `min` fires by itself, as `worth_escalating`.
    """

    section: ClassVar[str] = "gain."
    min: float = checked(lambda v: -2 <= v <= 2, "use a difference of cosines, -2 to 2", 0.0)
    rule: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRule(Checked):
    """The share of all completed requests that may escalate.

    Attributes:
        mode: `observe`: the rules win, and what is beyond the budget is counted. `enforce`: the
            best candidates within the budget, AMN answers the others.
        rate: Share over any window.    window_s: Length of the window.
        reserve: Share of the requests that soft rules leave unspent, for bursts of the hard ones.
        hard_rate: Share of the requests of a window that hard rules may escalate; beyond it, and beyond a
            hundred, AMN answers. So who sends everything in a hard lane leaves some to the others.
    """

    section: ClassVar[str] = "budget."
    mode: str = one_of(OBSERVE, ENFORCE)
    rate: float = checked(lambda v: 0 <= v <= 1, "use a share, 0 to 1", 0.20)
    reserve: float = 0.0
    hard_rate: float = checked(lambda v: 0 < v <= 1, "use a share above 0, up to 1", 1.0)
    window_s: int = checked(lambda v: 60 <= v <= 86_400, "use 60 to 86400", 3600)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        check(0 <= self.reserve <= self.rate, "budget.reserve", self.reserve, "use 0 to budget.rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRule(Checked):
    """The final answer: `last`, the last fallback's; `blend`, the calibrated combination."""

    section: ClassVar[str] = "answer."
    rule: str = one_of(LAST, BLEND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain(Checked):
    """The fallback tiers in order.

    Attributes:
        tiers: None, `accuracy`, or `accuracy` and `secondary`.
        agreement_min: The secondary tier is also asked when the answers so far have a smaller
            cosine than this; otherwise only when the accuracy tier could not answer.
    """

    section: ClassVar[str] = "chain."
    tiers: tuple[str, ...] = one_of((ACCURACY,), (ACCURACY, SECONDARY), ())
    agreement_min: float = checked(lambda v: -1 <= v <= 1, "use a cosine", -1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EscalationPolicy:
    """All rules of one file; the module's text says what each section is."""

    name: str
    version: int = 1
    hard: HardRules = field(default_factory=HardRules)
    confidence: ConfidenceRule | None = None
    margin: MarginRule | None = None
    gain: GainRule | None = None
    budget: BudgetRule = field(default_factory=BudgetRule)
    answer: AnswerRule = field(default_factory=AnswerRule)
    chain: Chain = field(default_factory=Chain)

    @property
    def needs_bank(self) -> bool:
        """True if a rule looks at the reference bank."""
        return self.confidence is not None or self.margin is not None

    @property
    def needs_calibration(self) -> bool:
        """True if a rule looks at the calibrated gain, or blends with its weights."""
        return self.gain is not None or self.answer.rule == BLEND

    @property
    def confidence_method(self) -> str:
        """The method of the confidence, stamped on answers; `none` where no bank was asked."""
        if self.confidence is None:
            return TOP1 if self.needs_bank else "none"
        if self.confidence.method == MEAN_TOP_K:
            return f"mean_top_{self.confidence.k}"
        return self.confidence.method

    @property
    def margin_method(self) -> str:
        """The method of the margin; `none` where no bank was asked."""
        return self.margin.method if self.margin else DISTINCT if self.needs_bank else "none"

    def policy_id(self, calibration_id: str = "") -> str:
        """`name@` and the hash of every value and of the calibration: stamped on each answer."""
        values = asdict(self) | {"calibration": calibration_id if self.needs_calibration else ""}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        return f"{self.name}@{digest[:12]}"


def presets() -> list[str]:
    """Names of the shipped policies."""
    return sorted(path.stem for path in PRESETS_FOLDER.glob("*.toml"))


def load_policy(name: str) -> EscalationPolicy:
    """A shipped policy by name, or one from a file.

    Raises:
        ConfigError: No such preset or file, or a value that cannot be; the text names it.
    """
    path = PRESETS_FOLDER / f"{name}.toml" if name in presets() else Path(name)
    if not path.is_file():
        known = ", ".join(presets())
        raise ConfigError(f"policy {name!r} is neither a preset ({known}) nor a file; `amn policy list`")
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy {name} cannot be read: {error}; give a TOML file in UTF-8") from error
    return parse_policy(text, str(name))


def parse_policy(text: str, source: str) -> EscalationPolicy:
    """The policy of a TOML text; `source` names it in errors.

    Raises:
        ConfigError: Not TOML, an unknown or missing key, or a value that cannot be.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # no TOML, a number of 5,000 digits, ten thousand brackets
        raise ConfigError(f"policy {source}: not TOML: {error}") from error
    try:
        form = table.pop("format", None)
        if form != FORMAT:
            raise ConfigError(f"format is {form!r}; this version reads format = {FORMAT}")
        return _section(EscalationPolicy, table, "")
    except ConfigError as error:
        raise ConfigError(f"policy {source}: {error}") from error


def _section(kind: type[_T], table: Any, where: str) -> _T:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {table!r}; make it a section, [{where}]")
    prefix, types = f"{where}." if where else "", get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ConfigError(f"{prefix}{key} is not known; known here: {', '.join(known)}")
    for name, f in known.items():
        if name not in table and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{prefix}{name} is missing")
    return kind(**{key: _value(prefix + key, types[key], value) for key, value in table.items()})


def _value(where: str, kind: Any, value: Any) -> Any:
    """Reads a value by the type of its field: a section, a tuple of text, or a plain value."""
    section: Any = next(filter(is_dataclass, (kind, *get_args(kind))), None)
    if section is not None:
        return _section(section, value, where)
    if kind == tuple[str, ...]:
        good = isinstance(value, list) and all(isinstance(item, str) for item in value)
        check(good, where, value, "use a list of text")
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    check(type(value) is kind, where, value, f"use {kind.__name__}")
    return value
